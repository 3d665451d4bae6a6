"""What is measured of particles and interactions: energy, ends, direction, length, dE/dx, vertex, containment.

Takes groups of voxels, whoever made them: of a reconstruction, or of the truth, so that errors of the grouping and of
the estimators can be told apart. Knows no model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from larpanda.analysis.ranges import RANGE_CM, energy_mev, momentum_mev
from larpanda.analysis.trajectory import Trajectory, trajectory
from larpanda.event import IMAGE_VOXELS, UNKNOWN, VOXEL_CM, EnergyScale, Event, Motif, Reconstruction, Species
from larpanda.sparse.pieces import pieces

Numbers = npt.NDArray[np.float64]
START_CM = 3.0  # of a track or shower: where its dE/dx at the start is taken; at the end of a track, too
DIRECTION_CM = 6.0  # of a track: where its direction at the start is taken
SHOWER_CM = 20.0  # the same of a shower
BRAGG_CM = 3.0  # of a track, at either end: which loses more?
BRAGG_SHARE = 0.5  # of the difference that a stopping particle makes, from which on it stopped
TRACK_GAP_CM = 5.0  # between pieces of one track
SHOWER_GAP_CM = 20.0  # of one shower
WALL_CM = 1.0  # an end so near to a wall is where the particle left, or came in
MEET_CM = 2.0  # ends so near to one another meet
FEW_VOXELS = 60  # of a shower: below, it is a single electron, or not much more
CURL_CM = 5.0
POINTING_DEGREES = 15.0  # of a photon, from where it came
POINTING_WEIGHT = 0.6  # of a photon that points to a place, against a track that begins there
UNSURE_WEIGHT = 0.8  # of an end that may be a track's start, against one that is
LEAN_WEIGHT = 0.001  # more for that of the two which loses less: it decides where nothing else does
TOPOLOGY_MEV = {species: 50.0 if species is Species.PROTON else 25.0 for species in Species}  # counted from here on
SHORT = {
    Species.PHOTON: "g",
    Species.ELECTRON: "e",
    Species.MUON: "mu",
    Species.PION: "pi",
    Species.PROTON: "p",
}


@dataclass(frozen=True)
class Detector:
    """Where the argon ends, and what counts as inside."""

    low_cm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    high_cm: tuple[float, float, float] = (IMAGE_VOXELS * VOXEL_CM,) * 3
    """Walls; without others those of the image, which need not be walls of a TPC."""
    containment_cm: float = 5.0
    """Nothing of a contained particle is nearer to a wall."""
    fiducial_cm: float = 5.0
    """A fiducial vertex is no nearer to a wall."""

    def __post_init__(self) -> None:
        if any(low >= high for low, high in zip(self.low_cm, self.high_cm, strict=True)):
            raise ValueError(
                f"low_cm is {self.low_cm} and high_cm {self.high_cm}; expected low below high on each axis"
            )
        if min(self.containment_cm, self.fiducial_cm) < 0:
            raise ValueError("containment_cm and fiducial_cm must not be negative")

    def contains(self, position: Numbers, margin: float) -> bool:
        """Whether all points [N, 3] are at least so far (cm) from every wall."""
        low, high = np.array(self.low_cm) + margin, np.array(self.high_cm) - margin
        return bool(((position >= low) & (position <= high)).all())


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The voxels of one particle."""

    species: Species
    position: Numbers  # [N, 3] cm, N at least 1
    energy: Numbers  # [N] MeV
    michel: bool = False  # most of them have that motif: an electron of a muon that has stopped


@dataclass(frozen=True, slots=True)
class ParticleMeasure:
    """What was measured of a particle. NaN: not for this one."""

    calo_energy_mev: float  # kinetic, from the energy of its voxels and the scale of its species
    range_energy_mev: float  # kinetic, from its length; contained muons, and pions and protons that came to rest
    energy_mev: float  # kinetic: by range if there is one, else calorimetric, or what the length needs if that is more
    momentum_mev: float  # MeV/c, from it
    start_cm: tuple[float, float, float]
    end_cm: tuple[float, float, float]
    direction: tuple[float, float, float]  # of length 1, at the start
    length_cm: float  # of the line of a track; of a shower from start to the farthest voxel
    start_dedx: float  # MeV/cm in the first 3 cm
    end_dedx: float  # MeV/cm in the last 3 cm; tracks
    contained: bool
    primary: bool  # it begins at the vertex of its interaction, or points to it
    vertex_distance_cm: float  # from the vertex to its start


