"""Fragments: what they are, against flood fill and sums by hand, and what must not change what is said of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from larpanda.data import open_events
from larpanda.event import Event, Motif, PointBatch
from larpanda.model.bundle import Model, ModelConfig, load_bundle, save_bundle
from larpanda.model.fragments import FragmentHead, Fragments, _relations, parts
from larpanda.model.panoptic import NO_MASK, PanopticConfig
from larpanda.sparse.pieces import segments, touching

CONFIG = PanopticConfig(queries=5, classes=5, channels=16, head_dim=8, blocks=2, fragments=True)


@pytest.fixture
def model(tiny_model):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = replace(tiny_model.config, particle=CONFIG, interaction=replace(CONFIG, queries=3, classes=1))
        made = Model(config)
        made.encoder.load_state_dict(tiny_model.encoder.state_dict())
        made.semantic.load_state_dict(tiny_model.semantic.state_dict())
        for head in (made.particle, made.interaction):
            for parameter in head.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return made.requires_grad_(False)


@pytest.fixture
def events(make_cloud):
    return [make_cloud(n, seed=n) for n in (150, 40, 90)]


def fragments(model, batch):
    pyramid = model.encoder(batch)
    logits = model.semantic(pyramid)
    return *Fragments.of(batch, pyramid, logits), logits, pyramid


def test_fragments_are_voxels_that_touch_and_have_one_motif_and_tracks_are_divided(model, events):
    batch = PointBatch.pack(events)
    found, of_point, logits, pyramid = fragments(model, batch)
    motif = logits.argmax(1)
    assert ((of_point < 0) == (motif == Motif.LED)).all()
    upcast = pyramid.at_points(pyramid.upcast())
    for event, (a, b) in enumerate(zip(batch.start[:-1], batch.start[1:], strict=True)):
        mine = of_point[a:b]
        first, last = found.start[event : event + 2].tolist()
        assert sorted(set(mine.tolist()) - {-1}) == list(range(first, last))
        place, track = batch.position[a:b].numpy(), (motif[a:b] == Motif.TRACK).numpy()
        piece = touching(place, np.where(motif[a:b] == Motif.LED, -1, motif[a:b]))
        piece[track] = 1000 + segments(place[track])
        pairs = {(x, y) for x, y in zip(mine.tolist(), piece.tolist(), strict=True)}
        assert len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})
    for i in range(len(found.shape)):
        rows = of_point == i
        wide = torch.cat([upcast[rows], logits[rows].softmax(1)], 1)
        assert torch.allclose(found.feature[i], wide.mean(0), atol=1e-5)
        place = (batch.position[rows] + 0.5) / 384 - 1
        assert torch.allclose(found.shape[i, :3], place.mean(0), atol=1e-6)
        ends = found.shape[i, 3:9].view(2, 3)
        distance = torch.cdist(place, torch.cat([place.mean(0)[None], ends[:1]]))
        assert distance.amax(0) == pytest.approx((ends - torch.stack([place.mean(0), ends[0]])).norm(dim=1), abs=1e-6)
        for near, end in zip(found.ends[i].view(2, -1), ends, strict=True):
            close = (place - end).norm(dim=1) <= 10.02 / 384
            assert torch.allclose(near[:-2], wide[close].mean(0), atol=1e-5)
            said = near[-2:].exp().tolist()
            assert said == pytest.approx([int(close.sum()), float(batch.energy[rows][close].sum())], rel=1e-5)
        assert found.shape[i, 9:].exp().tolist() == pytest.approx([int(rows.sum()), float(batch.energy[rows].sum())])


def test_an_event_depends_on_no_other_and_not_on_the_order_of_its_points(model, events):
    together = model.find(PointBatch.pack(events))
    for i, event in enumerate(events):
        order = torch.randperm(len(event), generator=torch.Generator().manual_seed(i))
        shuffled = PointBatch.of(event, order)
        alone = model.find(shuffled)
        for a, b in ((alone.particle[0], together.particle[i]), (alone.interaction[0], together.interaction[i])):
            assert torch.allclose(a.mask_logits, b.mask_logits[:, order], atol=1e-4)
            assert torch.allclose(a.class_logits, b.class_logits, atol=1e-4)
            assert torch.equal(a.led_probability, b.led_probability[order])


def test_the_fragments_of_real_events_are_the_same_alone_and_together():
    """Voxels where tracks meet are as near to one line as to another, and which they go to is no neighbour's matter."""
    events = [one.visible()[0] for one in open_events(Path(__file__).parents[1] / "data/geant4_20_v3extra.h5")[:8]]
    batch = PointBatch.pack(events)
    event_id = torch.repeat_interleave(batch.start.diff()).numpy()
    together = parts(batch.position.double().numpy(), batch.motif.numpy(), event_id)
    for i, event in enumerate(events):
        mine, alone = together[event_id == i], parts(event.position.double().numpy(), event.motif.numpy())
        assert ((mine < 0) == (alone < 0)).all()
        pairs = set(zip(mine.tolist(), alone.tolist(), strict=True))
        assert len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


