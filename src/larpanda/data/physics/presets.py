"""What starts where: particle bombs, and single particles; as presets, and as YAML files of the user's own.

A particle bomb is one vertex that sends out several particles (MultiPartVertex) and a rain of single particles, each
an interaction of its own (MultiPartRain). The settings behind PILArNet-M are not published; `pilarnet` starts from
`config_a`, with energies, weights and multiplicities moved until the voxel counts and class shares came out as
published for PILArNet-M. Lengths in mm from the middle of the active volume, energies in MeV.

Sources: the history of the settings in DeepLearnPhysics/Supera, 2020, commits 174b2ea (`config_a`), bc86c9a
(`config_b`) and 03e4d7b (`config_c`); ICARUS' run_mpvmpr.fcl, 2021 (`config_d`); dlpgen's baseline_sbn, 2026
(`config_e`).
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from larpanda.config import config_from_json, config_from_yaml, override
from larpanda.data.physics.detector import Detector
from larpanda.data.physics.material import (
    ELECTRON_MASS,
    HIGHEST,
    MUON_MASS,
    NEUTRON_MASS,
    PI_ZERO_MASS,
    PION_MASS,
    PROTON_MASS,
)
from larpanda.event import IMAGE_VOXELS, VOXEL_MM

Vector = tuple[float, float, float]

ACTIVE_HALF_MM = (741.0, 1584.0, 3500.0)  # one ICARUS TPC in x and y; long in z, where the image cuts
CUBE_HALF_MM = (IMAGE_VOXELS * VOXEL_MM / 2,) * 3  # as large as the image, the same in every direction
PARTICLES = (11, -11, 13, -13, 22, 111, 211, -211, 2212, 2112)  # PDG codes of what can be started
MASS_MEV = {
    22: 0.0,
    11: ELECTRON_MASS,
    13: MUON_MASS,
    111: PI_ZERO_MASS,
    211: PION_MASS,
    2212: PROTON_MASS,
    2112: NEUTRON_MASS,
}
YAML = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Primary:
    """A particle to start."""

    interaction: int
    pdg: int
    energy_mev: float  # kinetic
    position_mm: Vector
    direction: Vector


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of particle: its PDG code is one of `pdg`, its kinetic energy uniform in `energy_mev`."""

    pdg: tuple[int, ...]
    energy_mev: tuple[float, float]
    """Of a preset with `momentum`: the momentum, MeV/c."""
    weight: float = 1.0
    at_least: int = 0
    at_most: int = 99

    def __post_init__(self) -> None:
        if not self.pdg or not set(self.pdg) <= set(PARTICLES):
            raise ValueError(f"pdg is {list(self.pdg)}; expected some of {', '.join(str(p) for p in PARTICLES)}")
        low, high = self.energy_mev
        if not (0 <= low <= high <= HIGHEST and high > 0):
            raise ValueError(f"energy_mev is {low:g} to {high:g}; expected 0 <= low <= high, in MeV up to {HIGHEST:g}")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight is {self.weight:g}; expected 0 or more")
        if not 0 <= self.at_least <= self.at_most:
            raise ValueError(
                f"at_least is {self.at_least} and at_most {self.at_most}; expected 0 <= at_least <= at_most"
            )


@dataclass(frozen=True, slots=True)
class Bomb:
    """How many particles (uniform, inclusive), of which sources, from a box of half-widths `half_mm`.

    Each source gives its `at_least` first; those that are left are drawn by weight, of sources below their `at_most`.
    """

    particles: tuple[int, int]
    half_mm: Vector
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        low, high = self.particles
        if not 0 <= low <= high:
            raise ValueError(f"particles is {low} to {high}; expected 0 <= low <= high")
        if not all(0 <= half < math.inf for half in self.half_mm):
            raise ValueError(f"half_mm is {list(self.half_mm)}; expected three lengths in mm, 0 or more")
        least = sum(source.at_least for source in self.sources)
        if least > low:
            raise ValueError(f"particles begins at {low}, but at_least of the sources adds up to {least}")
        most = sum(source.at_most if source.weight else source.at_least for source in self.sources)
        if most < high:
            raise ValueError(f"particles goes up to {high}, but at_most of the sources with a weight adds up to {most}")


IDEAL = Detector()
NOTHING = Bomb((0, 0), (0.0, 0.0, 0.0), ())


