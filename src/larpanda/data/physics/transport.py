"""Follows every particle of an event through liquid argon: primaries in, energy deposits and truth out.

A plain Monte Carlo in steps of at most 0.7 mm, with a stack of particles still to follow. All randomness comes from
one generator, so that the same generator in the same state gives the same event.
"""

from dataclasses import dataclass

import numpy as np

from larpanda.data.physics.decays import (
    MUON_CTAU_MM,
    PION_CTAU_MM,
    decay_in_flight,
    muon_end,
    neutral_pion,
    pion_end,
)
from larpanda.data.physics.hadrons import inelastic_rate, interact, neutron
from larpanda.data.physics.kernel import (
    KNOCK_ON,
    PRIMARY,
    Floats,
    Ints,
    Ledger,
    Particle,
    add_deposit,
    add_track,
    kernel,
    turn,
)
from larpanda.data.physics.material import (
    DELTA_CUT,
    ELECTRON_MASS,
    LOSS_CONSTANT,
    MASSES,
    MUON,
    PION,
    PROTON,
    StoppingTables,
    mean_loss,
    stopping_tables,
    straggle,
    table_at,
)
from larpanda.data.physics.presets import ACTIVE_HALF_MM, Primary
from larpanda.data.physics.radiation import RadiationTables, radiation_tables
from larpanda.data.physics.scattering import scatter
from larpanda.data.physics.showers import MAX_STEP, MAX_STEPS, electron, photon

MARGIN_MM = 350.0  # argon around the active volume in x and y: particles go on there, but nothing is recorded
ROOM_DEPOSITS, ROOM_TRACKS = 40_000, 8_000  # what one track may add: this much is free before it is followed


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """All that the simulation knows of an event with D deposits and T tracks. Track ids run 1..T, primaries first."""

    primaries: tuple[Primary, ...]
    place: Floats  # [D, 3] mm, in the order in which they were made
    deposit: Floats  # [D] MeV
    owner: Ints  # [D] track id, 0 for recoiling nuclei and light ions
    parent: Ints  # [T + 1] track id of the parent, 0 for a primary; row 0 is nobody
    pdg: Ints  # [T + 1] signed PDG code
    process: Ints  # [T + 1] what made the track, a constant of `kernel`
    start: Floats  # [T + 1, 7] MeV kinetic, mm, unit direction


def simulate(
    primaries: tuple[Primary, ...],
    rng: np.random.Generator,
    active_half_mm: tuple[float, float, float] = ACTIVE_HALF_MM,
) -> Truth:
    """Follow the primaries and all that they make.

    Args:
        primaries: what starts where.
        rng: consumed.
        active_half_mm: half-widths of the box in which deposits are recorded.
    """
    half = np.array(active_half_mm)
    world = half + np.array([MARGIN_MM, MARGIN_MM, 0.0])
    ledger = _empty(3 * ROOM_DEPOSITS, 3 * ROOM_TRACKS)
    for p in primaries:
        add_track(ledger, 0, p.pdg, PRIMARY, Particle(p.energy_mev, *p.position_mm, *p.direction))
        _wait(ledger, int(ledger.used[1]) - 1)
    while not _follow(ledger, half, world, stopping_tables(), radiation_tables(), rng):
        ledger = _larger(ledger)
    deposits, tracks = ledger.used
    return Truth(
        primaries,
        ledger.place[:deposits].copy(),
        ledger.deposit[:deposits].copy(),
        ledger.owner[:deposits].copy(),
        ledger.parent[:tracks].copy(),
        ledger.pdg[:tracks].copy(),
        ledger.process[:tracks].copy(),
        ledger.start[:tracks].copy(),
    )


def _empty(deposits: int, tracks: int) -> Ledger:
    return Ledger(
        np.array([0, 1]),
        np.zeros(6, np.int64),
        np.zeros(tracks, np.int64),
        np.empty((deposits, 3)),
        np.empty(deposits),
        np.empty(deposits, np.int64),
        np.zeros(tracks, np.int64),
        np.zeros(tracks, np.int64),
        np.zeros(tracks, np.int64),
        np.zeros((tracks, 7)),
    )


def _larger(ledger: Ledger) -> Ledger:
    """The same ledger with twice the room."""
    result = _empty(2 * len(ledger.deposit), 2 * len(ledger.pdg))
    for old, new in zip(ledger, result, strict=True):
        new[: len(old)] = old
    return result


@kernel
def _wait(ledger: Ledger, track: int) -> None:
    """Put a track into its queue: as Geant4, primaries and heavy particles, then n, e-, photons, e+, and again.

    The order does not matter to the physics, but to the image, which is placed around the first deposits.
    """
    pdg = ledger.pdg[track]
    line = 0
    if ledger.parent[track] == 0:
        line = 0
    elif pdg == 2112:
        line = 1
    elif pdg == 11:
        line = 2
    elif pdg == 22:
        line = 3
    elif pdg == -11:
        line = 4
    ledger.below[track] = ledger.waiting[line]
    ledger.waiting[line] = track


