"""Learning with labels: one encoder, and every head that learns on it, in one pass (paper sections 3.2 and 3.5)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from larpanda.data.views import Augmentation
from larpanda.event import Event, PointBatch
from larpanda.model.backbone import Pyramid
from larpanda.model.bundle import Model
from larpanda.train.tasks import LabelledBatch, LabelledBatches, Losses

Head = Literal["semantic", "particle", "interaction"]
JUDGED_POINTS = 20_000  # that go through the encoder at a time


class Objective(Protocol):
    """What one head learns, and how it is judged."""

    n_draws: int
    """Numbers for the head's own stochastic depth of an event."""

    def loss(self, pyramid: Pyramid, points: PointBatch, draws: Tensor) -> Losses:
        """Of this process's part of a batch; draws: [B, n_draws]."""

    def evaluate(self, model: Model, events: Sequence[Event]) -> Mapping[str, float]:
        """Numbers for the log; the first is the head's headline, higher is better."""

    def calibrate(self, model: Model, events: Sequence[Event]) -> Mapping[str, float]:
        """Set what is not learnt but fitted, at the end of a run; numbers that say how."""


class Supervised:
    """A task of the loop: objectives that share an encoder, which learns too or is frozen."""

    def __init__(
        self,
        model: Model,
        objectives: Mapping[Head, Objective],
        augmentation: Augmentation,
        validation: Sequence[Event],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Learn objectives.

        Args:
            model: with their heads. An encoder without gradients is run without stochastic depth.
            objectives: of the heads that learn.
            augmentation: of the events.
            validation: events with truth.
            weights: of the losses of several heads; one of none counts as 1.
        """
        self.model, self.objectives, self.validation = model, objectives, validation
        self.weights = weights or {}
        self.frozen = not any(p.requires_grad for p in model.encoder.parameters())
        self.n_draws = [model.encoder.n_draws, *(one.n_draws for one in objectives.values())]
        self.batch = LabelledBatches(augmentation, model.config.min_energy_mev, sum(self.n_draws))

    def loss(self, batch: LabelledBatch, progress: float) -> Losses:
        """The weighted sum of the objectives' losses."""
        of_encoder, *of_heads = torch.split(batch.draws, self.n_draws, 1)
        with torch.set_grad_enabled(not self.frozen):
            pyramid = self.model.encoder(batch.points, None if self.frozen else of_encoder)
        losses = {
            name: one.loss(pyramid, batch.points, draws)
            for (name, one), draws in zip(self.objectives.items(), of_heads, strict=True)
        }
        weighted = [self.weights.get(name, 1.0) * one.total for name, one in losses.items()]
        parts = {self._said(name, part): value for name, one in losses.items() for part, value in one.parts.items()}
        return Losses(torch.stack(weighted).sum(), parts)

    def after_step(self, progress: float) -> None:
        """Nothing to do."""

    def alarm(self, record: Mapping[str, float | int]) -> str | None:
        """Nothing to say."""

    def evaluate(self) -> Mapping[str, float]:
        """The numbers of every objective; of several, first the mean of their headlines."""
        scores = {name: one.evaluate(self.model, self.validation) for name, one in self.objectives.items()}
        said = {self._said(name, key): value for name, one in scores.items() for key, value in one.items()}
        if len(scores) == 1:
            return said
        return {"headline": sum(next(iter(one.values())) for one in scores.values()) / len(scores), **said}

    def calibrate(self) -> Mapping[str, float]:
        """What is fitted at the end of a run, on the validation events."""
        fitted = {name: one.calibrate(self.model, self.validation) for name, one in self.objectives.items()}
        return {self._said(name, key): value for name, one in fitted.items() for key, value in one.items()}

    def _said(self, head: str, key: str) -> str:
        return key if len(self.objectives) == 1 else f"{head}_{key}"


def packs(events: Sequence[Event], min_energy_mev: float) -> Iterator[PointBatch]:
    """What the model sees of events, several at a time; an event without voxels above threshold has no points."""
    waiting: list[Event] = []
    points = 0
    for event in events:
        visible = event.visible(min_energy_mev)[0]
        if waiting and points + len(visible) > JUDGED_POINTS:
            yield PointBatch.pack(waiting)
            waiting, points = [], 0
        waiting.append(visible)
        points += len(visible)
    if waiting:
        yield PointBatch.pack(waiting)
