"""The vocabulary: what one readout is, what is true of it, what was reconstructed, and how events are packed.

No files, no model. Positions are in voxels of 3 mm inside the program and in cm in every output; energies are in MeV,
momenta in MeV/c. Missing is None, NaN or UNKNOWN.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import SupportsIndex

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

VOXEL_MM = 3.0
VOXEL_CM = 0.3
IMAGE_VOXELS = 768  # per axis; the cube of PILArNet-M, 230.4 cm
MIN_ENERGY_MEV = 0.13  # the model sees voxels above this, strictly (paper section 3.4)
MAX_POINTS = (
    200_000  # of an event in one pass, 3 GB with the large model: more are seen in tiles; PILArNet-M has 20,000
)
UNKNOWN = -1


class Motif(IntEnum):
    """Semantic class of a point: the kind of trajectory it belongs to."""

    SHOWER = 0
    TRACK = 1
    MICHEL = 2
    DELTA = 3
    LED = 4  # low-energy deposit; belongs to no particle


class Species(IntEnum):
    """Particle class, without sign of charge."""

    PHOTON = 0
    ELECTRON = 1
    MUON = 2
    PION = 3
    PROTON = 4


# Particle Data Group 2024, MeV
MASS_MEV = {
    Species.PHOTON: 0.0,
    Species.ELECTRON: 0.510999,
    Species.MUON: 105.658376,
    Species.PION: 139.570390,
    Species.PROTON: 938.272088,
}
PDG = {Species.PHOTON: 22, Species.ELECTRON: 11, Species.MUON: 13, Species.PION: 211, Species.PROTON: 2212}


@dataclass(frozen=True)
class EnergyScale:
    """Kinetic energy over the energy in a particle's voxels: what is below threshold, not found or not ionisation.

    Kept with a model. The defaults are medians over contained particles of 1,000 generated events of seed 9
    (``benchmarks/kinematics.py``), of tracks those that came to rest.
    """

    photon: float = 1.273
    electron: float = 1.2685
    muon: float = 1.0096
    pion: float = 0.9687
    proton: float = 1.0

    def of(self, species: Species) -> float:
        """The factor of a species."""
        return float(getattr(self, species.name.lower()))


class CreationProcess(IntEnum):
    """What made a particle."""

    PRIMARY = 0  # nothing did: the interaction began with it
    KNOCK_ON = 1  # an electron that a muon or hadron struck out
    IONISATION = 2  # an electron that an electron or positron struck out
    BREMSSTRAHLUNG = 3
    CONVERSION = 4  # a photon to an electron and a positron
    COMPTON = 5
    PHOTO_ELECTRIC = 6
    ANNIHILATION = 7
    DECAY = 8
    HADRONIC = 9  # a reaction on a nucleus
    CAPTURE = 10  # by a nucleus


# Which label a voxel keeps when several rows claim it: Supera's order (DeepLearnPhysics/Supera, 2020).
MOTIF_PRIORITY = (Motif.TRACK, Motif.MICHEL, Motif.SHOWER, Motif.DELTA, Motif.LED)


class Status(str, Enum):
    """What became of an event in the reconstruction. Every event of every file has exactly one."""

    OK = "ok"
    EMPTY = "empty"  # no voxel at all
    TOO_SMALL = "too_small"  # fewer than 2 voxels above threshold; motifs are still given
    BAD_INPUT = "bad_input"  # NaN, infinite or negative energy; position not a whole number or outside the image
    TRUNCATED_QUERIES = "truncated_queries"  # every query of the panoptic head was used: there may be more particles
    TOO_LARGE = "too_large"
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class EventKey:
    """Where an event comes from: the row of a file, and the experiment's own numbers where the file has them."""

    file: str  # empty for an event of arrays
    entry: int  # row in the file, from 0; UNKNOWN for an event of arrays
    run: int = UNKNOWN
    subrun: int = UNKNOWN
    event: int = UNKNOWN

    @property
    def numbers(self) -> str:
        """The experiment's own in words, such as ``run 7, event 12``; empty if there are none."""
        named = (("run", self.run), ("subrun", self.subrun), ("event", self.event))
        return ", ".join(f"{name} {number}" for name, number in named if number != UNKNOWN)

    def __str__(self) -> str:
        return self.numbers if self.entry == UNKNOWN else f"{self.file}: event {self.entry}"


