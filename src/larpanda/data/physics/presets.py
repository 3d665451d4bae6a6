"""What starts where: particle bombs, and single particles.

A particle bomb is one vertex that sends out several particles (MultiPartVertex) and a rain of single particles, each
an interaction of its own (MultiPartRain), in one ICARUS TPC. The settings behind PILArNet-M are not published;
`pilarnet` starts from a published one (DeepLearnPhysics/Supera, 2020, commit 174b2ea), with energies, weights and
multiplicities moved until the voxel counts and class shares came out as published for PILArNet-M.
Lengths in mm from the middle of the active volume, energies in MeV.
"""

from dataclasses import dataclass

import numpy as np

ACTIVE_HALF_MM = (741.0, 1584.0, 3500.0)  # one ICARUS TPC in x and y; long in z, where the image cuts


@dataclass(frozen=True, slots=True)
class Primary:
    """A particle to start."""

    interaction: int
    pdg: int
    energy_mev: float  # kinetic
    position_mm: tuple[float, float, float]
    direction: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of particle: its PDG code is one of `pdg`, its kinetic energy uniform in `energy_mev`."""

    pdg: tuple[int, ...]
    energy_mev: tuple[float, float]
    weight: float = 1.0
    at_most: int = 99


@dataclass(frozen=True, slots=True)
class Bomb:
    """How many particles (uniform, inclusive), of which sources, from a box of half-widths `half_mm`."""

    particles: tuple[int, int]
    half_mm: tuple[float, float, float]
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Preset:
    """One vertex and a rain; events of fewer than `min_voxels` voxels are drawn again."""

    vertex: Bomb
    rain: Bomb
    min_voxels: int


_INSIDE = (541.0, 1384.0, 1150.0)
_AROUND = (1041.0, 1884.0, 1450.0)
_NOTHING = Bomb((0, 0), _AROUND, ())


def _single(pdg: tuple[int, ...], low: float, high: float) -> Preset:
    return Preset(Bomb((1, 1), _INSIDE, (Source(pdg, (low, high)),)), _NOTHING, min_voxels=10)


PRESETS = {
    "pilarnet": Preset(
        vertex=Bomb(
            (2, 5),
            _INSIDE,
            (
                Source((13, -13), (50, 600), at_most=1),
                Source((22, 11), (50, 2000), weight=1.5, at_most=1),
                Source((111,), (50, 1000), weight=1.2, at_most=2),
                Source((211, -211), (50, 400), at_most=2),
                Source((2212,), (50, 400), at_most=3),
            ),
        ),
        rain=Bomb(
            (3, 7),
            _AROUND,
            (
                Source((13, -13), (50, 500), weight=1.5),  # these stop: Michel electrons
                Source((13, -13), (500, 3000), weight=2.8),  # these pass: delta rays
                Source((22, 11), (100, 600), weight=1.7),
                Source((2212,), (50, 400), weight=0.8),
            ),
        ),
        min_voxels=1024,
    ),
    "single:electron": _single((11,), 50, 1000),
    "single:photon": _single((22,), 50, 1000),
    "single:muon": _single((13, -13), 50, 1000),
    "single:pion": _single((211, -211), 50, 400),
    "single:proton": _single((2212,), 50, 400),
}


def draw(preset: Preset, rng: np.random.Generator) -> tuple[Primary, ...]:
    """The primaries of one event: interaction 0 is the vertex, each particle of the rain is one of its own."""
    vertex = _position(preset.vertex, rng)
    primaries = [_start(source, 0, vertex, rng) for source in _sources(preset.vertex, rng)]
    for interaction, source in enumerate(_sources(preset.rain, rng), start=1):
        primary = _start(source, interaction, _position(preset.rain, rng), rng)
        if np.dot(primary.position_mm, primary.direction) > 0:  # the rain flies inward
            x, y, z = primary.direction
            primary = Primary(interaction, primary.pdg, primary.energy_mev, primary.position_mm, (-x, -y, -z))
        primaries.append(primary)
    return tuple(primaries)


def _sources(bomb: Bomb, rng: np.random.Generator) -> list[Source]:
    chosen: list[Source] = []
    for _ in range(int(rng.integers(bomb.particles[0], bomb.particles[1] + 1))):
        free = [source for source in bomb.sources if chosen.count(source) < source.at_most]
        if not free:
            break
        edges = np.cumsum([source.weight for source in free])
        chosen.append(free[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))])
    return chosen


def _position(bomb: Bomb, rng: np.random.Generator) -> tuple[float, float, float]:
    x, y, z = (2 * rng.random(3) - 1) * bomb.half_mm
    return float(x), float(y), float(z)


def _start(
    source: Source, interaction: int, position_mm: tuple[float, float, float], rng: np.random.Generator
) -> Primary:
    pdg = source.pdg[int(rng.integers(len(source.pdg)))]
    low, high = source.energy_mev
    energy, cos, phi = low + (high - low) * rng.random(), 2 * rng.random() - 1, 2 * np.pi * rng.random()
    sin = np.sqrt(1 - cos * cos)
    direction = (float(sin * np.cos(phi)), float(sin * np.sin(phi)), float(cos))
    return Primary(interaction, pdg, float(energy), position_mm, direction)
