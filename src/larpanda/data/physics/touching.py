"""Which groups of deposits touch: sums per voxel and group, and pairs of groups in the same or neighbouring voxels."""

import numpy as np

from larpanda.data.physics.cells import BASE
from larpanda.data.physics.kernel import Floats, Ints, kernel


def sum_up(key: Ints, group: Ints, energy: Floats) -> tuple[Ints, Ints, Floats]:
    """[D] voxel, group and MeV of deposits -> the same of the V different pairs of voxel and group, sorted by both."""
    if not len(key):
        return key, group, energy
    n = int(group.max()) + 1
    pair = key * n + group
    order = np.argsort(pair)
    pair = pair[order]
    first = np.ones(len(pair), bool)
    first[1:] = pair[1:] != pair[:-1]
    row = np.empty(len(pair), np.int64)
    row[order] = np.cumsum(first) - 1
    pair = pair[first]
    total = np.bincount(row, energy).astype(np.float64)  # added in the order of the deposits, on every machine
    return pair // n, pair % n, total


def neighbours(key: Ints, group: Ints, n: int) -> tuple[Ints, Ints]:
    """Which of n groups touch.

    Args:
        key: [V] voxels, ascending.
        group: [V] the group that has energy there.
        n: number of groups.

    Returns:
        start [n + 1], other: group g touches other[start[g]:start[g + 1]], ascending.
    """
    pairs = _touching_pairs(key, group, n)
    pairs = np.sort(np.concatenate([pairs, pairs % n * n + pairs // n]))
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    return np.searchsorted(pairs // n, np.arange(n + 1)), pairs % n


@kernel
def _touching_pairs(key: Ints, group: Ints, n: int) -> Ints:
    """Pairs a * n + b of different groups with voxels in the same or in neighbouring cells, some more than once."""
    pairs = np.empty(1024, np.int64)
    count = 0
    # The cell itself and its later neighbours are five runs of keys along z; a pointer walks along each.
    run = np.array([0, BASE - 1, BASE * BASE - BASE - 1, BASE * BASE - 1, BASE * BASE + BASE - 1])
    at = np.zeros(5, np.int64)
    for i in range(len(key)):
        last = -1
        for r in range(5):
            low = key[i] + run[r]
            high = key[i] + 1 if r == 0 else low + 2
            while at[r] < len(key) and key[at[r]] < low:
                at[r] += 1
            j = at[r] if r > 0 else i + 1
            while j < len(key) and key[j] <= high:
                pair = group[i] * n + group[j]
                if group[j] != group[i] and pair != last:
                    if count == len(pairs):
                        more = np.empty(2 * count, np.int64)
                        more[:count] = pairs
                        pairs = more
                    pairs[count] = pair
                    count += 1
                    last = pair
                j += 1
    return pairs[:count]