@dataclass(frozen=True, slots=True, eq=False)
class ParticleTruth:
    """What the simulation knows about the P particles of an event; row p is the particle with id p."""

    track_id: Tensor  # [P] int64, the simulation's own number for the particle
    species: Tensor  # [P] int64, a Species; UNKNOWN for other kinds (kaons, nuclei) and in v1
    mass: Tensor  # [P] float32, MeV, NaN where unknown
    momentum: Tensor  # [P] float32, magnitude at the start, MeV/c, NaN where unknown
    momentum_vector: Tensor  # [P, 3] float32, MeV/c, NaN where unknown
    start: Tensor  # [P, 3] float32, where the particle began, image voxels; NaN in v1 and v2 (another frame)
    end: Tensor  # [P, 3] float32, where it stopped, decayed, interacted or left the argon, image voxels, NaN unknown
    contained: Tensor  # [P] int64, 1 all deposits of it and of what joined it are in the image, 0 some not, UNKNOWN
    primary: Tensor  # [P] int64, 1 primary, 0 not, UNKNOWN
    process: Tensor  # [P] int64, a CreationProcess, UNKNOWN
    parent_pdg: Tensor  # [P] int64, signed PDG code of the parent, 0 for a primary, UNKNOWN
    parent_track_id: Tensor  # [P] int64, the parent's number in the simulation, 0 for a primary, UNKNOWN

    def __len__(self) -> int:
        return len(self.track_id)

    @property
    def kinetic_energy(self) -> Tensor:
        """[P] float32, at the start, MeV; NaN where mass or momentum is unknown."""
        mass = self.mass.double()  # float32 would leave nothing of a slow proton's energy
        return (torch.hypot(self.momentum.double(), mass) - mass).float()


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """One readout of the detector: a set of N charged points, in no meaningful order.

    Truth is optional: labels are UNKNOWN and tables None where a file has none. A plain ``Event(...)`` is not checked,
    so that a faulty row of a file can be carried to its status; ``Event.from_arrays`` checks.
    """

    position: Tensor  # [N, 3] float32, in voxels of 3 mm; whole numbers until a view rotates them
    energy: Tensor  # [N] float32, deposited energy, MeV
    motif: Tensor  # [N] int64, a Motif, or UNKNOWN
    species: Tensor  # [N] int64, Species of the particle, UNKNOWN for LED points
    particle: Tensor  # [N] int64, 0..P-1, UNKNOWN for LED points
    interaction: Tensor  # [N] int64, 0..K-1, UNKNOWN for LED points
    particles: ParticleTruth | None = None
    vertex: Tensor | None = None  # [K, 3] float32, where interaction k began, image voxels, NaN where unknown
    key: EventKey | None = None

    def __len__(self) -> int:
        return len(self.energy)

    @property
    def has_truth(self) -> bool:
        """True if any point has a motif."""
        return bool((self.motif != UNKNOWN).any())

    @classmethod
    def from_arrays(
        cls,
        voxel: npt.ArrayLike,
        energy: npt.ArrayLike,
        motif: npt.ArrayLike | None = None,
        species: npt.ArrayLike | None = None,
        particle: npt.ArrayLike | None = None,
        interaction: npt.ArrayLike | None = None,
        *,
        run: SupportsIndex = UNKNOWN,
        subrun: SupportsIndex = UNKNOWN,
        event: SupportsIndex = UNKNOWN,
    ) -> "Event":
        """Make an event of your own arrays.

        Args:
            voxel: [N, 3] whole numbers in 0..767, cells of 3 mm.
            energy: [N] MeV, finite, not negative.
            motif: [N] ``Motif`` values, UNKNOWN (-1) where there is none.
            species: [N] ``Species`` values, UNKNOWN where there is none.
            particle: [N] any integers, negative for none; renumbered to 0..P-1 in their order.
            interaction: [N] likewise.
            run, subrun, event: the experiment's own whole numbers, UNKNOWN for none. ``key`` has them, if there is one.

        Raises:
            ValueError: a shape, length, position, energy, label or number that cannot be; it says which.
        """
        position = np.asarray(voxel)
        if position.size == 0:
            position = position.reshape(0, 3)
        if position.ndim != 2 or position.shape[1] != 3 or position.dtype.kind not in "iuf":
            raise ValueError(f"voxel has shape {position.shape} and type {position.dtype}; expected numbers [N, 3]")
        n = len(position)
        key = EventKey("", UNKNOWN, _number("run", run), _number("subrun", subrun), _number("event", event))
        made = cls(
            torch.from_numpy(position.astype(np.float32)),
            torch.from_numpy(_column("energy", energy, n, "iuf").astype(np.float32)),
            _labels("motif", motif, n, len(Motif)),
            _labels("species", species, n, len(Species)),
            compact(_labels("particle", particle, n)),
            compact(_labels("interaction", interaction, n)),
            key=key if key.numbers else None,
        )
        if problem := made.problem():
            raise ValueError(problem)
        return made

    def problem(self) -> str | None:
        """What makes this event unusable, in one line, or None: the rules of Status.BAD_INPUT."""
        bad_energy = ~torch.isfinite(self.energy) | (self.energy < 0)
        if bad_energy.any():
            row = int(bad_energy.nonzero()[0])
            return (
                f"{int(bad_energy.sum())} of {len(self)} energies are NaN, infinite or negative "
                f"(the first at row {row}: {self.energy[row].item():g}); expected finite MeV"
            )
        outside = (self.position < 0) | (self.position >= IMAGE_VOXELS) | (self.position != self.position.floor())
        if (bad_position := outside.any(1)).any():
            row = int(bad_position.nonzero()[0])
            found = ", ".join(f"{x:g}" for x in self.position[row].tolist())
            return (
                f"{int(bad_position.sum())} of {len(self)} positions are not whole numbers in 0..{IMAGE_VOXELS - 1} "
                f"(the first at row {row}: {found}); expected voxels of {VOXEL_MM:g} mm from the image corner"
            )
        return None

    def n_merged(self) -> int:
        """Rows that share the voxel of an earlier row. As ``visible``, for an event without a ``problem``."""
        return len(self) - len(torch.unique(self._voxel_key()))

    def _voxel_key(self) -> Tensor:
        """[N] int64, the same for rows of the same voxel."""
        x, y, z = self.position.long().unbind(1)
        return (x * IMAGE_VOXELS + y) * IMAGE_VOXELS + z

    def visible(self, min_energy_mev: float = MIN_ENERGY_MEV) -> tuple["Event", Tensor]:
        """The points that a model sees: one per voxel, energies summed, those above the threshold.

        Where several rows share a voxel, its truth is that of the row whose motif comes first in MOTIF_PRIORITY
        (then of the smaller particle id). The result is sorted by voxel, and thus the same for any order of the rows.

        Args:
            min_energy_mev: a voxel stays if its summed energy is above this, strictly.

        Returns:
            The event of M points, and [N] int64: for each of this event's rows the point it became, -1 if its voxel
            is not above the threshold.
        """
        assert self.problem() is None, self.problem()
        voxel_key = self._voxel_key()
        rank = torch.full((len(Motif) + 1,), len(Motif))
        rank[torch.tensor(MOTIF_PRIORITY)] = torch.arange(len(Motif))
        order = np.lexsort(
            [self.energy, self.particle, rank[self.motif], voxel_key]
        )  # the last is the first to sort by
        rows = torch.from_numpy(order)
        keys, cell, size = torch.unique_consecutive(voxel_key[rows], return_inverse=True, return_counts=True)
        energy = torch.zeros(len(keys)).index_add_(0, cell, self.energy[rows])
        first = rows[size.cumsum(0) - size]
        seen = energy > min_energy_mev
        point = torch.where(seen, seen.cumsum(0) - 1, UNKNOWN)
        row_point = torch.empty(len(self), dtype=torch.long)
        row_point[rows] = point[cell]
        keep = first[seen]
        event = Event(
            self.position[keep],
            energy[seen],
            self.motif[keep],
            self.species[keep],
            self.particle[keep],
            self.interaction[keep],
            self.particles,
            self.vertex,
            self.key,
        )
        return event, row_point


