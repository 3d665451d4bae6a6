"""Follows every particle of an event through liquid argon: primaries in, energy deposits and truth out.

A plain Monte Carlo in steps of at most 0.7 mm, with a stack of particles still to follow. All randomness comes from
one generator, so that the same generator in the same state gives the same event.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from larpanda.data.physics.decays import (
    MUON_CTAU_MM,
    PION_CTAU_MM,
    decay_in_flight,
    muon_decay,
    neutral_pion,
    pion_decay,
)
from larpanda.data.physics.hadrons import (
    MU_MINUS_AT_REST,
    PI_MINUS,
    PI_MINUS_AT_REST,
    PI_PLUS,
    PROTONS,
    ReactionTables,
    neutron,
    rates,
    react,
    reaction_tables,
    scatter_elastically,
)
from larpanda.data.physics.kernel import (
    KNOCK_ON,
    LEFT,
    NOBODY,
    PDG_ELECTRON,
    PRIMARY,
    STOPPED,
    VANISHED,
    Floats,
    Ints,
    Ledger,
    Particle,
    add_deposit,
    add_track,
    deflect,
    end_track,
    isotropic,
    kernel,
    outside,
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
    between,
    mean_loss,
    place_of,
    stopping_tables,
    straggle_heavy,
)
from larpanda.data.physics.presets import ACTIVE_HALF_MM, Primary
from larpanda.data.physics.radiation import RadiationTables, radiation_tables
from larpanda.data.physics.scattering import scatter
from larpanda.data.physics.showers import MAX_STEPS, RateTables, electron, photon, rate_tables

MAX_STEP_MM = 0.7  # of every charged particle
MARGIN_MM = 350.0  # argon around the active volume in x and y: particles go on there, but nothing is recorded
ROOM_DEPOSITS, ROOM_TRACKS = 40_000, 8_000  # what one track may add: this much is free before it is followed


class Argon(NamedTuple):
    """What particles fly through."""

    half: Floats  # [3] mm, half-widths of the active volume, where deposits are recorded
    world: Floats  # [3] mm, half-widths of the argon
    max_step: float  # mm
    stopping: StoppingTables
    shower_rates: RateTables
    radiation: RadiationTables
    reactions: ReactionTables


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
    end: Floats  # [T + 1, 3] mm
    path: Floats  # [T + 1] mm, the whole way
    fate: Ints  # [T + 1] how the track ended, a constant of `kernel`
    lost: Floats  # [T + 1] MeV deposited outside the active volume or carried out of the argon; row 0: nuclei


def simulate(
    primaries: tuple[Primary, ...],
    rng: np.random.Generator,
    active_half_mm: tuple[float, float, float] = ACTIVE_HALF_MM,
    max_step_mm: float = MAX_STEP_MM,
) -> Truth:
    """Follow the primaries and all that they make.

    Args:
        primaries: what starts where.
        rng: consumed.
        active_half_mm: half-widths of the box in which deposits are recorded.
        max_step_mm: the longest step of a charged particle.
    """
    half = np.array(active_half_mm)
    world = half + np.array([MARGIN_MM, MARGIN_MM, 0.0])
    ledger = _empty(3 * ROOM_DEPOSITS, 3 * ROOM_TRACKS)
    for p in primaries:
        add_track(ledger, 0, p.pdg, PRIMARY, Particle(p.energy_mev, *p.position_mm, *p.direction))
    _wait(ledger, 1)
    argon = Argon(half, world, max_step_mm, stopping_tables(), rate_tables(), radiation_tables(), reaction_tables())
    while not _follow(ledger, argon, rng):
        ledger = _larger(ledger)
    deposits, tracks = ledger.used
    return Truth(
        primaries,
        ledger.place[:deposits],
        ledger.deposit[:deposits],
        ledger.owner[:deposits],
        ledger.parent[:tracks],
        ledger.pdg[:tracks],
        ledger.process[:tracks],
        ledger.start[:tracks],
        ledger.end[:tracks],
        ledger.path[:tracks],
        ledger.fate[:tracks],
        ledger.lost[:tracks],
    )


def _empty(deposits: int, tracks: int) -> Ledger:
    def whole() -> Ints:
        return np.empty(tracks, np.int64)

    ledger = Ledger(
        used=np.array([0, 0]),
        newest=np.zeros(1, np.int64),
        below=whole(),
        place=np.empty((deposits, 3)),
        deposit=np.empty(deposits),
        owner=np.empty(deposits, np.int64),
        parent=whole(),
        pdg=whole(),
        process=whole(),
        start=np.empty((tracks, 7)),
        end=np.empty((tracks, 3)),
        path=np.empty(tracks),
        fate=whole(),
        lost=np.empty(tracks),
    )
    add_track(ledger, 0, 0, PRIMARY, Particle(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0))  # nobody
    return ledger


def _larger(ledger: Ledger) -> Ledger:
    """The same ledger with twice the room."""
    result = _empty(2 * len(ledger.deposit), 2 * len(ledger.pdg))
    for old, new in zip(ledger, result, strict=True):
        new[: len(old)] = old
    return result


@kernel
def _wait(ledger: Ledger, first: int) -> None:
    """The tracks from `first` on are to be followed next, the newest of them first, as Geant4 does it.

    The order does not matter to the physics, but to the image, which is placed around the first deposits.
    """
    for track in range(first, ledger.used[1]):
        ledger.below[track] = ledger.newest[0]
        ledger.newest[0] = track


@kernel
def _follow(ledger: Ledger, argon: Argon, rng: np.random.Generator) -> bool:
    """Follow the tracks that wait, and those they make. False: stopped for want of room, to be called again."""
    half, world, max_step, stopping, shower_rates, radiation, reactions = argon
    while ledger.newest[0] > 0:
        if len(ledger.deposit) - ledger.used[0] < ROOM_DEPOSITS or len(ledger.pdg) - ledger.used[1] < ROOM_TRACKS:
            return False
        track = ledger.newest[0]
        ledger.newest[0] = ledger.below[track]
        before = ledger.used[1]
        kind = abs(ledger.pdg[track])
        if kind == 11:
            electron(ledger, stopping, shower_rates, radiation, half, world, max_step, track, rng)
        elif kind == 22:
            photon(ledger, shower_rates, half, world, track, rng)
        elif kind == 2112:
            neutron(ledger, reactions, stopping, half, world, track, rng)
        elif kind == 111:
            neutral_pion(ledger, track, rng)
        else:
            heavy(ledger, argon, track, rng)
        _wait(ledger, before)
    return True


@kernel
def heavy(ledger: Ledger, argon: Argon, track: int, rng: np.random.Generator) -> None:
    """Follow a muon, charged pion or proton to its end."""
    half, world, max_step, stopping, _, _, reactions = argon
    energy, x, y, z, ux, uy, uz = ledger.start[track]
    pdg = ledger.pdg[track]
    path = 0.0
    projectile = PROTONS
    if abs(pdg) == 13:
        kind, lifetime = MUON, MUON_CTAU_MM
    elif abs(pdg) == 211:
        kind, lifetime = PION, PION_CTAU_MM
        projectile = PI_PLUS if pdg > 0 else PI_MINUS
    else:
        kind, lifetime = PROTON, np.inf
    mass = MASSES[kind]
    for _ in range(MAX_STEPS):
        if outside(world, x, y, z):
            ledger.lost[track] += energy
            end_track(ledger, track, LEFT, x, y, z, path)
            return
        i, f = place_of(energy)
        reach = between(stopping.range_mm[kind], i, f)
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
        elastic, inelastic = 0.0, 0.0
        if kind != MUON:
            elastic, _, inelastic = rates(reactions, projectile, energy)
        rate = strike + decay + inelastic + elastic
        # Geant4 shortens the steps towards the end: to a fifth of the range, down to 0.1 mm.
        step = min(max_step, 0.2 * reach + 0.08 * (2.0 - 0.1 / reach))
        free = rng.standard_exponential() / rate if rate > 0.0 else np.inf
        here = free <= step
        step = min(step, free)
        loss = min(energy, straggle_heavy(mean_loss(stopping, kind, energy, i, f, step), step, beta2, largest, rng))
        # As in Geant4, a step is a straight line in the old direction.
        dx, dy, dz = step * ux, step * uy, step * uz
        add_deposit(ledger, half, track, loss, x + 0.5 * dx, y + 0.5 * dy, z + 0.5 * dz)
        x, y, z = x + dx, y + dy, z + dz
        cos = scatter(mass, energy, step, 0.0, rng)
        ux, uy, uz = deflect(ux, uy, uz, cos, rng)
        energy -= loss
        path += step
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
            vx, vy, vz = deflect(ux, uy, uz, min(cos, 1.0), rng)
            add_track(ledger, track, PDG_ELECTRON, KNOCK_ON, Particle(struck, x, y, z, vx, vy, vz))
            energy -= struck
        elif choice < strike + decay:
            decay_in_flight(ledger, track, pdg, energy, x, y, z, ux, uy, uz, rng)
            end_track(ledger, track, VANISHED, x, y, z, path)
            return
        elif choice < strike + decay + inelastic:
            particle = Particle(energy, x, y, z, ux, uy, uz)
            react(ledger, reactions, stopping, half, track, projectile, particle, rng)
            end_track(ledger, track, VANISHED, x, y, z, path)
            return
        else:
            cos, recoil = scatter_elastically(reactions, projectile, energy, rng)
            add_deposit(ledger, half, NOBODY, recoil, x, y, z)
            energy -= recoil
            ux, uy, uz = deflect(ux, uy, uz, cos, rng)
    if energy > 0.0:
        add_deposit(ledger, half, track, energy, x, y, z)
    end_track(ledger, track, STOPPED, x, y, z, path)
    if pdg == -13:
        muon_decay(ledger, track, x, y, z, rng)
    elif pdg == 211:
        pion_decay(ledger, track, x, y, z, rng)
    elif pdg == 13 or pdg == -211:
        at_rest = MU_MINUS_AT_REST if pdg == 13 else PI_MINUS_AT_REST
        ux, uy, uz = isotropic(rng)
        react(ledger, reactions, stopping, half, track, at_rest, Particle(0.0, x, y, z, ux, uy, uz), rng)
