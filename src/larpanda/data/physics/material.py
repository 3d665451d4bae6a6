"""Liquid argon: constants, stopping powers and ranges of charged particles.

Sources: PDG Review of Particle Physics (Bethe formula, masses), Sternheimer, Berger and Seltzer, At. Data Nucl. Data
Tables 30 (1984) 261 (density effect), ICRU Report 37 (electrons), W. H. Barkas and M. J. Berger, NASA SP-3013 (1964)
(shell correction).
"""

import functools
from typing import NamedTuple

import numpy as np

from larpanda.data.physics.kernel import Floats, constants, kernel

Z, A = 18.0, 39.948
DENSITY = 1.396  # g/cm3, at 87.3 K
EXCITATION = 188.0e-6  # mean excitation energy, MeV
X0_MM = 140.0  # radiation length, 19.55 g/cm2
PER_BARN = 2.1045e-3  # interactions per mm for a cross section of one barn an atom
LOSS_CONSTANT = 0.009658  # 2 pi r_e^2 m_e c^2 times the density of electrons, MeV/mm

ELECTRON_MASS = 0.51099895  # MeV
MUON_MASS = 105.65837
PION_MASS = 139.57039
PI_ZERO_MASS = 134.9768
PROTON_MASS = 938.27209
NEUTRON_MASS = 939.56542

DELTA_CUT = 0.35  # MeV: knock-on electrons above this are tracks of their own (0.7 mm of range in Geant4)

SMALLEST_TRANSFER = 1e-5  # MeV, of an ionisation
IONISATION_SHARE = 0.56  # of the mean loss; the rest excites atoms
MANY = 8.0  # collisions: beyond, small ones are taken together

ELECTRON, MUON, PION, PROTON = constants(range(4))  # rows of the tables below
MASSES = np.array([ELECTRON_MASS, MUON_MASS, PION_MASS, PROTON_MASS])

LOWEST, HIGHEST, NODES = 1e-3, 2e4, 512  # MeV: the energies of the tables, evenly spaced in the logarithm


class StoppingTables(NamedTuple):
    """Rows are the kinds of particle above, columns are the energies of `grid`."""

    loss: Floats  # [4, NODES] MeV/mm, mean loss by transfers below DELTA_CUT
    range_mm: Floats  # [4, NODES] mm, integral of 1 / loss


def grid() -> Floats:
    """[NODES] MeV, the kinetic energies of the tables."""
    return np.geomspace(LOWEST, HIGHEST, NODES)


def density_effect(beta_gamma: Floats) -> Floats:
    """Sternheimer's delta for liquid argon."""
    x = np.log10(beta_gamma)
    high = 2 * np.log(10) * x - 5.2146
    delta = np.where(x > 3.0, high, high + 0.19559 * np.maximum(3.0 - x, 0.0) ** 3)
    return np.where(x > 0.2, delta, 0.0)


def shell_correction(beta_gamma: Floats) -> Floats:
    """The C of C / Z in the Bethe formula, from a beta gamma of 0.13 on (held constant below)."""
    square = np.maximum(beta_gamma, 0.13) ** -2.0
    ev = EXCITATION * 1e6
    first = 0.422377 * square + 0.0304043 * square**2 - 0.00038106 * square**3
    second = 3.858019 * square - 0.1667989 * square**2 + 0.00157955 * square**3
    return np.asarray(ev**2 * 1e-6 * first + ev**3 * 1e-9 * second)


def largest_transfer(energy: Floats, mass: float) -> Floats:
    """The most kinetic energy (MeV) that an electron at rest can get from a heavy particle of `energy` MeV."""
    gamma = 1 + energy / mass
    ratio = ELECTRON_MASS / mass
    return 2 * ELECTRON_MASS * (gamma**2 - 1) / (1 + 2 * gamma * ratio + ratio**2)


