"""A voxel of the image as one integer, its key: three indices in base 770, each shifted by one.

So the 26 neighbours of a voxel are fixed differences of keys, also at the faces of the cube.
"""

import numpy as np

from larpanda.data.physics.kernel import Ints
from larpanda.event import IMAGE_VOXELS

BASE = IMAGE_VOXELS + 2


def key_of(cell: Ints) -> Ints:
    """[N, 3] indices in 0..767 -> [N] keys."""
    x, y, z = (cell + 1).T
    return np.asarray((x * BASE + y) * BASE + z)


def cell_of(key: Ints) -> Ints:
    """[N] keys -> [N, 3] indices."""
    return np.stack([key // BASE**2, key // BASE % BASE, key % BASE], axis=1) - 1
