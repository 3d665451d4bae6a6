"""Views: an event as training sees it, made with a random generator.

Fine-tuning sees whole events, whose labels stay with their points; truth tables (momenta, vertices) are dropped, since
a view turns and shifts the frame they are given in. Pre-training sees crops (paper section 3.3.2) and no truth at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from larpanda.event import IMAGE_VOXELS, UNKNOWN, Event, PointBatch, ViewBatch

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Augmentation:
    """What fine-tuning does to an event before the model's threshold and voxels."""

    symmetry: bool = True
    """Turn and mirror by one of the cube's 48 symmetries, which keep whole voxels whole."""
    charge_scale: float = 0.0
    """Width of a factor on all energies of an event: calibrations differ."""
    charge_jitter: float = 0.0
    """Width of a factor on each energy, in MeV and before any logarithm (paper section 3.3.2: 0.05)."""


def augment(event: Event, augmentation: Augmentation, rng: np.random.Generator) -> Event:
    """One view of an event; the same generator state gives the same view."""
    if augmentation.symmetry:
        event = turn(event, rng)
    factor = rng.normal(1.0, augmentation.charge_scale)
    factors = factor * rng.normal(1.0, augmentation.charge_jitter, len(event))
    energy = event.energy * torch.from_numpy(np.clip(factors, 0.5, 2.0).astype(np.float32))
    return replace(event, energy=energy, particles=None, vertex=None)


def turn(event: Event, rng: np.random.Generator) -> Event:
    """Apply a random one of the 48 rotations and reflections that map the image cube onto itself."""
    axes = torch.from_numpy(rng.permutation(3))
    flip = torch.from_numpy(rng.random(3) < 0.5)
    position = event.position[:, axes]
    position = torch.where(flip, IMAGE_VOXELS - 1 - position, position)
    return replace(event, position=position, particles=None, vertex=None)


