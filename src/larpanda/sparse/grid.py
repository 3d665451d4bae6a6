"""Points to occupied cells, and cells to cells twice as wide, each with the map back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from larpanda.sparse.curves import curve_codes


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The M occupied cells of one level, B events end to end, each in the order of its Hilbert curve."""

    cell: Tensor  # [M, 3] int64, from 0 at the event's own corner
    event_id: Tensor  # [M] int64
    start: Tensor  # [B + 1] int64: event b owns rows start[b]:start[b + 1]
    order: Tensor  # [orders, M] int64: rows along each curve of curves.ORDERS; order[0] is 0..M - 1


@dataclass(frozen=True, slots=True, eq=False)
class Coarser:
    """How the cells of one level lie in those of the next: a run of rows each, since the curve visits them together."""

    cells: Cells  # the wider cells
    length: Tensor  # [M'] int64, 1 to 8: how many finer rows each wider cell has, in their order
    run: Tensor  # [M] int64: the wider cell of each finer row


def voxelize(position: Tensor, start: Tensor, depth: int, orders: int) -> tuple[Cells, Tensor]:
    """Find the occupied unit cells of each event, counted from the lowest corner of the event.

    Args:
        position: [N, 3] float, in units of the cell; any order within an event.
        start: [B + 1] int64, event b owns rows start[b]:start[b + 1].
        depth: bits per axis of the curves; fixed, so that an event's order does not depend on its batch.
        orders: how many curves of ``curves.ORDERS`` to prepare.

    Returns:
        The cells, and [N] int64: the cell of each point.

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
    codes = curve_codes(cell, event_id, depth, orders)
    hilbert, by_curve = codes[0].sort()
    _, sorted_cell, size = torch.unique_consecutive(hilbert, return_inverse=True, return_counts=True)
    point_cell = torch.empty_like(sorted_cell)
    point_cell[by_curve] = sorted_cell
    first = by_curve[size.cumsum(0) - size]
    codes = codes[:, first]
    order = torch.stack([torch.arange(len(first), device=cell.device), *(code.argsort() for code in codes[1:])])
    return Cells(cell[first], event_id[first], _starts(event_id[first], n_events), order), point_cell


def coarsen(cells: Cells) -> Coarser:
    """Halve the resolution: cells of 2 x 2 x 2. Needs no sort: a curve leaves a wider cell only when it has done it."""
    parent = cells.cell >> 1
    changed = torch.ones(len(parent), dtype=torch.bool, device=parent.device)
    changed[1:] = (parent[1:] != parent[:-1]).any(1) | (cells.event_id[1:] != cells.event_id[:-1])
    run = changed.cumsum(0) - 1
    first = changed.nonzero()[:, 0]
    length = torch.cat([first, first.new_tensor([len(parent)])]).diff()
    order = torch.stack([torch.unique_consecutive(run[along]) for along in cells.order])
    event_id = cells.event_id[first]
    wider = Cells(parent[first], event_id, _starts(event_id, len(cells.start) - 1), order)
    return Coarser(wider, length, run)


def _starts(event_id: Tensor, n_events: int) -> Tensor:
    return torch.cat([event_id.new_zeros(1), torch.bincount(event_id, minlength=n_events).cumsum(0)])
