"""Pre-training runs: no truth is read, the same bytes again, an encoder to fine-tune; and the linear probe."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import KILLED, in_processes
from processes import _command_line as command_line
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

import larpanda
from larpanda.data.views import ViewConfig
from larpanda.event import Event, Motif
from larpanda.model.backbone import Encoder, EncoderConfig
from larpanda.model.bundle import load_bundle
from larpanda.model.distill import DistillConfig, SelfDistillation
from larpanda.train.finetune import finetune
from larpanda.train.optim import OptimConfig, learning_rate, make_optimizer, weight_decay
from larpanda.train.pretrain import pretrain
from larpanda.train.probing import ProbeConfig, features, probe_motifs
from larpanda.train.recipes import PretrainConfig, panda_pretrain

ENCODER = EncoderConfig((16, 16), (1, 1), window=32, layer_scale=0.5, drop_path=0.2, mask_token=True)


@pytest.fixture
def config():
    return PretrainConfig(
        encoder=ENCODER,
        steps=6,
        batch_events=2,
        optim=OptimConfig(lr=3e-3, weight_decay=0.04, final_weight_decay=0.2, clip=3.0, layer_decay=0.9),
        views=ViewConfig(n_local=2, mask_voxels=(5.0, 8.0)),
        distill=DistillConfig(prototypes=16, width=8, hidden=16, level=1),
        probe=ProbeConfig(2, 1, 2, 200),
        save_every=2,
        evaluate_every=3,
    )


@pytest.fixture
def events(make_cloud):
    return [make_cloud(80, seed=s) for s in range(5)]


def stripped(events):
    return [Event.from_arrays(event.position.numpy(), event.energy.numpy()) for event in events]


def run(events, config, folder, probe=()):
    return pretrain(
        events,
        config,
        folder,
        sources=["clouds"],
        probe_events=probe,
        probe_sources=["labelled"] if probe else [],
        device="cpu",
        say=lambda line: None,
    )


def weights(bundle):
    return (bundle / "model.safetensors").read_bytes()


def losses(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def test_truth_is_never_read(events, config, tmp_path):
    """The same bytes from events without any label, and with the probe, which is the only one to look at labels."""
    with_truth = run(events, config, tmp_path / "a")
    without = run(stripped(events), config, tmp_path / "b")
    probed = run(stripped(events), config, tmp_path / "c", probe=events)
    assert weights(with_truth) == weights(without) == weights(probed)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    other = run(events, replace(config, seed=1), tmp_path / "d")
    assert weights(other) != weights(with_truth)


def test_the_log_has_what_a_person_watches(events, config, tmp_path):
    run(events, config, tmp_path / "run", probe=events)
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    wanted = {"local", "mask", "entropy", "kl", "matched_local", "matched_mask", "usage", "perplexity", "spread_0"}
    wanted |= {"spread_1", "temperature", "momentum", "mask_ratio", "mask_voxels", "gradient", "lr", "weight_decay"}
    assert wanted <= steps[0].keys()
    for record in steps:
        assert record["entropy"] + record["kl"] == pytest.approx(record["loss"], rel=1e-4)
        assert 0.5 * record["local"] + 0.5 * record["mask"] == pytest.approx(record["loss"], rel=1e-4)
        assert 0 < record["usage"] <= 1
        assert 1 <= record["perplexity"] <= 16
    probes = [record for record in records if "validation_macro_f1" in record]
    assert [record["step"] for record in probes] == [3, 6]


def test_a_collapse_is_in_the_log_and_is_said(events, config, tmp_path):
    """A teacher so warm that its targets are flat."""
    hot = replace(config, steps=60, evaluate_every=60, save_every=60)
    hot = replace(hot, distill=replace(config.distill, teacher_temperature=(100.0, 100.0)))
    said = []
    pretrain(events, hot, tmp_path / "run", sources=["clouds"], device="cpu", say=said.append)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    alarms = [line["alarm"] for line in lines if "alarm" in line]
    assert any(alarm.startswith("uniform collapse: h(q)") for alarm in alarms)
    assert any("uniform collapse: h(q)" in line for line in said)


def test_the_encoder_is_the_teachers_and_can_be_fine_tuned(events, config, tiny_run, tmp_path):
    bundle = load_bundle(run(events, config, tmp_path / "run"))
    assert not bundle.model.config.encoder.mask_token
    assert bundle.model.semantic is None
    assert bundle.provenance["task"] == "pretrain"
    still = replace(tiny_run, steps=1, optim=OptimConfig(lr=1e-12))
    fine = finetune(
        ["semantic"],
        events,
        still,
        tmp_path / "fine",
        sources=["x"],
        start=str(tmp_path / "run"),
        device="cpu",
        say=print,
    )
    ours, theirs = bundle.model.encoder.state_dict(), load_bundle(fine).model.encoder.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"workers": -1}, "workers is -1"),
        ({"views": ViewConfig(remove_masked=True)}, "set distill.masked_only=false"),
        ({"encoder": replace(ENCODER, mask_token=False)}, "mask_token must be true"),
    ],
)
def test_impossible_configurations(config, change, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **change)


def test_too_few_events(events, config, tmp_path):
    with pytest.raises(ValueError, match="no events to learn from"):
        run([], config, tmp_path / "run")
    with pytest.raises(ValueError, match="4 events; the probe takes 5"):
        run(events, config, tmp_path / "run", probe=events[:4])
    with pytest.raises(ValueError, match="no motif labels"):
        run(events, config, tmp_path / "run", probe=stripped(events))
    assert not (tmp_path / "run").exists()


def test_the_recipe_is_the_papers():
    """Sections 3.1.2, 3.3 and 3.5, number by number; schedules at 0, 2.5, 5, 50 and 100 %."""
    config = panda_pretrain()
    assert config.steps * config.batch_events == pytest.approx(10e6, rel=1e-5)
    assert config.batch_events == 48
    assert (config.distill.prototypes, config.distill.width, config.distill.level) == (4096, 256, 2)
    assert (config.distill.student_temperature, config.distill.teacher_temperature) == (0.1, (0.04, 0.07))
    assert (config.distill.local_weight, config.distill.mask_weight, config.distill.swap_weight) == (0.5, 0.5, 0.0)
    assert (config.distill.momentum, config.distill.temperature_warmup) == ((0.994, 1.0), 0.05)
    assert (config.views.global_share, config.views.local_share) == ((0.4, 1.0), (0.1, 0.4))
    assert (config.views.position_jitter, config.views.charge_jitter, config.views.mask_jitter) == (0.5, 0.05, 1.0)
    assert (config.optim.betas, config.optim.layer_decay, config.optim.clip) == ((0.9, 0.999), 0.9, 3.0)
    assert (config.optim.lr, config.optim.warmup, config.encoder.mask_token) == (2.6e-3, 0.05, True)
    at = (0.0, 0.025, 0.05, 0.5, 1.0)
    rates = [learning_rate(config.optim, p) / 2.6e-3 for p in at]
    half = 1e-3 + (1 - 1e-3) * np.cos(np.pi / 2 * 0.45 / 0.95) ** 2
    assert rates == pytest.approx([0.1, 0.55, 1.0, half, 1e-3])
    decays = [weight_decay(config.optim, p) for p in at]
    assert decays == pytest.approx([0.04 + 0.16 * np.sin(np.pi / 2 * p) ** 2 for p in at])
    assert config.encoder.drop_path == 0.3
    assert config.encoder.layer_scale == 1e-5
    assert sum(config.encoder.depths) == 21


def test_groups_of_the_paper(config):
    """The student alone is trained; no decay on biases, norms, layer scales, mask vector, prototypes; blocks by 0.9."""
    model = SelfDistillation(replace(ENCODER, depths=(2, 1)), config.distill)
    optimizer = make_optimizer(model, config.optim)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(of) == len(list(model.student.parameters()))
    for name, parameter in model.student.named_parameters():
        plain = parameter.ndim < 2 or "mask_token" in name or "prototypes" in name
        assert of[id(parameter)]["weight_decay"] == (0.0 if plain else 0.04), name
    named = dict(model.student.named_parameters())
    scales = [of[id(named[f"encoder.blocks.{b}.qkv.weight"])]["scale"] for b in ("0.0", "0.1", "1.0")]
    assert scales == pytest.approx([0.81, 0.9, 1.0])
    assert of[id(named["encoder.embed.weight"])]["scale"] == 1.0


def test_the_probe_is_logistic_regression(make_cloud, config):
    """Of the same features as scikit-learn's, on events whose energies tell the motifs apart."""
    events = []
    for seed in range(6):
        cloud = make_cloud(150, seed=seed)
        rng = np.random.default_rng(seed)
        energy = 0.2 * 2.0 ** cloud.motif.numpy() * rng.uniform(0.7, 1.4, 150)
        events.append(Event.from_arrays(cloud.position.numpy(), energy, cloud.motif.numpy()))
    torch.manual_seed(0)
    encoder = SelfDistillation(ENCODER, config.distill).teacher.encoder
    result, penalty = probe_motifs(encoder, events[:3], events[3:4], events[4:], 0.13, points=200, every_point=True)
    seen = [event.visible(0.13)[0] for event in events]
    x, y = features(encoder, seen[:3]).double().numpy(), torch.cat([e.motif for e in seen[:3]]).numpy()
    mean, deviation = x.mean(0), x.std(0)
    oracle = LogisticRegression(C=1 / (penalty * len(x)), max_iter=5000, tol=1e-8).fit((x - mean) / deviation, y)
    test = features(encoder, seen[4:]).double().numpy()
    truth = torch.cat([e.motif for e in seen[4:]]).numpy()
    expected = f1_score(truth, oracle.predict((test - mean) / deviation), average="macro")
    assert result.macro_f1 == pytest.approx(expected, abs=0.005)
    assert result.macro_f1 > 0.5
    assert result.events == 2
    assert len(result.f1) == len(Motif)