def bethe(energy: Floats, mass: float, cut: float = np.inf) -> Floats:
    """Mean energy loss (MeV/mm) of a heavy particle of charge 1 by transfers below `cut` MeV.

    Args:
        energy: MeV, kinetic.
        mass: MeV.
        cut: MeV; infinite for the whole loss.

    Below 1 MeV per proton mass, where the formula fails, the loss is held at its value there: such a particle
    stops within a fraction of a voxel.
    """
    t = np.maximum(energy, 1.0 * mass / PROTON_MASS)
    gamma = 1 + t / mass
    beta2 = 1 - 1 / gamma**2
    largest = largest_transfer(t, mass)
    upper = np.minimum(cut, largest)
    log = np.log(2 * ELECTRON_MASS * beta2 * gamma**2 * upper / EXCITATION**2)
    beta_gamma = np.sqrt(beta2) * gamma
    bracket = log - beta2 * (1 + upper / largest) - density_effect(beta_gamma) - 2 * shell_correction(beta_gamma) / Z
    return LOSS_CONSTANT / beta2 * bracket


def electron_collisions(energy: Floats, cut: float = np.inf) -> Floats:
    """Mean energy loss (MeV/mm) of an electron of `energy` MeV by transfers below `cut` MeV to other electrons.

    Used for positrons too: they differ by less than 3 % above 1 MeV.
    """
    tau = np.maximum(energy, 2e-3) / ELECTRON_MASS
    gamma = tau + 1
    beta2 = 1 - 1 / gamma**2
    d = np.minimum(cut / ELECTRON_MASS, tau / 2)
    bracket = (
        np.log(2 * (tau + 2) * (ELECTRON_MASS / EXCITATION) ** 2)
        - 1
        - beta2
        + np.log((tau - d) * d)
        + tau / (tau - d)
        + (d * d / 2 + (2 * tau + 1) * np.log(1 - d / tau)) / gamma**2
    )
    return LOSS_CONSTANT / beta2 * (bracket - density_effect(np.sqrt(beta2) * gamma))


def ranges(loss: Floats) -> Floats:
    """[NODES] mm, the way to rest of a particle that loses `loss` MeV/mm at the energies of `grid`."""
    energy = grid()
    integrand = energy / loss  # dT / S = (T / S) d ln T
    step = np.log(energy[1] / energy[0])
    inner = np.cumsum((integrand[1:] + integrand[:-1]) / 2 * step)
    return np.asarray(np.concatenate([[0.0], inner]) + energy[0] / loss[0])


@functools.cache
def stopping_tables() -> StoppingTables:
    """The tables that the compiled transport reads."""
    energy = grid()
    loss = np.stack([electron_collisions(energy, DELTA_CUT)] + [bethe(energy, mass, DELTA_CUT) for mass in MASSES[1:]])
    return StoppingTables(loss, np.stack([ranges(row) for row in loss]))


@kernel
def place_of(energy: float) -> tuple[int, float]:
    """Where `energy` MeV lies in `grid`: the node below, and the share of the way to the next, in the logarithm."""
    place = np.log(energy / LOWEST) * ((NODES - 1) / np.log(HIGHEST / LOWEST))
    i = min(max(int(place), 0), NODES - 2)
    return i, min(max(place - i, 0.0), 1.0)


@kernel
def between(table: Floats, i: int, f: float) -> float:
    """Value of a table over `grid` at a `place_of`."""
    return float(table[i] + f * (table[i + 1] - table[i]))


@kernel
def table_at(table: Floats, energy: float) -> float:
    """Value at `energy` MeV of a table over `grid`, linear in the logarithm of the energy."""
    i, f = place_of(energy)
    return between(table, i, f)


@kernel
def energy_of_range(range_mm: Floats, length: float) -> float:
    """The kinetic energy (MeV) at which a particle has `length` mm to go."""
    if length <= range_mm[0]:
        return float(LOWEST * max(length, 0.0) / range_mm[0])
    i = min(int(np.searchsorted(range_mm, length)), NODES - 1)
    f = (length - range_mm[i - 1]) / (range_mm[i] - range_mm[i - 1])
    return float(LOWEST * (HIGHEST / LOWEST) ** ((i - 1 + f) / (NODES - 1)))


