"""Which points hang together: groups of points that no gap divides."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
TOUCHING = 1.8  # voxels; the farthest of 26 neighbours is at 1.73
REACH = 6.0  # voxels about one that say where a line goes there
STRAIGHT = 0.95  # of their variance along one axis, from which on they are a line
TURN_DEGREES = 20.0  # between touching voxels of one line
LEAST = 5  # voxels of a line; fewer belong to the nearest one


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
    group = np.zeros(len(position), np.int64) if group is None else group
    low = np.full((int(group.max()) + 1, 3), np.inf)
    np.minimum.at(low, group, position)
    low = np.where(np.isfinite(low), low, 0.0)  # of numbers that no group has
    # cells of each group from its own lowest point on, so that none changes those of another
    place = (np.floor(4.0 * (position - low[group]) / gap) + np.floor(4.0 * low / gap)[group]).astype(np.int64)
    order = np.lexsort([*place.T, group])
    keys = np.column_stack([place, group])[order]
    first = np.r_[True, (keys[1:] != keys[:-1]).any(1)]
    cell = np.empty(len(position), np.int64)
    cell[order] = first.cumsum() - 1
    return _connected(keys[first, :3], 4.0, keys[first, 3])[cell]


def segments(voxel: npt.NDArray[np.floating]) -> Ints:
    """Divide touching voxels where their lines branch, cross or kink.

    A voxel is on a line if those within 1.8 cm lie along one axis; touching ones whose axes differ by less than 20
    degrees are on the same. Where lines meet no axis is seen: voxels there go to the nearest line of what they touch.

    Args:
        voxel: [N, 3] indices, at most one row each.

    Returns:
        [N] the segment of each voxel, from 0; voxels that do not touch are of different ones.
    """
    from scipy.spatial import cKDTree

    n = len(voxel)
    if not n:
        return np.zeros(0, np.int64)
    order = np.lexsort(voxel.T)  # so that ties do not depend on the order of voxels
    place = voxel[order] - voxel.min(0)
    tree = cKDTree(place)
    near = tree.query_pairs(REACH, output_type="ndarray")
    one, other = np.concatenate([near, near[:, ::-1], np.tile(np.arange(n)[:, None], 2)]).T
    count = np.bincount(one, minlength=n)
    # small whole numbers, whose sums are exact: nothing hangs on the order of summation, or on where the voxels lie
    away = place[other] - place[one]
    middle = np.stack([np.bincount(one, away[:, k], n) for k in range(3)], 1) / count[:, None]
    spread = np.empty((n, 3, 3))
    for i in range(3):
        for j in range(i, 3):
            squares = np.bincount(one, away[:, i] * away[:, j], n) / count
            spread[:, i, j] = spread[:, j, i] = squares - middle[:, i] * middle[:, j]
    values, vectors = np.linalg.eigh(spread)
    axis, is_line = vectors[:, :, 2], values[:, 2] > STRAIGHT * values.sum(1)
    pairs = tree.query_pairs(TOUCHING, output_type="ndarray")
    whole = _labels(pairs, n)
    along = np.abs((axis[pairs[:, 0]] * axis[pairs[:, 1]]).sum(1)) > np.cos(np.radians(TURN_DEGREES))
    line = _labels(pairs[along & is_line[pairs].all(1)], n)
    on_line = np.bincount(line)[line] >= LEAST
    # far from one another, what does not touch: the nearest voxel of a line is one of the same whole
    apart = np.column_stack([place, whole * (4.0 * np.ptp(place, axis=0).max() + 4.0)])
    if on_line.any():
        nearest = cKDTree(apart[on_line]).query(apart)[1]
        line = line[on_line][nearest]
        lost = whole[on_line][nearest] != whole  # of a whole without a line
        line = np.where(lost, line.max() + 1 + whole, line)
    else:
        line = whole
    result = np.empty(n, np.int64)
    result[order] = np.unique(line, return_inverse=True)[1]
    return result


def _labels(pairs: Ints, n: int) -> Ints:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (n, n))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)


def _connected(position: npt.NDArray[np.number], reach: float, group: Ints) -> Ints:
    from scipy.spatial import cKDTree

    pairs = cKDTree(position).query_pairs(reach, output_type="ndarray")
    return _labels(pairs[group[pairs[:, 0]] == group[pairs[:, 1]]], len(position))
