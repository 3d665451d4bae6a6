"""Events too large for one pass: cut into overlapping tiles, each seen alone, what is found in them stitched again."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from larpanda.event import UNKNOWN
from larpanda.model.selection import Selected

OVERLAP = 40.0  # voxels (12 cm) that a tile sees beyond its own: more than a window of attention spans along a track
SAME = 0.5  # intersection over union, of what two tiles both see, above which their instances are one


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """Points that are seen together."""

    rows: Tensor  # [n] int64, ascending
    own: Tensor  # [n] bool: the points that this tile answers for; every point is some tile's own


def cut(position: Tensor, most: int) -> list[Tile]:
    """Cut an event into tiles, along its longest axis in the middle of its points, until each is small enough.

    Args:
        position: [N, 3] float32, voxels.
        most: points of a tile, what it sees beyond its own included. A tile that cannot be cut (all of its points
            within the overlap) may have more.

    Returns:
        The tiles; one with all points if there are no more than ``most``. Which they are does not depend on the order
        of points, unless several lie at the same place along an axis.
    """
    return _cut(position, torch.arange(len(position), device=position.device), most)


def _cut(position: Tensor, own: Tensor, most: int) -> list[Tile]:
    mine = position[own]
    low, high = mine.amin(0), mine.amax(0)
    seen = ((position >= low - OVERLAP) & (position <= high + OVERLAP)).all(1)
    rows = seen.nonzero()[:, 0]
    size = high - low
    if len(own) == len(position):
        rows = own
    if len(rows) <= most or float(size.max()) <= OVERLAP:
        is_own = torch.zeros(len(position), dtype=torch.bool, device=position.device).index_fill_(0, own, True)
        return [Tile(rows, is_own[rows])]
    along = mine[:, int(size.argmax())]
    first = along <= along.median()
    if bool(first.all()):  # most of them at the far end
        first = along < along.median()
    return [*_cut(position, own[first], most), *_cut(position, own[~first], most)]


def stitch(tiles: Sequence[Tile], found: Sequence[Selected], n_points: int) -> Selected:
    """Instances of tiles to those of the event.

    Two of different tiles are one if, of the points that both tiles see, they share most; so are chains of them. Each
    point is the instance's that the tile it is own to gives it to.

    Args:
        tiles: of the event.
        found: in each tile, over its rows.
        n_points: of the event.

    Returns:
        The instances, best first: score and class probabilities are the means over their parts, weighted by points;
        ``query`` is UNKNOWN.
    """
    device = tiles[0].rows.device
    first = [0]
    for one in found:
        first.append(first[-1] + len(one.query))
    parent = list(range(first[-1]))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    everywhere = []
    for tile, one, offset in zip(tiles, found, first, strict=False):
        owner = torch.full((n_points,), UNKNOWN, device=device)
        owner[tile.rows] = torch.where(one.owner >= 0, one.owner + offset, UNKNOWN)
        everywhere.append(owner)
    sees = [torch.zeros(n_points, dtype=torch.bool, device=device).index_fill_(0, tile.rows, True) for tile in tiles]
    for i in range(len(tiles)):
        for j in range(i):
            for a, b in _same(everywhere[i], everywhere[j], sees[i] & sees[j]):
                parent[root(a)] = root(b)
    roots = torch.tensor([root(i) for i in range(len(parent))], dtype=torch.long, device=device)
    owner = torch.full((n_points,), UNKNOWN, device=device)
    for tile, mine in zip(tiles, everywhere, strict=True):
        rows = tile.rows[tile.own]
        owner[rows] = mine[rows]
    weight = torch.bincount(owner[owner >= 0], minlength=len(parent)).to(torch.float64)  # of parts: points they keep
    owner = torch.where(owner >= 0, roots[owner.clamp(min=0)] if len(roots) else owner, UNKNOWN)
    kept = torch.unique(owner[owner >= 0])
    things = found[0].class_probability.shape[1]
    score, probability = torch.zeros(len(kept), device=device), torch.zeros(len(kept), things, device=device)
    if len(kept):
        part_score = torch.cat([one.score for one in found]).double()
        part_probability = torch.cat([one.class_probability for one in found]).double()
        place = torch.searchsorted(kept, roots)
        used = (weight > 0).nonzero()[:, 0]
        total = torch.zeros(len(kept), dtype=torch.float64, device=device).index_add_(0, place[used], weight[used])
        mean = torch.zeros(len(kept), things + 1, dtype=torch.float64, device=device)
        values = torch.cat([part_score[:, None], part_probability], 1)[used] * weight[used, None]
        mean = mean.index_add_(0, place[used], values) / total[:, None]
        score, probability = mean[:, 0].float(), mean[:, 1:].float()
    order = score.argsort(descending=True, stable=True)
    number = torch.empty_like(order)
    number[order] = torch.arange(len(order), device=device)
    if len(kept):
        owner = torch.where(
            owner >= 0, number[torch.searchsorted(kept, owner.clamp(min=0)).clamp(max=len(kept) - 1)], owner
        )
    probability = probability[order]
    return Selected(
        owner,
        torch.full((len(kept),), UNKNOWN, device=device),
        probability.argmax(1) if len(kept) else kept,
        score[order],
        probability,
        any(one.all_used for one in found),
    )


def _same(a: Tensor, b: Tensor, both: Tensor) -> list[tuple[int, int]]:
    """Pairs of instances of two tiles that share most of what both tiles see: at most one pair for each."""
    a, b = a[both], b[both]
    known = (a >= 0) & (b >= 0)
    pairs, shared = torch.unique(torch.stack([a[known], b[known]]), dim=1, return_counts=True)
    result = []
    for (i, j), n in zip(pairs.t().tolist(), shared.tolist(), strict=True):
        union = int((a == i).sum()) + int((b == j).sum()) - n
        if n > SAME * union:
            result.append((i, j))
    return result