@dataclass(frozen=True, slots=True)
class Preset:
    """One vertex and a rain; events of fewer than `min_voxels` voxels are drawn again."""

    vertex: Bomb = NOTHING
    rain: Bomb = NOTHING
    min_voxels: int = 1
    momentum: bool = False
    """The ranges of the sources are of momenta, in MeV/c."""
    direction: Literal["isotropic", "flat_theta"] = "isotropic"
    """flat_theta: the angle to z is uniform in 0 to pi, as in DLPGenerator: more fly along z."""
    active_half_mm: Vector = ACTIVE_HALF_MM
    """Half-widths of the volume in which energy is recorded."""
    detector: Detector = IDEAL
    """What becomes of the energy in a detector; by itself nothing. Acts last: `min_voxels` counts before it."""

    def __post_init__(self) -> None:
        if self.vertex.particles[1] + self.rain.particles[1] == 0:
            raise ValueError("neither vertex.particles nor rain.particles goes above 0: nothing would start")
        if self.min_voxels < 0:
            raise ValueError(f"min_voxels is {self.min_voxels}; expected 0 or more")
        if not all(0 < half < math.inf for half in self.active_half_mm):
            raise ValueError(f"active_half_mm is {list(self.active_half_mm)}; expected three lengths in mm, above 0")


_INSIDE = (541.0, 1384.0, 1150.0)
_AROUND = (1041.0, 1884.0, 1450.0)
_LEPTON, _MUON, _PION = (11, -11, 13, -13), (13, -13), (211, -211)
_CONFIG_B = Preset(
    vertex=Bomb(
        (2, 6),
        (441.0, 1284.0, 1150.0),
        (
            Source(_LEPTON, (50.0, 800.0), at_least=1, at_most=1),
            Source((111,), (50.0, 400.0), at_most=2),
            Source(_PION, (50.0, 400.0), at_most=2),
            Source((2212,), (50.0, 400.0), weight=3.0, at_most=4),
        ),
    ),
    rain=Bomb(
        (3, 6),
        _INSIDE,
        (
            Source(_MUON, (50.0, 1000.0), weight=5.0),
            Source((22, 11), (50.0, 100.0), at_most=2),
            Source((2212,), (50.0, 400.0)),
        ),
    ),
)


def _single(pdg: tuple[int, ...], low: float, high: float) -> Preset:
    return Preset(Bomb((1, 1), _INSIDE, (Source(pdg, (low, high)),)), min_voxels=10)


PRESETS = {
    "pilarnet": Preset(
        vertex=Bomb(
            (2, 5),
            _INSIDE,
            (
                Source(_MUON, (50.0, 600.0), at_most=1),
                Source((22, 11), (50.0, 2000.0), weight=1.5, at_most=1),
                Source((111,), (50.0, 1000.0), weight=1.2, at_most=2),
                Source(_PION, (50.0, 400.0), at_most=2),
                Source((2212,), (50.0, 400.0), at_most=3),
            ),
        ),
        rain=Bomb(
            (3, 7),
            _AROUND,
            (
                Source(_MUON, (50.0, 500.0), weight=1.5),  # these stop: Michel electrons
                Source(_MUON, (500.0, 3000.0), weight=2.8),  # these pass: delta rays
                Source((22, 11), (100.0, 600.0), weight=1.7),
                Source((2212,), (50.0, 400.0), weight=0.8),
            ),
        ),
        min_voxels=1024,
    ),
    "config_a": Preset(
        vertex=Bomb(
            (2, 5),
            _INSIDE,
            (
                Source(_MUON, (50.0, 1000.0), at_most=1),
                Source((22, 11), (50.0, 1000.0), at_most=1),
                Source((111,), (50.0, 500.0), at_most=2),
                Source(_PION, (50.0, 800.0), at_most=2),
                Source((2212,), (50.0, 400.0), at_most=3),
            ),
        ),
        rain=Bomb(
            (3, 8),
            _AROUND,
            (
                Source(_MUON, (200.0, 1000.0), weight=5.0, at_most=30),
                Source((22, 11), (100.0, 600.0), at_most=30),
                Source((2212,), (50.0, 400.0), at_most=30),
            ),
        ),
    ),
    "config_b": _CONFIG_B,  # its second TPC is left out, here and below
    "config_c": Preset(
        vertex=Bomb(
            (2, 6),
            (241.0, 1384.0, 1500.0),
            (
                Source(_LEPTON, (50.0, 2000.0), at_least=1, at_most=1),
                Source((111,), (5.0, 500.0), at_most=1),
                Source(_PION, (50.0, 700.0), at_most=2),
                Source((2212,), (50.0, 700.0), weight=2.0, at_most=4),
            ),
        ),
        rain=Bomb(
            (4, 6),
            (541.0, 1734.0, 1850.0),
            (
                Source(_MUON, (50.0, 2000.0), weight=5.0),
                Source((22, 11), (100.0, 200.0), at_most=2),
                Source((2212,), (50.0, 700.0), weight=2.0),
            ),
        ),
        momentum=True,
    ),
    "config_d": replace(_CONFIG_B, rain=replace(_CONFIG_B.rain, particles=(8, 15))),
    "config_e": Preset(
        vertex=Bomb(
            (2, 7),
            (952.0, 952.0, 952.0),  # 20 cm from the faces, as above: ours, like the volume; its own vat is 6 m wide
            (
                Source(_LEPTON, (0.0, 3000.0), weight=3.0, at_most=1),
                Source((111,), (0.0, 1000.0), at_most=2),
                Source(_PION, (0.0, 1000.0), at_most=2),
                Source((2212,), (0.0, 1000.0), weight=3.0, at_most=4),
                Source((22,), (0.0, 1000.0), at_most=2),
            ),
        ),
        direction="flat_theta",
        active_half_mm=CUBE_HALF_MM,
    ),
    "single:electron": _single((11,), 50.0, 1000.0),
    "single:photon": _single((22,), 50.0, 1000.0),
    "single:muon": _single(_MUON, 50.0, 1000.0),
    "single:pion": _single(_PION, 50.0, 400.0),
    "single:pi0": _single((111,), 50.0, 1000.0),
    "single:proton": _single((2212,), 50.0, 400.0),
    "single:neutron": _single((2112,), 50.0, 400.0),
}


