"""Points to occupied cells, and cells to cells twice as wide, each with the map back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from larpanda.sparse.curves import MAX_DEPTH, curve_codes


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The M occupied cells of one level, B events end to end, each in the order of its Hilbert curve at level 0."""

    cell: Tensor  # [M, 3] int64, from 0 at the event's own corner
    event_id: Tensor  # [M] int64
    start: Tensor  # [B + 1] int64: event b owns rows start[b]:start[b + 1]
    key: (
        Tensor  # [M] int64: the rows' codes along that curve, ascending; ``key >> 3`` is that of the cell twice as wide
    )
    order: Tensor  # [4, M] int64: rows along each curve of curves.ORDERS
    fitted: bool  # whether the curves of an event are as deep as its own width at the level (see voxelize)


@dataclass(frozen=True, slots=True, eq=False)
class Coarser:
    """How the cells of one level lie in those of the next: a run of rows each, since the curve visits them together."""

    cells: Cells  # the wider cells
    length: Tensor  # [M'] int64, 1 to 8: how many finer rows each wider cell has, in their order
    run: Tensor  # [M] int64: the wider cell of each finer row


def voxelize(position: Tensor, start: Tensor, depth: int | None) -> tuple[Cells, Tensor]:
    """Find the occupied unit cells of each event, counted from the lowest corner of the event.

    Args:
        position: [N, 3] float, in units of the cell; any order within an event.
        start: [B + 1] int64, event b owns rows start[b]:start[b + 1].
        depth: bits per axis of the curves, one less at each coarser level; None: as many as the widest side of the
            event needs at that level, which is what the released code does with one event at a time.

    Returns:
        The cells, and [N] int64: the cell of each point. Neither depends on the other events of the batch.

    Raises:
        ValueError: an event is wider than 2**depth cells.

    One sort per curve.
    """
    n_events = len(start) - 1
    event_id = torch.repeat_interleave(start.diff())
    cell = position.floor().long()
    lowest = torch.full((n_events, 3), torch.iinfo(torch.long).max, device=cell.device)
    lowest.scatter_reduce_(0, event_id[:, None].expand(-1, 3), cell, "amin")
    cell = cell - lowest[event_id]
    codes = _codes(cell, event_id, n_events, depth)
    hilbert, by_curve = codes[0].sort()
    key, sorted_cell, size = torch.unique_consecutive(hilbert, return_inverse=True, return_counts=True)
    point_cell = torch.empty_like(sorted_cell)
    point_cell[by_curve] = sorted_cell
    first = by_curve[size.cumsum(0) - size]
    order = torch.stack([torch.arange(len(first), device=cell.device), *(c[first].argsort() for c in codes[1:])])
    event_id = event_id[first]
    return Cells(cell[first], event_id, _starts(event_id, n_events), key, order, depth is None), point_cell


def coarsen(cells: Cells) -> Coarser:
    """Halve the resolution: cells of 2 x 2 x 2. Needs no sort: a curve leaves a wider cell only when it has done it."""
    n_events = len(cells.start) - 1
    key, run, length = torch.unique_consecutive(cells.key >> 3, return_inverse=True, return_counts=True)
    first = length.cumsum(0) - length
    cell, event_id = cells.cell[first] >> 1, cells.event_id[first]
    if cells.fitted:  # the depth need not fall by one (widths of 254 or 510 cells), and then the curve turns
        order = _codes(cell, event_id, n_events, None).argsort()
    else:
        order = torch.stack([torch.unique_consecutive(run[along]) for along in cells.order])
    return Coarser(Cells(cell, event_id, _starts(event_id, n_events), key, order, cells.fitted), length, run)


def _codes(cell: Tensor, event_id: Tensor, n_events: int, depth: int | None) -> Tensor:
    """Codes of cells along each curve; without a depth, curves turn as those of each event's own depth do."""
    if depth is not None:
        return curve_codes(cell, event_id, depth)
    highest = torch.zeros(n_events, dtype=torch.long, device=cell.device)
    highest.scatter_reduce_(0, event_id, cell.amax(1), "amax")
    bits = torch.frexp((highest + 1).double()).exponent.long()  # the bit length of a whole number
    return curve_codes(cell, event_id, MAX_DEPTH, bits[event_id])


def _starts(event_id: Tensor, n_events: int) -> Tensor:
    return torch.cat([event_id.new_zeros(1), torch.bincount(event_id, minlength=n_events).cumsum(0)])
