"""How the compiled parts of the physics are compiled, and the arrays they write into.

Compiled code is kept beside the source (numba's cache), so that only the first event after an installation waits, for
27 s of one core.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from larpanda.event import CreationProcess

Function = TypeVar("Function", bound=Callable[..., object])
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def constants(values: Iterable[int]) -> tuple[int, ...]:
    """Whole numbers for compiled code.

    NumPy's, whatever the type says: for each Python int that is an argument numba compiles the function once more, and
    a cold start would wait 5 s longer.
    """
    return tuple(cast(int, np.int64(value)) for value in values)


# What made a track. The label rules read these. Compiled code knows no IntEnum.
(
    PRIMARY,
    KNOCK_ON,
    IONISATION,
    BREMSSTRAHLUNG,
    CONVERSION,
    COMPTON,
    PHOTO_ELECTRIC,
    ANNIHILATION,
    DECAY,
    HADRONIC,
    CAPTURE,
) = constants(CreationProcess)

# How a track ended: it left the argon; came to rest; decayed on the way, reacted or was absorbed.
LEFT, STOPPED, VANISHED = constants(range(3))

PDG_PHOTON, PDG_ELECTRON, PDG_POSITRON, PDG_MU_PLUS = constants((22, 11, -11, -13))
(NOBODY,) = constants((0,))  # the owner of what nuclei and light ions deposit

# A quarter faster than strict arithmetic. Not allowed: to take for granted that nothing is infinite or NaN.
_FASTMATH = {"arcp", "afn", "contract", "nsz", "reassoc"}
_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_STAMP = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:12]


def kernel(function: Function) -> Function:
    """Compile on the first call; the type stays that of the Python function.

    Numba looks only at a function's own file to see whether its compiled form is still good, but that form contains
    what the function calls from other files. So the name under which it is kept has a stamp of all files.
    """
    function.__qualname__ = f"{function.__qualname__}_{_STAMP}"
    return cast(Function, numba.njit(cache=True, error_model="numpy", fastmath=_FASTMATH)(function))


class Particle(NamedTuple):
    """A particle on its way: kinetic energy in MeV, position in mm, unit direction."""

    energy: float
    x: float
    y: float
    z: float
    ux: float
    uy: float
    uz: float


class Ledger(NamedTuple):
    """What has happened so far in an event. Row t of the track arrays is track id t; row 0 is nobody."""

    used: Ints  # [2] number of deposits, number of track rows
    newest: Ints  # [1] the track to be followed next, 0 for none
    below: Ints  # [T] the track that waits behind this one, 0 for none
    place: Floats  # [D, 3] mm, middle of the step
    deposit: Floats  # [D] MeV
    owner: Ints  # [D] track id, 0 for recoils and ions
    parent: Ints  # [T] track id, 0 for a primary
    pdg: Ints  # [T] signed PDG code
    process: Ints  # [T] what made the track
    start: Floats  # [T, 7] MeV, mm, unit direction: the fields of Particle
    end: Floats  # [T, 3] mm
    path: Floats  # [T] mm, the whole way
    fate: Ints  # [T] LEFT, STOPPED or VANISHED
    lost: Floats  # [T] MeV that was not recorded: deposited outside the active volume, or carried out of the argon


@kernel
def add_track(ledger: Ledger, parent: int, pdg: int, process: int, particle: Particle) -> None:
    """Give birth to a track."""
    row = ledger.used[1]
    ledger.used[1] = row + 1
    ledger.parent[row] = parent
    ledger.pdg[row] = pdg
    ledger.process[row] = process
    for i in range(7):
        ledger.start[row, i] = particle[i]
    ledger.lost[row] = 0.0


@kernel
def end_track(ledger: Ledger, track: int, fate: int, x: float, y: float, z: float, path: float) -> None:
    """Write down where and how a track ended, after `path` mm."""
    ledger.fate[track] = fate
    ledger.path[track] = path
    ledger.end[track, 0] = x
    ledger.end[track, 1] = y
    ledger.end[track, 2] = z


@kernel
def add_deposit(ledger: Ledger, half: Floats, track: int, energy: float, x: float, y: float, z: float) -> None:
    """Record an energy deposit, if it lies in the active volume of half-widths `half` (mm)."""
    if energy <= 0.0:
        return
    if abs(x) >= half[0] or abs(y) >= half[1] or abs(z) >= half[2]:
        ledger.lost[track] += energy
        return
    row = ledger.used[0]
    ledger.used[0] = row + 1
    ledger.place[row, 0] = x
    ledger.place[row, 1] = y
    ledger.place[row, 2] = z
    ledger.deposit[row] = energy
    ledger.owner[row] = track


@kernel
def outside(world: Floats, x: float, y: float, z: float) -> bool:
    """Whether a place (mm) lies outside the argon of half-widths `world`."""
    return bool(abs(x) > world[0] or abs(y) > world[1] or abs(z) > world[2])


@kernel
def azimuth(rng: np.random.Generator) -> tuple[float, float]:
    """The cosine and sine of a random angle: a point in the unit disk, which is quicker than both functions."""
    while True:
        a, b = 2.0 * rng.random() - 1.0, 2.0 * rng.random() - 1.0
        square = a * a + b * b
        if 1e-12 < square < 1.0:
            scale = 1.0 / np.sqrt(square)
            return a * scale, b * scale


@kernel
def deflect(ux: float, uy: float, uz: float, cos: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Rotate a unit vector by a polar angle (its cosine) and a random azimuth."""
    a, b = azimuth(rng)
    return _rotate(ux, uy, uz, cos, a, b)


@kernel
def turn(ux: float, uy: float, uz: float, cos: float, phi: float) -> tuple[float, float, float]:
    """Rotate a unit vector by a polar angle (its cosine) and an azimuth."""
    return _rotate(ux, uy, uz, cos, np.cos(phi), np.sin(phi))


@kernel
def _rotate(ux: float, uy: float, uz: float, cos: float, a: float, b: float) -> tuple[float, float, float]:
    sin = np.sqrt(max(0.0, 1.0 - cos * cos))
    a, b = sin * a, sin * b
    across = np.sqrt(ux * ux + uy * uy)
    if across < 1e-9:
        return a, b, cos if uz > 0 else -cos
    vx = ux * cos + (ux * uz * a - uy * b) / across
    vy = uy * cos + (uy * uz * a + ux * b) / across
    vz = uz * cos - across * a
    scale = 1.0 / np.sqrt(vx * vx + vy * vy + vz * vz)
    return vx * scale, vy * scale, vz * scale


@kernel
def isotropic(rng: np.random.Generator) -> tuple[float, float, float]:
    """A random unit vector."""
    cos = 2.0 * rng.random() - 1.0
    sin, phi = np.sqrt(1.0 - cos * cos), 2.0 * np.pi * rng.random()
    return sin * np.cos(phi), sin * np.sin(phi), cos
