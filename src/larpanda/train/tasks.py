"""What a run learns: an object with batch, loss, after_step and evaluate. The loop knows nothing else of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from larpanda.data.views import Augmentation, ViewConfig, augment, make_views, pack_views
from larpanda.evaluate.segmentation import confusion, segmentation
from larpanda.event import UNKNOWN, Event, Motif, PointBatch, ViewBatch
from larpanda.model.backbone import Encoder
from larpanda.model.bundle import Model
from larpanda.model.distill import SelfDistillation
from larpanda.model.semantic import SemanticLossConfig, semantic_loss
from larpanda.model.unet import UResNet
from larpanda.parallel import total, world
from larpanda.train.probing import ProbeConfig, features, probe_motifs
from larpanda.train.watch import CollapseWatch

KEPT_BYTES = 4 << 30  # of frozen features, about 1,500 events of `nano`


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


def motif_losses(logits: Tensor, motif: Tensor, config: SemanticLossConfig) -> Losses:
    """Cross-entropy and Lovasz of a batch. Over several processes the mean of theirs, as much as their points weigh."""
    weights = logits.new_tensor(config.class_weights or [1.0] * len(Motif))
    known = motif != UNKNOWN
    weight, n = weights[motif[known]].sum(), known.sum()
    loss = semantic_loss(logits, motif, config.lovasz_weight, weights if config.class_weights else None)
    correct = (logits.argmax(1) == motif).sum()
    share = weight / total(weight).clamp(min=torch.finfo(weight.dtype).tiny)
    return Losses(loss * share, {"accuracy": correct / total(n).clamp(min=1)})


class Semantic:
    """Motifs with labels (paper section 3.2.1)."""

    def __init__(
        self, model: Model, augmentation: Augmentation, loss: SemanticLossConfig, validation: Sequence[Event]
    ) -> None:
        """Learn to predict motifs.

        Args:
            model: with a semantic head. An encoder without gradients is run without stochastic depth.
            augmentation: of the events.
            loss: of the logits.
            validation: events with truth.
        """
        assert model.semantic is not None
        self.model = model
        self.config, self.validation = loss, validation
        self.frozen = not any(p.requires_grad for p in model.encoder.parameters())
        n_draws = model.encoder.n_draws + model.semantic.n_draws
        self.batch = LabelledBatches(augmentation, model.config.min_energy_mev, n_draws)

    def loss(self, batch: LabelledBatch, progress: float) -> Losses:
        """Of the model's logits of a batch."""
        assert self.model.semantic is not None
        n = self.model.encoder.n_draws
        with torch.set_grad_enabled(not self.frozen):
            pyramid = self.model.encoder(batch.points, None if self.frozen else batch.draws[:, :n])
        return motif_losses(self.model.semantic(pyramid, batch.draws[:, n:]), batch.points.motif, self.config)

    def after_step(self, progress: float) -> None:
        """Nothing to do."""

    def alarm(self, record: Mapping[str, float | int]) -> str | None:
        """Nothing to say."""

    def evaluate(self) -> Mapping[str, float]:
        """Macro F1 and F1 per motif over the validation events."""
        return _scores([motif_table(self.model, event) for event in self.validation])


@dataclass(frozen=True, slots=True, eq=False)
class LabelledFeatures:
    """Frozen features of points and their motifs: of one event, or of a batch."""

    x: Tensor  # [N, C] float16
    motif: Tensor  # [N] int64

    def __len__(self) -> int:
        return len(self.motif)

    @property
    def n_points(self) -> int:
        """Points of all events."""
        return len(self)

    def to(self, device: torch.device) -> "LabelledFeatures":
        """The same on a device."""
        return LabelledFeatures(self.x.to(device), self.motif.to(device))

    @classmethod
    def pack(cls, parts: Sequence["LabelledFeatures"]) -> "LabelledFeatures":
        """Lay events end to end."""
        return cls(torch.cat([part.x for part in parts]), torch.cat([part.motif for part in parts]))


class FrozenEvents(Sequence[LabelledFeatures]):
    """The up-cast features of events under a frozen encoder, made when first asked for and kept as memory allows."""

    def __init__(self, encoder: Encoder | UResNet, events: Sequence[Event], min_energy_mev: float) -> None:
        self._encoder, self._events, self._min_energy_mev = encoder, events, min_energy_mev
        self._kept: dict[int, LabelledFeatures] = {}
        self._room = KEPT_BYTES

    def __len__(self) -> int:
        return len(self._events)

    @overload
    def __getitem__(self, index: int) -> LabelledFeatures: ...
    @overload
    def __getitem__(self, index: slice) -> "FrozenEvents": ...
    def __getitem__(self, index: int | slice) -> "LabelledFeatures | FrozenEvents":
        if isinstance(index, slice):
            return FrozenEvents(self._encoder, self._events[index], self._min_energy_mev)
        index = range(len(self))[index]
        if index not in self._kept:
            event = self._events[index].visible(self._min_energy_mev)[0]
            made = LabelledFeatures(features(self._encoder, [event]).half(), event.motif)
            size = made.x.nbytes + made.motif.nbytes
            if size > self._room:  # made again each time: the result is the same
                return made
            self._room -= size
            self._kept[index] = made
        return self._kept[index]


class FeatureBatches:
    """Lays the features of events end to end; nothing about them is random."""

    def size(self, event: LabelledFeatures) -> int:
        """Its own."""
        return len(event)

    def __call__(
        self, events: Sequence[LabelledFeatures], rngs: Sequence[np.random.Generator], progress: float
    ) -> LabelledFeatures:
        """Make the input of a step."""
        return LabelledFeatures.pack(events)


class LinearSemantic:
    """Motifs by a linear layer on frozen features (paper section 3.5, linear): an event's features are made once."""

    def __init__(self, model: Model, loss: SemanticLossConfig, validation: FrozenEvents) -> None:
        """Learn the linear layer of a model's semantic head, which has no decoder. validation: with truth."""
        assert model.semantic is not None
        assert model.semantic.decoder is None
        self.model, self.config, self.validation = model, loss, validation
        self.linear = model.semantic.linear
        self.batch = FeatureBatches()

    def loss(self, batch: LabelledFeatures, progress: float) -> Losses:
        """Of the layer's logits of a batch."""
        return motif_losses(self.linear(batch.x.float()), batch.motif, self.config)

    def after_step(self, progress: float) -> None:
        """Nothing to do."""

    def alarm(self, record: Mapping[str, float | int]) -> str | None:
        """Nothing to say."""

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Macro F1 and F1 per motif over the validation events."""
        device = self.linear.weight.device
        answers = ((one, self.linear(one.x.to(device).float()).argmax(1).cpu()) for one in self.validation)
        return _scores([confusion(one.motif, answer) for one, answer in answers])


def _scores(tables: Sequence[npt.NDArray[np.int64]]) -> Mapping[str, float]:
    result = segmentation(tables)
    interval = {"macro_f1_low": result.macro_f1_low, "macro_f1_high": result.macro_f1_high}
    return {"macro_f1": result.macro_f1, **interval, **{f"f1_{m.name.lower()}": float(result.f1[m]) for m in Motif}}


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


@torch.no_grad()
def motif_table(model: Model, event: Event) -> npt.NDArray[np.int64]:
    """Confusion of an event's voxels above the model's threshold: [5, 5], row truth, column prediction."""
    assert model.semantic is not None
    visible = event.visible(model.config.min_energy_mev)[0]
    device = next(model.parameters()).device
    logits = model.semantic(model.encoder(PointBatch.pack([visible]).to(device)))
    return confusion(visible.motif, logits.argmax(1).cpu())