@dataclass(frozen=True)
class ViewConfig:
    """Which crops of an event pre-training sees, and how they are changed. Defaults: paper section 3.3.2."""

    global_share: tuple[float, float] = (0.4, 1.0)
    """Least and largest share of the event's points in a global view."""
    local_share: tuple[float, float] = (0.1, 0.4)
    """The same for a local view."""
    n_local: int = 6
    """Local views of an event; the paper says several, the released configuration 6."""
    max_points: int = 30_000
    """Shares are of at most so many points, as in the released code: it bounds the memory of a step."""
    turn: float = 0.8
    """Probability, for each axis, of a turn about it (released configuration)."""
    quarter_turns: bool = False
    """Turn by multiples of 90 degrees, which keep whole voxels whole, instead of by any angle."""
    flip: float = 0.5
    """Probability, for each axis, of mirroring along it (released configuration)."""
    position_jitter: float = 0.5
    """Width of the normal deviate on each coordinate, voxels; cut at two widths."""
    charge_jitter: float = 0.05
    """Width of the factor on each energy, in MeV and thus before any logarithm."""
    mask_voxels: tuple[float, float] = (7.0, 50.0)
    """Edge of a masked patch at the beginning and after the warm-up, voxels."""
    mask_ratio: tuple[float, float] = (0.5, 0.9)
    """Share of the occupied patches that are masked, at the beginning and after the warm-up."""
    mask_warmup: float = 0.05
    """Share of the run in which patches grow and become more."""
    remove_masked: bool = False
    """Take masked points away from the student instead of hiding what they are: a smaller view, as the authors' later
    code has it. The mask loss is then over what is left (``distill.masked_only`` false)."""
    mask_jitter: float = 1.0
    """Width of the further normal deviate on coordinates of masked points, voxels; cut at two widths on both sides."""

    def __post_init__(self) -> None:
        for name in ("global_share", "local_share", "mask_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} is {low:g}, {high:g}; expected 0 < first <= second <= 1")
        if not (0 <= self.turn <= 1 and 0 <= self.flip <= 1 and 0 <= self.mask_warmup <= 1):
            raise ValueError("turn, flip and mask_warmup must be in 0..1")
        if min(self.position_jitter, self.charge_jitter, self.mask_jitter) < 0:
            raise ValueError("position_jitter, charge_jitter and mask_jitter must not be negative")
        if self.n_local < 0 or self.max_points < 2 or min(self.mask_voxels) <= 0:
            raise ValueError("needs n_local >= 0, max_points >= 2 and positive mask_voxels")

    def patch(self, progress: float) -> tuple[float, float]:
        """Edge of a masked patch (voxels) and share of patches masked at ``progress`` in [0, 1]: first linear."""
        done = min(progress / self.mask_warmup, 1.0) if self.mask_warmup else 1.0
        (size, last_size), (ratio, last_ratio) = self.mask_voxels, self.mask_ratio
        return size + (last_size - size) * done, ratio + (last_ratio - ratio) * done


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A crop of an event: one point a voxel."""

    position: Floats  # [M, 3] whole voxels; may lie outside the image
    energy: Floats  # [M] MeV
    origin: Floats  # [M, 3] mean place in the event of what became the point, voxels


@dataclass(frozen=True, slots=True, eq=False)
class EventViews:
    """What the teacher and the student see of an event."""

    whole: tuple[View, View]  # global views: what the teacher sees
    hidden: tuple[View, View]  # the same as the student sees them: masked points moved, or gone
    masked: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]  # [M] each: which points the student is not told
    local: tuple[View, ...]


def make_views(event: Event, config: ViewConfig, progress: float, rng: np.random.Generator) -> EventViews:
    """Cut and change the views of an event (paper section 3.3.2; anchors as in the released code).

    The first global view lies around any point, the second around a point of the first; local views around points of
    the first that no earlier local view covers, as long as there are any.

    Args:
        event: as the model would see it (``Event.visible``).
        progress: of the run, in [0, 1], for the masks.
    """
    position, energy = event.position.numpy(), event.energy.numpy()
    if not len(energy):
        empty = View(np.zeros((0, 3), np.float32), np.zeros(0, np.float32), np.zeros((0, 3), np.float32))
        nothing = np.zeros(0, np.bool_)
        return EventViews((empty, empty), (empty, empty), (nothing, nothing), (empty,) * config.n_local)

    def crop(anchor: int, share: tuple[float, float]) -> npt.NDArray[np.int64]:
        n = max(1, round(rng.uniform(*share) * min(len(energy), config.max_points)))
        if n == len(energy):
            return np.arange(n)
        squared = np.square(position - position[anchor]).sum(1)
        return np.sort(np.argpartition(squared, n - 1)[:n])

    first = crop(int(rng.integers(len(energy))), config.global_share)
    second = crop(int(rng.choice(first)), config.global_share)
    uncovered = np.zeros(len(energy), np.bool_)
    crops = []
    for _ in range(config.n_local):
        if not uncovered.any():
            uncovered[first] = True
        crops.append(crop(int(rng.choice(uncovered.nonzero()[0])), config.local_share))
        uncovered[crops[-1]] = False
    seen = [_change(position[rows], energy[rows], config, rng) for rows in (first, second, *crops)]
    size, ratio = config.patch(progress)
    masks = [mask_patches(view.position, size, ratio, rng) for view in seen[:2]]
    (first_hidden, first_mask), (second_hidden, second_mask) = (
        _hide(view, mask, config, rng) for view, mask in zip(seen, masks, strict=False)
    )
    return EventViews((seen[0], seen[1]), (first_hidden, second_hidden), (first_mask, second_mask), tuple(seen[2:]))


def mask_patches(position: Floats, size: float, ratio: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Choose the points to hide: those of round(ratio * occupied) patches, but never of all.

    Args:
        position: [M, 3] voxels.
        size: edge of a patch, voxels; patches lie side by side from the lowest corner of the points.
        ratio: share of the occupied patches.

    Returns:
        [M] bool.
    """
    if not len(position):
        return np.zeros(0, np.bool_)
    x, y, z = np.floor((position - position.min(0)) / size).astype(np.int64).T
    occupied, patch = np.unique((x << 40) + (y << 20) + z, return_inverse=True)
    n = min(round(ratio * len(occupied)), len(occupied) - 1)
    chosen = np.zeros(len(occupied), np.bool_)
    chosen[rng.permutation(len(occupied))[:n]] = True
    return chosen[patch]


