"""What a detector does to the energy that an event left in the argon: recombination, diffusion, dead regions, gain,
noise and threshold, each off until it is asked for. No electronics, no pulses, no space charge.

Source of the recombination: R. Acciarri et al. (ArgoNeuT), JINST 8 (2013) P08005.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtr

from larpanda.data.physics.cells import BASE, cell_of, key_of
from larpanda.data.physics.kernel import Floats, Ints
from larpanda.data.physics.material import DENSITY
from larpanda.data.physics.touching import sum_up
from larpanda.event import IMAGE_VOXELS, MOTIF_PRIORITY, UNKNOWN, VOXEL_CM, Event, Motif, compact

W_ION_MEV = 23.6e-6  # energy for one pair of electron and ion
MIP_MEV_CM = 2.105  # mean dE/dx of a minimum-ionising muon in liquid argon
BOX_A, BOX_B = 0.93, 0.212  # of the modified box model; B in (g/cm2)(kV/cm)/MeV
# Here, where xi / (A + xi) = ln(A + xi), the model's R has its maximum of .716. For smaller xi, where it was never
# measured, it falls to 0 and below.
BOX_PEAK = 0.46684
CHORD_CM = 2 / 3 * VOXEL_CM  # mean length of the straight lines through a cube: 4 volume / surface

DEAD_WIRES = 8  # neighbouring z planes that fail together, as the channels of one readout chip do
MIN_SHARE = 1e-5  # of a voxel's energy: less does not make a voxel (an electron is 7e-5 of 0.5 MeV)
MAX_SIGMA = 1.5  # voxels; up to here MIN_SHARE takes less than 1 % off the variance. Drifts of metres stay below 1

Box = tuple[tuple[int, int, int], tuple[int, int, int]]
_AROUND = np.array([(i * BASE + j) * BASE + k for i, j, k in itertools.product((-1, 0, 1), repeat=3)])


@dataclass(frozen=True, slots=True)
class Detector:
    """Which effects act on an event, and how strongly. The defaults are an ideal detector: no effect at all.

    Raises ValueError for a setting that cannot be; it names the field.
    """

    recombination: bool = False  # electrons recombine with ions where dE/dx is high; a MIP keeps its energy
    field_kv_cm: float = 0.5  # drift field, for the recombination
    longitudinal_cm2_s: float = 0.0  # diffusion constant along the drift (x); argon at 0.5 kV/cm: 4 to 6
    transverse_cm2_s: float = 0.0  # diffusion constant in y and z; argon at 0.5 kV/cm: 9 to 13
    drift_cm_us: float = 0.16  # drift speed, for the diffusion
    anode_x: float = 0.0  # where the drift ends, in voxels from the image corner; may lie outside the image
    dead_boxes: tuple[Box, ...] = ()  # (low corner, high corner) in voxels: dead if low <= voxel < high on each axis
    dead_fraction: float = 0.0  # chance of each slab of DEAD_WIRES planes in z to be dead, drawn for each event
    gain: float = 1.0  # all energies are multiplied by it
    noise_mev: float = 0.0  # standard deviation of what is added to each voxel; scale of the noise voxels
    noise_voxels: float = 0.0  # mean number of voxels an event with nothing but noise
    threshold_mev: float = 0.0  # voxels below it are dropped

    def __post_init__(self) -> None:
        for name, is_valid, expected in (
            ("field_kv_cm", self.field_kv_cm > 0, "a field above 0 kV/cm"),
            ("longitudinal_cm2_s", self.longitudinal_cm2_s >= 0, "0 or more cm2/s"),
            ("transverse_cm2_s", self.transverse_cm2_s >= 0, "0 or more cm2/s"),
            ("drift_cm_us", self.drift_cm_us > 0, "a speed above 0 cm/us"),
            ("anode_x", True, "a finite place in voxels"),
            ("dead_fraction", 0 <= self.dead_fraction <= 1, "a fraction in 0..1"),
            ("gain", self.gain > 0, "a factor above 0"),
            ("noise_mev", self.noise_mev >= 0, "0 or more MeV"),
            ("noise_voxels", self.noise_voxels >= 0, "a mean number of 0 or more"),
            ("threshold_mev", self.threshold_mev >= 0, "0 or more MeV"),
        ):
            value = getattr(self, name)
            if not (is_valid and math.isfinite(value)):
                raise ValueError(f"detector: {name} is {value:g}; expected {expected}")
        for box in self.dead_boxes:
            if not _is_box(box):
                raise ValueError(
                    f"detector: dead_boxes has {box}; expected ((x0, y0, z0), (x1, y1, z1)) in voxels, "
                    "each number of the second above that of the first"
                )
        if self.noise_voxels > 0 and self.noise_mev == 0:
            raise ValueError(
                f"detector: noise_mev is 0 and noise_voxels {self.noise_voxels:g}; expected the scale of their "
                "energy, above 0 MeV"
            )
        for name in ("longitudinal_cm2_s", "transverse_cm2_s"):
            constant = getattr(self, name)
            sigma = float(_sigma(self, constant, np.array([0, IMAGE_VOXELS - 1])).max())
            if sigma > MAX_SIGMA:
                raise ValueError(
                    f"detector: {name} is {constant:g}, which spreads the far end of the image by {sigma:.3g} "
                    f"voxels; expected at most {MAX_SIGMA:g} (argon: below 1; check drift_cm_us and anode_x)"
                )

    @property
    def is_ideal(self) -> bool:
        """True if no effect is on, whatever the settings that only describe one."""
        return replace(self, field_kv_cm=0.5, drift_cm_us=0.16, anode_x=0.0) == Detector()


@dataclass(frozen=True, slots=True, eq=False)
class _Voxels:
    """M voxels on their way through the detector, no two the same."""

    key: Ints  # [M] see `cells`
    energy: Floats  # [M] MeV
    row: Ints  # [M] row of the event whose labels the voxel has, UNKNOWN for a noise voxel

    def take(self, which: npt.NDArray[np.bool_] | Ints) -> "_Voxels":
        return _Voxels(self.key[which], self.energy[which], self.row[which])

    def after(self, first: "_Voxels") -> "_Voxels":
        return _Voxels(
            np.concatenate([first.key, self.key]),
            np.concatenate([first.energy, self.energy]),
            np.concatenate([first.row, self.row]),
        )


def apply_detector(event: Event, detector: Detector, rng: np.random.Generator) -> Event:
    """What the detector makes of an event.

    Recombination, diffusion, dead regions, gain, noise and threshold act in this order.
    Truth stays: the tables of particles and vertices, the key, and the labels of the voxels that are left. A particle
    may lose all its voxels, and then has a row in the table only (without a table, ids are numbered anew). After
    diffusion a voxel belongs to whatever left most energy in it: energies are summed for each set of labels, and of
    equal sums the motif that is first in MOTIF_PRIORITY wins. Noise voxels are LED, or unlabelled in an event that has
    no truth.

    Args:
        event: N points, with or without truth. Rows of one voxel become one, as `Event.visible` makes them.
        detector: the effects.
        rng: for dead slabs and noise; the other effects are not random. The same state gives the same bytes.

    Returns:
        An event of one row a voxel, LED first, otherwise in the order of the rows that gave the labels. If no effect is
        on: the very event that was given, unchecked.

    Raises:
        ValueError: an effect is on, and an energy or position is not one (`Event.problem`).
    """
    if detector.is_ideal:
        return event
    if problem := event.problem():
        raise ValueError(f"{event.key}: {problem}" if event.key else problem)
    if len(np.unique(key_of(_cells(event)))) < len(event):
        event, _ = event.visible(min_energy_mev=-1.0)  # all of them
    voxels = _Voxels(key_of(_cells(event)), event.energy.numpy().astype(np.float64), np.arange(len(event)))
    if detector.recombination:
        voxels = replace(voxels, energy=_recombine(voxels, detector.field_kv_cm))
    if detector.longitudinal_cm2_s > 0 or detector.transverse_cm2_s > 0:
        voxels = _diffuse(voxels, event, detector)
    dead_slab = np.zeros(IMAGE_VOXELS // DEAD_WIRES, np.bool_)
    if detector.dead_fraction > 0:
        dead_slab = rng.random(len(dead_slab)) < detector.dead_fraction
    voxels = voxels.take(~_is_dead(cell_of(voxels.key), detector.dead_boxes, dead_slab))
    energy = voxels.energy * detector.gain
    if detector.noise_mev > 0:
        energy = energy + detector.noise_mev * rng.standard_normal(len(energy))
    voxels = replace(voxels, energy=energy)
    if detector.noise_voxels > 0:
        noise = _noise(detector, rng)
        alive = ~_is_dead(cell_of(noise.key), detector.dead_boxes, dead_slab) & ~np.isin(noise.key, voxels.key)
        voxels = voxels.after(noise.take(alive))
    return _as_event(voxels, event, detector.threshold_mev)


def recombination_factor(dedx_mev_cm: npt.ArrayLike, field_kv_cm: float) -> Floats:
    """The fraction of electrons that escapes recombination, by the modified box model of ArgoNeuT (2013).

    Below the dE/dx at which the formula has its maximum (1.54 MeV/cm at 0.5 kV/cm) it stays at the maximum.

    >>> round(float(recombination_factor(2.1, 0.5)), 3)
    0.705
    """
    xi = np.maximum(BOX_B * np.asarray(dedx_mev_cm, np.float64) / (DENSITY * field_kv_cm), BOX_PEAK)
    return np.asarray(np.log(BOX_A + xi) / xi)


def electrons(energy_mev: npt.ArrayLike, dedx_mev_cm: npt.ArrayLike, field_kv_cm: float = 0.5) -> Floats:
    """How many electrons escape recombination (mean) where `energy_mev` is left at a density of `dedx_mev_cm`."""
    return np.asarray(np.asarray(energy_mev) / W_ION_MEV * recombination_factor(dedx_mev_cm, field_kv_cm))


def dedx_of_voxels(key: Ints, energy: Floats) -> Floats:
    """An estimate of dE/dx from voxels alone.

    A single voxel does not tell: a track may cut its corner or cross it along the diagonal. So energy and path are
    summed over the voxel and its 26 neighbours; the path is the mean chord of a cube, 2 mm, for each that is occupied.

    Args:
        key: [N] voxels, none twice.
        energy: [N] MeV.

    Returns:
        [N] MeV/cm.
    """
    order = np.argsort(key)
    ordered, ordered_energy = key[order], energy[order]
    total, occupied = np.zeros(len(key)), np.zeros(len(key))
    for step in _AROUND if len(key) else ():
        at = np.minimum(np.searchsorted(ordered, ordered + step), len(ordered) - 1)
        found = ordered[at] == ordered + step
        total += np.where(found, ordered_energy[at], 0.0)
        occupied += found
    dedx = np.empty(len(key))
    dedx[order] = total / (occupied * CHORD_CM)
    return dedx


def _recombine(voxels: _Voxels, field_kv_cm: float) -> Floats:
    """[M] MeV, as an experiment calibrates charge: so that a MIP keeps its energy."""
    dedx = dedx_of_voxels(voxels.key, voxels.energy)
    charge = electrons(voxels.energy, dedx, field_kv_cm)
    return np.asarray(charge * W_ION_MEV / recombination_factor(MIP_MEV_CM, field_kv_cm))


def _diffuse(voxels: _Voxels, event: Event, detector: Detector) -> _Voxels:
    """Spread each voxel's energy as expected, and decide to which label each voxel that got some belongs.

    Shares below MIN_SHARE go to the others in proportion: what leaves the image is all that is lost.
    """
    cell = cell_of(voxels.key)
    along = shares(_sigma(detector, detector.longitudinal_cm2_s, cell[:, 0]))
    across = shares(_sigma(detector, detector.transverse_cm2_s, cell[:, 0]))
    largest_along, largest_across = along.max(0, initial=0.0), across.max(0, initial=0.0)
    steps_along, steps_across = np.arange(along.shape[1]), np.arange(across.shape[1])
    middle = np.array([len(steps_along) // 2, len(steps_across) // 2, len(steps_across) // 2])
    rows, cells, parts = [], [], []
    kept = np.zeros(len(cell))
    for i, j, k in itertools.product(steps_along, steps_across, steps_across):
        if largest_along[i] * largest_across[j] * largest_across[k] < MIN_SHARE:
            continue
        part = along[:, i] * across[:, j] * across[:, k]
        row = np.flatnonzero(part >= MIN_SHARE)
        kept[row] += part[row]
        rows.append(row)
        cells.append(cell[row] + (np.array([i, j, k]) - middle))
        parts.append(part[row])
    if not rows:  # an empty event
        return voxels
    row, target = np.concatenate(rows), np.concatenate(cells)
    energy = voxels.energy[row] * np.concatenate(parts) / kept[row]
    inside = ((target >= 0) & (target < IMAGE_VOXELS)).all(1) & (energy > 0)
    labels, owner = _label_sets(event)
    key, label, energy = sum_up(key_of(target[inside]), owner[row[inside]], energy[inside])
    rank = np.full(len(Motif) + 1, len(Motif))
    rank[list(MOTIF_PRIORITY)] = np.arange(len(Motif))
    winner = np.lexsort((rank[event.motif.numpy()[labels[label]]], -energy, key))
    key, first = np.unique(key[winner], return_index=True)
    total = np.add.reduceat(energy, first) if len(first) else energy  # sum_up left the voxels together
    return _Voxels(key, total, labels[label[winner[first]]])


def shares(sigma: Floats) -> Floats:
    """How much of a voxel's charge ends up in which voxel along one axis, as expected.

    The charge lies anywhere in its voxel with the same chance and moves by a normal deviate. With the integral of the
    normal distribution, G(u) = u Phi(u / sigma) + sigma phi(u / sigma), the voxel k steps away gets
    G(k + 1) - 2 G(k) + G(k - 1).

    Args:
        sigma: [N] voxels, 0 or more.

    Returns:
        [N, 2 r + 1], for k = -r..r with r = ceil(4 times the largest sigma); the rows sum to 1 but for the tails.
    """
    reach = math.ceil(4 * sigma.max(initial=0.0))
    u = np.arange(-1.0, reach + 2.0)
    width = np.maximum(sigma, 1e-9)[:, None]  # of no diffusion: G is u above 0
    g = u * ndtr(u / width) + width * np.exp(-np.minimum(0.5 * (u / width) ** 2, 700.0)) / math.sqrt(2 * math.pi)
    half = np.maximum(g[:, 2:] - 2 * g[:, 1:-1] + g[:, :-2], 0.0)  # k = 0..r
    return np.concatenate([half[:, :0:-1], half], 1)


def _sigma(detector: Detector, constant_cm2_s: float, x: Ints) -> Floats:
    """[N] voxels: sqrt(2 D t) of what starts in the middle of the voxels x [N] of the drift axis."""
    drift_us = np.abs(x + 0.5 - detector.anode_x) * VOXEL_CM / detector.drift_cm_us
    return np.asarray(np.sqrt(2 * constant_cm2_s * drift_us * 1e-6) / VOXEL_CM)


def _is_box(box: Box) -> bool:
    try:
        low, high = np.array(box, np.float64).reshape(2, 3)
    except (TypeError, ValueError):
        return False
    return bool(np.isfinite([low, high]).all() and (low < high).all())


def _label_sets(event: Event) -> tuple[Ints, Ints]:
    """The L different sets of labels: the first row of the event that has each; and [N], which set each row has."""
    columns = (event.motif, event.species, event.particle, event.interaction)
    _, row, label = np.unique(torch.stack(columns, 1).numpy(), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(row)
    return row[order], np.argsort(order)[label.reshape(-1)]


def _is_dead(cell: Ints, boxes: tuple[Box, ...], dead_slab: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[M] of voxels [M, 3]. dead_slab: of the slabs of DEAD_WIRES planes in z."""
    dead = dead_slab[cell[:, 2] // DEAD_WIRES]
    for low, high in boxes:
        dead = dead | ((cell >= low) & (cell < high)).all(1)
    return np.asarray(dead)


def _noise(detector: Detector, rng: np.random.Generator) -> _Voxels:
    """Voxels of nothing but noise, anywhere in the image, the exponential tail above the threshold."""
    n = int(rng.poisson(detector.noise_voxels))
    key = np.unique(key_of(rng.integers(0, IMAGE_VOXELS, (n, 3))))
    energy = detector.threshold_mev + rng.exponential(detector.noise_mev, len(key))
    return _Voxels(key, energy, np.full(len(key), UNKNOWN))


def _as_event(voxels: _Voxels, event: Event, threshold_mev: float) -> Event:
    energy = voxels.energy.astype(np.float32)
    seen = energy >= np.float32(threshold_mev)  # both as they are kept: 0.13 is not below 0.13
    voxels, energy = voxels.take(seen), energy[seen]
    motif_of_noise = Motif.LED if event.has_truth else UNKNOWN
    motif = np.append(event.motif.numpy(), motif_of_noise)[voxels.row]  # the row -1 of noise is the last
    order = np.lexsort((voxels.key, voxels.row, motif != Motif.LED))
    voxels, row = voxels.take(order), voxels.row[order]
    particle, interaction, species = (
        torch.from_numpy(np.append(column.numpy(), UNKNOWN)[row])
        for column in (event.particle, event.interaction, event.species)
    )
    return Event(
        position=torch.from_numpy(cell_of(voxels.key).astype(np.float32)),
        energy=torch.from_numpy(energy[order]),
        motif=torch.from_numpy(motif[order]),
        species=species,
        particle=particle if event.particles is not None else compact(particle),
        interaction=interaction if event.vertex is not None else compact(interaction),
        particles=event.particles,
        vertex=event.vertex,
        key=event.key,
    )


def _cells(event: Event) -> Ints:
    return np.asarray(event.position.numpy().astype(np.int64))
