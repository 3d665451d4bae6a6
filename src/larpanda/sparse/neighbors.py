"""Which cells touch which: the geometry that every sparse convolution of a level shares."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from larpanda.sparse.kernels import round_up, side_by_side

BITS = 16  # of a key, per axis; 3 * 16 leaves 15 bits for the event
KERNEL = 27  # cells of a 3 x 3 x 3 kernel
UNUSED = -1
_HALF = KERNEL // 2


@dataclass(frozen=True, slots=True, eq=False)
class NeighborMap:
    """All pairs of touching cells, sorted by the kernel cell that joins them.

    Kernel cell k is the offset (k // 9 - 1, k // 3 % 3 - 1, k % 3 - 1); k and 26 - k are opposite and have the same
    pairs, in the same order, with the two ends exchanged. The cell itself (k = 13) is left out: it needs no map.
    """

    source: Tensor  # [P] int64, row of the neighbour, sorted by kernel cell
    target: Tensor  # [P] int64, row whose neighbour it is; UNUSED for a place that only rounds a count up
    count: list[int]  # [26] pairs of each kernel cell, 0..12, 14..26
    pair: Tensor  # [P] int32, the pairs sorted by target, without the unused
    pair_start: Tensor  # [N] int32, where the pairs of each target begin in `pair`
    around: Tensor | None  # [N, 27] int32, the row of the neighbour in each kernel cell, N where there is none; on GPUs


def neighbor_map(cell: Tensor, event_id: Tensor, rounded: bool = False) -> NeighborMap:
    """Find, for every cell, the occupied cells of the 26 around it in the same event.

    Args:
        cell: [N, 3] int64, occupied cells of one level, any order.
        event_id: [N] int64, in 0..32767, the event that each cell belongs to.
        rounded: round up the number of pairs of each kernel cell, and N (see ``kernels.round_up``).

    Raises:
        ValueError: a cell lies outside [0, 2**16 - 1), or occurs twice in one event.

    One sort and four searches: the three cells that follow each other along z lie side by side among the sorted keys,
    and half of the 26 mirrors the other half. Source: the "rule book" of Graham et al. 2018 (arXiv:1711.10275), its
    hash table replaced by sorted keys so that the result is the same on every device.
    """
    n, device = len(cell), cell.device
    limit = 2**BITS - 1  # a step below 0 borrows into the top cells, which are thus always empty
    if n and (cell.min() < 0 or cell.max() >= limit):
        raise ValueError(f"cells span {int(cell.min())}..{int(cell.max())}, must be in 0..{limit - 1}; shift first")
    x, y, z = cell.unbind(1)
    key, row = (event_id << 3 * BITS | x << 2 * BITS | y << BITS | z).sort()
    if (key[1:] == key[:-1]).any():
        raise ValueError("a cell occurs twice in one event; merge its points with grid.voxelize first")
    is_pair, far = _following(key)
    near = is_pair.flatten().nonzero()[:, 0] % max(n, 1)  # sorted by kernel cell, then by key
    near, far, half = row[near], row[far[is_pair]], is_pair.sum(1).tolist()
    # `far` lies at offset 26 - k of `near`: for kernel cell k, near is the neighbour of far
    blocks = list(torch.split(torch.stack([near, far]), half, 1))
    if rounded:
        blocks = [F.pad(block, (0, round_up(block.shape[1]) - block.shape[1]), value=UNUSED) for block in blocks]
        half = [block.shape[1] for block in blocks]
    source = torch.cat([*(b[0] for b in blocks), *(b[1] for b in reversed(blocks))])
    target = torch.cat([*(b[1] for b in blocks), *(b[0] for b in reversed(blocks))])
    count = [*half, *reversed(half)]
    # the pairs of each target, one per kernel cell at most: a table is faster than a sort
    slot = torch.repeat_interleave(torch.tensor(count, device=device), output_size=len(target))
    place, number = target * (KERNEL - 1) + slot, torch.arange(len(target), dtype=torch.int32, device=device)
    if rounded:
        used = target != UNUSED
        place, number = place[used], number[used]
        source = source.clamp(min=0)  # any row will do
    table = torch.full((n * (KERNEL - 1),), -1, dtype=torch.int32, device=device)
    table[place] = number
    degree = torch.bincount(place // (KERNEL - 1), minlength=round_up(n) if rounded else n)
    around = None
    if side_by_side(device) and not rounded:
        around = torch.full((n, KERNEL), n, dtype=torch.int32, device=device)
        around[target, slot + (slot >= _HALF)] = source.int()
        around[:, _HALF] = torch.arange(n, device=device)
    return NeighborMap(source, target, count, table[table >= 0], (degree.cumsum(0) - degree).int(), around)


def _following(key: Tensor) -> tuple[Tensor, Tensor]:
    """For the 13 kernel cells after the centre, last first: [13, N] bool: is it occupied, and [13, N] int64: by which.

    key: [N] int64, sorted: event, x, y, z.
    """
    n, device = len(key), key.device
    is_pair = torch.empty(_HALF, n, dtype=torch.bool, device=device)
    row = torch.empty(_HALF, n, dtype=torch.long, device=device)
    padded = torch.cat([key, key.new_full((2,), -1)])
    column = [(dx << 2 * BITS) + (dy << BITS) for dx, dy in ((1, 1), (1, 0), (1, -1), (0, 1))]
    wanted = key + torch.tensor(column, device=device)[:, None] - 1  # [4, N], the lowest of three cells along z
    at = torch.searchsorted(key, wanted)
    of_column, row_of_column = is_pair[:-1].view(4, 3, n), row[:-1].view(4, 3, n)
    for dz in range(3):
        here = padded[at] == wanted
        of_column[:, 2 - dz], row_of_column[:, 2 - dz] = here, at
        at, wanted = at + here, wanted + 1
    is_pair[-1] = padded[1 : n + 1] == key + 1
    row[-1] = torch.arange(1, n + 1, device=device)
    return is_pair, row


def nearest(query: Tensor, query_group: Tensor, place: Tensor, place_group: Tensor, radius: float) -> Tensor:
    """Find for each query the nearest place of the same group.

    Args:
        query: [Q, 3] float.
        query_group: [Q] int64, not negative.
        place: [M, 3] float.
        place_group: [M] int64, not negative.
        radius: what is further away is not found.

    Returns:
        [Q] int64: the row of the nearest place (of equally near ones the first), or -1 where none is within the radius.

    Raises:
        ValueError: groups times cells of the radius are more than an integer holds.

    One sort of the places into cells of the radius and 18 binary searches for each query.
    """
    none = torch.full((len(query),), -1, device=query.device)
    if not len(query) or not len(place):
        return none
    low = torch.minimum(query.amin(0), place.amin(0))
    cell_of_query, cell_of_place = (((x - low) / radius).floor().long() + 1 for x in (query, place))
    size = torch.maximum(cell_of_query.amax(0), cell_of_place.amax(0)) + 2  # a cell's neighbours are in the box
    n_groups = int(torch.maximum(query_group.max(), place_group.max())) + 1
    if n_groups * size.double().prod() >= 2**62:
        raise ValueError(f"{n_groups} groups of {size.tolist()} cells of {radius:g}: too many to number")
    step_x, step_y = int(size[1] * size[2]), int(size[2])

    def key(cell: Tensor, group: Tensor) -> Tensor:
        return ((group * size[0] + cell[:, 0]) * size[1] + cell[:, 1]) * size[2] + cell[:, 2]

    sorted_key, row = key(cell_of_place, place_group).sort(stable=True)
    column = torch.tensor([x * step_x + y * step_y for x in (-1, 0, 1) for y in (-1, 0, 1)], device=query.device)
    middle = key(cell_of_query, query_group)[:, None] + column  # [Q, 9]: of three cells each, next to each other
    first = torch.searchsorted(sorted_key, middle - 1)
    count = torch.searchsorted(sorted_key, middle + 1, right=True) - first
    of_column = torch.repeat_interleave(count.flatten())
    within = (
        torch.arange(len(of_column), device=query.device) - (count.flatten().cumsum(0) - count.flatten())[of_column]
    )
    candidate = row[first.flatten()[of_column] + within]
    asked = of_column // len(column)
    squared = (query[asked] - place[candidate]).square().sum(1)
    best = torch.full((len(query),), radius**2, dtype=squared.dtype, device=query.device)
    best.scatter_reduce_(0, asked, squared, "amin")
    wins = squared == best[asked]  # also one at exactly the radius
    found = torch.full((len(query),), len(place), device=query.device)
    found.scatter_reduce_(0, asked[wins], candidate[wins], "amin")
    return torch.where(found < len(place), found, none)