@pytest.mark.slow
def test_the_shipped_encoder_tells_motifs_apart():
    """Its model card has 0.66 after 500 events for the probe and 0.45 for random weights; with 40 events, less."""
    shipped = load_bundle("nano_encoder").model.encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random = Encoder(shipped.config).requires_grad_(False)
    generated = larpanda.generate(60, seed=101)
    judged = larpanda.open_events(str(Path(__file__).parents[1] / "data" / "geant4_20_v3extra.h5"))
    scores = []
    for encoder in (random, shipped):
        result, _ = probe_motifs(encoder, generated[:40], generated[40:], judged, 0.13, 60_000)
        scores.append(result.macro_f1)
    assert scores[1] > scores[0] + 0.1


SETTINGS = {
    "encoder.channels": "16,16",
    "encoder.depths": "1,1",
    "encoder.window": 32,
    "encoder.drop_path": 0.3,
    "distill.prototypes": 16,
    "distill.width": 8,
    "distill.hidden": 16,
    "distill.teacher_temperature": "0.04,0.07",
    "views.mask_voxels": "5,8",
    "views.n_local": 2,
    "optim.lr": 1e-3,  # at the recipe's 5e-3, reached in one step, rounding grows a thousandfold in 20 steps
    "steps": 20,
    "batch_events": 5,
    "save_every": 5,
    "evaluate_every": 20,
}


