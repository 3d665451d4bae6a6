"""Decays and captures: muons, pions, neutral pions.

Sources: PDG (lifetimes, Michel spectrum); D. F. Measday, Phys. Rep. 354 (2001) 243 (muon capture).
What a capture sets free, and the share of negative muons that decay in argon, follow Geant4.
"""

import numpy as np

from larpanda.data.physics.hadrons import break_up
from larpanda.data.physics.kernel import (
    DECAY,
    HADRONIC,
    Floats,
    Ledger,
    Particle,
    add_track,
    isotropic,
    kernel,
    turn,
)
from larpanda.data.physics.material import ELECTRON_MASS, MUON_MASS, PI_ZERO_MASS, PION_MASS

MUON_CTAU_MM = 658_638.0
PION_CTAU_MM = 7_804.5
MICHEL_END_MEV = (MUON_MASS**2 + ELECTRON_MASS**2) / (2 * MUON_MASS)  # total energy, 52.83
DECAY_FRACTION = 0.27  # of mu- at rest in argon; the others are captured
PION_MUON_MEV = (PION_MASS - MUON_MASS) ** 2 / (2 * PION_MASS)  # kinetic energy of the muon of a pion at rest, 4.12


@kernel
def michel_energy(rng: np.random.Generator) -> float:
    """Kinetic energy (MeV) of the electron of a free muon at rest: x^2 (3 - 2x), x = E / 52.83 MeV."""
    while True:
        x = rng.random()
        if rng.random() < x * x * (3.0 - 2.0 * x) and x * MICHEL_END_MEV > ELECTRON_MASS + 1e-3:
            return x * MICHEL_END_MEV - ELECTRON_MASS


@kernel
def _cascade(
    ledger: Ledger, track: int, process: int, ground: float, x: float, y: float, z: float, rng: np.random.Generator
) -> None:
    """The photons of a muon or pion falling from level to level, of a ground state bound by `ground` MeV."""
    for level in range(5, 1, -1):
        energy = ground * (1.0 / (level - 1) ** 2 - 1.0 / level**2)
        ux, uy, uz = isotropic(rng)
        add_track(ledger, track, 22, process, Particle(energy, x, y, z, ux, uy, uz))
    ux, uy, uz = isotropic(rng)
    add_track(ledger, track, 11, process, Particle(0.01 + 0.02 * rng.random(), x, y, z, ux, uy, uz))  # Auger


@kernel
def muon_end(
    ledger: Ledger, half: Floats, track: int, pdg: int, x: float, y: float, z: float, rng: np.random.Generator
) -> None:
    """A muon at rest: decay, or capture of a mu-."""
    if pdg > 0:
        _cascade(ledger, track, DECAY, 0.88, x, y, z, rng)
        if rng.random() >= DECAY_FRACTION:
            freed = 9.0 * rng.random() if rng.random() < 0.27 else min(10.0 + 36.0 * rng.standard_exponential(), 95.0)
            break_up(ledger, half, track, freed, 0.08, 0.06, 0.0, x, y, z, 0.0, 0.0, 1.0, rng)
            return
    ux, uy, uz = isotropic(rng)
    add_track(ledger, track, 11 if pdg > 0 else -11, DECAY, Particle(michel_energy(rng), x, y, z, ux, uy, uz))


@kernel
def pion_end(
    ledger: Ledger, half: Floats, track: int, pdg: int, x: float, y: float, z: float, rng: np.random.Generator
) -> None:
    """A charged pion at rest: pi+ -> mu+ nu, capture of a pi-."""
    ux, uy, uz = isotropic(rng)
    if pdg > 0:
        add_track(ledger, track, -13, DECAY, Particle(PION_MUON_MEV, x, y, z, ux, uy, uz))
        return
    _cascade(ledger, track, HADRONIC, 1.15, x, y, z, rng)
    break_up(ledger, half, track, PION_MASS - 15.0, 0.15, 0.10, 0.0, x, y, z, ux, uy, uz, rng)


@kernel
def boosted(
    energy: float, momentum: float, gamma: float, ux: float, uy: float, uz: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A decay product of `energy` and `momentum` (MeV) in the rest frame, isotropic there, seen from the laboratory.

    Returns its total energy (MeV) and its direction, for a parent of Lorentz factor `gamma` along (ux, uy, uz).
    """
    cos, phi = 2.0 * rng.random() - 1.0, 2.0 * np.pi * rng.random()
    beta_gamma = np.sqrt(max(gamma * gamma - 1.0, 0.0))
    along = gamma * momentum * cos + beta_gamma * energy
    across = momentum * np.sqrt(1.0 - cos * cos)
    vx, vy, vz = turn(ux, uy, uz, along / max(np.sqrt(along**2 + across**2), 1e-12), phi)
    return gamma * energy + beta_gamma * momentum * cos, vx, vy, vz


@kernel
def neutral_pion(ledger: Ledger, track: int, rng: np.random.Generator) -> None:
    """pi0 -> 2 photons, where it is made (c tau = 25 nm)."""
    energy, x, y, z, ux, uy, uz = ledger.start[track]
    gamma = 1.0 + energy / PI_ZERO_MASS
    total, momentum = energy + PI_ZERO_MASS, np.sqrt(energy * (energy + 2.0 * PI_ZERO_MASS))
    k, ax, ay, az = boosted(PI_ZERO_MASS / 2.0, PI_ZERO_MASS / 2.0, gamma, ux, uy, uz, rng)
    add_track(ledger, track, 22, DECAY, Particle(k, x, y, z, ax, ay, az))
    bx, by, bz = momentum * ux - k * ax, momentum * uy - k * ay, momentum * uz - k * az
    norm = np.sqrt(bx * bx + by * by + bz * bz)
    add_track(ledger, track, 22, DECAY, Particle(total - k, x, y, z, bx / norm, by / norm, bz / norm))


@kernel
def decay_in_flight(
    ledger: Ledger,
    track: int,
    pdg: int,
    energy: float,
    x: float,
    y: float,
    z: float,
    ux: float,
    uy: float,
    uz: float,
    rng: np.random.Generator,
) -> None:
    """A muon or charged pion of `energy` MeV decays on the way."""
    if abs(pdg) == 211:
        muon = PION_MUON_MEV + MUON_MASS
        total, vx, vy, vz = boosted(muon, np.sqrt(muon**2 - MUON_MASS**2), 1.0 + energy / PION_MASS, ux, uy, uz, rng)
        particle = Particle(max(total - MUON_MASS, 0.01), x, y, z, vx, vy, vz)
        add_track(ledger, track, -13 if pdg > 0 else 13, DECAY, particle)
        return
    kinetic = michel_energy(rng)
    momentum = np.sqrt(kinetic * (kinetic + 2.0 * ELECTRON_MASS))
    total, vx, vy, vz = boosted(kinetic + ELECTRON_MASS, momentum, 1.0 + energy / MUON_MASS, ux, uy, uz, rng)
    particle = Particle(max(total - ELECTRON_MASS, 0.01), x, y, z, vx, vy, vz)
    add_track(ledger, track, 11 if pdg > 0 else -11, DECAY, particle)
