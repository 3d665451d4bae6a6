"""What a page shows of an event, and the lists of its particles: found, with what was measured of them, and true.

Measures and compares nothing: it is handed that.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from larpanda.analysis.kinematics import SHORT, TOPOLOGY_MEV, InteractionMeasure, ParticleMeasure
from larpanda.event import UNKNOWN, VOXEL_CM, Event, Interaction, Particle, Reconstruction, Species

Integers: TypeAlias = npt.NDArray[np.int64]
Json: TypeAlias = "bool | int | float | str | Sequence[Json] | dict[str, Json] | None"

NEUTRAL_PION = 111  # PDG; what its photons are to an interaction, particles that begin at the vertex are


@dataclass(frozen=True, slots=True)
class Scores:
    """How well particles or interactions of one event agree with the truth; NaN where that cannot be said."""

    ari: float
    purity: float
    efficiency: float


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What a page shows of one event. None: there is none, and the page does not speak of it."""

    event: Event
    reconstruction: Reconstruction | None = None
    particles: tuple[ParticleMeasure, ...] | None = None  # of each of reconstruction.particles
    interactions: tuple[InteractionMeasure | None, ...] | None = None  # likewise; None of one without particles
    particle_scores: Scores | None = None
    interaction_scores: Scores | None = None

    def __post_init__(self) -> None:
        for name in ("particles", "interactions"):
            measures, found = getattr(self, name), getattr(self.reconstruction, name, None)
            if measures is not None and len(measures) != len(found or ()):
                raise ValueError(f"{len(measures)} {name} were measured and {len(found or ())} found; measure each")


@dataclass(frozen=True, slots=True)
class _Row:
    """A particle, as a line of a list. None: unknown."""

    id: int
    interaction: int
    species: int
    n_voxels: int
    score: float | None = None
    energy_mev: float | None = None  # kinetic
    length_cm: float | None = None
    direction: tuple[float, ...] | None = None
    contained: bool | None = None
    at_vertex: bool | None = None  # it begins there, or is a photon that does but for its gap

    @property
    def rank(self) -> tuple[bool, float, int]:
        return self.at_vertex is False, -(self.energy_mev or 0.0), -self.n_voxels


@dataclass(frozen=True, slots=True)
class _Head:
    """An interaction, as the headline of its particles. None: unknown."""

    id: int
    n_voxels: int
    score: float | None = None
    deposited_mev: float | None = None
    energy_mev: float | None = None  # kinetic, of the particles at its vertex
    vertex_cm: tuple[float, ...] | None = None
    topology: str = ""


def found_list(shown: Shown) -> Json:
    """Interactions that were found, each with its particles; None of a model without such heads."""
    found = shown.reconstruction
    if found is None or (found.particles is None and found.interactions is None):
        return None
    particles, interactions = found.particles or (), found.interactions or ()
    pairs = zip(particles, shown.particles or [None] * len(particles), strict=True)
    rows = [_found_row(one, measure) for one, measure in pairs]
    wholes = zip(interactions, shown.interactions or [None] * len(interactions), strict=True)
    return _grouped([_found_head(one, measure) for one, measure in wholes], rows)


def _found_row(one: Particle, measure: ParticleMeasure | None) -> _Row:
    row = _Row(one.id, one.interaction, one.species, one.n_voxels, one.score)
    if measure is None:
        return row
    return replace(
        row,
        energy_mev=_known(measure.energy_mev),
        length_cm=_known(measure.length_cm),
        direction=_all_known(measure.direction),
        contained=measure.contained,
        at_vertex=measure.primary,
    )


def _found_head(one: Interaction, measure: InteractionMeasure | None) -> _Head:
    if measure is None:
        return _Head(one.id, one.n_voxels, one.score, one.energy_mev)
    energy, vertex = _known(measure.energy_mev), _all_known(measure.vertex_cm)
    return _Head(one.id, one.n_voxels, one.score, one.energy_mev, energy, vertex, measure.topology)


def true_list(event: Event) -> Json:
    """Interactions of the truth, each with its particles; None without labels of either."""
    particle, interaction = event.particle.numpy(), event.interaction.numpy()
    if not event.has_truth or max(particle.max(initial=UNKNOWN), interaction.max(initial=UNKNOWN)) == UNKNOWN:
        return None
    rows = [_true_row(event, number) for number in np.unique(particle[particle >= 0]).tolist()]
    numbers = np.unique(interaction[interaction >= 0]).tolist()
    return _grouped([_true_head(event, number, rows) for number in numbers], rows)


def _true_row(event: Event, number: int) -> _Row:
    mine = event.particle.numpy() == number
    interaction, species = (_commonest(column.numpy()[mine]) for column in (event.interaction, event.species))
    n_voxels, truth = int(mine.sum()), event.particles
    if truth is None or number >= len(truth):
        return _Row(number, interaction, species, n_voxels)
    momentum = truth.momentum_vector[number].double()
    contained, primary = int(truth.contained[number]), int(truth.primary[number])
    return _Row(
        number,
        interaction,
        species,
        n_voxels,
        energy_mev=_known(float(truth.kinetic_energy[number])),
        direction=_all_known((momentum / momentum.norm()).tolist()),
        contained=None if contained == UNKNOWN else contained == 1,
        at_vertex=None if primary == UNKNOWN else primary == 1 or int(truth.parent_pdg[number]) == NEUTRAL_PION,
    )


def _true_head(event: Event, number: int, rows: Sequence[_Row]) -> _Head:
    """Energy and topology by the rule of what is found: kinetic, of the particles at the vertex."""
    vertex = None
    if event.vertex is not None and number < len(event.vertex):
        vertex = _all_known((event.vertex[number].double() * VOXEL_CM).tolist())
    n_voxels = int((event.interaction == number).sum())
    first = [row for row in rows if row.interaction == number and row.at_vertex]
    energies = [(row.species, row.energy_mev) for row in first if row.energy_mev is not None]
    count = {s: sum(kind == s and energy >= TOPOLOGY_MEV[s] for kind, energy in energies) for s in Species}
    return _Head(
        number,
        n_voxels,
        energy_mev=math.fsum(energy for _, energy in energies) if energies else None,
        vertex_cm=vertex,
        topology="".join(f"{n}{SHORT[species]}" for species, n in count.items() if n),
    )


def _grouped(heads: Sequence[_Head], rows: Sequence[_Row]) -> Json:
    """Every interaction with its particles, those at the vertex first, by energy; last the particles of none."""
    groups: list[Json] = []
    known = {head.id for head in heads}
    for head in (*heads, None):
        mine = [row for row in rows if (row.interaction == head.id if head else row.interaction not in known)]
        if head or mine:
            listed: list[Json] = [asdict(row) for row in sorted(mine, key=lambda row: row.rank)]
            groups.append({"interaction": asdict(head) if head else None, "particles": listed})
    return groups


def _commonest(labels: Integers) -> int:
    """The label of most voxels, of equals the lowest; UNKNOWN of none."""
    known = labels[labels >= 0]
    return int(np.bincount(known).argmax()) if len(known) else UNKNOWN


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _all_known(values: Sequence[float]) -> tuple[float, ...] | None:
    return tuple(values) if all(math.isfinite(value) for value in values) else None
