"""Which cells touch which: the geometry that every sparse convolution of a level shares."""

from dataclasses import dataclass

import torch
from torch import Tensor

BITS = 16  # of a key, per axis; 3 * 16 leaves 15 bits for the event
KERNEL = 27  # cells of a 3 x 3 x 3 kernel
_HALF = KERNEL // 2


@dataclass(frozen=True, slots=True, eq=False)
class NeighborMap:
    """All pairs of touching cells, sorted by the kernel cell that joins them.

    Kernel cell k is the offset (k // 9 - 1, k // 3 % 3 - 1, k % 3 - 1); k and 26 - k are opposite and have the same
    pairs, in the same order, with the two ends exchanged. The cell itself (k = 13) is left out: it needs no map.
    """

    source: Tensor  # [P] int64, row of the neighbour, sorted by kernel cell
    target: Tensor  # [P] int64, row whose neighbour it is
    count: tuple[int, ...]  # [26] pairs of each kernel cell, 0..12, 14..26
    pair: Tensor  # [P] int64, the pairs sorted by target
    pair_start: Tensor  # [N] int64, where the pairs of each target begin in `pair`


def neighbor_map(cell: Tensor, event_id: Tensor) -> NeighborMap:
    """Find, for every cell, the occupied cells of the 26 around it in the same event.

    Args:
        cell: [N, 3] int64, occupied cells of one level, any order.
        event_id: [N] int64, in 0..32767, the event that each cell belongs to.

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
    x_step, y_step = 1 << 2 * BITS, 1 << BITS
    key = (event_id << 3 * BITS) + (cell * torch.tensor([x_step, y_step, 1], device=device)).sum(1)
    sorted_key, row = key.sort()
    if (sorted_key.diff() == 0).any():
        raise ValueError("a cell occurs twice in one event; merge its points with grid.voxelize first")
    padded = torch.cat([sorted_key, sorted_key.new_full((3,), torch.iinfo(torch.long).max)])
    found = torch.full((_HALF, n), -1, device=device)  # [13, N]: sorted row of the cell at offset 26 - k
    here = torch.arange(n, device=device)
    following = padded[1 : n + 1] == sorted_key + 1
    found[_HALF - 1] = torch.where(following, here + 1, -1)
    for i, (dx, dy) in enumerate(((0, 1), (1, -1), (1, 0), (1, 1))):
        wanted = sorted_key + (dx * x_step + dy * y_step - 1)
        at = torch.searchsorted(sorted_key, wanted)
        for dz in range(3):
            hit = padded[at] == wanted + dz
            found[_HALF - 2 - 3 * i - dz] = torch.where(hit, at, -1)
            at = at + hit
    kernel, near = (found >= 0).nonzero(as_tuple=True)  # sorted by kernel cell, then by row
    far = found[kernel, near]
    near, far, half = row[near], row[far], torch.bincount(kernel, minlength=_HALF)
    # `far` lies at offset 26 - k of `near`: for kernel cell k, near is the neighbour of far
    blocks = torch.split(torch.stack([near, far]), half.tolist(), 1)
    source = torch.cat([near, *(b[1] for b in reversed(blocks))])
    target = torch.cat([far, *(b[0] for b in reversed(blocks))])
    table = torch.full((n, KERNEL - 1), -1, device=device)
    slot = torch.repeat_interleave(torch.cat([half, half.flip(0)]))
    table[target, slot] = torch.arange(len(target), device=device)
    occupied = table >= 0
    degree = occupied.sum(1)
    return NeighborMap(
        source, target, (*half.tolist(), *half.flip(0).tolist()), table[occupied], degree.cumsum(0) - degree
    )
