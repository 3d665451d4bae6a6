"""Electrons, positrons and photons in liquid argon, followed step by step.

Moller and Bhabha scattering (ICRU Report 37), bremsstrahlung and pairs (`radiation`), Klein-Nishina, annihilation in
flight (Heitler), the photo-electric effect of one shell scaled from NIST XCOM. No Rayleigh scattering, no
photo-nuclear reactions.
"""

import functools
from typing import NamedTuple

import numpy as np

from larpanda.data.physics.kernel import (
    ANNIHILATION,
    BREMSSTRAHLUNG,
    COMPTON,
    CONVERSION,
    IONISATION,
    LEFT,
    PDG_ELECTRON,
    PDG_PHOTON,
    PHOTO_ELECTRIC,
    STOPPED,
    VANISHED,
    Floats,
    Ledger,
    Particle,
    add_deposit,
    add_track,
    deflect,
    end_track,
    isotropic,
    kernel,
    outside,
    turn,
)
from larpanda.data.physics.material import (
    DELTA_CUT,
    ELECTRON,
    ELECTRON_MASS,
    LOSS_CONSTANT,
    PER_BARN,
    StoppingTables,
    Z,
    between,
    grid,
    mean_loss,
    place_of,
    straggle,
    table_at,
)
from larpanda.data.physics.radiation import (
    PHOTON_CUT,
    RadiationTables,
    pair_rate,
    radiated_photon,
    radiation_at,
    radiation_tables,
)
from larpanda.data.physics.scattering import MUCH, RE2, scatter, turning_rate

MAX_STEPS = 30_000  # of one track: 21 m


class RateTables(NamedTuple):
    """What electrons, positrons and photons do per mm, at the energies of `grid`."""

    strike: Floats  # [2, NODES] transfers above DELTA_CUT: of electrons, of positrons
    vanish: Floats  # [NODES] annihilations of positrons in flight
    turning: Floats  # [NODES] mean of 1 - cos
    radiate: Floats  # [NODES] photons above PHOTON_CUT
    soft_loss: Floats  # [NODES] MeV, by softer photons
    compton: Floats  # [NODES] Compton scatters of photons
    pair: Floats  # [NODES] conversions of photons


@functools.cache
def rate_tables() -> RateTables:
    """The tables that the compiled transport reads."""
    energies = grid()
    radiated = [radiation_at(radiation_tables(), energy) for energy in energies]
    return RateTables(
        np.array([[_knock_on_rate(energy, positron) for energy in energies] for positron in (False, True)]),
        np.array([_annihilation_rate(energy) for energy in energies]),
        np.array([turning_rate(ELECTRON_MASS, energy) for energy in energies]),
        np.array([rate for rate, _ in radiated]),
        np.array([loss for _, loss in radiated]),
        np.array([_compton_rate(energy) for energy in energies]),
        np.array([pair_rate(energy, radiation_tables()) for energy in energies]),
    )


@kernel
def _knock_on_rate(energy: float, positron: bool) -> float:
    """Moller or Bhabha scatters per mm with a transfer above DELTA_CUT."""
    largest = 1.0 if positron else 0.5
    x = DELTA_CUT / energy
    if x >= largest:
        return 0.0
    gamma = 1.0 + energy / ELECTRON_MASS
    beta2 = 1.0 - 1.0 / gamma**2
    if positron:
        b1, b2, b3, b4 = _bhabha(gamma)
        inside = (
            (1.0 / x - 1.0) / beta2
            + b1 * np.log(x)
            + b2 * (1.0 - x)
            - b3 * (1.0 - x * x) / 2.0
            + b4 * (1.0 - x**3) / 3.0
        )
        return float(LOSS_CONSTANT / energy * inside)
    inside = (
        (0.5 - x) * ((gamma - 1.0) / gamma) ** 2
        + 1.0 / x
        - 1.0 / (1.0 - x)
        - (2.0 * gamma - 1.0) / gamma**2 * np.log((1.0 - x) / x)
    )
    return float(LOSS_CONSTANT / (beta2 * energy) * inside)


@kernel
def _bhabha(gamma: float) -> tuple[float, float, float, float]:
    y = 1.0 / (1.0 + gamma)
    b4 = (1.0 - 2.0 * y) ** 3
    return 2.0 - y * y, (1.0 - 2.0 * y) * (3.0 + y * y), b4 + (1.0 - 2.0 * y) ** 2, b4


