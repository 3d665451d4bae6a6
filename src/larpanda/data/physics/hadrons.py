"""Pions, protons and neutrons on argon nuclei: how often, and what comes out. Parametrised, not derived.

Mean free paths, multiplicities and energies follow a table made with Geant4's Bertini cascade (docs/physics.md); the
way from the energy that a reaction sets free to nucleons and photons is a simple one: fast nucleons first, evaporation
of the rest, photons from what is left. Each nucleon costs 8 MeV of binding.
"""

import numpy as np

from larpanda.data.physics.kernel import (
    HADRONIC,
    Floats,
    Ledger,
    Particle,
    add_deposit,
    add_track,
    isotropic,
    kernel,
    turn,
)
from larpanda.data.physics.material import PER_BARN, PION_MASS

BINDING = 8.0  # MeV a nucleon

# Mean free path (mm) before an inelastic reaction, at kinetic energies in MeV.
PION_MEV = np.array([5.0, 20.0, 40.0, 60.0, 80.0, 100.0, 150.0, 200.0, 250.0, 300.0, 400.0, 600.0, 1000.0])
PION_PATH = np.array([6000.0, 2200.0, 1400.0, 1050.0, 830.0, 700.0, 590.0, 580.0, 600.0, 640.0, 750.0, 850.0, 850.0])
PROTON_MEV = np.array([8.0, 12.0, 20.0, 35.0, 60.0, 100.0, 150.0, 200.0, 300.0, 400.0, 600.0, 1000.0])
PROTON_PATH = np.array([5000.0, 900.0, 520.0, 500.0, 610.0, 760.0, 870.0, 920.0, 900.0, 840.0, 800.0, 790.0])
NEUTRON_MEV = np.array([20.0, 50.0, 100.0, 200.0, 400.0, 1000.0])
NEUTRON_PATH = np.array([900.0, 1200.0, 1300.0, 1650.0, 1750.0, 1700.0])

# Chance that a pion comes out again (of either charge or neutral), and the neutral share, for pi+ and pi-.
PION_OUT_MEV = np.array([0.0, 50.0, 100.0, 150.0, 200.0, 300.0, 400.0, 800.0])
PION_OUT = np.array([0.15, 0.25, 0.40, 0.55, 0.62, 0.66, 0.69, 0.78])
NEUTRAL_SHARE = (0.28, 0.18)


@kernel
def inelastic_rate(pdg: int, energy: float) -> float:
    """Inelastic reactions per mm of a pion, proton or neutron of `energy` MeV."""
    if abs(pdg) == 211:
        return float(1.0 / np.interp(energy, PION_MEV, PION_PATH))
    if pdg == 2212:
        return 0.0 if energy < 8.0 else float(1.0 / np.interp(energy, PROTON_MEV, PROTON_PATH))
    if pdg == 2112:
        if energy < 20.0:
            return PER_BARN * 0.526 * min(1.0, max(energy - 1.5, 0.0) / 3.0)
        return float(1.0 / np.interp(energy, NEUTRON_MEV, NEUTRON_PATH))
    return 0.0


@kernel
def _tilted(mean: float, rng: np.random.Generator) -> float:
    """A cosine in -1..1 whose density falls or rises exponentially; `mean` within about -0.9..0.9."""
    if abs(mean) < 0.02:
        return 2.0 * rng.random() - 1.0
    m = min(abs(mean), 0.95)
    slope = m * (3.0 - m * m) / (1.0 - m * m)  # nearly solves coth(a) - 1 / a = m
    u = rng.random()
    c = 1.0 + np.log(u + (1.0 - u) * np.exp(-2.0 * slope)) / slope
    return float(c if mean > 0 else -c)


@kernel
def _send(
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
    mean_cos: float,
    rng: np.random.Generator,
) -> None:
    vx, vy, vz = turn(ux, uy, uz, _tilted(mean_cos, rng), 2.0 * np.pi * rng.random())
    add_track(ledger, track, pdg, HADRONIC, Particle(energy, x, y, z, vx, vy, vz))


@kernel
def excite(
    ledger: Ledger,
    half: Floats,
    track: int,
    excitation: float,
    proton_share: float,
    x: float,
    y: float,
    z: float,
    rng: np.random.Generator,
) -> None:
    """A nucleus with `excitation` MeV evaporates nucleons and alphas, then sends out photons."""
    left = excitation
    while left > BINDING + 0.3:
        choice = rng.random()
        thermal = rng.standard_exponential() + rng.standard_exponential()
        temperature = 0.6 + 0.2 * np.sqrt(left)
        ux, uy, uz = isotropic(rng)
        if choice < proton_share:
            energy = 2.5 + temperature * thermal
            if left < BINDING + energy:
                if left < BINDING + 5.0:
                    break
                continue
            add_track(ledger, track, 2212, HADRONIC, Particle(energy, x, y, z, ux, uy, uz))
        elif choice < 1.3 * proton_share + 0.03:
            energy = 5.0 + temperature * thermal
            if left < BINDING + energy:
                continue
            add_deposit(ledger, half, 0, energy, x, y, z)  # an alpha ends where it began
        else:
            energy = min(temperature * thermal, 0.9 * (left - BINDING))
            add_track(ledger, track, 2112, HADRONIC, Particle(energy, x, y, z, ux, uy, uz))
        left -= energy + BINDING
    while left > 0.1:
        energy = left if left < 0.2 else left * (1.0 - 0.8 * rng.random() ** 2)
        ux, uy, uz = isotropic(rng)
        add_track(ledger, track, 22, HADRONIC, Particle(energy, x, y, z, ux, uy, uz))
        left -= energy


