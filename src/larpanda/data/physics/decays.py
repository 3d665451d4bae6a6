"""Decays of muons and pions (PDG: lifetimes, Michel spectrum). Captures at rest are reactions: see `hadrons`."""

import numpy as np

from larpanda.data.physics.kernel import (
    DECAY,
    PDG_MU_PLUS,
    PDG_PHOTON,
    PDG_POSITRON,
    VANISHED,
    Ledger,
    Particle,
    add_track,
    end_track,
    isotropic,
    kernel,
    turn,
)
from larpanda.data.physics.material import ELECTRON_MASS, MUON_MASS, PI_ZERO_MASS, PION_MASS

MUON_CTAU_MM = 658_638.0
PION_CTAU_MM = 7_804.5
MICHEL_END_MEV = (MUON_MASS**2 + ELECTRON_MASS**2) / (2 * MUON_MASS)  # total energy, 52.83
PION_MUON_MEV = (PION_MASS - MUON_MASS) ** 2 / (2 * PION_MASS)  # kinetic energy of the muon of a pion at rest, 4.12


@kernel
def michel_energy(rng: np.random.Generator) -> float:
    """Kinetic energy (MeV) of the electron of a free muon at rest: x^2 (3 - 2x), x = E / 52.83 MeV."""
    while True:
        x = rng.random()
        if rng.random() < x * x * (3.0 - 2.0 * x) and x * MICHEL_END_MEV > ELECTRON_MASS + 1e-3:
            return x * MICHEL_END_MEV - ELECTRON_MASS


@kernel
def muon_decay(ledger: Ledger, track: int, x: float, y: float, z: float, rng: np.random.Generator) -> None:
    """A mu+ at rest: a positron and two neutrinos."""
    ux, uy, uz = isotropic(rng)
    add_track(ledger, track, PDG_POSITRON, DECAY, Particle(michel_energy(rng), x, y, z, ux, uy, uz))


@kernel
def pion_decay(ledger: Ledger, track: int, x: float, y: float, z: float, rng: np.random.Generator) -> None:
    """A pi+ at rest: a mu+ of 4.12 MeV and a neutrino."""
    ux, uy, uz = isotropic(rng)
    add_track(ledger, track, PDG_MU_PLUS, DECAY, Particle(PION_MUON_MEV, x, y, z, ux, uy, uz))


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
    add_track(ledger, track, PDG_PHOTON, DECAY, Particle(k, x, y, z, ax, ay, az))
    bx, by, bz = momentum * ux - k * ax, momentum * uy - k * ay, momentum * uz - k * az
    norm = np.sqrt(bx * bx + by * by + bz * bz)
    add_track(ledger, track, PDG_PHOTON, DECAY, Particle(total - k, x, y, z, bx / norm, by / norm, bz / norm))
    end_track(ledger, track, VANISHED, x, y, z, 0.0)


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
