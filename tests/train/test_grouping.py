"""Heads that look at fragments: the loss against that over points, what learns and what stays, the limits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from larpanda.event import PointBatch
from larpanda.model.bundle import Model, ModelConfig, load_bundle, save_bundle
from larpanda.model.fragments import Fragments
from larpanda.model.matching import SetLossConfig, Truth, set_loss
from larpanda.model.panoptic import PanopticConfig
from larpanda.train import frozen
from larpanda.train.finetune import finetune
from larpanda.train.grouping import Grouping, LabelledFragments, Shares
from larpanda.train.recipes import nano_fragments

HEAD = PanopticConfig(queries=6, classes=5, channels=16, head_dim=8, blocks=2, fragments=True, context=1)


@pytest.fixture
def model(tiny_model):
    torch.manual_seed(1)
    made = Model(replace(tiny_model.config, particle=HEAD, interaction=replace(HEAD, classes=1, queries=3)))
    made.encoder.load_state_dict(tiny_model.encoder.state_dict())
    made.semantic.load_state_dict(tiny_model.semantic.state_dict())
    return made


@pytest.fixture
def events(make_cloud):
    return [make_cloud(n, seed=n) for n in (90, 60, 120, 75, 50)]


def run(events, tiny_run, folder, start, heads=("particle", "interaction"), **changes):
    base = nano_fragments()
    config = replace(
        tiny_run,
        **{
            "mode": "decoder",
            "model": replace(base.model, particle=HEAD, interaction=replace(HEAD, classes=1)),
            **changes,
        },
    )
    return finetune(heads, events, config, folder, sources=["clouds"], start=start, device="cpu", say=lambda line: None)


def test_shares_count_the_points_of_each_pair():
    rng = np.random.default_rng(0)
    fragment, instance = torch.from_numpy(rng.integers(-1, 4, 200)), torch.from_numpy(rng.integers(-1, 3, 200))
    kind = torch.where(instance >= 0, instance * 2, -1)
    found = Shares.of(fragment, instance, kind)
    rows = zip(*(x.tolist() for x in (found.fragment, found.instance, found.kind, found.points)), strict=True)
    assert set(rows) == {
        (f, i, 2 * i if i >= 0 else -1, float(n))
        for f in range(4)
        for i in range(-1, 3)
        if (n := int(((fragment == f) & (instance == i)).sum()))
    }


def test_fragments_are_measured_where_the_model_is(model, events, monkeypatch):
    """Not on the host, where the events are: on a GPU the two do not mix."""
    seen, measured = [], []
    real = Fragments.of
    monkeypatch.setattr(Fragments, "of", lambda points, *rest: measured.append(points) or real(points, *rest))
    model.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    LabelledFragments.of(model, events[0])
    assert measured[0] is seen[0]


def test_the_loss_is_that_over_all_points(model, events):
    """Masks given to every point by hand, points laid event by event, each of weight one."""
    parts = [LabelledFragments.of(model, event) for event in events]
    task = Grouping(model, ["particle"], SetLossConfig(), [])
    found = task.loss(LabelledFragments.pack(parts), 0.0).total
    expected = []
    for part, event in zip(parts, events, strict=True):
        visible = event.visible(model.config.min_energy_mev)[0]
        points = PointBatch.pack([visible])
        one = model.find(points, ("particle",)).particle[0]
        in_one = one.led_probability == 0.0
        masks, classes = model.particle.decode(replace(part.fragments, feature=part.fragments.feature.float()))
        of_point = (one.mask_logits.t()[in_one][:, None] - masks[-1][None]).abs().sum(2).argmin(1)  # whose masks it has
        truth = Truth.of(of_point * 0, visible.particle[in_one], visible.species[in_one])
        start = torch.tensor([0, int(in_one.sum())])
        blocks = [set_loss(m[of_point], c, start, truth, SetLossConfig()) for m, c in zip(masks, classes, strict=True)]
        expected.append(sum(block.total(SetLossConfig()) for block in blocks))
    torch.testing.assert_close(found, torch.stack(expected).mean(), rtol=1e-3, atol=0)


def test_heads_learn_and_what_is_below_them_stays(model, events, tiny_run, tmp_path, monkeypatch):
    save_bundle(tmp_path / "start", Model(replace(model.config, particle=None, interaction=None)), {}, "card")
    start = load_bundle(tmp_path / "start").model
    folder = run(events, tiny_run, tmp_path / "run", str(tmp_path / "start"))
    after = load_bundle(folder).model
    for name, value in start.state_dict().items():
        assert torch.equal(after.state_dict()[name], value.half().float()), name
    assert after.config.particle.fragments
    assert after.config.interaction.queries == 6
    monkeypatch.setattr(frozen, "KEPT_BYTES", 0)
    again = run(events, tiny_run, tmp_path / "again", str(tmp_path / "start"))
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    # goes on with such heads, and begins anew where the bundle's look at points
    more = run(events, tiny_run, tmp_path / "more", str(folder), heads=("interaction",))
    kept = load_bundle(more).model
    assert torch.equal(kept.particle.query, after.particle.query)
    assert not torch.equal(kept.interaction.query, after.interaction.query)
    pointwise = replace(model.config, particle=replace(HEAD, fragments=False), interaction=None)
    save_bundle(tmp_path / "points", Model(pointwise), {}, "card")
    anew = load_bundle(run(events, tiny_run, tmp_path / "anew", str(tmp_path / "points"), heads=("particle",)))
    assert anew.model.config.particle.fragments


def test_what_cannot_be(model, events, tiny_run, tmp_path):
    save_bundle(tmp_path / "start", Model(replace(model.config, particle=None, interaction=None)), {}, "card")
    with pytest.raises(ValueError, match="learn on a frozen model"):
        run(events, tiny_run, tmp_path / "run", str(tmp_path / "start"), mode="full")
    with pytest.raises(ValueError, match="learn on a frozen model"):
        run(events, tiny_run, tmp_path / "run", str(tmp_path / "start"), heads=("semantic", "particle"))
    save_bundle(tmp_path / "bare", Model(ModelConfig(model.config.encoder)), {}, "card")
    with pytest.raises(ValueError, match="needs one for motifs"):
        run(events, tiny_run, tmp_path / "run", str(tmp_path / "bare"))
