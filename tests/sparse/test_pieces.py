"""Pieces against SciPy's labels of a dense image, and gaps that are known."""

import numpy as np
import pytest
from scipy.ndimage import label

from larpanda.sparse.pieces import pieces, segments, touching


def same_groups(a, b):
    """Whether two numberings divide alike."""
    pairs = np.unique(np.stack([a, b]), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


@pytest.mark.parametrize("seed", range(10))
def test_voxels_that_touch_are_those_of_a_dense_image(seed):
    rng = np.random.default_rng(seed)
    group_of = rng.integers(-1, 2, (12, 12, 12)) * (rng.random((12, 12, 12)) < 0.15) - (rng.random((12, 12, 12)) < 0.8)
    voxel = np.argwhere(group_of > -2)
    group = group_of[tuple(voxel.T)]
    found = touching(voxel.astype(np.float32), group)
    assert (found[group < 0] == -1).all()
    for one in (0, 1):
        dense = label(group_of == one, np.ones((3, 3, 3)))[0]
        mine = group == one
        assert same_groups(found[mine], dense[tuple(voxel[mine].T)])
    assert not set(found[group == 0]) & set(found[group == 1])


def test_no_voxels_and_no_groups():
    assert len(touching(np.empty((0, 3)), np.empty(0, np.int64))) == len(pieces(np.empty((0, 3)), 1.0)) == 0
    assert touching(np.zeros((2, 3)), np.array([-1, -1])).tolist() == [-1, -1]


def test_a_gap_divides_from_about_its_size_on():
    line = np.linspace(0.0, 50.0, 101)[:, None] * [[0.6, 0.8, 0.0]]
    for gap, n in ((2.0, 1), (4.0, 1), (6.5, 2), (20.0, 2)):
        far = np.concatenate([line, line + line[-1] + [0.6 * gap, 0.8 * gap, 0.0]])
        found = pieces(far, 5.0)
        assert found.max() + 1 == n
        if n == 2:
            assert same_groups(found, np.repeat([0, 1], 101))


def test_groups_are_divided_each_on_its_own():
    rng = np.random.default_rng(0)
    position, group = rng.random((400, 3)) * 60.0, rng.integers(0, 4, 400)
    found = pieces(position, 6.0, group)
    for one in range(4):
        assert same_groups(found[group == one], pieces(position[group == one], 6.0))
    assert len({(a, b) for a, b in zip(found, group, strict=True)}) == len(set(found))


def track(start, direction, length, rng, width=0.25):
    """Voxels along a line, as a track of some width leaves them, and where they lie along it."""
    direction = np.asarray(direction) / np.linalg.norm(direction)
    along = np.arange(0.0, length, 0.2)
    place = start + along[:, None] * direction + rng.normal(0, width, (len(along), 3))
    return np.unique(np.round(place).astype(int), axis=0)


def test_a_straight_track_is_one_segment():
    rng = np.random.default_rng(0)
    whole = 0
    for _ in range(20):
        line = track(rng.integers(100, 600, 3), rng.normal(size=3), 120, rng)
        whole += np.bincount(segments(line)).max() > 0.97 * len(line)
    assert whole >= 18  # of some a voxel in the middle is missing, and they touch no more


@pytest.mark.parametrize("degrees", [30, 60, 90, 120])
def test_tracks_of_one_vertex_are_told_apart(degrees):
    rng = np.random.default_rng(degrees)
    for _ in range(5):
        first = rng.normal(size=3)
        first /= np.linalg.norm(first)
        across = np.cross(first, rng.normal(size=3))
        across /= np.linalg.norm(across)
        second = np.cos(np.radians(degrees)) * first + np.sin(np.radians(degrees)) * across
        a, b = track([300, 300, 300], first, 100, rng), track([300, 300, 300], second, 40, rng)
        voxel, owner = np.unique(np.concatenate([a, b]), axis=0, return_index=True)
        owner = (owner >= len(a)).astype(int)
        found = segments(voxel)
        best = np.array([np.bincount(owner[found == k]).argmax() for k in range(found.max() + 1)])
        assert (best[found] == owner).mean() > 0.94  # near the vertex they overlap
        assert set(best) == {0, 1}


def test_segments_are_within_what_touches_and_do_not_depend_on_the_order():
    rng = np.random.default_rng(1)
    parts = [track(rng.integers(0, 60, 3), rng.normal(size=3), rng.integers(3, 60), rng) for _ in range(12)]
    voxel = np.unique(np.concatenate([*parts, rng.integers(0, 60, (40, 3))]), axis=0)
    found, whole = segments(voxel), touching(voxel, np.zeros(len(voxel), int))
    assert set(found) == set(range(found.max() + 1))
    assert len({(a, b) for a, b in zip(found, whole, strict=True)}) == found.max() + 1
    assert found.max() > whole.max()
    order = rng.permutation(len(voxel))
    assert same_groups(segments(voxel[order]), found[order])
    assert same_groups(segments(voxel[order] - 500.0), found[order])


def test_what_is_no_line_is_one_segment():
    block = np.argwhere(np.ones((5, 5, 5)))
    assert segments(block).max() == 0
    assert segments(block[:1]).tolist() == [0]
    assert len(segments(block[:0])) == 0


def test_segments_do_not_depend_on_what_lies_far_away():
    rng = np.random.default_rng(2)
    voxel = np.unique(np.concatenate([track([30, 30, 30], rng.normal(size=3), 50, rng) for _ in range(4)]), axis=0)
    far = np.concatenate([voxel + [40_960, 0, 0], voxel])
    assert same_groups(segments(far)[len(voxel) :], segments(voxel))
