"""How measured particles and interactions compare with true ones: of a reconstruction, and of the true voxels.

The second knows which voxels are whose (reco on truth): what is wrong there is the estimators' own, and what is wrong
in the first besides is the grouping's. Knows no model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from larpanda.analysis.kinematics import (
    Detector,
    Group,
    InteractionMeasure,
    Numbers,
    ParticleMeasure,
    angle_degrees,
    measure,
)
from larpanda.analysis.ranges import RANGE_CM, range_cm
from larpanda.analysis.tables import column
from larpanda.event import (
    PDG,
    UNKNOWN,
    VOXEL_CM,
    EnergyScale,
    Event,
    Motif,
    ParticleTruth,
    Reconstruction,
    Species,
    rows_of_points,
)

LEAST_VOXELS = 5  # of a true particle above threshold, to be compared
MATCH = 0.5  # intersection over union of voxels, above which a particle found is the true one: at most one is
LONG_CM = 10.0  # of a track, for angles and ends
KINETIC_MEV = (0.0, 50.0, 100.0, 200.0, 400.0, math.inf)
AT_REST = 0.1  # a track went as far as its energy allows, to this share
PI0_MASS_MEV = 134.977


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """A true particle, what is measured on its voxels, and what was found of it."""

    particle: int  # id in the event
    interaction: int
    species: Species
    kinetic_mev: float
    start_cm: Numbers  # [3]
    end_cm: Numbers  # [3]
    momentum: Numbers  # [3] MeV/c
    contained: bool | None  # in the truth; None: it does not say
    at_rest: bool  # a track that went as far as its energy allows
    primary: bool | None  # likewise
    parent: tuple[int, int]  # PDG code and track of the parent
    n_voxels: int  # above threshold
    on_truth: ParticleMeasure
    iou: float  # with the particle found that shares most; 0: none does
    found_species: Species | None  # of that particle, if it matches
    found: ParticleMeasure | None  # likewise

    @property
    def inside(self) -> bool:
        """Contained in truth, or it does not say."""
        return self.contained is not False


@dataclass(frozen=True, slots=True, eq=False)
class VertexComparison:
    """A true interaction with primary particles."""

    interaction: int
    vertex_cm: Numbers  # [3]
    fiducial: bool
    begins: int  # tracks and electrons that begin there
    on_truth: InteractionMeasure
    found: InteractionMeasure | None  # of the interaction found that matches


def compare(
    event: Event,
    found: Reconstruction | None,
    measured: tuple[Mapping[int, InteractionMeasure], Mapping[int, ParticleMeasure]] | None,
    min_energy_mev: float,
    detector: Detector,
    scale: EnergyScale,
) -> tuple[list[Comparison], list[VertexComparison]]:
    """Compare the true particles of an event that have 5 voxels or more above threshold, and their interactions.

    Args:
        event: with ``particles``; without them there is nothing to compare.
        found: its reconstruction; None: true voxels alone.
        measured: of what was found (``kinematics.measure_event``).
        min_energy_mev: threshold of the voxels.
        detector: walls and margins.
        scale: factors of calorimetric energies.
    """
    seen, row_point = event.visible(min_energy_mev)
    truth = seen.particles
    if truth is None or not len(seen):
        return [], []
    nothing = torch.full((len(event),), UNKNOWN)
    columns = (nothing, nothing) if found is None else (found.particle.cpu(), found.interaction.cpu())
    row = rows_of_points(row_point, len(seen))
    particle_found, interaction_found = (column[row].numpy() for column in columns)
    species_found = {} if found is None else {one.id: one.species for one in found.particles or ()}
    whole_of, measure_of = measured or ({}, {})
    position = (seen.position.double().numpy() + 0.5) * VOXEL_CM
    energy, motif = seen.energy.double().numpy(), seen.motif.numpy()
    owner, interaction = seen.particle.numpy(), seen.interaction.numpy()
    particles: list[Comparison] = []
    vertices: list[VertexComparison] = []
    for number in np.unique(interaction[interaction >= 0]).tolist():
        of_it = interaction == number
        ids = [p for p in np.unique(owner[of_it & (owner >= 0)]).tolist() if _comparable(truth, owner, p)]
        if not ids:
            continue
        groups = [
            Group(
                Species(int(truth.species[p])),
                position[owner == p],
                energy[owner == p],
                bool((motif[owner == p] == Motif.MICHEL).mean() > 0.5),
            )
            for p in ids
        ]
        whole, measures = measure(groups, detector, scale)
        for p, one in zip(ids, measures, strict=True):
            best, iou = _best(owner == p, particle_found)
            matched = iou > MATCH
            particles.append(
                Comparison(
                    p,
                    number,
                    *_known(truth, p),
                    int((owner == p).sum()),
                    one,
                    iou,
                    species_found.get(best) if matched else None,
                    measure_of.get(best) if matched else None,
                )
            )
        best, iou = _best(of_it, interaction_found)
        vertices += _vertex(truth, number, ids, whole, whole_of.get(best) if iou > MATCH else None, detector)
    return particles, vertices


def _comparable(truth: ParticleTruth, owner: npt.NDArray[np.int64], p: int) -> bool:
    return bool(truth.species[p] >= 0 and (owner == p).sum() >= LEAST_VOXELS)


def _best(mine: npt.NDArray[np.bool_], found: npt.NDArray[np.int64]) -> tuple[int, float]:
    """Of the instances found the one that shares most voxels with a true one, and their IoU."""
    shared = found[mine & (found >= 0)]
    if not len(shared):
        return UNKNOWN, 0.0
    best = int(np.bincount(shared).argmax())
    both = int((shared == best).sum())
    return best, both / (int(mine.sum()) + int((found == best).sum()) - both)


def _known(
    truth: ParticleTruth, p: int
) -> tuple[Species, float, Numbers, Numbers, Numbers, bool | None, bool, bool | None, tuple[int, int]]:
    """What the simulation knows of a particle, in the order of ``Comparison``."""
    species, kinetic = Species(int(truth.species[p])), float(truth.kinetic_energy[p])
    if not kinetic > 0:  # nothing can be measured against it
        kinetic = math.nan
    start, end = (x[p].double().numpy() * VOXEL_CM for x in (truth.start, truth.end))
    at_rest = False
    if species in RANGE_CM and kinetic > 0:
        most = range_cm(kinetic, species)
        at_rest = bool(abs(float(np.linalg.norm(end - start)) - most) < AT_REST * most)
    return (
        species,
        kinetic,
        start,
        end,
        truth.momentum_vector[p].double().numpy(),
        _said(truth.contained[p]),
        at_rest,
        _said(truth.primary[p]),
        (int(truth.parent_pdg[p]), int(truth.parent_track_id[p])),
    )


def _said(flag: torch.Tensor) -> bool | None:
    return None if int(flag) == UNKNOWN else bool(flag)


def _vertex(
    truth: ParticleTruth,
    number: int,
    ids: Sequence[int],
    whole: InteractionMeasure,
    found: InteractionMeasure | None,
    detector: Detector,
) -> list[VertexComparison]:
    primaries = [p for p in ids if int(truth.primary[p]) == 1]
    if not primaries:
        return []
    starts = {p: truth.start[p].double().numpy() * VOXEL_CM for p in ids}
    place = starts[primaries[0]]
    begins = sum(
        bool(np.linalg.norm(starts[p] - place) < 0.1) and Species(int(truth.species[p])) is not Species.PHOTON
        for p in ids
    )
    fiducial = detector.contains(place[None], detector.fiducial_cm)
    return [VertexComparison(number, place, fiducial, begins, whole, found)]


@dataclass(frozen=True, slots=True)
class Spread:
    """A quantity over particles: median and half of the central 68 %, or another quantile. NaN for fewer than 5."""

    n: int
    middle: float
    half_width: float  # NaN where ``middle`` is a quantile alone

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Median and half width; NaN among the values is left out."""
        known = np.array([value for value in values if not math.isnan(value)])
        if len(known) < 5:
            return cls(len(known), math.nan, math.nan)
        low, middle, high = (float(q) for q in np.quantile(known, (0.16, 0.5, 0.84)))
        return cls(len(known), middle, (high - low) / 2)

    @classmethod
    def within(cls, values: Sequence[float], share: float = 0.68) -> "Spread":
        """What so large a share of the values is below."""
        known = [value for value in values if not math.isnan(value)]
        middle = float(np.quantile(known, share)) if len(known) >= 5 else math.nan
        return cls(len(known), middle, math.nan)


