"""The loop within one process: what a step that is not finite leaves, what the log says, bfloat16, data processes."""

import json
import math
import multiprocessing
import os
import sys
import types
from dataclasses import replace
from itertools import chain, pairwise

import pytest
import torch

from larpanda.data.stream import Stream
from larpanda.data.views import Augmentation
from larpanda.event import PointBatch
from larpanda.model.bundle import Model, ModelConfig
from larpanda.model.panoptic import PanopticConfig
from larpanda.model.semantic import SemanticLossConfig
from larpanda.train.journal import Journal
from larpanda.train.loader import Share, inputs
from larpanda.train.loop import fit
from larpanda.train.motifs import Motifs
from larpanda.train.optim import (
    OptimConfig,
    learning_rate,
    make_optimizer,
    set_learning_rate,
    set_weight_decay,
    weight_decay,
)
from larpanda.train.run import claimed
from larpanda.train.supervised import Supervised
from larpanda.train.tasks import LabelledBatches, Losses


@pytest.fixture
def events(make_cloud):
    return [make_cloud(80, seed=s) for s in range(7)]


def learning(model, events):
    return Supervised(model, {"semantic": Motifs(model.semantic, SemanticLossConfig(0.5))}, Augmentation(), events)


class Poisoned:
    """A task whose loss or gradient is not finite at some steps, and which knows what it was asked."""

    def __init__(self, config, events, steps, poison="loss"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.task = learning(Model(config.model), events[5:])
        self.model, self.batch, self.poison = self.task.model, self.task.batch, poison
        self.progress = [step / config.steps for step in steps]
        self.weights, self.after = {}, []

    def loss(self, batch, progress):
        self.weights[progress] = bits(self.model)
        losses = self.task.loss(batch, progress)
        if progress not in self.progress:
            return losses
        if self.poison == "loss":
            return Losses(losses.total * float("nan"), losses.parts)
        # the loss is finite, its gradient is not
        weight = next(self.model.parameters())
        return Losses(losses.total + (weight - weight.detach()).abs().sqrt().sum(), losses.parts)

    def after_step(self, progress):
        self.after.append(progress)

    def alarm(self, record):
        return None

    def evaluate(self):
        return {}


def bits(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(config, events, run, steps=(), poison="loss", live=None):
    run.mkdir(exist_ok=True)
    task, said = Poisoned(config, events, steps, poison), []
    try:
        fit(task, events[:5], config, run, said.append, live)
    except FloatingPointError as error:
        said.append(error)
    return task, said, [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_not_taken(events, tiny_run, tmp_path, poison):
    task, said, log = trained(tiny_run, events, tmp_path / "run", [2, 5], poison)
    steps = [line for line in log if "loss" in line]
    assert [line["skipped"] for line in steps] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert [line["step"] for line in steps if "events" in line] == [3, 6]
    stream = Stream(5, tiny_run.batch_events, tiny_run.seed)
    assert steps[2]["events"] == stream.ordinals(2).tolist()
    assert f"events {stream.ordinals(5).tolist()}; not taken (2 so far)" in " ".join(map(str, said))
    assert (steps[2]["loss"] is None) == (poison == "loss")
    assert steps[2]["gradient"] is None  # NaN is not JSON
    weights = list(task.weights.values())
    unchanged = [torch.equal(a, b) for a, b in pairwise(weights)]
    assert unchanged == [False, False, True, False, False, True, False]
    assert task.after == [step / 8 for step in (0, 1, 3, 4, 6, 7)]


def test_three_in_a_row_end_the_run_with_a_good_checkpoint(events, tiny_run, tmp_path):
    task, said, log = trained(tiny_run, events, tmp_path / "run", [4, 5, 6])
    assert isinstance(said[-1], FloatingPointError)
    stream = Stream(5, tiny_run.batch_events, tiny_run.seed)
    assert f"step 6: loss nan, gradient nan, events {stream.ordinals(6).tolist()}; 3 steps in a row" in str(said[-1])
    assert [line["step"] for line in log if "events" in line] == [5, 6, 7]
    again, said, _ = trained(tiny_run, events, tmp_path / "run", [6])  # the two before the checkpoint still count
    assert isinstance(said[-1], FloatingPointError)
    assert list(again.weights) == [6 / 8]
    assert torch.equal(again.weights[6 / 8], task.weights[4 / 8])
    assert again.weights[6 / 8].isfinite().all()


def test_the_log_has_a_line_a_step_with_all_that_is_known(events, tiny_run, tmp_path):
    config = replace(tiny_run, optim=OptimConfig(weight_decay=0.04, final_weight_decay=0.4))
    lines = []
    _, said, log = trained(config, events, tmp_path / "run", live=lines.append)
    steps = [line for line in log if "loss" in line]
    expected = "step loss accuracy lr weight_decay gradient skipped seconds waited events_per_s points_per_s eta_s"
    assert all(list(line) == expected.split() for line in steps)
    assert [line["step"] for line in steps] == list(range(1, 9))
    for step, line in enumerate(steps):
        assert line["lr"] == learning_rate(config.optim, step / 8)
        assert line["weight_decay"] == weight_decay(config.optim, step / 8)
        assert 0 <= line["waited"] <= 1
        points = line["points_per_s"] / line["events_per_s"]
        assert points == pytest.approx(80, rel=0.01)  # of each event, all above threshold
    assert steps[-1]["eta_s"] == 0
    assert [line.split()[1] for line in lines] == [f"{n}/8" for n in range(1, 9)]
    assert not any("to go" in line for line in said)


def test_lines_that_cannot_be_written_wait(tmp_path):
    said = []
    path = tmp_path / "metrics.jsonl"
    journal = Journal(tmp_path, 0, said.append)
    journal.write({"step": 1})
    path.rename(tmp_path / "kept")
    path.mkdir()  # nobody can append to that
    for step in (2, 3):
        journal.write({"step": step, "loss": math.inf})
    assert len(said) == 1
    with pytest.raises(IsADirectoryError):
        journal.close()
    path.rmdir()
    (tmp_path / "kept").rename(path)
    journal.write({"step": 4})
    journal.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1}, {"step": 2, "loss": None}, {"step": 3, "loss": None}, {"step": 4},
    ]  # fmt: skip


def test_tensorboard_that_is_not_there_is_said(events, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        trained(replace(tiny_run, tensorboard=True), events, tmp_path / "run")


def test_tensorboard_gets_what_the_log_has(events, tiny_run, tmp_path, monkeypatch):
    got = []

    class Writer:
        def __init__(self, folder, purge_step):
            assert (folder, purge_step) == (str(tmp_path / "run/tensorboard"), 1)

        def add_scalar(self, name, value, step):
            got.append((step, name, value))

        def close(self):
            got.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    _, _, log = trained(replace(tiny_run, tensorboard=True), events, tmp_path / "run")
    assert [one[2] for one in got if one[1] == "loss"] == [line["loss"] for line in log if "loss" in line]
    assert got[-1] == "closed"


def test_bfloat16_changes_loss_and_gradient_by_its_rounding(events, tiny_model):
    """autocast of the CPU follows the same rules as that of CUDA, which training uses."""
    task = learning(tiny_model, events)
    make = LabelledBatches(Augmentation(), 0.13, task.batch.n_draws)
    batch = make(events[:3], [Stream(7, 3, 0).generator(0, place) for place in range(3)], 0.0)
    found = {}
    for enabled in (False, True):
        tiny_model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = task.loss(batch, 0.0)
        losses.total.backward()
        assert losses.total.dtype == torch.float32
        assert all(p.grad.dtype == torch.float32 for p in tiny_model.parameters() if p.grad is not None)
        found[enabled] = losses.total.item(), torch.cat([p.grad.flatten() for p in tiny_model.parameters()])
    assert found[True][0] == pytest.approx(found[False][0], rel=0.02)
    assert found[True][0] != found[False][0]
    similarity = torch.cosine_similarity(found[True][1], found[False][1], dim=0)
    assert similarity > 0.98


def test_panoptic_heads_run_in_bfloat16(make_cloud, tiny_run):
    torch.manual_seed(0)
    model = Model(ModelConfig(tiny_run.model.encoder, particle=PanopticConfig()))
    with torch.autocast("cpu", torch.bfloat16):
        model.particle(model.encoder(PointBatch.pack([make_cloud(80), make_cloud(50, seed=1)])))


class Ordinals:
    """Makes batches of the numbers of events. Can be sent to processes."""

    def size(self, event):
        return len(event)

    def __call__(self, events, rngs, progress):
        return [(int(event), rng.integers(1 << 30)) for event, rng in zip(events, rngs, strict=True)], progress


class Numbered:
    """Events that are their numbers; some trouble may wait at one of them. Can be sent to processes."""

    def __init__(self, n, trouble=None, at=None):
        self.n, self.trouble, self.at = n, trouble, at

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index == self.at:
            if self.trouble is None:
                os._exit(9)
            raise self.trouble
        return Number(index)


class Number(int):
    def __len__(self):
        return 10 + self % 7


@pytest.mark.parametrize(("begin", "workers"), [(0, 2), (4, 1), (6, 1)])
def test_processes_give_the_batches_that_this_one_would(begin, workers):
    share = Share(Numbered(11), Stream(11, 5, 3), Ordinals(), 6, rank=1, world=2)
    expected = [share[step] for step in range(begin, 6)]
    assert list(inputs(share, begin, 0)) == expected
    assert list(inputs(share, begin, workers)) == expected


def test_the_shares_of_a_step_are_its_batch():
    for world in (1, 2, 3, 5):
        parts = [Share(Numbered(11), Stream(11, 5, 3), Ordinals(), 6, rank, world)[4][0] for rank in range(world)]
        whole = Share(Numbered(11), Stream(11, 5, 3), Ordinals(), 6)[4][0]
        assert sorted(chain(*parts)) == sorted(whole)


def test_an_event_that_cannot_be_read_is_the_same_error_from_a_process():
    share = Share(Numbered(11, ValueError("file.h5: event 3 is cut short"), 3), Stream(11, 5, 3), Ordinals(), 6)
    with pytest.raises(ValueError, match=r"^file\.h5: event 3 is cut short$") as error:
        list(inputs(share, 0, 1))
    assert not multiprocessing.active_children()  # although the error's trace is kept: at its end Python waits for them
    assert error.traceback


def test_a_process_that_dies_is_an_error_and_no_hang():
    share = Share(Numbered(11, at=3), Stream(11, 5, 3), Ordinals(), 6)
    with pytest.raises(
        ChildProcessError, match=r"a process that makes batches died .*goes on from the last checkpoint"
    ) as error:
        list(inputs(share, 0, 2))
    assert not multiprocessing.active_children()
    assert error.traceback


def test_what_is_not_read_to_the_end_leaves_no_process():
    share = Share(Numbered(11), Stream(11, 5, 3), Ordinals(), 6)
    made = inputs(share, 0, 1)
    next(made)
    assert multiprocessing.active_children()
    made.close()
    assert not multiprocessing.active_children()


def test_weight_decay_goes_along_a_cosine():
    config = OptimConfig(weight_decay=0.04, final_weight_decay=0.2)  # DINOv2
    assert [weight_decay(config, p) for p in (0, 0.5, 1)] == pytest.approx([0.04, 0.12, 0.2])
    assert weight_decay(config, 1 / 3) == pytest.approx(0.04 + 0.16 * 0.25)
    assert {weight_decay(OptimConfig(weight_decay=0.04), p) for p in (0, 0.3, 1)} == {0.04}


def test_what_does_not_decay_and_rates_within_a_student():
    block = torch.nn.ModuleList([torch.nn.ModuleList([torch.nn.Linear(2, 2)])])
    model = torch.nn.ModuleDict(
        {
            part: torch.nn.ModuleDict(
                {"encoder": torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([*block, *block])})}
            )
            for part in ("student", "teacher")
        }
    )
    model["teacher"].requires_grad_(False)
    model["student"].prototypes = torch.nn.Parameter(torch.ones(3, 2))
    model["student"].encoder = torch.nn.ParameterDict({"mask_token": torch.nn.Parameter(torch.ones(1, 2))})
    model["student"].head = torch.nn.ModuleDict({"prototypes": torch.nn.Linear(2, 3, bias=False)})
    optimizer = make_optimizer(model["student"], OptimConfig(weight_decay=0.1))
    set_weight_decay(optimizer, 0.2)
    set_learning_rate(optimizer, 0.5)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model["student"].named_parameters())
    assert {name for name, p in named.items() if decay[id(p)] == 0.0} == {
        name for name in named if "prototypes" in name or "mask_token" in name or name.endswith("bias")
    }
    assert all(group["lr"] == 0.5 for group in optimizer.param_groups)


@pytest.mark.parametrize("change", [{"weight_decay": -1.0}, {"final_weight_decay": -0.1}, {"clip": 0.0}])
def test_impossible_optimizers(change):
    with pytest.raises(ValueError, match="optim: "):
        OptimConfig(**change)


def test_a_folder_is_claimed_by_one_run(tmp_path):
    record = {"config": {"steps": 3, "workers": 0, "optim": {"betas": (0.9, 0.99)}}, "data": ["a"]}
    with claimed(tmp_path / "run", record), pytest.raises(ValueError, match="another process is at work"):
        claimed(tmp_path / "run", record).__enter__()
    with claimed(tmp_path / "run", {**record, "config": {**record["config"], "workers": 4}}):
        pass
    message = r"config\.steps 3 there, 4 here, data \[\"a\"\] there, \[\"b\"\] here"
    with pytest.raises(ValueError, match=message):
        claimed(tmp_path / "run", {"config": {**record["config"], "steps": 4}, "data": ["b"]}).__enter__()
    (tmp_path / "run/config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        claimed(tmp_path / "run", record).__enter__()
