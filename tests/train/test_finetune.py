"""Runs: the same bytes again, from any interruption, or an error that says why not."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from larpanda.event import Event
from larpanda.model.bundle import load_bundle
from larpanda.train.checkpoint import NoCheckpointError, damage
from larpanda.train.finetune import finetune
from larpanda.train.optim import OptimConfig, learning_rate, make_optimizer
from larpanda.train.recipes import panda_semantic


@pytest.fixture
def events(make_cloud):
    return [make_cloud(80, seed=s) for s in range(7)]


def run(events, config, folder, said=None, start=None):
    say = said.append if said is not None else lambda line: None
    return finetune(["semantic"], events, config, folder, sources=["clouds"], start=start, device="cpu", say=say)


def weights(bundle):
    return (bundle / "model.safetensors").read_bytes()


class KilledError(Exception):
    pass


class Trap(list):
    """Events of which one kills the run when it is read for the n-th time."""

    def __init__(self, events, reads):
        super().__init__(events)
        self.reads = reads

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Trap(super().__getitem__(index), self.reads) if index.stop else super().__getitem__(index)
        self.reads -= 1
        if self.reads < 0:
            raise KilledError
        return super().__getitem__(index)


def test_same_seed_same_bytes_and_another_seed_others(events, tiny_run, tmp_path):
    first, again = (run(events, tiny_run, tmp_path / name) for name in "ab")
    other = run(events, replace(tiny_run, seed=1), tmp_path / "c")
    assert weights(first) == weights(again)
    assert weights(first) != weights(other)
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in "ab"]
    losses = [[json.loads(line).get("loss") for line in log] for log in logs]
    assert losses[0] == losses[1]
    assert len([loss for loss in losses[0] if loss is not None]) == tiny_run.steps


@pytest.mark.parametrize("reads", [2 + 5, 2 + 10, 2 + 13])
def test_a_killed_run_ends_as_if_it_had_not_been(events, tiny_run, tmp_path, reads):
    whole = run(events, tiny_run, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(Trap(events, reads), tiny_run, tmp_path / "killed")
    resumed = run(events, tiny_run, tmp_path / "killed")
    assert weights(resumed) == weights(whole)
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    losses = [[(json.loads(line)["step"], json.loads(line).get("loss")) for line in log] for log in logs]
    assert losses[0] == losses[1]


def test_a_run_whose_checkpoints_are_gone_does_not_start_over(events, tiny_run, tmp_path):
    run(events, tiny_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/bundle")
    shutil.rmtree(tmp_path / "run/checkpoints")
    log = (tmp_path / "run/metrics.jsonl").read_bytes()
    with pytest.raises(NoCheckpointError, match="8 steps are logged, but there is no checkpoint"):
        run(events, tiny_run, tmp_path / "run")
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == log


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(events, tiny_run, tmp_path):
    whole = run(events, tiny_run, tmp_path / "run")
    expected = weights(whole)
    shutil.rmtree(whole)
    newest = tmp_path / "run/checkpoints/step-00000008"
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    assert damage(newest) == "model.safetensors differs from its manifest"
    said = []
    assert weights(run(events, tiny_run, tmp_path / "run", said)) == expected
    assert any("set aside as step-00000008.damaged" in line for line in said)
    assert any("going on from step 6" in line for line in said)


def test_no_whole_checkpoint_is_an_error_not_a_new_start(events, tiny_run, tmp_path):
    run(events, tiny_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/bundle")
    for folder in (tmp_path / "run/checkpoints").iterdir():
        (folder / "MANIFEST.json").unlink()
    with pytest.raises(ValueError, match="none of 3 checkpoints is whole"):
        run(events, tiny_run, tmp_path / "run")


def test_another_configuration_in_the_same_folder_is_refused(events, tiny_run, tmp_path):
    run(events, tiny_run, tmp_path / "run")
    with pytest.raises(ValueError, match="a run of another configuration"):
        run(events, replace(tiny_run, steps=9), tmp_path / "run")


def test_a_run_goes_on_from_a_bundle(events, tiny_run, tmp_path):
    first = run(events, tiny_run, tmp_path / "first")
    still = replace(tiny_run, steps=1, optim=OptimConfig(lr=1e-12))
    second = run(events, still, tmp_path / "second", start=str(first))
    a, b = (load_bundle(folder).model.state_dict() for folder in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns(events, tiny_run, tmp_path):
    """A few events whose energies tell the motifs apart."""
    easy = []
    for event in events:
        energy = 0.2 * 2.0 ** event.motif.float()
        names = ("motif", "species", "particle", "interaction")
        easy.append(Event(event.position, energy, *(getattr(event, name) for name in names)))
    plain = replace(tiny_run, steps=60, evaluate_every=60, save_every=60)
    run(easy, replace(plain, augmentation=replace(plain.augmentation, charge_scale=0.0)), tmp_path / "run")
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["validation_macro_f1"] > 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [({"validation_events": 7}, "none to train on"), ({"steps": 0}, "at least 1")],
)
def test_impossible_runs(events, tiny_run, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run(events, replace(tiny_run, **change), tmp_path / "run")


def test_events_without_truth_are_refused(tiny_run, tmp_path):
    bare = [Event.from_arrays([[1, 2, 3], [2, 2, 3]], [1.0, 1.0])] * 7
    with pytest.raises(ValueError, match="no motif labels"):
        run(bare, tiny_run, tmp_path / "run")


def test_the_schedule_of_the_paper():
    """5 % linear warm-up, cosine decay to a thousandth (paper section 3.5)."""
    config = panda_semantic().optim
    assert learning_rate(config, 0.05) == pytest.approx(2.6e-3)
    assert learning_rate(config, 0.025) == pytest.approx(2.6e-3 * 0.55)
    assert learning_rate(config, 1.0) == pytest.approx(2.6e-6)
    assert learning_rate(config, 0.525) == pytest.approx(2.6e-3 * (0.5 + 0.0005), rel=1e-3)


def test_groups_of_the_paper(tiny_model):
    """Biases and norms do not decay; an encoder block learns 0.9 times as fast as the next (paper section 3.5)."""
    optimizer = make_optimizer(tiny_model, OptimConfig(weight_decay=0.04, layer_decay=0.9))
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    named = dict(tiny_model.named_parameters())
    assert len(of) == len(named)
    for name, parameter in named.items():
        plain = parameter.ndim < 2
        assert of[id(parameter)]["weight_decay"] == (0.0 if plain else 0.04), name
    blocks = [f"encoder.blocks.{s}.{b}.qkv.weight" for s, b in ((0, 0), (0, 1), (1, 0), (2, 0))]
    assert [of[id(named[name])]["scale"] for name in blocks] == pytest.approx([0.9**3, 0.9**2, 0.9, 1.0])
    assert of[id(named["semantic.linear.weight"])]["scale"] == 1.0