@dataclass(frozen=True, slots=True)
class Closure:
    """Particles of one species, all measured in one way."""

    species: Species
    energy: Spread  # measured over true kinetic energy; contained, in truth and by their voxels
    energy_at_rest: Spread  # of those the tracks that came to rest
    by_range: Spread  # of those with an energy by range
    calo: Spread  # calorimetric over true, contained
    calo_uncontained: Spread  # the same of those that are not contained
    angle_degrees: Spread  # 68 % of contained ones of 10 cm or more; so the rest
    start_cm: Spread
    end_cm: Spread  # tracks
    length: Spread  # measured over true distance of start and end; tracks
    flipped: Spread  # share whose start is nearer to the true end than the true start; tracks
    energy_by_kinetic: tuple[Spread, ...]  # as energy, of each part of true kinetic energies: KINETIC_MEV


def closures(particles: Sequence[Comparison], on_truth: bool) -> list[Closure]:
    """The table of all species: of the true voxels, or of the particles that were found and match."""
    result = []
    for species in Species:
        both = [
            (one, mine)
            for one in particles
            if one.species is species and (mine := one.on_truth if on_truth else one.found) is not None
        ]
        inside = [(one, mine) for one, mine in both if one.inside and mine.contained]
        outside = [(one, mine) for one, mine in both if not (one.inside and mine.contained)]
        rest = [pair for pair in inside if pair[0].at_rest]
        long = [(one, mine) for one, mine in inside if mine.length_cm >= LONG_CM]
        track = species in RANGE_CM
        tracks = long if track else []
        gaps = [[_gap(mine.start_cm, end) for end in (one.start_cm, one.end_cm)] for one, mine in long]
        flips = [float(first > second) for first, second in gaps if not math.isnan(second)] if track else []
        result.append(
            Closure(
                species,
                Spread.of([mine.energy_mev / one.kinetic_mev for one, mine in inside]),
                Spread.of([mine.energy_mev / one.kinetic_mev for one, mine in rest]),
                Spread.of([mine.range_energy_mev / one.kinetic_mev for one, mine in inside]),
                Spread.of([mine.calo_energy_mev / one.kinetic_mev for one, mine in inside]),
                Spread.of([mine.calo_energy_mev / one.kinetic_mev for one, mine in outside]),
                Spread.within([angle_degrees(np.array(mine.direction), one.momentum) for one, mine in long]),
                Spread.within([first for first, _ in gaps]),
                Spread.within([_gap(mine.end_cm, one.end_cm) for one, mine in tracks]),
                Spread.of([mine.length_cm / max(_gap(one.end_cm, one.start_cm), VOXEL_CM) for one, mine in tracks]),
                Spread(len(flips), float(np.mean(flips)) if len(flips) >= 5 else math.nan, math.nan),
                tuple(
                    Spread.of(
                        [mine.energy_mev / one.kinetic_mev for one, mine in inside if low <= one.kinetic_mev < high]
                    )
                    for low, high in pairwise(KINETIC_MEV)
                ),
            )
        )
    return result