@kernel
def _knock_on_energy(energy: float, positron: bool, rng: np.random.Generator) -> float:
    """The energy (MeV) of the struck electron."""
    largest = 1.0 if positron else 0.5
    x = DELTA_CUT / energy
    gamma = 1.0 + energy / ELECTRON_MASS
    beta2 = 1.0 - 1.0 / gamma**2
    b1, b2, b3, b4 = _bhabha(gamma)
    while True:
        e = 1.0 / (1.0 / x - rng.random() * (1.0 / x - 1.0 / largest))
        if positron:
            weight = 1.0 - beta2 * e * (b1 - e * (b2 - e * (b3 - e * b4)))
            ceiling = 1.0
        else:
            r = e / (1.0 - e)
            weight = 1.0 + r * r + (e * (gamma - 1.0) / gamma) ** 2 - (2.0 * gamma - 1.0) / gamma**2 * r
            ceiling = 2.25
        if rng.random() * ceiling < weight:
            return e * energy


@kernel
def _small_angle(energy: float, rng: np.random.Generator) -> float:
    """Cosine of the angle at which a relativistic electron of `energy` MeV (total) radiates (Tsai)."""
    a = 0.625 if rng.random() < 0.25 else 1.875
    theta = (rng.standard_exponential() + rng.standard_exponential()) / a * ELECTRON_MASS / energy
    return float(np.cos(min(theta, np.pi)))


@kernel
def _annihilation_rate(energy: float) -> float:
    """Annihilations in flight per mm (Heitler)."""
    gamma = 1.0 + energy / ELECTRON_MASS
    p = np.sqrt(gamma * gamma - 1.0)
    inside = (gamma * gamma + 4.0 * gamma + 1.0) / (p * p) * np.log(gamma + p) - (gamma + 3.0) / p
    return float(np.pi * RE2 * PER_BARN * Z * inside / (gamma + 1.0))


@kernel
def _annihilate(
    ledger: Ledger,
    track: int,
    energy: float,
    x: float,
    y: float,
    z: float,
    ux: float,
    uy: float,
    uz: float,
    rng: np.random.Generator,
) -> None:
    """Two photons from a positron of `energy` MeV: isotropic at rest, else shared as dsigma/de ~ 1/e + 1/(1 - e)."""
    if energy <= 0.0:
        ax, ay, az = isotropic(rng)
        add_track(ledger, track, PDG_PHOTON, ANNIHILATION, Particle(ELECTRON_MASS, x, y, z, ax, ay, az))
        add_track(ledger, track, PDG_PHOTON, ANNIHILATION, Particle(ELECTRON_MASS, x, y, z, -ax, -ay, -az))
        return
    gamma = 1.0 + energy / ELECTRON_MASS
    ratio = np.sqrt((gamma - 1.0) / (gamma + 1.0))
    low = 0.5 * (1.0 - ratio)
    while True:
        e = low * ((1.0 - low) / low) ** rng.random()
        if rng.random() < 1.0 - e + (2.0 * gamma * e - 1.0) / (e * (gamma + 1.0) ** 2):
            break
    total = energy + 2.0 * ELECTRON_MASS
    k = e * total
    cos = (e * (gamma + 1.0) - 1.0) / (e * np.sqrt(gamma * gamma - 1.0))
    ax, ay, az = turn(ux, uy, uz, min(max(cos, -1.0), 1.0), 2.0 * np.pi * rng.random())
    add_track(ledger, track, PDG_PHOTON, ANNIHILATION, Particle(k, x, y, z, ax, ay, az))
    p = np.sqrt(energy * (energy + 2.0 * ELECTRON_MASS))
    bx, by, bz = p * ux - k * ax, p * uy - k * ay, p * uz - k * az
    norm = np.sqrt(bx * bx + by * by + bz * bz)
    add_track(ledger, track, PDG_PHOTON, ANNIHILATION, Particle(total - k, x, y, z, bx / norm, by / norm, bz / norm))