@kernel
def mean_loss(tables: StoppingTables, kind: int, energy: float, i: int, f: float, step: float) -> float:
    """Mean loss (MeV) over `step` mm by transfers below DELTA_CUT; i, f is the `place_of` the energy."""
    table = tables.loss[kind]
    loss = step * between(table, i, f)
    if loss < 0.02 * energy:  # what it loses in the middle of the step
        slope = (table[i + 1] - table[i]) * ((NODES - 1) / np.log(HIGHEST / LOWEST))
        return float(loss - step * slope * 0.5 * loss / energy)
    rest = between(tables.range_mm[kind], i, f) - step
    return float(energy - energy_of_range(tables.range_mm[kind], rest))


@kernel
def straggle_heavy(mean: float, step: float, beta2: float, largest: float, rng: np.random.Generator) -> float:
    """The loss (MeV) of a muon, pion or proton in one step, whose mean is `mean`, by transfers below DELTA_CUT.

    Where it is ten times the largest transfer or more, a normal deviate (Bohr's variance); else `straggle`.

    Args:
        mean: MeV.
        step: mm.
        beta2: the particle's speed squared, of light's.
        largest: MeV, the most that it can transfer to an electron.
        rng: consumed.
    """
    if largest <= DELTA_CUT and mean >= 10.0 * largest:
        return _around(mean, LOSS_CONSTANT * step * largest * (1.0 / beta2 - 0.5), rng)
    return straggle(mean, largest, rng)


@kernel
def straggle(mean: float, largest: float, rng: np.random.Generator) -> float:
    """The loss (MeV) in one step, whose mean is `mean`, by transfers below DELTA_CUT.

    L. Urban's model of thin layers, as in Geant4 (K. Lassila-Perini, L. Urban, NIM A362 (1995) 416, and Geant4's
    Physics Reference Manual, "Energy loss fluctuations"): atoms are excited by I, and ionised by transfers e of 1 / e^2
    from 10 eV up, which take 0.56 of the loss. Where either happens more than eight times, the small ones are a normal
    deviate.

    Args:
        mean: MeV.
        largest: MeV, the most that it can transfer to an electron.
        rng: consumed.
    """
    upper = min(largest, DELTA_CUT)
    if mean < 1e-5 or upper <= SMALLEST_TRANSFER:
        return mean
    loss, correction = 0.0, min(1.0 + 5e-4 / upper, 1.5)  # for transfers so small that the model's shares do not add up
    mean /= correction
    excitations, quantum = 0.0, EXCITATION
    if upper > EXCITATION:
        excitations = (1.0 - IONISATION_SHARE) * mean / EXCITATION
        width = 0.1 + 3.9 * np.sqrt(min(excitations / 42.0, 1.0))
        excitations, quantum = excitations / width, quantum * width
        if excitations > MANY:
            loss += _around(excitations * quantum, excitations * quantum**2, rng)
        else:
            n = rng.poisson(excitations)
            if n > 0:
                loss += (n + 1 - 2.0 * rng.random()) * quantum
    ratio = upper / SMALLEST_TRANSFER
    ionisations = mean * (upper - SMALLEST_TRANSFER) / (SMALLEST_TRANSFER * upper * np.log(ratio))
    if excitations > 0.0:
        ionisations *= IONISATION_SHARE
    single, few = 1.0, ionisations
    if ionisations > MANY:
        single = ratio * (MANY + ionisations) / (ratio * MANY + ionisations)
        log = single * np.log(single) / (single - 1.0)
        small = ionisations * ratio * (single - 1.0) / ((ratio - 1.0) * single)
        loss += _around(small * SMALLEST_TRANSFER * log, SMALLEST_TRANSFER**2 * small * (single - log**2), rng)
        few = ionisations - small
    low = single * SMALLEST_TRANSFER
    if upper > low:
        share = (upper - low) / upper
        path = rng.standard_exponential()
        while path < few:
            loss += low / (1.0 - share * rng.random())
            path += rng.standard_exponential()
    return float(correction * loss)


@kernel
def _around(mean: float, variance: float, rng: np.random.Generator) -> float:
    """A normal deviate within 0..2 means; a flat one if it is much wider than its mean."""
    width = np.sqrt(max(variance, 0.0))
    if mean < 0.25 * width:
        return 2.0 * rng.random() * mean
    while True:
        x = mean + width * rng.standard_normal()
        if 0.0 <= x <= 2.0 * mean:
            return float(x)