def vertex_misses(vertices: Sequence[VertexComparison], on_truth: bool, least: int = 1) -> list[float]:
    """Distances (cm) of measured vertices from true fiducial ones where so many tracks and electrons begin."""
    chosen = [one for one in vertices if one.fiducial and one.begins >= least]
    measures = [(one, one.on_truth if on_truth else one.found) for one in chosen]
    return [_gap(mine.vertex_cm, one.vertex_cm) for one, mine in measures if mine is not None]


def pi0_masses(particles: Sequence[Comparison], on_truth: bool) -> list[float]:
    """Masses (MeV) of pairs of contained photons of one neutral pion, by measured energies and directions."""
    families: dict[tuple[float, ...], list[tuple[Comparison, ParticleMeasure]]] = {}
    for one in particles:
        mine = one.on_truth if on_truth else one.found
        if one.species is Species.PHOTON and one.parent[0] == 111 and one.inside and mine and mine.contained:
            families.setdefault((one.parent[1], *one.start_cm.round(3).tolist()), []).append((one, mine))
    masses = []
    for family in families.values():
        if len(family) == 2:
            a, b = (mine for _, mine in family)
            cosine = math.cos(math.radians(angle_degrees(np.array(a.direction), np.array(b.direction))))
            masses.append(math.sqrt(max(2 * a.energy_mev * b.energy_mev * (1 - cosine), 0.0)))
    return masses


