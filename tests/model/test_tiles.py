"""Tiles: every point is one tile's own, and instances cut at their borders come together again."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import larpanda
from larpanda.event import Status
from larpanda.model.bundle import Bundle
from larpanda.model.selection import Selected
from larpanda.model.tiles import OVERLAP, cut, stitch
from larpanda.reconstruct import Reconstructor


def points(n, seed=0, side=600):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, side, (n, 3))).float()


@given(st.integers(1, 400), st.integers(1, 300), st.integers(0, 1000))
@settings(max_examples=50)
def test_every_point_is_the_own_of_one_tile_which_sees_what_is_near(n, most, seed):
    position = points(n, seed)
    tiles = cut(position, most)
    own = torch.cat([tile.rows[tile.own] for tile in tiles])
    assert sorted(own.tolist()) == list(range(n))
    for tile in tiles:
        mine = position[tile.rows[tile.own]]
        near = ((position >= mine.amin(0) - OVERLAP) & (position <= mine.amax(0) + OVERLAP)).all(1)
        if len(tiles) > 1:
            assert tile.rows.tolist() == near.nonzero()[:, 0].tolist()
        assert len(tile.rows) <= most or (mine.amax(0) - mine.amin(0)).max() <= OVERLAP or n <= most


def test_a_small_event_is_one_tile():
    (tile,) = cut(points(50), 50)
    assert tile.rows.tolist() == list(range(50))
    assert tile.own.all()


def as_found(owner, rows, kind):
    """The truth within a tile, as its own numbers in another order."""
    mine = owner[rows]
    known = torch.unique(mine[mine >= 0]).flip(0)
    number = torch.full((int(owner.max()) + 2,), -1)
    number[known] = torch.arange(len(known))
    probability = torch.nn.functional.one_hot(kind[known], 5).float() * 0.8 + 0.04
    return Selected(number[mine], known, kind[known], torch.linspace(0.9, 0.5, len(known)), probability, False)


def lines(seed=0, n=5, length=500):
    rng = np.random.default_rng(seed)
    start, step = rng.integers(50, 150, (n, 3)), rng.normal(size=(n, 3))
    step = np.abs(step / np.linalg.norm(step, axis=1)[:, None])
    along = start[:, None] + np.arange(length)[None, :, None] * step[:, None]
    return torch.from_numpy(along.reshape(-1, 3)).float().round(), torch.arange(n).repeat_interleave(length)


@pytest.mark.parametrize("most", [3000, 1500, 600])
def test_tracks_through_many_tiles_are_one_each(most):
    position, owner = lines()
    owner[::50] = -1
    kind = torch.tensor([2, 3, 4, 2, 0])
    tiles = cut(position, most)
    assert (len(tiles) > 1) == (most < 2500)
    found = stitch(tiles, [as_found(owner, tile.rows, kind) for tile in tiles], len(position))
    assert torch.equal(found.owner < 0, owner < 0)
    for i in range(5):
        (number,) = torch.unique(found.owner[owner == i]).tolist()
        assert torch.equal(found.owner == number, owner == i)
        assert found.kind[number] == kind[i]
    assert (found.score[:-1] >= found.score[1:]).all()
    assert not found.all_used


def test_what_two_tiles_see_differently_stays_apart():
    position, owner = lines(n=1)
    tiles = cut(position, 300)
    kind = torch.tensor([2])
    parts = [as_found(owner, tile.rows, kind) for tile in tiles]
    none = [getattr(parts[1], name)[:0] for name in ("query", "kind", "score", "class_probability")]
    parts[1] = Selected(torch.full_like(parts[1].owner, -1), *none, True)
    found = stitch(tiles, parts, len(position))
    assert (found.owner[tiles[1].rows[tiles[1].own]] == -1).all()
    assert found.all_used


def test_nothing_found_anywhere():
    position = points(100)
    tiles = cut(position, 30)
    empty = (torch.zeros(0, dtype=torch.long),) * 2
    none = [Selected(torch.full((len(t.rows),), -1), *empty, torch.zeros(0), torch.zeros(0, 5), False) for t in tiles]
    found = stitch(tiles, none, 100)
    assert (found.owner == -1).all()
    assert len(found.query) == len(found.kind) == 0


def test_a_large_event_is_seen_in_tiles_and_says_so(tiny_model, make_cloud):
    event = make_cloud(3000, side=200, origin=100)
    bundle = Bundle(tiny_model.requires_grad_(False), "tiny", {}, "0" * 64)
    whole = Reconstructor(bundle, "cpu").reconstruct(event)
    tiled = Reconstructor(bundle, "cpu", max_points=1500).reconstruct(event)
    assert whole.status == Status.OK
    assert tiled.status == Status.TOO_LARGE
    assert "3000 voxels, more than 1500: seen in " in tiled.reason
    assert not torch.isnan(tiled.motif_probability).any()
    assert (tiled.motif == whole.motif).float().mean() > 0.5  # of random weights, whose windows differ
    order = torch.randperm(3000)
    names = ("position", "energy", "motif", "species", "particle", "interaction")
    moved = larpanda.Event(*(getattr(event, name)[order] for name in names))
    assert torch.equal(Reconstructor(bundle, "cpu", max_points=1500).reconstruct(moved).motif, tiled.motif[order])
    with pytest.raises(ValueError, match="max_points is 0"):
        Reconstructor(bundle, "cpu", max_points=0)
