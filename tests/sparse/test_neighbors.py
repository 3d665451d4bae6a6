"""neighbor_map against a dictionary, and the properties that convolutions rely on."""

import pytest
import torch

from larpanda.sparse.neighbors import BITS, nearest, neighbor_map


@pytest.mark.parametrize("origin", [0, 2**BITS - 2 - 7], ids=["low corner", "high corner"])
def test_agrees_with_a_dictionary(make_cells, origin):
    cell, event = make_cells([60, 0, 100, 1], side=7)
    cell = cell + origin
    rows = {(b, *v): n for n, (b, v) in enumerate(zip(event.tolist(), cell.tolist(), strict=True))}
    expected = set()
    for (b, x, y, z), n in rows.items():
        for k in range(27):
            near = rows.get((b, x + k // 9 - 1, y + k // 3 % 3 - 1, z + k % 3 - 1))
            if near is not None and k != 13:
                expected.add((k, near, n))
    found = neighbor_map(cell, event)
    kernel = torch.repeat_interleave(torch.tensor([k for k in range(27) if k != 13]), torch.tensor(found.count))
    assert len(kernel) == len(expected)
    assert set(zip(kernel.tolist(), found.source.tolist(), found.target.tolist(), strict=True)) == expected


def test_opposite_kernel_cells_hold_the_same_pairs_exchanged(make_cells):
    found = neighbor_map(*make_cells([300], side=9))
    sources, targets = found.source.split(found.count), found.target.split(found.count)
    for k in range(13):
        assert torch.equal(sources[k], targets[25 - k])


def test_pairs_by_target(make_cells):
    found = neighbor_map(*make_cells([300, 40], side=9))
    end = torch.cat([found.pair_start[1:], torch.tensor([len(found.pair)])])
    for n, (a, b) in enumerate(zip(found.pair_start, end, strict=True)):
        assert (found.target[found.pair[a:b]] == n).all()
    assert torch.equal(found.pair.sort().values, torch.arange(len(found.target)))


@pytest.mark.parametrize(("cell", "message"), [([[-1, 0, 0]], r"0\.\.65534"), ([[2, 2, 2]] * 2, "occurs twice")])
def test_rejects_cells_it_cannot_index(cell, message):
    with pytest.raises(ValueError, match=message):
        neighbor_map(torch.tensor(cell), torch.zeros(len(cell), dtype=torch.long))


@pytest.mark.parametrize("radius", [0.4, 1.0, 3.0])
def test_the_nearest_place_is_that_of_all_distances(radius):
    rng = torch.Generator().manual_seed(0)
    query, place = (torch.rand(n, 3, generator=rng) * 12 - 6 for n in (300, 200))
    query_group, place_group = (torch.randint(0, 4, (n,), generator=rng) for n in (300, 200))
    distance = torch.cdist(query.double(), place.double())
    distance[query_group[:, None] != place_group] = torch.inf
    least, row = distance.min(1)
    expected = torch.where(least <= radius, row, -1)
    assert (expected >= 0).any()
    assert (expected < 0).any() or radius == 3.0
    assert torch.equal(nearest(query, query_group, place, place_group, radius), expected)


def test_of_equally_near_places_the_first():
    """On a lattice ties are the rule; a distance of exactly the radius counts."""
    place = torch.cartesian_prod(*[torch.arange(4.0)] * 3)
    query = place + 0.5
    none = torch.zeros(64, dtype=torch.long)
    distance = torch.cdist(query, place)
    first = [int((row <= row.min() + 1e-6).nonzero()[0]) for row in distance]
    assert nearest(query, none, place, none, 2.0).tolist() == first
    assert nearest(place + torch.tensor([0.0, 0.0, 1.0]), none, place, none, 1.0).min() >= 0


def test_nearest_of_nothing():
    nothing, one = torch.zeros(0, 3), torch.zeros(1, 3)
    group = torch.zeros(1, dtype=torch.long)
    assert nearest(nothing, group[:0], one, group, 1.0).shape == (0,)
    assert nearest(one, group, nothing, group[:0], 1.0).tolist() == [-1]
    with pytest.raises(ValueError, match="too many to number"):
        nearest(one, group + 2**40, one + 1e6, group + 2**40, 0.1)