def fit_scale(particles: Sequence[Comparison]) -> EnergyScale:
    """The scale of each species from true voxels measured with a scale of 1: the median of true over summed energy.

    Of contained particles; of tracks those that came to rest, since one that reacts leaves its energy to others.
    """
    factors = {}
    for species in Species:
        mine = [p for p in particles if p.species is species and p.inside and p.on_truth.contained]
        whole = [p for p in mine if p.at_rest or species not in RANGE_CM]
        ratio = [p.kinetic_mev / p.on_truth.calo_energy_mev for p in whole]
        factors[species.name.lower()] = round(float(np.median(ratio)), 4) if ratio else 1.0
    return EnergyScale(**factors)


def _gap(a: tuple[float, float, float] | Numbers, b: Numbers) -> float:
    return float(np.linalg.norm(np.asarray(a) - b))


def _measure_columns(prefix: str, null: str) -> list[pa.Field]:
    """Columns of what was measured."""
    return [
        column(f"{prefix}_energy_mev", pa.float64(), "MeV", "kinetic energy", null=null),
        column(f"{prefix}_calo_energy_mev", pa.float64(), "MeV", "by calorimetry", null=null),
        column(f"{prefix}_range_energy_mev", pa.float64(), "MeV", "by range", null=f"{null}, or not by range"),
        column(f"{prefix}_length", pa.float32(), "cm", "of it", null=null),
        column(f"{prefix}_contained", pa.bool_(), "", "none of it is within the margin of a wall", null=null),
        *_axis_columns(f"{prefix}_start", "cm", "where it begins", null),
        *_axis_columns(f"{prefix}_end", "cm", "where it ends", null),
        *_axis_columns(f"{prefix}_direction", "", "at the start, of length 1", null),
    ]


def _axis_columns(name: str, unit: str, description: str, null: str) -> list[pa.Field]:
    return [column(f"{name}_{axis}", pa.float32(), unit, description, null=null) for axis in "xyz"]


COMPARISONS = pa.schema(
    [
        column("entry", pa.int64(), "", "row of the event in the data"),
        column("particle_id", pa.int32(), "", "true particle, numbered within the event"),
        column("interaction_id", pa.int32(), "", "its true interaction"),
        column("pdg", pa.int32(), "", "true species, without sign of charge: 22, 11, 13, 211 or 2212"),
        column("energy_mev", pa.float64(), "MeV", "true kinetic energy", null="if unknown"),
        *_axis_columns("start", "cm", "where it began", "if unknown"),
        *_axis_columns("end", "cm", "where it ended", "if unknown"),
        *_axis_columns("momentum", "MeV/c", "at the start", "if unknown"),
        column(
            "contained", pa.bool_(), "", "all deposits of it and of what joined it are in the image", null="if unknown"
        ),
        column("primary", pa.bool_(), "", "it is a primary particle", null="if unknown"),
        column("n_voxels", pa.int64(), "", "voxels of it above threshold, 5 or more"),
        column("iou", pa.float32(), "", "of its voxels and those of the particle found that shares most, 0 to 1"),
        column("reco_pdg", pa.int32(), "", "species of that particle", null="unless iou is above 0.5"),
        *_measure_columns("reco", "unless iou is above 0.5"),
        *_measure_columns("reco_on_truth", "never"),
    ]
)