def find_preset(preset: str | os.PathLike[str] | Preset, settings: Sequence[str] = ()) -> tuple[str, Preset]:
    """Turn what a user names into settings.

    Args:
        preset: a name of PRESETS; a YAML file (its name ends in .yaml or .yml, or it is a Path) with the fields of
            `Preset`; or a Preset.
        settings: changes to it, ``rain.particles=4,8``.

    Returns:
        A name and the settings. The name stands for the settings: of those that have no name of their own, 12 digits
        of a SHA-256 are part of it, as in ``mine.yaml#1f0c25b3a9d8``. Of a file's path it has the last part only.

    Raises:
        ValueError: an unknown name or field, an impossible value: one line that names the file and the field.
        FileNotFoundError: there is no such file.
    """
    if isinstance(preset, Preset):
        name, known = "preset", config_from_json(Preset, asdict(preset), "preset")
    elif isinstance(preset, str) and not preset.lower().endswith(YAML):
        if preset not in PRESETS:
            raise ValueError(
                f"unknown preset {preset!r} of the generator; known are {', '.join(PRESETS)}, or a file of your own "
                f"({', '.join(YAML)})"
            )
        name, known = preset, PRESETS[preset]
    else:
        name, known = Path(preset).name, config_from_yaml(Preset, Path(preset))
    changed = override(known, settings) if settings else known
    if PRESETS.get(name) == changed:
        return name, changed
    text = json.dumps(asdict(changed), sort_keys=True)
    return f"{name}#{hashlib.sha256(text.encode()).hexdigest()[:12]}", changed


def draw(preset: Preset, rng: np.random.Generator) -> tuple[Primary, ...]:
    """The primaries of one event: interaction 0 is the vertex, each particle of the rain is one of its own."""
    vertex = _position(preset.vertex, rng)
    primaries = [_start(preset, source, 0, vertex, rng) for source in _sources(preset.vertex, rng)]
    for interaction, source in enumerate(_sources(preset.rain, rng), start=1):
        primary = _start(preset, source, interaction, _position(preset.rain, rng), rng)
        if np.dot(primary.position_mm, primary.direction) > 0:  # the rain flies inward
            x, y, z = primary.direction
            primary = replace(primary, direction=(-x, -y, -z))
        primaries.append(primary)
    return tuple(primaries)


def _sources(bomb: Bomb, rng: np.random.Generator) -> list[Source]:
    total = int(rng.integers(bomb.particles[0], bomb.particles[1] + 1))
    chosen = [i for i, source in enumerate(bomb.sources) for _ in range(source.at_least)]
    while len(chosen) < total:
        free = [i for i, source in enumerate(bomb.sources) if source.weight and chosen.count(i) < source.at_most]
        edges = np.cumsum([bomb.sources[i].weight for i in free])
        chosen.append(free[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))])
    return [bomb.sources[i] for i in chosen]


def _position(bomb: Bomb, rng: np.random.Generator) -> Vector:
    x, y, z = (2 * rng.random(3) - 1) * bomb.half_mm
    return float(x), float(y), float(z)


def _start(preset: Preset, source: Source, interaction: int, position_mm: Vector, rng: np.random.Generator) -> Primary:
    pdg = source.pdg[int(rng.integers(len(source.pdg)))]
    low, high = source.energy_mev
    drawn = low + (high - low) * rng.random()
    mass = MASS_MEV[abs(pdg)]
    energy = math.hypot(drawn, mass) - mass if preset.momentum else drawn
    u, phi = rng.random(), 2 * np.pi * rng.random()
    cos = 2 * u - 1 if preset.direction == "isotropic" else np.cos(np.pi * u)
    sin = np.sqrt(1 - cos * cos)
    direction = (float(sin * np.cos(phi)), float(sin * np.sin(phi)), float(cos))
    return Primary(interaction, pdg, float(energy), position_mm, direction)
