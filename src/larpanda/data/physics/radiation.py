"""What electrons radiate, and how often photons make pairs, in liquid argon: the tables and their use.

Bremsstrahlung after Y.-S. Tsai, Rev. Mod. Phys. 46 (1974) 815, with the Coulomb correction of Davies, Bethe and Maximon
and Elwert's factor at low energies; pair production from NIST XCOM's argon.
"""

import functools
from typing import NamedTuple

import numpy as np

from larpanda.data.physics.kernel import Floats, kernel
from larpanda.data.physics.material import ELECTRON_MASS, PER_BARN, X0_MM, Z
from larpanda.data.physics.scattering import ALPHA, RE2

ENERGIES, FRACTIONS = 48, 64  # nodes of the bremsstrahlung table
LOWEST_RADIATION, HIGHEST_RADIATION = 0.02, 1e4  # MeV
PHOTON_CUT = 0.010  # MeV: softer photons are deposited where they are made


class RadiationTables(NamedTuple):
    """What electrons radiate and what pairs cost, at `ENERGIES` kinetic energies evenly spaced in the logarithm."""

    rate: Floats  # [E] 1/mm, photons above PHOTON_CUT
    soft_loss: Floats  # [E] MeV/mm, by photons below it
    quantile: Floats  # [E, FRACTIONS] of ln(k / PHOTON_CUT) / ln(T / PHOTON_CUT), at evenly spaced probabilities
    pair_energy: Floats  # [P] ln(MeV)
    pair_rate: Floats  # [P] 1/mm


def bremsstrahlung(energy: float, photon: Floats) -> Floats:
    """k dsigma/dk (barn per atom) of an electron of `energy` MeV kinetic, at photon energies in MeV."""
    total = energy + ELECTRON_MASS
    final = np.maximum(total - photon, 1.0001 * ELECTRON_MASS)
    y = photon / total
    a2 = (ALPHA * Z) ** 2
    coulomb = a2 * (1 / (1 + a2) + 0.20206 - 0.0369 * a2 + 0.0083 * a2**2)
    screening = 100 * ELECTRON_MASS * photon / (total * final)
    g, e = screening / Z ** (1 / 3), screening / Z ** (2 / 3)
    phi = 20.863 - 2 * np.log(1 + (0.55846 * g) ** 2) - 4 * (1 - 0.6 * np.exp(-0.9 * g) - 0.4 * np.exp(-1.5 * g))
    psi = 28.340 - 2 * np.log(1 + (3.621 * e) ** 2) - 4 * (1 - 0.7 * np.exp(-8 * e) - 0.3 * np.exp(-29.2 * e))
    nucleus = np.maximum(phi - 4 / 3 * np.log(Z) - 4 * coulomb, 0.0)
    electrons = np.maximum(psi - 8 / 3 * np.log(Z), 0.0)
    small = (2 / 3) / (1 + 6.5 * g + 6 * g**2) + (2 / 3) / (1 + 40 * e + 400 * e**2) / Z
    cross = ALPHA * RE2 * Z**2 * ((4 / 3 * (1 - y) + y**2) * (nucleus + electrons / Z) + 2 / 3 * (1 - y) * small)
    beta, beta_final = np.sqrt(1 - (ELECTRON_MASS / total) ** 2), np.sqrt(1 - (ELECTRON_MASS / final) ** 2)
    charge = 2 * np.pi * ALPHA * Z
    elwert = beta / beta_final * (1 - np.exp(-charge / beta)) / (1 - np.exp(-charge / beta_final))
    return np.asarray(cross * np.minimum(elwert, 3.0))


# Pair production in argon: its cross section over the asymptotic one, 7/9 of a conversion per radiation length.
PAIR_MEV = [1.1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 50, 100, 300, 1000, 10000]
PAIR_SHARE = [
    2e-5,
    3e-4,
    0.0045,
    0.023,
    0.063,
    0.102,
    0.138,
    0.170,
    0.224,
    0.270,
    0.35,
    0.42,
    0.61,
    0.735,
    0.87,
    0.94,
    1.0,
]


@functools.cache
def radiation_tables() -> RadiationTables:
    """The tables that the compiled transport reads."""
    energies = np.geomspace(LOWEST_RADIATION, HIGHEST_RADIATION, ENERGIES)
    rate, soft, quantile = np.zeros(ENERGIES), np.zeros(ENERGIES), np.zeros((ENERGIES, FRACTIONS))
    for i, energy in enumerate(energies):
        log_k = np.linspace(np.log(PHOTON_CUT), np.log(0.9999 * energy), 400)
        density = bremsstrahlung(energy, np.exp(log_k))
        area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(log_k))])
        rate[i] = PER_BARN * area[-1]
        fraction = (log_k - log_k[0]) / np.log(energy / PHOTON_CUT)
        quantile[i] = np.interp(np.linspace(0, 1, FRACTIONS), area / area[-1], fraction)
        low_k = np.linspace(1e-5, PHOTON_CUT, 50)
        soft[i] = PER_BARN * bremsstrahlung(energy, low_k).mean() * PHOTON_CUT
    pair = np.array(PAIR_SHARE) * 7 / 9 / X0_MM
    return RadiationTables(rate, soft, quantile, np.log(PAIR_MEV), pair)


@kernel
def _place(energy: float) -> float:
    """Where an energy lies among the columns of the table."""
    place = np.log(energy / LOWEST_RADIATION) * ((ENERGIES - 1) / np.log(HIGHEST_RADIATION / LOWEST_RADIATION))
    return float(min(max(place, 0.0), ENERGIES - 1.001))


@kernel
def _between(table: Floats, place: float) -> float:
    i = int(place)
    return float(table[i] + (place - i) * (table[i + 1] - table[i]))


@kernel
def radiation_at(radiation: RadiationTables, energy: float) -> tuple[float, float]:
    """Photons above PHOTON_CUT per mm, and MeV/mm that go into softer ones, for an electron of `energy` MeV."""
    place = _place(energy)
    return _between(radiation.rate, place), _between(radiation.soft_loss, place)


@kernel
def radiated_photon(radiation: RadiationTables, column: float, energy: float, rng: np.random.Generator) -> float:
    """Energy (MeV) of a bremsstrahlung photon.

    Args:
        radiation: the tables.
        column: energy (MeV) at which the spectrum is looked up.
        energy: MeV, what the electron has now.
        rng: consumed.
    """
    place = _place(column)
    row = int(place)
    if rng.random() < place - row:
        row += 1
    fraction = _between(radiation.quantile[row], rng.random() * (FRACTIONS - 1))
    return float(PHOTON_CUT * (energy / PHOTON_CUT) ** fraction)


@kernel
def pair_rate(k: float, radiation: RadiationTables) -> float:
    """Conversions per mm of a photon of k MeV."""
    log_k = np.log(k)
    n = len(radiation.pair_energy)
    if log_k <= radiation.pair_energy[0]:
        return 0.0
    i = min(int(np.searchsorted(radiation.pair_energy, log_k)), n - 1)
    low, high = radiation.pair_energy[i - 1], radiation.pair_energy[i]
    f = min((log_k - low) / (high - low), 1.0)
    return float(radiation.pair_rate[i - 1] + f * (radiation.pair_rate[i] - radiation.pair_rate[i - 1]))