@dataclass(frozen=True, slots=True, eq=False)
class PointBatch:
    """B events laid end to end, without padding: event b owns rows start[b]:start[b + 1]."""

    position: Tensor  # [N, 3] float32, voxels
    energy: Tensor  # [N] float32, MeV
    motif: Tensor  # [N] int64, a Motif, or UNKNOWN
    species: Tensor  # [N] int64, a Species, or UNKNOWN
    particle: Tensor  # [N] int64, numbered within each event, UNKNOWN for LED points
    interaction: Tensor  # [N] int64, numbered within each event, UNKNOWN for LED points
    start: Tensor  # [B + 1] int64, start[0] = 0, start[B] = N

    @classmethod
    def pack(cls, events: Sequence[Event]) -> "PointBatch":
        """Lay events end to end. Raises ValueError for an empty list."""
        if not events:
            raise ValueError("no events to pack; a batch needs at least one")
        columns = {
            name: torch.cat([getattr(event, name) for event in events])
            for name in ("position", "energy", "motif", "species", "particle", "interaction")
        }
        start = torch.tensor([0] + [len(event) for event in events]).cumsum(0)
        return cls(**columns, start=start)

    @classmethod
    def of(cls, event: Event, rows: Tensor) -> "PointBatch":
        """Some rows of one event: [n] int64."""
        names = ("position", "energy", "motif", "species", "particle", "interaction")
        columns = {name: getattr(event, name)[rows] for name in names}
        return cls(**columns, start=torch.tensor([0, len(rows)]))

    @property
    def event_id(self) -> Tensor:
        """[N] int64, the event that each row belongs to."""
        return torch.repeat_interleave(self.start.diff())

    def to(self, device: torch.device | str) -> "PointBatch":
        """The same batch on another device."""
        return PointBatch(*(getattr(self, name).to(device) for name in self.__slots__))