@kernel
def electron(
    ledger: Ledger,
    stopping: StoppingTables,
    rates: RateTables,
    radiation: RadiationTables,
    half: Floats,
    world: Floats,
    max_step: float,
    track: int,
    rng: np.random.Generator,
) -> None:
    """Follow an electron or positron to its end."""
    energy, x, y, z, ux, uy, uz = ledger.start[track]
    positron = ledger.pdg[track] == -11
    path = 0.0
    for _ in range(MAX_STEPS):
        if outside(world, x, y, z):
            ledger.lost[track] += energy
            end_track(ledger, track, LEFT, x, y, z, path)
            return
        i, f = place_of(energy)
        reach = between(stopping.range_mm[ELECTRON], i, f)
        if reach <= max_step or energy < 0.02:
            break
        before_step = energy
        radiate = between(rates.radiate, i, f)
        strike = between(rates.strike[1 if positron else 0], i, f)
        vanish = between(rates.vanish, i, f) if positron else 0.0
        rate = radiate + strike + vanish
        free = rng.standard_exponential() / rate
        step = min(max_step, free)
        mean = mean_loss(stopping, ELECTRON, energy, i, f, step) + step * between(rates.soft_loss, i, f)
        loss = straggle(mean, 0.5 * energy, rng)
        loss = min(loss, energy)
        # As in Geant4, a step is a straight line in the old direction, as long as scattering leaves it on average.
        turning = between(rates.turning, i, f)
        chord = (1.0 - np.exp(-turning * step)) / turning
        dx, dy, dz = chord * ux, chord * uy, chord * uz
        add_deposit(ledger, half, track, loss, x + 0.5 * dx, y + 0.5 * dy, z + 0.5 * dz)
        x, y, z = x + dx, y + dy, z + dz
        middle = max(energy - 0.5 * loss, 0.02)
        if turning * step > MUCH:
            turning = table_at(rates.turning, middle)
        cos = scatter(ELECTRON_MASS, middle, step, turning * step, rng)
        ux, uy, uz = deflect(ux, uy, uz, cos, rng)
        energy -= loss
        path += step
        if energy < 0.02:
            break
        if free > max_step:
            continue
        choice = rng.random() * rate
        if choice < radiate:
            photon = radiated_photon(radiation, before_step, energy, rng)
            wx, wy, wz = deflect(ux, uy, uz, _small_angle(energy + ELECTRON_MASS, rng), rng)
            add_track(ledger, track, PDG_PHOTON, BREMSSTRAHLUNG, Particle(photon, x, y, z, wx, wy, wz))
            energy -= photon
        elif choice < radiate + strike:
            if energy * (1.0 if positron else 0.5) <= DELTA_CUT:
                continue
            struck = _knock_on_energy(energy, positron, rng)
            p = np.sqrt(energy * (energy + 2.0 * ELECTRON_MASS))
            q = np.sqrt(struck * (struck + 2.0 * ELECTRON_MASS))
            cos = struck * (energy + 2.0 * ELECTRON_MASS) / (q * p)
            wx, wy, wz = deflect(ux, uy, uz, min(cos, 1.0), rng)
            add_track(ledger, track, PDG_ELECTRON, IONISATION, Particle(struck, x, y, z, wx, wy, wz))
            ux, uy, uz = p * ux - q * wx, p * uy - q * wy, p * uz - q * wz
            norm = np.sqrt(ux * ux + uy * uy + uz * uz)
            ux, uy, uz = ux / norm, uy / norm, uz / norm
            energy -= struck
        else:
            _annihilate(ledger, track, energy, x, y, z, ux, uy, uz, rng)
            end_track(ledger, track, VANISHED, x, y, z, path)
            return
        if energy < 0.02:
            break
    on = 0.06 * table_at(stopping.range_mm[ELECTRON], max(energy, 1e-3))
    add_deposit(ledger, half, track, energy, x + on * ux, y + on * uy, z + on * uz)
    end_track(ledger, track, STOPPED, x + 2 * on * ux, y + 2 * on * uy, z + 2 * on * uz, path + 2 * on)
    if positron:
        _annihilate(ledger, track, 0.0, x + 2 * on * ux, y + 2 * on * uy, z + 2 * on * uz, 0.0, 0.0, 1.0, rng)