def pack_views(views: Sequence[EventViews], draws: torch.Tensor) -> ViewBatch:
    """Lay the views of several events end to end. draws: [V, n], a row for each view that the student sees."""
    whole = [view for one in views for view in one.whole]
    hidden = [view for one in views for view in one.hidden]
    local = [view for one in views for view in one.local]
    masked = np.concatenate(
        [mask for one in views for mask in one.masked] + [np.zeros(len(v.energy), bool) for v in local]
    )
    teacher, student = _pack(whole), _pack(hidden + local)
    return ViewBatch(teacher[0], teacher[1], student[0], student[1], torch.from_numpy(masked), draws)


def _pack(views: Sequence[View]) -> tuple[PointBatch, torch.Tensor]:
    position, energy, origin = (
        torch.from_numpy(np.concatenate([getattr(view, name) for view in views]))
        for name in ("position", "energy", "origin")
    )
    start = torch.tensor([0] + [len(view.energy) for view in views]).cumsum(0)
    unknown = torch.full((len(energy),), UNKNOWN)
    return PointBatch(position, energy, unknown, unknown, unknown, unknown, start), origin


def _change(origin: Floats, energy: Floats, config: ViewConfig, rng: np.random.Generator) -> View:
    """Turn, mirror, jitter, centre in the image, and fill voxels again: energies of one voxel are summed."""
    energy = energy * (1.0 + _deviates(rng, config.charge_jitter, energy.shape))
    position = (origin - np.round(origin.mean(0))) @ _turning(config, rng).T
    position = position + _deviates(rng, config.position_jitter, position.shape)
    middle = np.round((position.min(0) + position.max(0)) / 2)
    cell = np.round(position - middle).astype(np.int64) + IMAGE_VOXELS // 2
    key = ((cell[:, 0] << 40) + (cell[:, 1] << 20)) + cell[:, 2]
    _, first, voxel, size = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    mean = np.stack([np.bincount(voxel, axis) for axis in origin.T], 1) / size[:, None]
    summed = np.bincount(voxel, energy)
    return View(cell[first].astype(np.float32), summed.astype(np.float32), mean.astype(np.float32))


def _hide(
    view: View, masked: npt.NDArray[np.bool_], config: ViewConfig, rng: np.random.Generator
) -> tuple[View, npt.NDArray[np.bool_]]:
    """The view as the student gets it, and which of its points are masked.

    Masked points are moved, so that the student cannot group them by their place alone (paper section 3.3.2).
    """
    if config.remove_masked:
        left = ~masked
        return View(view.position[left], view.energy[left], view.origin[left]), np.zeros(left.sum(), np.bool_)
    moved = view.position + np.round(_deviates(rng, config.mask_jitter, view.position.shape))
    return replace(view, position=np.where(masked[:, None], moved, view.position).astype(np.float32)), masked


def _turning(config: ViewConfig, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """[3, 3] orthogonal: turns about x, y and z, then reflections."""
    result = np.diag(np.where(rng.random(3) < config.flip, -1.0, 1.0))
    for axis in range(3):
        angle = rng.uniform(-np.pi, np.pi)
        if config.quarter_turns:
            angle = rng.integers(4) * np.pi / 2
        if rng.random() < config.turn:
            a, b = [one for one in range(3) if one != axis]
            turn = np.eye(3)
            turn[[a, b], [a, b]] = np.cos(angle)
            turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
            result = result @ turn
    return result


def _deviates(rng: np.random.Generator, width: float, shape: tuple[int, ...]) -> Floats:
    """Normal deviates, cut at two widths on both sides."""
    return width * np.clip(rng.standard_normal(shape, np.float32), -2.0, 2.0)
