"""Views: a turned event is the same event; and which event is seen when is a function of seed and step."""

import numpy as np
import pytest
import torch

from larpanda.data.stream import Stream
from larpanda.data.views import Augmentation, augment, turn
from larpanda.event import IMAGE_VOXELS


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
