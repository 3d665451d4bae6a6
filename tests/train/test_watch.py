"""Alarms: none in health, each collapse by its name; from made-up records and from self-distillation itself."""

import math
import random
import re

import numpy as np
import pytest
import torch

from larpanda.data.views import ViewConfig, make_views, pack_views
from larpanda.model.backbone import EncoderConfig
from larpanda.model.distill import DistillConfig, SelfDistillation
from larpanda.train.watch import CollapseWatch

P = 4096
FLAT = math.log(P)
WELL = {"entropy": 0.9 * FLAT, "kl": 0.3, "usage": 0.3, "perplexity": 400.0, "spread_0": 1.0, "spread_1": 0.9}
UNIFORM = {"entropy": 0.998 * FLAT, "temperature": 0.07}
ONE = {"entropy": 0.001 * FLAT}
CROWDED = {"perplexity": 1.2, "usage": 1 / P}
CAUGHT_UP = {"kl": 0.001}
SAME = {"spread_1": 0.001}


def told(changes, watch=None, first=1):
    """What a watch says of steps with these changes to a healthy record: (step, text)."""
    watch = watch or CollapseWatch(P, steps=1000, window=5)
    steps = enumerate(changes, first)
    return [(step, text) for step, change in steps if (text := watch.see({**WELL, **change, "step": step}))]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            UNIFORM,
            r"uniform collapse: h\(q\) 8\.3 nats, 99\.8 % of log P = 8\.32, teacher's temperature 0\.07 \(median",
        ),
        (ONE, r"single-prototype collapse, targets: h\(q\) .* nats, 0\.1 % of log P .*Limit 2 %"),
        (CROWDED, r"single-prototype collapse, usage: .* perplexity 1\.2 of 4096, 0\.024 % .*Limit 20\.5.*sinkhorn"),
        (CAUGHT_UP, r"nothing to learn: KL .* 0\.001 nats .*Limit 0\.01"),
        (SAME, r"features all the same: .* 0\.001 .*Limit 0\.05.*optim\.lr"),
    ],
)
def test_each_collapse_is_named_once_and_is_over_once(change, words):
    said = told([{}] * 100 + [change] * 100 + [{}] * 100)
    assert len(said) == 2
    (begun, alarm), (ended, relief) = said
    assert 101 < begun <= 100 + 20  # within the longest window
    assert 201 < ended <= 200 + 20
    assert re.search(words, alarm)
    assert "\n" not in alarm
    assert " is over: " in relief


@pytest.mark.parametrize("change", [UNIFORM, ONE, CROWDED, CAUGHT_UP, SAME])
def test_one_odd_step_does_not_cry(change):
    assert told([{}] * 100 + ([change] + [{}] * 4) * 30) == []


def test_a_value_that_wavers_about_the_limit_is_told_once():
    rng = random.Random(0)
    wavering = [{"entropy": FLAT * (0.99 + rng.gauss(0, 0.002))} for _ in range(500)]
    assert len(told([{}] * 100 + wavering)) == 1


def test_the_beginning_of_a_run_is_not_a_collapse():
    """h(q) begins near log P, all features alike: nothing is said in the first 5 %, and after that only if it stays."""
    assert told([{**UNIFORM, **CROWDED}] * 45 + [{}] * 300) == []
    said = told([UNIFORM] * 60)
    assert [step for step, _ in said] == [51]
    assert told([UNIFORM] * 60, CollapseWatch(P, steps=1000, window=5, quiet=0.5)) == []


def test_a_run_that_goes_on_is_judged_after_a_window():
    assert [step for step, _ in told([UNIFORM] * 9, first=800)] == [804]


