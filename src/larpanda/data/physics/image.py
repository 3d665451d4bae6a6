"""Where the image lies: a cube of 768 voxels of 3 mm, put around the event as LArSoft's Supera does it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from larpanda.data.physics.cells import BASE
from larpanda.data.physics.kernel import Floats, Ints, kernel
from larpanda.data.physics.presets import ACTIVE_HALF_MM, Vector
from larpanda.data.physics.transport import Truth
from larpanda.event import IMAGE_VOXELS, VOXEL_MM


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """The cube of an event with D deposits, M of them inside."""

    origin: Floats  # [3] mm, the corner of voxel (0, 0, 0)
    inside: npt.NDArray[np.bool_]  # [D]
    key: Ints  # [M], see `cells`, voxel of each deposit inside

    def to_voxels(self, place_mm: Floats) -> Floats:
        """[..., 3] mm -> image coordinates in voxels."""
        return (place_mm - self.origin) / VOXEL_MM


def place_image(truth: Truth, rng: np.random.Generator, active_half_mm: Vector = ACTIVE_HALF_MM) -> Image:
    """Grow a box over the primaries and the deposits in their order, to at most 2304 mm an axis.

    The first point that does not fit fills the box up on its side. Room that is left goes to a random side. Primaries
    that start outside the active volume, of half-widths `active_half_mm`, do not count.
    """
    vertices = np.array([p.position_mm for p in truth.primaries]).reshape(-1, 3)
    vertices = vertices[(np.abs(vertices) < active_half_mm).all(axis=1)]
    points = np.concatenate([vertices, truth.place])
    width = IMAGE_VOXELS * VOXEL_MM
    origin = np.zeros(3)
    for axis in range(3):
        low, high = _grow(points, axis, width)
        origin[axis] = high - width + (width - (high - low)) * rng.random()
    key = _keys(truth.place, origin)
    inside = key >= 0
    return Image(origin, inside, key[inside])


@kernel
def _keys(place: Floats, origin: Floats) -> Ints:
    """[D] the voxel of each deposit, -1 outside the cube: `key_of`, in one pass over the deposits."""
    keys = np.empty(len(place), np.int64)
    for i in range(len(place)):
        key, inside = 0, True
        for axis in range(3):
            cell = int(np.floor((place[i, axis] - origin[axis]) / VOXEL_MM))
            inside = inside and 0 <= cell < IMAGE_VOXELS
            key = key * BASE + cell + 1
        keys[i] = key if inside else -1
    return keys


@kernel
def _grow(points: Floats, axis: int, width: float) -> tuple[float, float]:
    """The interval over the first points (mm) that fit into `width`; the first that does not fills it up."""
    if len(points) == 0:
        return 0.0, 0.0
    low = high = points[0, axis]
    for i in range(1, len(points)):
        x = points[i, axis]
        if x - low >= width:
            return low, low + width
        if high - x >= width:
            return high - width, high
        low, high = min(low, x), max(high, x)
    return low, high