@dataclass(frozen=True, slots=True)
class InteractionMeasure:
    """What was measured of an interaction."""

    vertex_cm: tuple[float, float, float]
    energy_mev: float  # kinetic, of its primary particles
    contained: bool  # all of its particles are
    fiducial: bool  # its vertex is
    topology: str  # primary particles above 25 MeV (protons 50), e.g. 1mu2p; empty if none is


@dataclass(frozen=True, slots=True, eq=False)
class _Shape:
    """A particle's line, if it is a track, or its axis."""

    group: Group
    track: Trajectory | None  # None: a shower
    axis: Numbers  # [3] of a shower, from its first end
    ends: Numbers  # [2, 3] cm; of a shower start and end
    start: int  # the end of a track where it began; -1: cannot be told
    likelier: int  # the end that loses less, so that the track rather began there; -1: as much as the other
    stopped: bool  # a track that came to rest, by its Bragg peak or a Michel electron


def measure(
    groups: Sequence[Group], detector: Detector, scale: EnergyScale
) -> tuple[InteractionMeasure, list[ParticleMeasure]]:
    """Measure the particles of one interaction and what they have in common.

    Args:
        groups: P particles, at least one.
        detector: walls and margins.
        scale: factors of calorimetric energies.

    Returns:
        The interaction, and the particles in their order. Nothing depends on the order of particles or voxels but for
        rounding.
    """
    groups = [_by_place(group) for group in groups]
    cores = [core(group) for group in groups]
    michels = [one.position for one in cores if one.michel]
    tracks = [one.position for one in cores if one.species in RANGE_CM]
    shapes = [_shape(one, tracks, michels, detector) for one in cores]
    vertex = _vertex(shapes)
    particles = [_measure_one(*both, vertex, detector, scale) for both in zip(shapes, groups, strict=True)]
    primaries = [one for one in zip(groups, particles, strict=True) if one[1].primary]
    count = dict.fromkeys(Species, 0)
    for group, one in primaries:
        count[group.species] += one.energy_mev >= TOPOLOGY_MEV[group.species]
    interaction = InteractionMeasure(
        _point(vertex),
        math.fsum(one.energy_mev for _, one in primaries),
        all(one.contained for one in particles),
        detector.contains(vertex[None], detector.fiducial_cm),
        "".join(f"{n}{SHORT[species]}" for species, n in count.items() if n),
    )
    return interaction, particles


def measure_event(
    event: Event, found: Reconstruction, detector: Detector, scale: EnergyScale
) -> tuple[dict[int, InteractionMeasure], dict[int, ParticleMeasure]]:
    """Measure what was found in an event, by the ids of interactions and particles.

    A particle of no interaction is measured as if it were one of its own; an interaction without particles is not.
    """
    position = (event.position.double().cpu().numpy() + 0.5) * VOXEL_CM
    energy, motif = event.energy.double().cpu().numpy(), found.motif.cpu().numpy()
    owner = found.particle.cpu().numpy()
    together: dict[tuple[int, int], list[tuple[int, Group]]] = {}
    for one in found.particles or ():
        rows = owner == one.id
        michel = bool((motif[rows] == Motif.MICHEL).mean() > 0.5)
        group = Group(one.species, position[rows], energy[rows], michel)
        alone = one.id if one.interaction == UNKNOWN else UNKNOWN
        together.setdefault((one.interaction, alone), []).append((one.id, group))
    interactions: dict[int, InteractionMeasure] = {}
    particles: dict[int, ParticleMeasure] = {}
    for (number, _), members in together.items():
        whole, measures = measure([group for _, group in members], detector, scale)
        particles |= dict(zip((i for i, _ in members), measures, strict=True))
        if number != UNKNOWN:
            interactions[number] = whole
    return interactions, particles


