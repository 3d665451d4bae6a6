"""Cells of points and of cells, against sets of coordinates."""

import pytest
import torch

from larpanda.sparse.curves import curve_codes, hilbert_code
from larpanda.sparse.grid import coarsen, voxelize

DEPTH = 6


def points(sizes, seed=0, side=20):
    generator = torch.Generator().manual_seed(seed)
    position = torch.rand(sum(sizes), 3, generator=generator) * side + 7
    return position, torch.tensor([0, *sizes]).cumsum(0)


def test_every_point_finds_its_own_cell():
    position, start = points([300, 0, 1, 50])
    cells, point_cell = voxelize(position, start, DEPTH)
    event = torch.repeat_interleave(start.diff())
    for b in range(4):
        mine = event == b
        if not mine.any():
            assert cells.start[b] == cells.start[b + 1]
            continue
        whole = position[mine].floor().long()
        whole -= whole.min(0).values
        assert torch.equal(cells.cell[point_cell[mine]], whole)
        assert len(whole.unique(dim=0)) == cells.start[b + 1] - cells.start[b]
    assert torch.equal(cells.event_id[point_cell], event)


def test_cells_lie_along_the_hilbert_curve_and_orders_along_theirs():
    position, start = points([400, 200])
    cells, _ = voxelize(position, start, DEPTH)
    code = hilbert_code(cells.cell, DEPTH) + (cells.event_id << 3 * DEPTH)
    assert (code.diff() > 0).all()
    assert torch.equal(cells.order[0], torch.arange(len(code)))
    for along in cells.order:
        assert torch.equal(along.sort().values, torch.arange(len(code)))


def test_coarsening_gives_the_distinct_parents_in_curve_order():
    position, start = points([400, 0, 3, 200])
    cells, _ = voxelize(position, start, DEPTH)
    coarser = coarsen(cells)
    for b in range(4):
        fine = cells.cell[cells.event_id == b]
        coarse = coarser.cells.cell[coarser.cells.event_id == b]
        assert {tuple(c) for c in (fine >> 1).tolist()} == {tuple(c) for c in coarse.tolist()}
        assert len(coarse) == coarser.cells.start[b + 1] - coarser.cells.start[b]
    assert torch.equal(coarser.cells.cell[coarser.run], cells.cell >> 1)
    assert torch.equal(torch.bincount(coarser.run), coarser.length)
    direct, _ = voxelize(coarser.cells.cell.float(), coarser.cells.start, DEPTH - 1)
    assert torch.equal(direct.order, coarser.cells.order)


@pytest.mark.parametrize("width", [1, 2, 19, 254, 255, 510])
def test_fitted_curves_are_as_deep_as_each_event_is_wide(width):
    """Level by level, whatever the batch-mates: what the released code does with single events."""
    generator = torch.Generator().manual_seed(1)
    cell = torch.randint(0, width, (300, 3), generator=generator)
    cell = torch.cat([cell, torch.tensor([[0, 0, 0], [width - 1, 0, 0]])]).unique(dim=0)
    mate = torch.tensor([[0.0, 0.0, 0.0], [2000.0, 3.0, 0.0]])
    start = torch.tensor([0, 2, 2 + len(cell)])
    cells, _ = voxelize(torch.cat([mate, cell + 0.5]), start, None)
    for _ in range(3):
        mine = cells.cell[cells.start[1] :]
        depth = int(mine.max() + 1).bit_length()
        codes = curve_codes(mine, torch.zeros(len(mine), dtype=torch.long), depth)
        assert torch.equal(codes.argsort(), cells.order[:, cells.start[1] :] - cells.start[1])
        cells = coarsen(cells).cells


def test_no_points_at_all():
    cells, point_cell = voxelize(torch.zeros(0, 3), torch.tensor([0, 0, 0]), DEPTH)
    assert len(cells.cell) == len(point_cell) == len(coarsen(cells).run) == 0
    assert cells.start.tolist() == [0, 0, 0]