@kernel
def _follow(
    ledger: Ledger,
    half: Floats,
    world: Floats,
    stopping: StoppingTables,
    radiation: RadiationTables,
    rng: np.random.Generator,
) -> bool:
    """Follow the tracks that wait, and those they make. False: stopped for want of room, to be called again."""
    empty = 0
    while empty < 5:
        if len(ledger.deposit) - ledger.used[0] < ROOM_DEPOSITS or len(ledger.pdg) - ledger.used[1] < ROOM_TRACKS:
            return False
        line = ledger.waiting[5]
        track = ledger.waiting[line]
        if track == 0:
            ledger.waiting[5] = (line + 1) % 5
            empty += 1
            continue
        empty = 0
        ledger.waiting[line] = ledger.below[track]
        before = ledger.used[1]
        kind = abs(ledger.pdg[track])
        if kind == 11:
            electron(ledger, stopping, radiation, half, world, track, rng)
        elif kind == 22:
            photon(ledger, radiation, half, world, track, rng)
        elif kind == 2112:
            neutron(ledger, half, world, track, rng)
        elif kind == 111:
            neutral_pion(ledger, track, rng)
        else:
            heavy(ledger, stopping, half, world, track, rng)
        for child in range(before, ledger.used[1]):
            _wait(ledger, child)
    return True


@kernel
def heavy(
    ledger: Ledger, stopping: StoppingTables, half: Floats, world: Floats, track: int, rng: np.random.Generator
) -> None:
    """Follow a muon, charged pion or proton to its end."""
    energy, x, y, z, ux, uy, uz = ledger.start[track]
    pdg = ledger.pdg[track]
    if abs(pdg) == 13:
        kind, lifetime = MUON, MUON_CTAU_MM
    elif abs(pdg) == 211:
        kind, lifetime = PION, PION_CTAU_MM
    else:
        kind, lifetime = PROTON, np.inf
    mass = MASSES[kind]
    for _ in range(MAX_STEPS):
        if abs(x) > world[0] or abs(y) > world[1] or abs(z) > world[2]:
            return
        reach = table_at(stopping.range_mm[kind], max(energy, 1e-3))
        if reach < 0.1 or energy < 0.01:
            break
        gamma = 1.0 + energy / mass
        beta2 = 1.0 - 1.0 / (gamma * gamma)
        momentum = mass * np.sqrt(gamma * gamma - 1.0)
        ratio = ELECTRON_MASS / mass
        largest = 2.0 * ELECTRON_MASS * (gamma * gamma - 1.0) / (1.0 + 2.0 * gamma * ratio + ratio * ratio)
        strike = 0.0
        if largest > DELTA_CUT:
            strike = (LOSS_CONSTANT / beta2) * (
                1.0 / DELTA_CUT - 1.0 / largest - beta2 / largest * np.log(largest / DELTA_CUT)
            )
        decay = mass / (momentum * lifetime)
        inelastic = inelastic_rate(pdg, energy)
        elastic = inelastic if energy > 20.0 else 0.0
        rate = strike + decay + inelastic + elastic
        # Geant4 shortens the steps towards the end: to a fifth of the range, down to 0.1 mm.
        step = min(MAX_STEP, 0.2 * reach + 0.08 * (2.0 - 0.1 / reach))
        free = rng.standard_exponential() / rate if rate > 0.0 else np.inf
        here = free <= step
        step = min(step, free)
        loss = min(energy, straggle(mean_loss(stopping, kind, energy, step), step, beta2, largest, rng))
        cos = scatter(mass, energy, step, rng)
        vx, vy, vz = turn(ux, uy, uz, cos, 2.0 * np.pi * rng.random())
        first = step * rng.random()
        dx = first * ux + (step - first) * vx
        dy = first * uy + (step - first) * vy
        dz = first * uz + (step - first) * vz
        add_deposit(ledger, half, track, loss, x + 0.5 * dx, y + 0.5 * dy, z + 0.5 * dz)
        x, y, z, ux, uy, uz = x + dx, y + dy, z + dz, vx, vy, vz
        energy -= loss
        if not here or energy <= 0.01:
            continue
        choice = rng.random() * rate
        if choice < strike:
            while True:
                struck = 1.0 / (1.0 / DELTA_CUT - rng.random() * (1.0 / DELTA_CUT - 1.0 / largest))
                weight = 1.0 - beta2 * struck / largest
                if kind != PION:
                    weight += 0.5 * (struck / (energy + mass)) ** 2
                if rng.random() * 1.1 < weight:
                    break
            q = np.sqrt(struck * (struck + 2.0 * ELECTRON_MASS))
            p = np.sqrt(energy * (energy + 2.0 * mass))
            cos = struck * (energy + mass + ELECTRON_MASS) / (q * p)
            vx, vy, vz = turn(ux, uy, uz, min(cos, 1.0), 2.0 * np.pi * rng.random())
            add_track(ledger, track, 11, KNOCK_ON, Particle(struck, x, y, z, vx, vy, vz))
            energy -= struck
        elif choice < strike + decay:
            decay_in_flight(ledger, track, pdg, energy, x, y, z, ux, uy, uz, rng)
            return
        elif choice < strike + decay + inelastic:
            interact(ledger, half, track, pdg, energy, x, y, z, ux, uy, uz, rng)
            return
        else:  # elastic on the nucleus: exp(-70 t / GeV^2)
            t = rng.standard_exponential() * 1e6 / 70.0
            cos = max(-1.0, 1.0 - t / (2.0 * momentum * momentum))
            ux, uy, uz = turn(ux, uy, uz, cos, 2.0 * np.pi * rng.random())
    if energy > 0.0:
        add_deposit(ledger, half, track, energy, x, y, z)
    if kind == MUON:
        muon_end(ledger, half, track, pdg, x, y, z, rng)
    elif kind == PION:
        pion_end(ledger, half, track, pdg, x, y, z, rng)