def _by_place(group: Group) -> Group:
    """The same voxels in an order of their own: of equally far ones the first is taken."""
    rows = np.lexsort([group.energy, *group.position.T])
    return replace(group, position=group.position[rows], energy=group.energy[rows])


def core(group: Group) -> Group:
    """The piece with most energy: what lies far from it is another particle's, found together with it by mistake.

    True tracks are one piece; of true photons 84 % are, and of the others the core has most of the energy.
    """
    label = pieces(group.position, TRACK_GAP_CM if group.species in RANGE_CM else SHOWER_GAP_CM)
    if not label.any():
        return group
    rows = label == np.bincount(label, group.energy).argmax()
    return replace(group, position=group.position[rows], energy=group.energy[rows])


def _vertex(shapes: Sequence[_Shape]) -> Numbers:
    """Where an interaction began: [3] cm.

    Of all ends that may be a start the one where most begins: tracks and electrons that start within 2 cm, and photons
    that point to it. Without tracks and electrons: ``_photon_vertex``.
    """
    places = [(end, weight, i) for i, shape in enumerate(shapes) for end, weight in _starts(shape)]
    if not places:
        return _photon_vertex(shapes)
    points = np.array([end for end, _, _ in places])
    near = np.linalg.norm(points[:, None] - points, axis=2) <= MEET_CM
    best, value = 0, (-1.0,)
    for row, meets in enumerate(near):
        weight = {places[i][2]: places[i][1] for i in np.flatnonzero(meets)}
        for number, shape in enumerate(shapes):
            if shape.group.species is Species.PHOTON and _miss_degrees(shape, points[row]) < POINTING_DEGREES:
                weight[number] = POINTING_WEIGHT
        energy = math.fsum(float(shapes[number].group.energy.sum()) for number in weight)
        score = (round(math.fsum(weight.values()), 6), energy, *points[row].tolist())
        if score > value:
            best, value = row, score
    meeting: Numbers = points[near[best]].mean(0)
    return meeting


def _starts(shape: _Shape) -> list[tuple[Numbers, float]]:
    """Places where a particle may have begun, each with its weight; of photons, which begin out of sight, none."""
    if shape.track is not None:
        if shape.start >= 0:
            return [(shape.ends[shape.start], 1.0)]
        return [(end, UNSURE_WEIGHT + LEAN_WEIGHT * (i == shape.likelier)) for i, end in enumerate(shape.ends)]
    begins_in_sight = shape.group.species is Species.ELECTRON and not shape.group.michel
    return [(shape.ends[0], UNSURE_WEIGHT)] if begins_in_sight else []


def _photon_vertex(shapes: Sequence[_Shape]) -> Numbers:
    """What most energy points back to: the point nearest to all axes, or else the start of one of the showers.

    A shower that fell apart is several that are nearly parallel: the point nearest to their axes is among them, and
    what begins before it does not point there.
    """

    def behind(place: Numbers) -> float:
        pointing = (one for one in shapes if _miss_degrees(one, place) < POINTING_DEGREES)
        return round(math.fsum(float(one.group.energy.sum()) for one in pointing), 6)

    start = max((one.ends[0] for one in shapes), key=lambda place: (behind(place), *place.tolist()))
    meeting = _nearest_to_lines(shapes)
    return meeting if behind(meeting) >= behind(start) else start


def _nearest_to_lines(shapes: Sequence[_Shape]) -> Numbers:
    """The point of least squared distance to the axes of showers, weighted by energy; of parallel ones between them."""
    left, right = np.zeros((3, 3)), np.zeros(3)
    for shape in shapes:
        across = (np.eye(3) - np.outer(shape.axis, shape.axis)) * shape.group.energy.sum()
        left += across
        right += across @ shape.ends[0]
    starts: Numbers = np.mean([shape.ends[0] for shape in shapes], axis=0)
    pull = 1e-2 * np.trace(left) / 3  # towards the starts, where axes leave it open
    return np.asarray(np.linalg.solve(left + pull * np.eye(3), right + pull * starts), np.float64)


