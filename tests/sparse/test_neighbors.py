"""neighbor_map against a dictionary, and the properties that convolutions rely on."""

import pytest
import torch

from larpanda.sparse.neighbors import BITS, neighbor_map


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