def comparison_table(comparisons: Sequence[tuple[int, Comparison]]) -> pa.Table:
    """A row for each true particle; with each the row of its event."""
    rows = [
        {
            "entry": entry,
            "particle_id": one.particle,
            "interaction_id": one.interaction,
            "pdg": PDG[one.species],
            "energy_mev": one.kinetic_mev,
            **_axes("start", one.start_cm),
            **_axes("end", one.end_cm),
            **_axes("momentum", one.momentum),
            "contained": one.contained,
            "primary": one.primary,
            "n_voxels": one.n_voxels,
            "iou": one.iou,
            "reco_pdg": None if one.found_species is None else PDG[one.found_species],
            **_measured("reco", one.found),
            **_measured("reco_on_truth", one.on_truth),
        }
        for entry, one in comparisons
    ]
    known = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]
    return pa.Table.from_pylist(known, schema=COMPARISONS)


def _measured(prefix: str, one: ParticleMeasure | None) -> dict[str, Any]:
    if one is None:
        return {}
    return {
        f"{prefix}_energy_mev": one.energy_mev,
        f"{prefix}_calo_energy_mev": one.calo_energy_mev,
        f"{prefix}_range_energy_mev": one.range_energy_mev,
        f"{prefix}_length": one.length_cm,
        f"{prefix}_contained": one.contained,
        **_axes(f"{prefix}_start", one.start_cm),
        **_axes(f"{prefix}_end", one.end_cm),
        **_axes(f"{prefix}_direction", one.direction),
    }


def _axes(name: str, values: Numbers | tuple[float, float, float]) -> dict[str, float]:
    return {f"{name}_{axis}": float(value) for axis, value in zip("xyz", values, strict=True)}


def closures_as_json(found: Sequence[Closure]) -> dict[str, dict[str, Any]]:
    """Species, quantity, numbers; null for fewer than 5 particles."""
    return {
        one.species.name.lower(): {
            **{name: spread_as_json(getattr(one, name)) for name in _QUANTITIES},
            "energy_by_kinetic": [
                {"low_mev": low, "high_mev": high if math.isfinite(high) else None, **spread_as_json(part)}
                for (low, high), part in zip(pairwise(KINETIC_MEV), one.energy_by_kinetic, strict=True)
            ],
        }
        for one in found
    }


def spread_as_json(one: Spread) -> dict[str, float | int | None]:
    """Its numbers; null for NaN."""
    return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in asdict(one).items()}


_QUANTITIES = [one.name for one in fields(Closure) if one.name not in ("species", "energy_by_kinetic")]
CONVENTIONS: Mapping[str, str] = {
    "kinematics": "true particles of 5 voxels or more above threshold; reco_on_truth: measured on their own voxels; "
    "reco: on those of the particle found with IoU > 0.5; n particles, middle the median and half_width half of the "
    "central 68 %, or middle alone a quantile or share; null for fewer than 5",
    "energy": "measured over true kinetic energy of particles contained in truth, if it says so, and by their voxels; "
    "energy_at_rest: tracks of them that came to rest; by_range, calo: by range and by calorimetry alone; "
    "calo_uncontained: of others; energy_by_kinetic: energy, in parts of the true kinetic energy",
    "angle_degrees": "68 % of contained particles of 10 cm or more; so start_cm, end_cm (tracks), length (measured "
    "over true distance of start and end) and flipped (share that starts nearer to the true end)",
    "vertex_cm": "68 % of fiducial interactions where a track or electron begins; within_1_cm: share of them",
    "pi0_mass_mev": "of pairs of contained photons with one neutral pion as parent",
}
