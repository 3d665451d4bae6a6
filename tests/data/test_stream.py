"""The order of events, and how a batch is divided among processes."""

import numpy as np
import pytest

from larpanda.data.stream import Stream, shares


def sizes(seed, n=48):
    """Points of generated events: lognormal, 4,500 at the median."""
    return np.random.default_rng(seed).lognormal(np.log(4500), 0.8, n).astype(int).tolist()


def unevenness(parts, points):
    loads = [sum(points[place] for place in part) for part in parts]
    return max(loads) / np.mean(loads)


@pytest.mark.parametrize("world", [1, 2, 3, 8, 48])
def test_every_place_belongs_to_one_process_and_keeps_its_order(world):
    for seed in range(5):
        parts = shares(sizes(seed), world)
        assert len(parts) == world
        assert all(part == sorted(part) and part for part in parts)
        assert sorted(place for part in parts for place in part) == list(range(48))


@pytest.mark.parametrize(("world", "limit"), [(4, 1.01), (8, 1.06)])
def test_processes_get_about_as_many_points(world, limit):
    """In the mean over batches; equal numbers of events are 10 times as far from even."""
    batches = [sizes(seed) for seed in range(200)]
    by_size = np.mean([unevenness(shares(batch, world), batch) for batch in batches])
    by_number = np.mean([unevenness([range(r, 48, world) for r in range(world)], batch) for batch in batches])
    assert by_size < limit
    assert by_size - 1 < (by_number - 1) / 10


def test_empty_events_are_divided_as_well():
    assert shares([0, 0, 0, 0], 4) == [[0], [1], [2], [3]]
    assert all(shares([5, 0, 0, 0, 0, 7], 3))


def test_each_event_once_in_each_pass():
    stream = Stream(10, 4, 1)
    seen = np.concatenate([stream.ordinals(step) for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