@kernel
def _compton_rate(k: float) -> float:
    """Klein-Nishina scatters per mm of a photon of k MeV."""
    e = k / ELECTRON_MASS
    log = np.log(1.0 + 2.0 * e)
    if e < 0.02:
        cross = 8.0 / 3.0 * np.pi * RE2 * (1.0 - 2.0 * e + 5.2 * e * e)
    else:
        cross = (
            2.0
            * np.pi
            * RE2
            * (
                (1.0 + e) / e**2 * (2.0 * (1.0 + e) / (1.0 + 2.0 * e) - log / e)
                + log / (2.0 * e)
                - (1.0 + 3.0 * e) / (1.0 + 2.0 * e) ** 2
            )
        )
    return float(PER_BARN * Z * cross)


@kernel
def _compton_share(k: float, rng: np.random.Generator) -> float:
    """The fraction of its energy that a Compton photon keeps (Klein-Nishina; Butcher and Messel's way)."""
    lowest = 1.0 / (1.0 + 2.0 * k / ELECTRON_MASS)
    a, b = -np.log(lowest), 0.5 * (1.0 - lowest * lowest)
    while True:
        if rng.random() * (a + b) < a:
            e = np.exp(-a * rng.random())
        else:
            e = np.sqrt(lowest * lowest + (1.0 - lowest * lowest) * rng.random())
        t = ELECTRON_MASS * (1.0 - e) / (k * e)
        if rng.random() < 1.0 - e * t * (2.0 - t) / (1.0 + e * e):
            return float(e)


@kernel
def photon(
    ledger: Ledger, rates: RateTables, half: Floats, world: Floats, track: int, rng: np.random.Generator
) -> None:
    """Follow a photon to its end."""
    k, x, y, z, ux, uy, uz = ledger.start[track]
    path = 0.0
    while True:
        if k < PHOTON_CUT:
            add_deposit(ledger, half, track, k, x, y, z)
            end_track(ledger, track, VANISHED, x, y, z, path)
            return
        i, f = place_of(k)
        compton = between(rates.compton, i, f)
        absorb = 4.12e-3 * PER_BARN / k**3
        pair = between(rates.pair, i, f)
        rate = compton + absorb + pair
        free = rng.standard_exponential() / rate
        x, y, z, path = x + free * ux, y + free * uy, z + free * uz, path + free
        if outside(world, x, y, z):
            ledger.lost[track] += k
            end_track(ledger, track, LEFT, x, y, z, path)
            return
        choice = rng.random() * rate
        if choice < compton:
            e = _compton_share(k, rng)
            cos = 1.0 - ELECTRON_MASS * (1.0 - e) / (k * e)
            px, py, pz = k * ux, k * uy, k * uz
            ux, uy, uz = deflect(ux, uy, uz, cos, rng)
            struck = (1.0 - e) * k
            k *= e
            vx, vy, vz = px - k * ux, py - k * uy, pz - k * uz
            norm = np.sqrt(vx * vx + vy * vy + vz * vz)
            if struck > 1e-4 and norm > 0.0:
                add_track(
                    ledger, track, PDG_ELECTRON, COMPTON, Particle(struck, x, y, z, vx / norm, vy / norm, vz / norm)
                )
            else:
                add_deposit(ledger, half, track, struck, x, y, z)
        elif choice < compton + absorb:
            bound = 3.206e-3  # K shell
            back = 0.5 * free  # as every step, in its middle
            add_deposit(ledger, half, track, bound, x - back * ux, y - back * uy, z - back * uz)
            vx, vy, vz = isotropic(rng) if k < 0.1 else (ux, uy, uz)
            add_track(ledger, track, PDG_ELECTRON, PHOTO_ELECTRIC, Particle(k - bound, x, y, z, vx, vy, vz))
            end_track(ledger, track, VANISHED, x, y, z, path)
            return
        else:
            free_energy = k - 2.0 * ELECTRON_MASS
            while True:  # Bethe-Heitler with full screening at high energy, nearly flat below some 10 MeV
                share = rng.random()
                if rng.random() < 1.0 - 4.0 / 3.0 * share * (1.0 - share) * min(1.0, k / 50.0):
                    break
            for sign in (1, -1):
                energy = free_energy * (share if sign > 0 else 1.0 - share)
                cos = _small_angle(energy + ELECTRON_MASS, rng)
                vx, vy, vz = deflect(ux, uy, uz, cos, rng)
                add_track(ledger, track, 11 * sign, CONVERSION, Particle(max(energy, 1e-9), x, y, z, vx, vy, vz))
            end_track(ledger, track, VANISHED, x, y, z, path)
            return
