"""The line that a track's voxels follow: its two ends, its length, and how much energy it loses where.

Knows points in cm and energies, no particle and no detector.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import cKDTree

Numbers = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
NEIGHBOURS = 10  # of each voxel in the graph; a voxel on a line has two, and some beside it
SEGMENT_CM = 1.5  # of the line: five voxels, so that their middle is smooth and kinks are kept


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """N points along a line with two ends, which have no order yet."""

    along: Numbers  # [N] cm from the first end, along the line
    ends: Ints  # [2] rows of the points that are farthest from one another
    line: Numbers  # [S, 3] cm, from the first end to the second
    length: float  # cm

    def reversed(self) -> "Trajectory":
        """The same from the other end."""
        return Trajectory(self.length - self.along, self.ends[::-1], self.line[::-1], self.length)


def trajectory(position: Numbers) -> Trajectory:
    """Find the line through the points of a track.

    Args:
        position: [N, 3] cm, N at least 1, in any order.

    Returns:
        The ends are the two points that are farthest apart on paths from point to point; the line goes through the
        middles of segments of 1.5 cm. One point is a line of no length.

    Cost: O(N log N), 4 ms for 300 points.
    """
    n = len(position)
    if n == 1:
        return Trajectory(np.zeros(1), np.zeros(2, np.int64), position[[0, 0]], 0.0)
    # ties are settled by place, not by the order of the points
    order = np.lexsort(position.T)
    graph = _connected_graph(position[order])
    middle = int(np.argmin(((position[order] - position.mean(0)) ** 2).sum(1)))
    first = int(np.argmax(dijkstra(graph, directed=False, indices=middle)))
    way = dijkstra(graph, directed=False, indices=first)
    last = int(np.argmax(way))
    segment = np.minimum((way / SEGMENT_CM).astype(np.int64), int(way[last] / SEGMENT_CM))
    count = np.bincount(segment)
    sums = np.stack([np.bincount(segment, position[order][:, k]) for k in range(3)], 1)
    inner = sums[count > 0] / count[count > 0, None]
    line = np.concatenate([position[order][[first]], inner[1:-1], position[order][[last]]])
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    length = float(steps.sum())
    along = np.empty(n)
    along[order] = way * (length / way[last])  # paths from voxel to voxel zigzag: the line does not
    return Trajectory(along, order[[first, last]], line, length)


def _connected_graph(position: Numbers) -> csr_array:
    """Distances between near points, and where points fall apart, between the nearest of two groups."""
    n = len(position)
    tree = cKDTree(position)
    distance, near = tree.query(position, k=min(NEIGHBOURS + 1, n))
    distance = np.maximum(distance, 1e-9)  # a graph takes a zero for no edge
    row = np.repeat(np.arange(n), near.shape[1] - 1)
    rows, columns, lengths = [row], [near[:, 1:].ravel()], [distance[:, 1:].ravel()]
    graph = coo_array((lengths[0], (row, columns[0])), (n, n)).tocsr()
    groups, label = connected_components(graph, directed=False)
    while groups > 1:  # the first group takes the nearest of the others in
        mine = label == 0
        gap, nearest = cKDTree(position[mine]).query(position[~mine])
        other = np.flatnonzero(~mine)[int(np.argmin(gap))]
        one = np.flatnonzero(mine)[int(nearest[int(np.argmin(gap))])]
        rows.append(np.array([one]))
        columns.append(np.array([other]))
        lengths.append(np.array([gap.min()]))  # above zero, or they would be one group
        label[label == label[other]] = 0
        groups -= 1
    edges = (np.concatenate(rows), np.concatenate(columns))
    return coo_array((np.concatenate(lengths), edges), (n, n)).tocsr()


def loss_profile(along: Numbers, energy: Numbers, length: float, step_cm: float) -> tuple[Numbers, Numbers]:
    """Energy a cm in steps along a line.

    Args:
        along: [N] cm from an end.
        energy: [N] MeV.
        length: cm, of the line.
        step_cm: about so long is a step; a line has at least one.

    Returns:
        [S] cm, middles of the steps, and [S] MeV/cm; empty for a line of no length.
    """
    if length <= 0:
        return np.empty(0), np.empty(0)
    n = max(1, round(length / step_cm))
    step = length / n
    which = np.clip((along / step).astype(np.int64), 0, n - 1)
    middles = np.asarray((np.arange(n) + 0.5) * step, np.float64)
    return middles, np.asarray(np.bincount(which, energy, n) / step, np.float64)