@dataclass(frozen=True, slots=True, eq=False)
class ViewBatch:
    """The views of B events for one step of self-distillation (paper section 3.3.2), each point with its origin.

    An origin is the place that a point had in its event before the augmentation, voxels.
    """

    teacher: PointBatch  # 2 * B global views, event by event
    teacher_origin: Tensor  # [N, 3] float32
    student: PointBatch  # the same views with patches masked, then L local views of each event
    student_origin: Tensor  # [N', 3] float32
    masked: Tensor  # [N'] bool, points of the student's views that it does not see
    draws: Tensor  # [(2 + L) * B, n] float32 in [0, 1): what stochastic depth skips in the student's views

    @property
    def n_points(self) -> int:
        """Points of all views."""
        return len(self.teacher.energy) + len(self.student.energy)

    def to(self, device: torch.device | str) -> "ViewBatch":
        """The same on another device."""
        return ViewBatch(*(getattr(self, name).to(device) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Particle:
    """One reconstructed particle: the rows of the event whose ``Reconstruction.particle`` is ``id``."""

    id: int
    species: Species
    score: float  # 0..1
    species_probability: tuple[float, ...]  # [5], in the order of Species
    interaction: int  # id of its Interaction, UNKNOWN for none
    n_voxels: int
    energy_mev: float  # sum over its voxels


@dataclass(frozen=True, slots=True)
class Interaction:
    """One reconstructed group of causally related particles."""

    id: int
    score: float  # 0..1
    n_voxels: int
    energy_mev: float  # sum over its voxels


@dataclass(frozen=True, slots=True, eq=False)
class Reconstruction:
    """What was found in one event. Rows are those of the event as it was given: none dropped, none merged."""

    status: Status
    reason: str  # one line, empty if there is nothing to say
    below_threshold: Tensor  # [N] bool: the row's voxel was not seen by the model
    motif: Tensor  # [N] int64, a Motif, UNKNOWN below threshold
    motif_probability: Tensor  # [N, 5] float32, in the order of Motif, NaN below threshold
    particle: Tensor  # [N] int64, Particle.id, UNKNOWN for none
    interaction: Tensor  # [N] int64, Interaction.id, UNKNOWN for none
    particles: tuple[Particle, ...] | None  # None: the model has no particle head
    interactions: tuple[Interaction, ...] | None  # None: the model has no interaction head
    n_merged: int | None  # rows that shared a voxel with an earlier one; None of an event that cannot be used


def rows_of_points(row_point: Tensor, n_points: int) -> Tensor:
    """[N] int64, the point of each row (``Event.visible``) -> [M] one row of each point: all have its answer."""
    row = torch.empty(n_points, dtype=torch.long)
    row[row_point[row_point >= 0]] = (row_point >= 0).nonzero()[:, 0]
    return row


def compact(ids: Tensor) -> Tensor:
    """[N] any integers -> [N] int64: the non-negative ones renumbered to 0..K-1 in their order, the others UNKNOWN."""
    known = ids >= 0
    result = torch.full(ids.shape, UNKNOWN, dtype=torch.long)
    result[known] = torch.unique(ids[known], return_inverse=True)[1]
    return result


def _column(name: str, values: npt.ArrayLike, n: int, kinds: str) -> npt.NDArray[np.generic]:
    column = np.asarray(values)
    if column.shape != (n,):
        raise ValueError(f"{name} has shape {column.shape}; expected [{n}], one value per voxel")
    if n and column.dtype.kind not in kinds:
        raise ValueError(f"{name} has type {column.dtype}; expected {'integers' if kinds == 'iu' else 'numbers'}")
    return column


def _number(name: str, value: SupportsIndex) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}; expected a whole number, or {UNKNOWN} for none") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} is {number}; expected a whole number of 64 bits, or {UNKNOWN} for none")
    return number


def _labels(name: str, values: npt.ArrayLike | None, n: int, count: int | None = None) -> Tensor:
    if values is None:
        return torch.full((n,), UNKNOWN)
    labels = torch.from_numpy(_column(name, values, n, "iu").astype(np.int64))
    if count is not None and n and (labels.min() < UNKNOWN or labels.max() >= count):
        raise ValueError(f"{name} spans {labels.min()}..{labels.max()}; expected 0..{count - 1}, or {UNKNOWN} for none")
    return labels
