"""What a run learns: an object with batch, loss, after_step and evaluate. The loop knows nothing else of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from larpanda.data.views import Augmentation, augment
from larpanda.evaluate.segmentation import confusion, segmentation
from larpanda.event import Event, Motif, PointBatch
from larpanda.model.bundle import Model
from larpanda.model.semantic import semantic_loss


@dataclass(frozen=True, slots=True)
class Losses:
    """What a step minimises, and its parts for the log."""

    total: Tensor  # scalar
    parts: Mapping[str, float]


class Task(Protocol):
    """What the loop asks of a task."""

    model: Model

    def batch(self, events: Sequence[Event], rngs: Sequence[np.random.Generator]) -> PointBatch:
        """Make the input of a step; one random generator for each event."""

    def loss(self, batch: PointBatch, progress: float, generator: torch.Generator) -> Losses:
        """The loss of a batch at ``progress`` in [0, 1]; ``generator`` draws what the model draws."""

    def after_step(self, progress: float) -> None:
        """Called after each step of the optimizer."""

    def evaluate(self) -> Mapping[str, float]:
        """Numbers for the log."""


class Semantic:
    """Motifs with labels (paper section 3.2.1)."""

    def __init__(
        self, model: Model, augmentation: Augmentation, lovasz_weight: float, validation: Sequence[Event]
    ) -> None:
        self.model = model
        self.augmentation, self.lovasz_weight, self.validation = augmentation, lovasz_weight, validation

    def batch(self, events: Sequence[Event], rngs: Sequence[np.random.Generator]) -> PointBatch:
        """Augment before the threshold and the voxels, so that geometry and energies really change."""
        threshold = self.model.config.min_energy_mev
        pairs = zip(events, rngs, strict=True)
        views = [augment(event, self.augmentation, rng).visible(threshold)[0] for event, rng in pairs]
        return PointBatch.pack(views).to(next(self.model.parameters()).device)

    def loss(self, batch: PointBatch, progress: float, generator: torch.Generator) -> Losses:
        """Cross-entropy and Lovasz."""
        assert self.model.semantic is not None
        logits = self.model.semantic(self.model.encoder(batch, generator), generator)
        total = semantic_loss(logits, batch.motif, self.lovasz_weight)
        correct = (logits.argmax(1) == batch.motif).float().mean()
        return Losses(total, {"accuracy": correct.item()})

    def after_step(self, progress: float) -> None:
        """Nothing to do."""

    def evaluate(self) -> Mapping[str, float]:
        """Macro F1 and F1 per motif over the validation events."""
        result = segmentation([motif_table(self.model, event) for event in self.validation])
        return {"macro_f1": result.macro_f1, **{f"f1_{m.name.lower()}": float(result.f1[m]) for m in Motif}}


@torch.no_grad()
def motif_table(model: Model, event: Event) -> npt.NDArray[np.int64]:
    """Confusion of an event's voxels above the model's threshold: [5, 5], row truth, column prediction."""
    assert model.semantic is not None
    visible = event.visible(model.config.min_energy_mev)[0]
    device = next(model.parameters()).device
    logits = model.semantic(model.encoder(PointBatch.pack([visible]).to(device)))
    return confusion(visible.motif, logits.argmax(1).cpu())
