"""How far muons, pions and protons of an energy go in liquid argon before they stop, and back: CSDA tables.

Made by the Bethe formula with Sternheimer's density effect and shell corrections (``benchmarks/range_tables.py``).
Muons of 10 MeV to 3 GeV agree to 0.1 mm or 0.4 % with Groom, Mokhov and Striganov, At. Data Nucl. Data Tables 78 (2001)
183.
"""

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from larpanda.event import MASS_MEV, Species

if TYPE_CHECKING:
    from scipy.interpolate import CubicSpline

Numbers = npt.NDArray[np.float64]
LOWEST_MEV, HIGHEST_MEV = 1.0, 5000.0  # kinetic energies of the tables, evenly spaced in the logarithm
# fmt: off
RANGE_CM = {
    Species.MUON: (
        0.01251, 0.02304, 0.04277, 0.07983, 0.1496, 0.2808, 0.5265, 0.9837, 1.825, 3.347, 6.043, 10.69, 18.42,
        30.82, 49.98, 78.57, 120.0, 178.9, 261.1, 375.2, 532.5, 749.4, 1049.0, 1462.0, 2035.0,
    ),
    Species.PION: (
        0.01032, 0.01883, 0.03475, 0.06459, 0.1207, 0.2263, 0.4247, 0.796, 1.485, 2.75, 5.029, 9.043, 15.91,
        27.25, 45.29, 72.95, 114.0, 173.1, 256.7, 373.3, 534.6, 757.1, 1064.0, 1487.0, 2071.0,
    ),
    Species.PROTON: (
        0.004678, 0.006911, 0.01089, 0.0181, 0.03131, 0.05571, 0.1011, 0.186, 0.3449, 0.6433, 1.205, 2.261, 4.242,
        7.932, 14.74, 27.08, 49.03, 87.01, 150.6, 253.2, 412.5, 651.5, 999.4, 1494.0, 2187.0,
    ),
}
# fmt: on


def range_cm(energy_mev: npt.ArrayLike, species: Species) -> Numbers:
    """The mean way to rest of a particle of so much kinetic energy, any shape; 0 at 0, NaN above 5 GeV.

    Raises:
        ValueError: the species has no range.
    """
    energy = np.asarray(energy_mev, np.float64)
    inside = np.clip(energy, LOWEST_MEV, HIGHEST_MEV)
    result = np.exp(_splines(species)[0](np.log(inside)))
    # a particle of less than 1 MeV stops within a tenth of a millimetre
    return np.where(energy < LOWEST_MEV, result * energy / LOWEST_MEV, np.where(energy > HIGHEST_MEV, np.nan, result))


def energy_mev(range_cm: npt.ArrayLike, species: Species) -> Numbers:
    """The kinetic energy of a particle that goes so far, any shape; 0 at 0, NaN beyond the range of 5 GeV.

    Raises:
        ValueError: the species has no range.
    """
    way = np.asarray(range_cm, np.float64)
    table = RANGE_CM.get(species, (np.nan, np.nan))
    result = np.exp(_splines(species)[1](np.log(np.clip(way, table[0], table[-1]))))
    return np.where(way < table[0], LOWEST_MEV * way / table[0], np.where(way > table[-1], np.nan, result))


def loss_mev_per_cm(range_cm: npt.ArrayLike, species: Species) -> Numbers:
    """Mean energy loss of a particle that has so far to go, any shape.

    Raises:
        ValueError: the species has no range.
    """
    energy = np.clip(energy_mev(range_cm, species), LOWEST_MEV, HIGHEST_MEV)
    slope = _splines(species)[0].derivative()(np.log(energy))  # d ln R / d ln T
    way = np.exp(_splines(species)[0](np.log(energy)))
    return np.asarray(energy / (way * slope), np.float64)


def momentum_mev(kinetic_mev: npt.ArrayLike, species: Species) -> Numbers:
    """Momentum (MeV/c) of a particle of so much kinetic energy, any shape."""
    kinetic = np.asarray(kinetic_mev, np.float64)
    return np.sqrt(kinetic * (kinetic + 2.0 * MASS_MEV[species]))


@cache
def _splines(species: Species) -> "tuple[CubicSpline, CubicSpline]":
    """ln R against ln T, and ln T against ln R."""
    from scipy.interpolate import CubicSpline

    if species not in RANGE_CM:
        known = ", ".join(one.name.lower() for one in RANGE_CM)
        raise ValueError(f"{species.name.lower()}: has no range; expected {known}")
    table = np.log(RANGE_CM[species])
    nodes = np.linspace(np.log(LOWEST_MEV), np.log(HIGHEST_MEV), len(table))
    return CubicSpline(nodes, table), CubicSpline(table, nodes)