def test_distances_are_exact_however_many_fragments_there_are():
    rng = np.random.default_rng(0)
    place = rng.uniform(-1, 1, (1, 40, 9))
    found = _relations(torch.from_numpy(place).float())[0]
    three = place[0].reshape(40, 3, 3)
    apart = np.linalg.norm(three[:, None, :, None] - three[None, :, None], axis=4)
    np.testing.assert_allclose(found[..., 0], apart.min((2, 3)), atol=1e-6)
    np.testing.assert_allclose(found[..., 1], apart[:, :, 0, 0], atol=1e-6)


def test_deposits_are_in_no_mask_and_an_event_of_nothing_else_is_no_error(model, events, make_cloud):
    found = model.find(PointBatch.pack(events)).particle
    assert all((one.mask_logits[:, one.led_probability == 1.0] == NO_MASK).all() for one in found)
    model.semantic.linear.bias[Motif.LED] = 1e4
    nothing = model.find(PointBatch.pack([*events, Event.from_arrays(np.zeros((0, 3), int), [])]))
    assert all((one.mask_logits == NO_MASK).all() and one.class_logits.isfinite().all() for one in nothing.particle)
    assert nothing.particle[3].mask_logits.shape == (5, 0)


def test_how_two_fragments_lie():
    place = torch.tensor([[[0.0, 0, 0, -0.5, 0, 0, 0.5, 0, 0], [0.0, 1.0, 0, 0.5, 0.2, 0, 0.0, 2.0, 0]]])
    found = _relations(place)[0]
    nearest, centres, miss, missed, *logs = found[0, 1, :8].tolist()
    assert (nearest, centres) == pytest.approx((0.2, 1.0))
    assert miss == pytest.approx(1.0)  # the axis of the first is x, the centre of the second lies on y
    turn = np.array([-0.5, 1.8]) / np.hypot(0.5, 1.8)  # axis of the second
    assert missed == pytest.approx(np.sqrt(1 - turn[1] ** 2), abs=1e-6)
    assert logs == pytest.approx(np.log(np.array([nearest, centres, miss, missed]) + 2 / 768), abs=1e-5)
    angles = found[0, 1, 8:].tolist()
    assert angles == pytest.approx([abs(turn[0]), 0.0, turn[1] / (1 + 2 / 768)], abs=1e-6)
    swapped = [0, 1, 3, 2, 4, 5, 7, 6, 8, 10, 9]
    assert torch.allclose(found[1, 0], found[0, 1, swapped])
    turned = place[..., [0, 1, 2, 6, 7, 8, 3, 4, 5]]  # ends exchanged
    assert torch.allclose(_relations(turned)[0], found, atol=1e-6)


def test_a_fragment_of_one_voxel_lies_somewhere_too():
    place = torch.zeros(1, 2, 9)
    place[0, 1] = 0.5
    found = _relations(place)
    assert found.isfinite().all()
    assert found[0, 0, 1, 2].item() == pytest.approx(0.75**0.5)  # no axis: as far as its centre


def test_a_head_for_fragments_needs_one_for_motifs_and_comes_back_from_a_bundle(model, tmp_path, events):
    with pytest.raises(ValueError, match="needs one for motifs"):
        Model(ModelConfig(model.config.encoder, particle=CONFIG))
    save_bundle(tmp_path / "bundle", model, {}, "card")
    opened = load_bundle(tmp_path / "bundle").model
    assert isinstance(opened.particle, FragmentHead)
    batch = PointBatch.pack(events)
    assert torch.equal(opened.find(batch).particle[0].mask_logits, model.find(batch).particle[0].mask_logits)
