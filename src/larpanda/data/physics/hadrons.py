"""Pions, protons and neutrons on argon nuclei: how often, and what comes out.

Both are looked up in a table of 61,000 reactions that Geant4 simulated one by one (physics list FTFP_BERT: Bertini's
cascade and evaporation; `benchmarks/geant4_reactions.py` makes it). A reaction here is one of those of nearly the
same energy, drawn at random, turned about the projectile's direction and scaled to its energy. So multiplicities,
spectra, angles and what goes with what are Geant4's, as far as a sample of that size can tell.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from larpanda.data.physics.kernel import (
    CAPTURE,
    DECAY,
    HADRONIC,
    LEFT,
    NOBODY,
    PDG_PHOTON,
    STOPPED,
    VANISHED,
    Floats,
    Ints,
    Ledger,
    Particle,
    add_deposit,
    add_track,
    constants,
    deflect,
    end_track,
    isotropic,
    kernel,
    outside,
    turn,
)
from larpanda.data.physics.material import (
    MUON_MASS,
    NEUTRON_MASS,
    PION_MASS,
    PROTON,
    PROTON_MASS,
    StoppingTables,
    energy_of_range,
    table_at,
)

PI_PLUS, PI_MINUS, PROTONS, NEUTRONS, PI_MINUS_AT_REST, MU_MINUS_AT_REST = constants(range(6))  # blocks of the table
_NAMES = ("pi+", "pi-", "proton", "neutron", "pi-_rest", "mu-_rest")
_REST_ENERGY = np.array([PION_MASS, PION_MASS, 0.0, 0.0, PION_MASS, MUON_MASS])  # MeV that a reaction may set free
_MASS = np.array([PION_MASS, PION_MASS, PROTON_MASS, NEUTRON_MASS])

# Kinds of particles in the table; behind these, light ions: d, t, He-3, alpha; then heavier nuclei.
_PDG = np.array([22, 11, -11, 211, -211, 111, 2212, 2112])
_ION_MASS, _ION_CHARGE = np.array([1875.6, 2808.9, 2808.4, 3727.4]), np.array([1.0, 1.0, 2.0, 2.0])
ARGON_MASS = 37_215.0  # MeV
# A reaction is one of so many next to it in energy, above or below: 15 % away for pions. Fewer would make what happens
# at one energy the chance of a few rows. An elastic angle, which is not scaled, comes from nearer by.
NEIGHBOURS, ELASTIC_NEIGHBOURS = 400, 50
SLOWEST_RECOIL = 0.1  # MeV: Geant4 follows faster argon nuclei
CAPTURE_MEV = 6.1  # what argon sets free when it captures a neutron
COLDEST_NEUTRON = 2.5e-8  # MeV, room temperature, as in Geant4's table of this argon


class ReactionTables(NamedTuple):
    """Reactions of six kinds of projectile, a block each; S particles come out of all R reactions together."""

    rate: Floats  # [4, 3, nodes] 1/mm: elastic scatters, captures, reactions
    lowest: Floats  # [4] MeV, energy of the first node; the nodes are evenly spaced in the logarithm
    highest: Floats  # [4] MeV
    elastic_block: Ints  # [5] offsets into the next two
    elastic_energy: Floats  # MeV, ascending in each block
    elastic_cos: Floats
    block: Ints  # [7] offsets into the reactions
    energy: Floats  # [R] MeV, ascending in each block
    first: Ints  # [R + 1] offsets into what came out
    kind: Ints  # [S]
    out_energy: Floats  # [S] MeV
    out_cos: Floats  # [S] with the projectile
    out_phi: Floats  # [S] about the projectile


@functools.cache
def reaction_tables() -> ReactionTables:
    """The tables that the compiled transport reads."""
    with np.load(Path(__file__).with_name("reactions.npz")) as file:
        data = {name: file[name] for name in file.files}
    moving = _NAMES[:4]
    whats = ("elastic", "capture", "inelastic")
    sizes = [len(data[f"{name}_kind"]) for name in _NAMES]
    starts = [data[f"{name}_first"][:-1] + shift for name, shift in zip(_NAMES, np.cumsum([0, *sizes]), strict=False)]

    def joined(what: str, names: tuple[str, ...] = _NAMES) -> Floats:
        return np.concatenate([data[f"{name}_{what}"] for name in names]).astype(np.float64)

    def offsets(what: str, names: tuple[str, ...] = _NAMES) -> Ints:
        return np.cumsum([0] + [len(data[f"{name}_{what}"]) for name in names])

    return ReactionTables(
        np.array([[data[f"{name}_{what}"] for what in whats] for name in moving], np.float64),
        np.array([data[f"{name}_path_mev"][0] for name in moving], np.float64),
        np.array([data[f"{name}_path_mev"][-1] for name in moving], np.float64),
        offsets("elastic_mev", moving),
        joined("elastic_mev", moving),
        joined("elastic_cos", moving),
        offsets("mev"),
        joined("mev"),
        np.concatenate([*starts, [sum(sizes)]]).astype(np.int64),
        joined("kind").astype(np.int64),
        joined("out_mev"),
        joined("out_cos"),
        joined("out_phi") * (np.pi / 127),
    )


@kernel
def rates(tables: ReactionTables, projectile: int, energy: float) -> tuple[float, float, float]:
    """Elastic scatters, captures and inelastic reactions per mm of a projectile of `energy` MeV."""
    nodes = tables.rate.shape[2]
    low, high = tables.lowest[projectile], tables.highest[projectile]
    place = np.log(energy / low) / np.log(high / low) * (nodes - 1)
    place = min(max(place, 0.0), nodes - 1.001)
    i = int(place)
    f = place - i
    rate = tables.rate[projectile]
    return (
        rate[0, i] + f * (rate[0, i + 1] - rate[0, i]),
        rate[1, i] + f * (rate[1, i + 1] - rate[1, i]),
        rate[2, i] + f * (rate[2, i + 1] - rate[2, i]),
    )


@kernel
def _near(energies: Floats, start: int, stop: int, energy: float, width: int, rng: np.random.Generator) -> int:
    """A random row of start..stop whose energy is near `energy`, as often above as below."""
    row = start + int(np.searchsorted(energies[start:stop], energy))
    row = min(max(row, start + 1), stop - 1)
    width = min(width, row - start, stop - row)
    return row - width + int(rng.random() * 2 * width)


@kernel
def scatter_elastically(
    tables: ReactionTables, projectile: int, energy: float, rng: np.random.Generator
) -> tuple[float, float]:
    """The cosine of the angle of an elastic scatter of a projectile of `energy` MeV, and the MeV that it loses."""
    start, stop = tables.elastic_block[projectile], tables.elastic_block[projectile + 1]
    row = _near(tables.elastic_energy, start, stop, energy, ELASTIC_NEIGHBOURS, rng)
    momentum2 = energy * (energy + 2.0 * _MASS[projectile])
    cos = tables.elastic_cos[row]
    return cos, min(momentum2 * (1.0 - cos) / ARGON_MASS, energy)


@kernel
def react(
    ledger: Ledger,
    tables: ReactionTables,
    stopping: StoppingTables,
    half: Floats,
    track: int,
    projectile: int,
    particle: Particle,
    rng: np.random.Generator,
) -> None:
    """What comes out when a projectile, as it is now, meets a nucleus: tracks, and the deposits of nuclei."""
    rest = _REST_ENERGY[projectile]
    start, stop = tables.block[projectile], tables.block[projectile + 1]
    if projectile >= PI_MINUS_AT_REST:
        row = start + int(rng.random() * (stop - start))
    else:
        row = _near(tables.energy, start, stop, particle.energy, NEIGHBOURS, rng)
    scale = (particle.energy + rest) / (tables.energy[row] + rest)
    process = HADRONIC if projectile < PI_MINUS_AT_REST else CAPTURE
    x, y, z = particle.x, particle.y, particle.z
    for i in range(tables.first[row], tables.first[row + 1]):
        kind, energy = tables.kind[i], scale * tables.out_energy[i]
        ux, uy, uz = turn(particle.ux, particle.uy, particle.uz, tables.out_cos[i], tables.out_phi[i])
        out = Particle(energy, x, y, z, ux, uy, uz)
        if kind >= len(_PDG) + len(_ION_MASS):
            add_deposit(ledger, half, NOBODY, energy, x, y, z)
        elif kind >= len(_PDG):
            _stop_ion(ledger, stopping, half, kind - len(_PDG), out)
        else:
            electron = projectile == MU_MINUS_AT_REST and abs(_PDG[kind]) == 11
            add_track(ledger, track, _PDG[kind], DECAY if electron else process, out)


@kernel
def _stop_ion(ledger: Ledger, stopping: StoppingTables, half: Floats, ion: int, particle: Particle) -> None:
    """A light ion slows down along a line. Its range is that of a proton of the same speed, times mass over charge
    squared."""
    per_mass = PROTON_MASS / _ION_MASS[ion]
    longer = 1.0 / (per_mass * _ION_CHARGE[ion] ** 2)
    ranges = stopping.range_mm[PROTON]
    energy, way = particle.energy, 0.0
    reach = longer * table_at(ranges, max(energy * per_mass, 1e-3))
    while energy > 0.0:
        step = min(0.7, reach - way)
        left = energy_of_range(ranges, (reach - way - step) / longer) / per_mass if reach - way > 0.1 else 0.0
        at = way + 0.5 * step
        add_deposit(
            ledger,
            half,
            NOBODY,
            energy - left,
            particle.x + at * particle.ux,
            particle.y + at * particle.uy,
            particle.z + at * particle.uz,
        )
        energy, way = left, way + step


@kernel
def neutron(
    ledger: Ledger,
    tables: ReactionTables,
    stopping: StoppingTables,
    half: Floats,
    world: Floats,
    track: int,
    rng: np.random.Generator,
) -> None:
    """Follow a neutron: elastic scatters on argon, inelastic reactions, capture."""
    energy, x, y, z, ux, uy, uz = ledger.start[track]
    path = 0.0
    while True:
        elastic, captured, inelastic = rates(tables, NEUTRONS, energy)
        rate = elastic + captured + inelastic
        free = rng.standard_exponential() / rate
        x, y, z, path = x + free * ux, y + free * uy, z + free * uz, path + free
        if outside(world, x, y, z):
            ledger.lost[track] += energy
            end_track(ledger, track, LEFT, x, y, z, path)
            return
        choice = rng.random() * rate
        if choice < inelastic:
            react(ledger, tables, stopping, half, track, NEUTRONS, Particle(energy, x, y, z, ux, uy, uz), rng)
            end_track(ledger, track, VANISHED, x, y, z, path)
            return
        if choice < inelastic + captured:
            _emit(ledger, half, track, CAPTURE_MEV, x, y, z, rng)
            end_track(ledger, track, STOPPED, x, y, z, path)
            return
        cos, lost = scatter_elastically(tables, NEUTRONS, energy, rng)
        if lost < SLOWEST_RECOIL:  # the neutron's own, and as every step's in its middle
            back = 0.5 * free
            add_deposit(ledger, half, track, lost, x - back * ux, y - back * uy, z - back * uz)
        else:
            add_deposit(ledger, half, NOBODY, lost, x, y, z)
        ux, uy, uz = deflect(ux, uy, uz, cos, rng)
        energy = max(energy - lost, COLDEST_NEUTRON)


@kernel
def _emit(
    ledger: Ledger, half: Floats, track: int, excitation: float, x: float, y: float, z: float, rng: np.random.Generator
) -> None:
    """A nucleus loses `excitation` MeV by photons."""
    left = excitation
    while left > 0.1:
        energy = left if left < 0.2 else left * (1.0 - 0.8 * rng.random() ** 2)
        ux, uy, uz = isotropic(rng)
        add_track(ledger, track, PDG_PHOTON, CAPTURE, Particle(energy, x, y, z, ux, uy, uz))
        left -= energy
    add_deposit(ledger, half, NOBODY, left, x, y, z)