def _miss_degrees(shower: _Shape, place: Numbers) -> float:
    """Between the axis of a shower and the line from a place to its start; 0 for a place at its start."""
    way = shower.ends[0] - place
    return angle_degrees(way, shower.axis) if np.linalg.norm(way) > MEET_CM else 0.0


def angle_degrees(a: Numbers, b: Numbers) -> float:
    """Between two vectors, 0 to 180; NaN for one of no length."""
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return math.degrees(math.acos(float(np.clip(a @ b / lengths, -1.0, 1.0)))) if lengths > 0 else math.nan


def _shape(group: Group, tracks: Sequence[Numbers], michels: Sequence[Numbers], detector: Detector) -> _Shape:
    if group.species not in RANGE_CM:
        axis, ends = shower_axis(group.position, group.energy)
        if group.species is Species.ELECTRON and tracks:  # struck out of a track, or left by one that stopped
            gap, _ = cKDTree(np.concatenate(tracks)).query(ends)
            if min(gap) <= MEET_CM and gap[1] < gap[0]:
                axis, ends = -axis, ends[::-1]
        return _Shape(group, None, axis, ends, 0, 0, False)
    track = trajectory(group.position)
    ends = group.position[track.ends]
    stop, rise = _stop(group, track, ends, michels)
    start = 1 - stop if stop >= 0 else -1
    likelier = -1 if rise == 0 else int(rise < 0)
    at_wall = [not detector.contains(end[None], WALL_CM) for end in ends]
    if start < 0 and at_wall[0] != at_wall[1]:  # it left there
        start = at_wall.index(False)
    return _Shape(group, track, np.zeros(3), ends, start, likelier, stop >= 0)


def _stop(group: Group, track: Trajectory, ends: Numbers, michels: Sequence[Numbers]) -> tuple[int, float]:
    """The end where a track stopped, by a Michel electron or by its Bragg peak, or -1: cannot be told.

    And by how much more is lost at the second end, over the difference that a stop there makes.
    """
    if group.species is Species.MUON:
        for michel in michels:
            gap = [float(np.linalg.norm(michel - end, axis=1).min()) for end in ends]
            if min(gap) <= MEET_CM:
                return int(np.argmin(gap)), 0.0
    window = min(BRAGG_CM, track.length / 2)
    if window < VOXEL_CM:
        return -1, 0.0
    near = (track.along < window, track.along > track.length - window)
    first, last = (float(group.energy[rows].sum()) / window for rows in near)
    to_go = energy_mev(np.array([window, track.length - window, track.length]), group.species)
    difference = float(to_go[0] - (to_go[2] - to_go[1])) / window  # if it stops at one end
    seen = (last - first) / max(difference, 1e-9)
    return (1 if seen > BRAGG_SHARE else 0 if seen < -BRAGG_SHARE else -1), seen


def shower_axis(position: Numbers, energy: Numbers) -> tuple[Numbers, Numbers]:
    """The axis of a shower and its two ends.

    Args:
        position: [N, 3] cm.
        energy: [N] MeV.

    Returns:
        [3] direction of length 1 from start to end, 0 for a single voxel, and [2, 3] cm start and end: the first and
        last along the axis of the four fifths of the voxels that are nearest to it. The start is where the shower is
        narrow, or where a short one has fewer voxels (of generated ones this is right in 94 and 85 %).
    """
    if len(position) == 1:
        return np.zeros(3), position[[0, 0]]
    centre = (position * energy[:, None]).sum(0) / energy.sum()
    offset = position - centre
    _, vectors = np.linalg.eigh((offset * energy[:, None]).T @ offset)
    axis = vectors[:, -1]
    axis = axis * np.sign(axis[np.argmax(np.abs(axis))])
    along = offset @ axis
    wide = np.linalg.norm(offset - along[:, None] * axis, axis=1)
    rows = np.flatnonzero(wide <= np.quantile(wide, 0.8))
    if len(position) >= FEW_VOXELS:  # a shower widens
        ends_wide = [float(np.average(wide[half], weights=energy[half])) for half in (along < 0, along >= 0)]
    else:  # an electron curls up where it stops
        core = along[wide <= max(1.0, float(np.quantile(wide, 0.3)))]
        ends_wide = [float((core < core.min() + CURL_CM).sum()), float((core > core.max() - CURL_CM).sum())]
    if ends_wide[0] > ends_wide[1]:
        axis, along = -axis, -along
    ends = position[[rows[np.argmin(along[rows])], rows[np.argmax(along[rows])]]]
    return axis, ends