def in_processes_of_their_own(data, folder, n, fault="", **changes):
    arguments = ["pretrain", str(data), "--out", str(folder), "--device", "cpu"]
    arguments += [text for name, value in (SETTINGS | changes).items() for text in ("--set", f"{name}={value}")]
    codes = in_processes(command_line, n, {"LARPANDA_FAULT": fault}, arguments, None, folder.with_suffix(".said"))
    return codes, folder.with_suffix(".said-0").read_text()


@pytest.fixture(scope="module")
def file(tmp_path_factory, make_cloud):
    path = tmp_path_factory.mktemp("data") / "clouds.h5"
    larpanda.write_events(path, [make_cloud(60 + 30 * s, seed=s) for s in range(9)])
    return path


def test_two_processes_pretrain_as_one(file, tmp_path):
    """The same global batches: Sinkhorn, weights of views, stochastic depth and masks do not depend on the division."""
    for n in (1, 2):
        codes, said = in_processes_of_their_own(file, tmp_path / f"{n}", n)
        assert codes == [0] * n, said
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in "12"
    )
    for a, b in zip(one, two, strict=True):
        for name in a.keys() & {"local", "mask", "entropy", "kl", "matched_local", "matched_mask", "temperature"}:
            assert b[name] == pytest.approx(a[name], rel=1e-4), name
        assert b.get("spread_1", 1) == pytest.approx(a.get("spread_1", 1), rel=1e-4)
        assert b.get("perplexity", 1) == pytest.approx(a.get("perplexity", 1), rel=0.1)  # of 16, from argmax


@pytest.mark.parametrize("n", [1, 2])
def test_a_killed_run_ends_with_the_same_bytes(file, tmp_path, n):
    """Student, teacher, prototypes and moments come back exactly."""
    codes, said = in_processes_of_their_own(file, tmp_path / "whole", n)
    assert codes == [0] * n, said
    codes, _ = in_processes_of_their_own(file, tmp_path / "run", n, fault="kill@checkpoint.rename:step=10")
    assert codes[0] == KILLED
    codes, said = in_processes_of_their_own(file, tmp_path / "run", n, workers=1)
    assert codes == [0] * n, said
    assert "going on from step 5" in said
    assert weights(tmp_path / "run/bundle") == weights(tmp_path / "whole/bundle")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2])
def test_killed_anywhere_in_saving_it_ends_with_the_same_bytes(file, tmp_path, n):
    short = {"steps": 8, "save_every": 3, "evaluate_every": 8}
    codes, said = in_processes_of_their_own(file, tmp_path / "whole", n, **short)
    assert codes == [0] * n, said
    for point in ("mkdir", "model", "optimizer", "state", "manifest", "written", "rename", "renamed"):
        codes, _ = in_processes_of_their_own(file, tmp_path / point, n, f"kill@checkpoint.{point}:step=6", **short)
        assert codes[0] == KILLED
        codes, said = in_processes_of_their_own(file, tmp_path / point, n, **short)
        assert codes == [0] * n, said
        assert f"going on from step {6 if point == 'renamed' else 3}" in said
        assert weights(tmp_path / point / "bundle") == weights(tmp_path / "whole/bundle")
