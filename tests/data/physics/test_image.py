"""Where the cube lies, and the keys of voxels."""

import itertools

import numpy as np
import pytest

from larpanda.data.physics.cells import cell_of, key_of
from larpanda.data.physics.image import place_image
from larpanda.data.physics.presets import Primary
from larpanda.data.physics.transport import Truth

WIDTH = 768 * 3.0


def truth_of(places, start=(0.0, 0.0, 0.0)):
    n = len(places)
    return Truth(
        (Primary(0, 13, 100.0, start, (0.0, 0.0, 1.0)),), np.array(places, float).reshape(-1, 3), np.ones(n),
        np.ones(n, np.int64), np.zeros(2, np.int64), np.array([0, 13]), np.zeros(2, np.int64),
        *(np.zeros((2, *more)) for more in ((7,), (3,), (), (), ())),
    )  # fmt: skip


def test_keys_are_unique_and_their_neighbours_too():
    cell = np.array(list(itertools.product((0, 1, 400, 766, 767), repeat=3)))
    assert (cell_of(key_of(cell)) == cell).all()
    around = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    everywhere = (cell[:, None] + around).reshape(-1, 3)
    assert len(np.unique(key_of(everywhere))) == len(np.unique(everywhere, axis=0))


def test_what_fits_lies_at_a_random_place_inside():
    places = np.random.default_rng(0).uniform(-300, 300, (200, 3))
    origins = []
    for seed in range(50):
        image = place_image(truth_of(places), np.random.default_rng(seed))
        assert image.inside.all()
        assert (image.to_voxels(places) >= 0).all()
        assert (image.to_voxels(places) <= 768).all()
        origins.append(image.origin)
    room = WIDTH - np.ptp(np.vstack([places, [[0, 0, 0]]]), axis=0)
    assert (np.ptp(origins, axis=0) > 0.8 * room).all()


def test_the_first_points_decide_when_not_all_fit():
    z = np.arange(-3000.0, 3000.0, 100.0)
    places = np.stack([0 * z, 0 * z, z], 1)
    up = place_image(truth_of(places, start=(0.0, 0.0, -3000.0)), np.random.default_rng(0))
    assert up.origin[2] == pytest.approx(-3000)
    down = place_image(truth_of(places[::-1], start=(0.0, 0.0, 3000.0)), np.random.default_rng(0))
    assert down.origin[2] + WIDTH == pytest.approx(3000)


def test_a_start_outside_the_active_volume_does_not_count():
    image = place_image(truth_of([[0, 0, 0.0]] * 3, start=(1000.0, 0.0, 0.0)), np.random.default_rng(0))
    assert image.inside.all()
    assert abs(image.origin[0]) <= WIDTH