def _measure_one(
    shape: _Shape, whole: Group, vertex: Numbers, detector: Detector, scale: EnergyScale
) -> ParticleMeasure:
    """Ends, direction, length and losses of a particle's core; containment and energy of all of it."""
    group = shape.group
    species = group.species
    if shape.track is not None:
        distance = np.linalg.norm(shape.ends - vertex, axis=1)
        first = int(np.argmin(distance))
        if shape.start >= 0 and distance.min() > MEET_CM:  # it does not begin at the vertex
            first = shape.start
        track = shape.track if first == 0 else shape.track.reversed()
        start, end, length = group.position[track.ends[0]], group.position[track.ends[1]], track.length
        direction = _direction(start, group, track.along <= DIRECTION_CM, end - start)
        line = group.position[track.along <= DIRECTION_CM]
        if len(line) >= 4:  # the axis of the points, which the place of the first one hardly turns
            axis = np.linalg.svd(line - line.mean(0), full_matrices=False)[2][0]
            direction = axis * np.sign(axis @ direction) if axis @ direction else direction
        near = min(START_CM, length)
        start_dedx = _loss(group.energy[track.along <= near], near)
        end_dedx = _loss(group.energy[track.along >= length - near], near)
    else:
        start = _shower_start(shape, vertex)
        away = np.linalg.norm(group.position - start, axis=1)
        end, length = group.position[int(np.argmax(away))], float(away.max())
        direction = _direction(start, group, away <= SHOWER_CM, shape.axis)
        start_dedx, end_dedx = _loss(group.energy[away <= START_CM], START_CM if length > 0 else 0.0), math.nan
    contained = detector.contains(whole.position, detector.containment_cm)
    calo = float(whole.energy.sum()) * scale.of(species)
    by_range, energy = math.nan, calo
    if shape.track is not None and contained and length > 0:
        needed = float(energy_mev(length, species))  # to come so far
        if shape.stopped or species is Species.MUON:
            by_range = energy = needed
        else:  # a hadron that has perhaps reacted, and would have gone on
            energy = max(calo, needed)
    gap = float(np.linalg.norm(start - vertex))
    misses = (angle_degrees(start - vertex, direction), _miss_degrees(shape, vertex))
    points_back = species is Species.PHOTON and any(miss < POINTING_DEGREES for miss in misses)
    return ParticleMeasure(
        calo,
        by_range,
        energy,
        float(momentum_mev(energy, species)),
        _point(start),
        _point(end),
        _point(direction),
        length,
        start_dedx,
        end_dedx,
        contained,
        bool(gap <= MEET_CM or points_back),
        gap,
    )


def _loss(energy: Numbers, length: float) -> float:
    """MeV/cm; NaN without length."""
    return float(energy.sum()) / length if length > 0 else math.nan


def _shower_start(shape: _Shape, vertex: Numbers) -> Numbers:
    """The voxel of a shower that is nearest to the vertex, if it begins there; else the first along its axis."""
    position = shape.group.position
    distance = np.linalg.norm(position - vertex, axis=1)
    if distance.min() <= MEET_CM or len(position) < 4:
        nearest: Numbers = position[int(np.argmin(distance))]
        return nearest
    start: Numbers = shape.ends[0]
    return start


def _direction(start: Numbers, group: Group, near: npt.NDArray[np.bool_], otherwise: Numbers) -> Numbers:
    """Length 1, from the start to the middle of the energy near it."""
    weight = group.energy * near
    way = (group.position * weight[:, None]).sum(0) / max(float(weight.sum()), 1e-12) - start
    if np.linalg.norm(way) < 1e-6:
        way = otherwise
    size = float(np.linalg.norm(way))
    return way / size if size > 0 else np.full(3, math.nan)


def _point(values: Numbers) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
