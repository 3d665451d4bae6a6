"""Views: a turned event is the same event; and which event is seen when is a function of seed and step."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from larpanda.data.stream import Stream
from larpanda.data.views import Augmentation, ViewConfig, augment, make_views, mask_patches, pack_views, turn
from larpanda.event import IMAGE_VOXELS, UNKNOWN, Event


def distances(event):
    return torch.cdist(event.position.double(), event.position.double())


def test_turning_keeps_distances_voxels_energies_and_labels(make_cloud):
    event = make_cloud(80)
    for seed in range(20):
        turned = turn(event, np.random.default_rng(seed))
        assert turned.problem() is None  # whole voxels inside the image
        torch.testing.assert_close(distances(turned), distances(event))
        for name in ("energy", "motif", "species", "particle", "interaction"):
            assert torch.equal(getattr(turned, name), getattr(event, name))


def test_all_48_symmetries_of_the_cube_occur(make_cloud):
    event, rng = make_cloud(5), np.random.default_rng(0)
    assert len({tuple(turn(event, rng).position.flatten().tolist()) for _ in range(1000)}) == 48


def test_the_image_is_turned_about_its_centre(make_cloud):
    event = make_cloud(50)
    centre = (IMAGE_VOXELS - 1) / 2
    turned = turn(event, np.random.default_rng(3))
    radius, after = ((e.position - centre).norm(dim=1) for e in (event, turned))
    torch.testing.assert_close(after, radius)


def test_charge_jitter_has_the_width_it_says(make_cloud):
    event = make_cloud(5000)
    factors = torch.stack(
        [
            augment(event, Augmentation(False, 0.1, 0.05), np.random.default_rng(seed)).energy / event.energy
            for seed in range(200)
        ]
    )
    assert factors.mean(1).std().item() == pytest.approx(0.1, rel=0.15)
    assert factors.std(1).mean().item() == pytest.approx(0.05, rel=0.03)


def test_a_view_is_a_function_of_the_generator(make_cloud):
    a, b, c = (augment(make_cloud(30), Augmentation(True, 0.1, 0.1), np.random.default_rng(s)) for s in (0, 0, 1))
    assert torch.equal(a.position, b.position)
    assert torch.equal(a.energy, b.energy)
    assert not torch.equal(a.energy, c.energy)


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (10, 10), (3, 8), (1, 1)])
def test_every_pass_takes_every_event_once(n, batch):
    stream = Stream(n, batch, seed=4)
    seen = np.concatenate([stream.ordinals(step) for step in range(3 * n)])
    for start in range(0, len(seen) - n + 1, n):
        assert sorted(seen[start : start + n]) == list(range(n))


def test_a_step_does_not_depend_on_the_steps_before():
    stream, fresh = Stream(100, 7, seed=1), Stream(100, 7, seed=1)
    before = [stream.ordinals(step).tolist() for step in range(40)]
    assert fresh.ordinals(39).tolist() == before[39]
    assert Stream(100, 7, seed=2).ordinals(39).tolist() != before[39]
    assert stream.generator(3, 0).random() == fresh.generator(3, 0).random() != fresh.generator(3, 1).random()


def test_a_stream_of_nothing():
    with pytest.raises(ValueError, match="0 events in batches of 8"):
        Stream(0, 8, 0)


STILL = ViewConfig(turn=0.0, flip=0.0, position_jitter=0.0, charge_jitter=0.0, mask_jitter=0.0)


def all_views(views):
    return [*views.whole, *views.local]


def energy_of(event):
    """Energy by voxel."""
    voxels = map(tuple, event.position.long().tolist())
    return dict(zip(voxels, event.energy.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_an_unchanged_crop_is_a_part_of_the_event(make_cloud, seed):
    """Nothing turned, nothing jittered: energies and distances are those of the event at the origins."""
    event = make_cloud(200)
    known = energy_of(event)
    for view in all_views(make_views(event, STILL, 0.0, np.random.default_rng(seed))):
        assert view.energy.tolist() == [known[tuple(voxel)] for voxel in view.origin.astype(int).tolist()]
        shift = view.position - view.origin
        assert (shift == shift[0]).all()
        middle = (view.position.min(0) + view.position.max(0)) / 2
        assert np.abs(middle - IMAGE_VOXELS / 2).max() <= 0.5  # centred in the image


@pytest.mark.parametrize("seed", range(5))
def test_a_crop_is_a_ball_of_nearest_neighbours_of_one_of_its_points(make_cloud, seed):
    event = make_cloud(300)
    position = event.position.numpy()
    for view in all_views(make_views(event, STILL, 0.0, np.random.default_rng(seed))):
        inside = {tuple(voxel) for voxel in view.origin.astype(int).tolist()}
        within = np.array([tuple(voxel) in inside for voxel in position.astype(int).tolist()])
        squared = np.square(position[:, None] - position[within][None]).sum(2)  # [N, anchors]
        ball = squared[within].max(0) <= np.where(within.all(), np.inf, squared[~within].min(0, initial=np.inf))
        assert ball.any()


def test_sizes_of_crops_are_those_of_the_paper(make_cloud):
    """40 to 100 % for global views, 10 to 40 % for local ones, evenly spread (paper section 3.3.2)."""
    event, rng = make_cloud(400), np.random.default_rng(0)
    views = [make_views(event, STILL, 0.0, rng) for _ in range(200)]
    for shares, (low, high) in (
        ([len(v.energy) / 400 for one in views for v in one.whole], (0.4, 1.0)),
        ([len(v.energy) / 400 for one in views for v in one.local], (0.1, 0.4)),
    ):
        assert low - 0.002 <= min(shares)
        assert max(shares) <= high + 0.002
        assert np.mean(shares) == pytest.approx((low + high) / 2, abs=0.02)
        assert np.std(shares) == pytest.approx((high - low) / math.sqrt(12), rel=0.1)
    capped = make_views(event, replace(STILL, max_points=100), 0.0, rng)
    assert all(len(view.energy) <= 100 for view in capped.whole)
    assert all(len(view.energy) <= 40 for view in capped.local)


def test_local_views_lie_around_the_first_global_view(make_cloud):
    """Anchors are points of it: a small local view shares at least that one with it."""
    event = make_cloud(500)
    small = replace(STILL, local_share=(0.002, 0.002), global_share=(0.4, 0.4))
    for seed in range(20):
        views = make_views(event, small, 0.0, np.random.default_rng(seed))
        first = set(map(tuple, views.whole[0].origin.tolist()))
        anchors = [tuple(view.origin[0].tolist()) for view in views.local]
        assert set(anchors) <= first
        assert len(set(anchors)) == len(anchors)  # each around a point that no earlier one covers


@pytest.mark.parametrize("config", [ViewConfig(), ViewConfig(quarter_turns=True)])
def test_views_keep_energy_and_fill_each_voxel_once(make_cloud, config):
    """Energies of points that fall into one voxel are summed; the origin is their mean."""
    event = make_cloud(300)
    whole = replace(config, global_share=(1.0, 1.0), charge_jitter=0.0)
    merged = 0
    for seed in range(5):
        view = make_views(event, whole, 0.0, np.random.default_rng(seed)).whole[0]
        assert view.energy.astype(float).sum() == pytest.approx(event.energy.double().sum().item(), rel=1e-6)
        assert (view.position == np.round(view.position)).all()
        assert len(np.unique(view.position, axis=0)) == len(view.position)
        merged += len(event) - len(view.energy)
    assert merged > 0


def test_turned_views_keep_distances(make_cloud):
    """By any angle up to rounding to voxels; by quarters exactly."""
    event = make_cloud(100)
    for config, error in ((ViewConfig(position_jitter=0.0), math.sqrt(3)), (ViewConfig(quarter_turns=True), 0.0)):
        still = replace(config, position_jitter=0.0)
        for seed in range(10):
            view = make_views(event, still, 0.0, np.random.default_rng(seed)).whole[0]
            alone = [i for i, place in enumerate(view.origin) if (place == np.round(place)).all()]
            now, before = (torch.from_numpy(x[alone]).double() for x in (view.position, view.origin))
            assert (torch.cdist(now, now) - torch.cdist(before, before)).abs().max() <= error + 1e-4


def test_charge_is_jittered_in_mev(make_cloud):
    event = make_cloud(2000)
    config = replace(STILL, charge_jitter=0.05, global_share=(1.0, 1.0), max_points=30_000)
    known = energy_of(event)
    views = [make_views(event, config, 0.0, np.random.default_rng(s)).whole[0] for s in range(20)]
    factors = np.concatenate([v.energy / [known[tuple(o)] for o in v.origin.astype(int).tolist()] for v in views])
    assert factors.mean() == pytest.approx(1.0, abs=0.001)
    assert factors.std() == pytest.approx(0.05 * 0.9594, rel=0.01)  # of a normal deviate set to 2 beyond 2
    assert np.abs(factors - 1).max() <= 0.1 + 1e-6


def test_views_know_no_truth(make_cloud):
    """The same views of an event stripped of all labels, and none in what is packed."""
    event = make_cloud(100)
    bare = Event.from_arrays(event.position.numpy(), event.energy.numpy())
    batches = []
    for one in (event, bare):
        views = make_views(one, ViewConfig(), 0.5, np.random.default_rng(3))
        batches.append(pack_views([views], torch.zeros(8, 4)))
    a, b = batches
    for mine, theirs in ((a.teacher, b.teacher), (a.student, b.student)):
        assert torch.equal(mine.position, theirs.position)
        assert torch.equal(mine.energy, theirs.energy)
        for name in ("motif", "species", "particle", "interaction"):
            assert (getattr(mine, name) == UNKNOWN).all()


@pytest.mark.parametrize(("size", "ratio"), [(4.0, 0.5), (7.0, 0.9), (3.0, 0.33), (100.0, 0.9), (2.0, 1.0), (2.0, 0.0)])
def test_masked_patches_are_counted_exactly(make_cloud, size, ratio):
    """round(ratio * occupied patches), whole patches, and never all of them."""
    position = make_cloud(300).position.numpy()
    for seed in range(5):
        masked = mask_patches(position, size, ratio, np.random.default_rng(seed))
        patch = np.floor((position - position.min(0)) / size)
        patches = {tuple(p): set(masked[(patch == p).all(1)].tolist()) for p in np.unique(patch, axis=0)}
        assert all(len(states) == 1 for states in patches.values())
        n_masked = sum(states == {True} for states in patches.values())
        assert n_masked == min(round(ratio * len(patches)), len(patches) - 1)


def test_the_mask_schedule_of_the_paper():
    """7 to 50 voxels and 50 to 90 % over the first 5 % (paper section 3.3.2)."""
    sizes, ratios = zip(*(ViewConfig().patch(p) for p in (0.0, 0.025, 0.05, 0.5, 1.0)), strict=True)
    assert sizes == pytest.approx((7.0, 28.5, 50.0, 50.0, 50.0))
    assert ratios == pytest.approx((0.5, 0.7, 0.9, 0.9, 0.9))


def test_masked_points_move_on_both_sides_and_the_others_stay(make_cloud):
    event = make_cloud(2000)
    config = replace(STILL, mask_jitter=1.0, global_share=(1.0, 1.0), mask_voxels=(3.0, 3.0))
    views = make_views(event, config, 0.5, np.random.default_rng(0))
    for whole, hidden, masked in zip(views.whole, views.hidden, views.masked, strict=True):
        moved = hidden.position - whole.position
        assert (moved[~masked] == 0).all()
        assert abs(moved[masked].mean()) < 0.05
        assert moved[masked].min() == -2
        assert moved[masked].max() == 2
        assert np.array_equal(hidden.origin, whole.origin)
        assert np.array_equal(hidden.energy, whole.energy)


def test_masked_points_can_be_taken_away(make_cloud):
    """What is left is what a masked view would show; the teacher's views are the same."""
    event = make_cloud(400)
    config = replace(STILL, mask_voxels=(5.0, 5.0))
    shown, gone = (
        make_views(event, replace(config, remove_masked=remove), 0.0, np.random.default_rng(0))
        for remove in (False, True)
    )
    for i in range(2):
        assert np.array_equal(shown.whole[i].position, gone.whole[i].position)
        assert np.array_equal(shown.hidden[i].position[~shown.masked[i]], gone.hidden[i].position)
        assert np.array_equal(shown.hidden[i].energy[~shown.masked[i]], gone.hidden[i].energy)
        assert 0 < len(gone.hidden[i].energy) < len(shown.hidden[i].energy)
        assert len(gone.masked[i]) == len(gone.hidden[i].energy)
        assert not gone.masked[i].any()


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_views_of_hardly_anything(make_cloud, n):
    event = make_cloud(5)
    event = replace(
        event,
        **{k: getattr(event, k)[:n] for k in ("position", "energy", "motif", "species", "particle", "interaction")},
    )
    views = make_views(event, ViewConfig(), 1.0, np.random.default_rng(0))
    assert all(len(view.energy) >= min(n, 1) for view in all_views(views))
    batch = pack_views([views], torch.zeros(8, 0))
    assert len(batch.student.start) - 1 == 8
    assert not batch.masked.all() or n == 0


def test_views_are_a_function_of_the_generator_and_not_of_the_order_of_points(make_cloud):
    event = make_cloud(150)
    shuffled = Event.from_arrays(event.position.flip(0).numpy(), event.energy.flip(0).numpy())
    first, again, other, turned = (
        pack_views([make_views(e.visible()[0], ViewConfig(), 0.3, np.random.default_rng(s))], torch.zeros(8, 0))
        for e, s in ((event, 1), (event, 1), (event, 2), (shuffled, 1))
    )
    for same in (again, turned):
        assert torch.equal(first.student.position, same.student.position)
        assert torch.equal(first.student.energy, same.student.energy)
    assert first.student.position.shape != other.student.position.shape or not torch.equal(
        first.student.position, other.student.position
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"local_share": (0.5, 0.2)}, "local_share is 0.5, 0.2"),
        ({"mask_ratio": (0.5, 1.5)}, "mask_ratio"),
        ({"max_points": 1}, "max_points"),
    ],
)
def test_impossible_views(change, message):
    with pytest.raises(ValueError, match=message):
        replace(ViewConfig(), **change)