@kernel
def break_up(
    ledger: Ledger,
    half: Floats,
    track: int,
    available: float,
    fast_proton: float,
    evaporated_proton: float,
    forward: float,
    x: float,
    y: float,
    z: float,
    ux: float,
    uy: float,
    uz: float,
    rng: np.random.Generator,
) -> None:
    """Share `available` MeV among fast nucleons and the excitation of what stays.

    Args:
        available: MeV above the ground state of argon and the free projectile's nucleons.
        fast_proton: chance that a fast nucleon is a proton.
        evaporated_proton: the same for evaporated ones.
        forward: mean cosine of nucleons above 30 MeV with (ux, uy, uz).
    """
    hidden = min(available, 10.0 + 14.0 * rng.standard_exponential())
    left = available - hidden
    while left > 25.0:
        energy = (left - BINDING) * (0.25 + 0.75 * rng.random())
        pdg = 2212 if rng.random() < fast_proton else 2112
        _send(ledger, track, pdg, energy, x, y, z, ux, uy, uz, forward * min(1.0, energy / 40.0), rng)
        left -= energy + BINDING
    excite(ledger, half, track, hidden + left, evaporated_proton, x, y, z, rng)
    add_deposit(ledger, half, 0, 1.6 * rng.standard_exponential(), x, y, z)  # the nucleus recoils


@kernel
def interact(
    ledger: Ledger,
    half: Floats,
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
    """One inelastic reaction of a pion, proton or neutron of `energy` MeV; the projectile ends."""
    if abs(pdg) == 211:
        fast = 0.72 if pdg > 0 else 0.17
        evaporated = 0.26 if pdg > 0 else 0.14
        if rng.random() >= np.interp(energy, PION_OUT_MEV, PION_OUT):
            available = energy + PION_MASS - 2.0 * BINDING
            break_up(ledger, half, track, available, fast, evaporated, 0.35, x, y, z, ux, uy, uz, rng)
            return
        neutral = rng.random() < (NEUTRAL_SHARE[0] if pdg > 0 else NEUTRAL_SHARE[1])
        top = 0.70 + 0.25 * min(1.0, energy / 400.0)
        out = energy * (0.25 + (top - 0.25) * rng.random())
        bias = min(0.45, -0.20 + 0.0027 * max(energy - 150.0, 0.0))
        _send(ledger, track, 111 if neutral else pdg, out, x, y, z, ux, uy, uz, bias, rng)
        break_up(ledger, half, track, energy - out, fast, evaporated, 0.35, x, y, z, ux, uy, uz, rng)
        return
    available = energy + 0.9 * BINDING
    if energy < 15.0:
        excite(ledger, half, track, available, 0.25 if pdg == 2212 else 0.02, x, y, z, rng)
    elif pdg == 2212:
        break_up(ledger, half, track, available, 0.66, 0.25, 0.72, x, y, z, ux, uy, uz, rng)
    else:
        break_up(ledger, half, track, available, 0.22, 0.08, 0.68, x, y, z, ux, uy, uz, rng)


@kernel
def neutron(ledger: Ledger, half: Floats, world: Floats, track: int, rng: np.random.Generator) -> None:
    """Follow a neutron: elastic scatters on argon, inelastic reactions, capture."""
    energy, x, y, z, ux, uy, uz = ledger.start[track]
    for _ in range(3000):
        elastic = PER_BARN * 0.9 / (1.0 + energy / 3.0) if energy < 20.0 else 2.5e-4
        inelastic = inelastic_rate(2112, energy)
        capture = PER_BARN * 0.66 * np.sqrt(2.5e-8 / energy)
        rate = elastic + inelastic + capture
        free = rng.standard_exponential() / rate
        x, y, z = x + free * ux, y + free * uy, z + free * uz
        if abs(x) > world[0] or abs(y) > world[1] or abs(z) > world[2]:
            return
        choice = rng.random() * rate
        if choice < inelastic:
            if energy < 11.0:  # n' and photons
                out = min(
                    (0.2 + 0.1 * energy) * (rng.standard_exponential() + rng.standard_exponential()), 0.9 * energy
                )
                ax, ay, az = isotropic(rng)
                add_track(ledger, track, 2112, HADRONIC, Particle(out, x, y, z, ax, ay, az))
                excite(ledger, half, track, min(energy - out, BINDING), 0.0, x, y, z, rng)
                add_deposit(ledger, half, 0, 0.03 * energy, x, y, z)
            else:
                interact(ledger, half, track, 2112, energy, x, y, z, ux, uy, uz, rng)
            return
        if choice < inelastic + capture:
            excite(ledger, half, track, 6.1, 0.0, x, y, z, rng)
            return
        lost = energy * 0.0952 * rng.random()
        if energy > 10.0:
            lost *= 10.0 / energy
        add_deposit(ledger, half, track if lost < 0.1 else 0, lost, x, y, z)
        cos = 1.0 - 2.0 * lost / (0.0952 * energy)
        ux, uy, uz = turn(ux, uy, uz, cos, 2.0 * np.pi * rng.random())
        energy -= lost
        if energy < 2.5e-8:
            energy = 2.5e-8
