"""What a run learns: an object with batch, loss, after_step and evaluate. The loop knows nothing else of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from larpanda.data.views import Augmentation, ViewConfig, augment, make_views, pack_views
from larpanda.event import Event, Motif, PointBatch, ViewBatch
from larpanda.model.distill import SelfDistillation
from larpanda.parallel import world
from larpanda.train.probing import ProbeConfig, probe_motifs
from larpanda.train.watch import CollapseWatch


@dataclass(frozen=True, slots=True)
class Losses:
    """What a step minimises, and its parts for the log: this process's shares, which sum to those of the batch."""

    total: Tensor  # scalar
    parts: Mapping[str, Tensor | float]  # scalars without gradient


class Batch(Protocol):
    """The input of a step; all that is random about it is drawn already."""

    @property
    def n_points(self) -> int:
        """Points that the model sees in the step."""

    def to(self: "B", device: torch.device) -> "B":
        """The same on a device."""


I_contra = TypeVar("I_contra", contravariant=True)
B = TypeVar("B", bound=Batch)
B_co = TypeVar("B_co", bound=Batch, covariant=True)


class Task(Protocol[B]):
    """What the loop asks of a task."""

    @property
    def model(self) -> nn.Module:
        """All that a checkpoint keeps; what requires a gradient is trained."""

    @property
    def batch(self) -> "MakeBatch[Any, B]":
        """What makes the input of a step."""

    def loss(self, batch: B, progress: float) -> Losses:
        """The loss of this process's part of a batch at ``progress`` in [0, 1]."""

    def after_step(self, progress: float) -> None:
        """Called after each step of the optimizer."""

    def alarm(self, record: Mapping[str, float | int]) -> str | None:
        """What to say about a step's line of the log, if it looks wrong."""

    def evaluate(self) -> Mapping[str, float]:
        """Numbers for the log."""


class MakeBatch(Protocol[I_contra, B_co]):
    """Makes the input of a step. Picklable, since it may run in other processes; knows no model."""

    def __call__(self, events: Sequence[I_contra], rngs: Sequence[np.random.Generator], progress: float) -> B_co:
        """One random generator for each event: nothing an event becomes depends on the others."""

    def size(self, event: I_contra) -> int:
        """About how many points come of an event, for an even division among processes."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledBatch:
    """Augmented events, and the numbers that decide what stochastic depth skips."""

    points: PointBatch
    draws: Tensor  # [B, n] float32 in [0, 1)

    @property
    def n_points(self) -> int:
        """Points of all events."""
        return len(self.points.energy)

    def to(self, device: torch.device) -> "LabelledBatch":
        """The same on a device."""
        return LabelledBatch(self.points.to(device), self.draws.to(device, non_blocking=True))


@dataclass(frozen=True)
class LabelledBatches:
    """Augments before the threshold and the voxels, so that geometry and energies really change."""

    augmentation: Augmentation
    min_energy_mev: float
    n_draws: int  # for each event

    def size(self, event: Event) -> int:
        """Its own."""
        return len(event)

    def __call__(self, events: Sequence[Event], rngs: Sequence[np.random.Generator], progress: float) -> LabelledBatch:
        """Make the input of a step."""
        views, draws = [], []
        for event, rng in zip(events, rngs, strict=True):
            views.append(augment(event, self.augmentation, rng).visible(self.min_energy_mev)[0])
            draws.append(torch.from_numpy(rng.random(self.n_draws, np.float32)))
        return LabelledBatch(PointBatch.pack(views), torch.stack(draws))


@dataclass(frozen=True)
class ViewBatches:
    """Makes the views of a step (paper section 3.3.2)."""

    views: ViewConfig
    min_energy_mev: float
    n_draws: int  # for each view that the student sees

    def size(self, event: Event) -> int:
        """Of the largest view of it."""
        return min(len(event), self.views.max_points)

    def __call__(self, events: Sequence[Event], rngs: Sequence[np.random.Generator], progress: float) -> ViewBatch:
        """Cut views out of what the model would see of each event."""
        made, draws = [], []
        for event, rng in zip(events, rngs, strict=True):
            made.append(make_views(event.visible(self.min_energy_mev)[0], self.views, progress, rng))
            draws.append(torch.from_numpy(rng.random((2 + self.views.n_local, self.n_draws), np.float32)))
        # as pack_views lays the student's views: the global ones of all events first
        return pack_views(made, torch.cat([draw[:2] for draw in draws] + [draw[2:] for draw in draws]))


class Pretrain:
    """Self-distillation without labels (paper section 3.3); the linear probe alone looks at truth."""

    def __init__(
        self,
        model: SelfDistillation,
        steps: int,
        views: ViewConfig,
        min_energy_mev: float,
        probe: ProbeConfig,
        probe_events: Sequence[Event] = (),
        seed: int = 0,
    ) -> None:
        """Learn from charge alone. steps: of the run; probe_events: with truth, ``probe.n_events``; none: no probe."""
        self.model, self.views, self.min_energy_mev = model, views, min_energy_mev
        self.probe, self.probe_events, self.seed = probe, probe_events, seed
        self.scores: Mapping[str, float] | None = None  # of the last evaluation
        self.watch = CollapseWatch(model.config.prototypes, steps)
        self.batch = ViewBatches(views, min_energy_mev, model.student.encoder.n_draws)

    def loss(self, batch: ViewBatch, progress: float) -> Losses:
        """The paper's loss, and what tells whether it collapses (section 3.3.3)."""
        temperature = self.model.config.temperature_at(progress)
        done = self.model(batch, temperature)
        names = ("local", "mask", "entropy", "kl", "matched_local", "matched_mask", "usage", "perplexity")
        parts: dict[str, Tensor | float] = {name: getattr(done, name).detach() for name in names}
        if self.model.config.swap_weight:
            parts["swap"] = done.swap.detach()
        parts |= {f"spread_{level}": value for level, value in enumerate(done.spread)}
        size, ratio = self.views.patch(progress)
        known = {"temperature": temperature, "mask_voxels": size, "mask_ratio": ratio}
        known["momentum"] = self.model.config.momentum_at(progress)
        parts |= {name: value / world() for name, value in known.items()}
        return Losses(done.loss, parts)

    def after_step(self, progress: float) -> None:
        """The teacher follows."""
        self.model.update_teacher(self.model.config.momentum_at(progress))

    def alarm(self, record: Mapping[str, float | int]) -> str | None:
        """Collapses, in words (section 3.3.3)."""
        return self.watch.see(record)

    def evaluate(self) -> Mapping[str, float]:
        """Macro F1 and F1 per motif of a linear probe on the teacher's features; nothing without its events."""
        if not self.probe_events:
            return {}
        a, b = self.probe.train_events, self.probe.train_events + self.probe.choose_events
        train, choose, test = (
            self.probe_events[rows] for rows in (slice(a), slice(a, b), slice(b, self.probe.n_events))
        )
        result, penalty = probe_motifs(
            self.model.teacher.encoder, train, choose, test, self.min_energy_mev, self.probe.points, seed=self.seed
        )
        scores = {f"f1_{m.name.lower()}": float(result.f1[m]) for m in Motif}
        self.scores = {"macro_f1": result.macro_f1, **scores, "probe_penalty": penalty}
        return self.scores