def test_lines_that_are_no_steps_and_numbers_that_are_missing_change_nothing():
    nothing = dict.fromkeys(WELL, None)
    broken = dict.fromkeys(WELL, float("nan"))
    watch = CollapseWatch(P, steps=100, window=5)
    for step in range(1, 101):
        assert watch.see({"step": step, "validation_macro_f1": 0.5}) is None
        assert watch.see({"step": step, "loss": 1.0, "accuracy": 0.5}) is None
    assert told([nothing, broken] * 100, watch) == []
    assert len(told([UNIFORM, nothing, broken] * 20)) == 1


ENCODER = EncoderConfig((16, 16, 32), (1, 1, 1), window=32, layer_scale=0.5, drop_path=0.0, mask_token=True)
SMALL = {"prototypes": 32, "width": 16, "hidden": 32, "level": 1}
VIEWS = ViewConfig(n_local=2, mask_voxels=(3.0, 6.0), mask_ratio=(0.5, 0.7))


def learn(events, steps, lr, **changes):
    """Train; what the watch said, and the last record."""
    config = DistillConfig(**{**SMALL, **changes})
    watch, said = CollapseWatch(config.prototypes, steps, window=5), []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SelfDistillation(ENCODER, config)
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=lr)
    for step in range(steps):
        chosen = [events[(2 * step + i) % len(events)] for i in range(2)]
        rngs = [np.random.default_rng([step, i]) for i in range(2)]
        views = [make_views(e, VIEWS, step / steps, rng) for e, rng in zip(chosen, rngs, strict=True)]
        temperature = config.temperature_at(step / steps)
        result = model(pack_views(views, torch.full((8, model.student.encoder.n_draws), 0.999)), temperature)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        model.update_teacher(0.9)
        record = {name: getattr(result, name).item() for name in ("loss", "entropy", "kl", "usage", "perplexity")}
        record |= {f"spread_{level}": value.item() for level, value in enumerate(result.spread)}
        record |= {"step": step + 1, "temperature": temperature}
        if text := watch.see(record):
            said.append(text)
    return said, record


@pytest.fixture
def two_kinds(make_cloud):
    """Dense and thin clouds: there is something to tell apart."""
    return [make_cloud(150, seed=s, side=(6, 24)[s % 2]) for s in range(4)]


@pytest.fixture
def one_kind(make_cloud):
    """Clouds of random voxels in the same cube: nothing tells a cell from another."""
    return [make_cloud(150, seed=s) for s in range(4)]


def test_a_healthy_run_raises_no_alarm(two_kinds):
    said, last = learn(two_kinds, 80, lr=1e-3)
    assert said == []
    assert last["entropy"] < 0.9 * math.log(32)
    assert last["perplexity"] > 4


def test_a_hot_teacher_is_a_uniform_collapse(two_kinds):
    said, last = learn(two_kinds, 12, lr=1e-3, teacher_temperature=(5.0, 5.0))
    assert last["entropy"] > 0.999 * math.log(32)
    assert [text.partition(":")[0] for text in said] == ["uniform collapse"]


def test_a_cold_teacher_without_sinkhorn_is_a_single_prototype_collapse(two_kinds):
    said, last = learn(two_kinds, 40, lr=3e-3, teacher_temperature=(0.01, 0.01), sinkhorn=0)
    assert last["entropy"] < 0.01 * math.log(32)
    assert said[0].startswith("single-prototype collapse, targets: ")


def test_a_learning_rate_that_is_too_high_crowds_all_cells_at_one_prototype(two_kinds):
    said, last = learn(two_kinds, 40, lr=0.1)
    assert last["perplexity"] < 1.5
    assert any("single-prototype collapse, usage: " in text for text in said)


def test_events_without_structure_end_in_a_uniform_collapse(one_kind):
    """Sinkhorn spreads what is all alike evenly over the prototypes: h(q) goes to log P and KL to 0 (section 3.3.3)."""
    said, last = learn(one_kind, 80, lr=3e-3)
    names = " ".join(said)
    assert last["entropy"] > 0.999 * math.log(32)
    assert "uniform collapse: " in names
    assert "single-prototype collapse, usage: " in names
    assert "nothing to learn: " in names
