"""Which points hang together: groups of points that no gap divides."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
TOUCHING = 1.8  # voxels; the farthest of 26 neighbours is at 1.73


def touching(voxel: npt.NDArray[np.floating], group: Ints) -> Ints:
    """Number voxels that touch one another (26 neighbours), directly or by way of others, within their group.

    Args:
        voxel: [N, 3] indices.
        group: [N], of any values; negative: in none.

    Returns:
        [N] the piece of each voxel, from 0; -1 for those of no group.
    """
    result = np.full(len(voxel), -1, np.int64)
    rows = np.flatnonzero(group >= 0)
    if len(rows):
        result[rows] = _connected(voxel[rows], TOUCHING, group[rows])
    return result


def pieces(position: npt.NDArray[np.floating], gap: float, group: Ints | None = None) -> Ints:
    """Divide points where there is a gap.

    Points are put together in cells of a quarter of the gap first: within it all pairs of a shower would be millions.

    Args:
        position: [N, 3] in any unit.
        gap: in the same: pieces lie about so far apart, or farther.
        group: [N] from 0, groups that are divided each on its own; None: all are one.

    Returns:
        [N] the piece of each point, from 0.
    """
    if not len(position) or (group is None and np.ptp(position, axis=0).max() <= gap / 2):
        return np.zeros(len(position), np.int64)
    place = np.floor(4.0 * (position - position.min(0)) / gap).astype(np.int64)
    group = np.zeros(len(position), np.int64) if group is None else group
    order = np.lexsort([*place.T, group])
    keys = np.column_stack([place, group])[order]
    first = np.r_[True, (keys[1:] != keys[:-1]).any(1)]
    cell = np.empty(len(position), np.int64)
    cell[order] = first.cumsum() - 1
    return _connected(keys[first, :3], 4.0, keys[first, 3])[cell]


def _connected(position: npt.NDArray[np.number], reach: float, group: Ints) -> Ints:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    n = len(position)
    pairs = cKDTree(position).query_pairs(reach, output_type="ndarray")
    pairs = pairs[group[pairs[:, 0]] == group[pairs[:, 1]]]
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (n, n))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)
