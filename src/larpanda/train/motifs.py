"""Motifs with labels (paper section 3.2.1): what a semantic head learns from and how it is judged, whole or linear."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from larpanda.evaluate.segmentation import confusion, segmentation
from larpanda.event import UNKNOWN, Event, Motif, PointBatch
from larpanda.model.backbone import Encoder, Pyramid
from larpanda.model.bundle import Model
from larpanda.model.semantic import SemanticHead, SemanticLossConfig, semantic_loss
from larpanda.model.unet import UResNet
from larpanda.parallel import total
from larpanda.train.frozen import FrozenBatches, FrozenEvents
from larpanda.train.probing import features
from larpanda.train.supervised import packs
from larpanda.train.tasks import Losses


def motif_losses(logits: Tensor, motif: Tensor, config: SemanticLossConfig) -> Losses:
    """Cross-entropy and Lovasz of a batch. Over several processes the mean of theirs, as much as their points weigh."""
    weights = logits.new_tensor(config.class_weights or [1.0] * len(Motif))
    known = motif != UNKNOWN
    weight, n = weights[motif[known]].sum(), known.sum()
    loss = semantic_loss(logits, motif, config.lovasz_weight, weights if config.class_weights else None)
    correct = (logits.argmax(1) == motif).sum()
    share = weight / total(weight).clamp(min=torch.finfo(weight.dtype).tiny)
    return Losses(loss * share, {"accuracy": correct / total(n).clamp(min=1)})


class Motifs:
    """What a semantic head learns, and how it is judged."""

    def __init__(self, head: SemanticHead, loss: SemanticLossConfig) -> None:
        self.head, self.config = head, loss
        self.n_draws = head.n_draws

    def loss(self, pyramid: Pyramid, points: PointBatch, draws: Tensor) -> Losses:
        """Of the logits of a batch."""
        return motif_losses(self.head(pyramid, draws), points.motif, self.config)

    def evaluate(self, model: Model, events: Sequence[Event]) -> Mapping[str, float]:
        """Macro F1 and F1 per motif."""
        return _scores(motif_tables(model, events))

    def calibrate(self, model: Model, events: Sequence[Event]) -> Mapping[str, float]:
        """Nothing to do."""
        return {}


@dataclass(frozen=True, slots=True, eq=False)
class LabelledFeatures:
    """Frozen features of points and their motifs: of one event, or of a batch."""

    x: Tensor  # [N, C] float16
    motif: Tensor  # [N] int64

    def __len__(self) -> int:
        return len(self.motif)

    @classmethod
    @torch.no_grad()
    def of(cls, encoder: Encoder | UResNet, min_energy_mev: float, event: Event) -> "LabelledFeatures":
        """Those of an event under an encoder."""
        visible = event.visible(min_energy_mev)[0]
        return cls(features(encoder, [visible]).half(), visible.motif)

    @property
    def n_points(self) -> int:
        """Points of all events."""
        return len(self)

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return self.x.nbytes + self.motif.nbytes

    def to(self, device: torch.device) -> "LabelledFeatures":
        """The same on a device."""
        return LabelledFeatures(self.x.to(device), self.motif.to(device))

    @classmethod
    def pack(cls, parts: Sequence["LabelledFeatures"]) -> "LabelledFeatures":
        """Lay events end to end."""
        return cls(torch.cat([part.x for part in parts]), torch.cat([part.motif for part in parts]))


class LinearSemantic:
    """Motifs by a linear layer on frozen features (paper section 3.5, linear): an event's features are made once."""

    def __init__(self, model: Model, loss: SemanticLossConfig, validation: FrozenEvents[LabelledFeatures]) -> None:
        """Learn the linear layer of a model's semantic head, which has no decoder. validation: with truth."""
        assert model.semantic is not None
        assert model.semantic.decoder is None
        self.model, self.config, self.validation = model, loss, validation
        self.linear = model.semantic.linear
        self.batch = FrozenBatches()

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

    def calibrate(self) -> Mapping[str, float]:
        """Nothing to do."""
        return {}


def _scores(tables: Sequence[npt.NDArray[np.int64]]) -> Mapping[str, float]:
    result = segmentation(tables)
    interval = {"macro_f1_low": result.macro_f1_low, "macro_f1_high": result.macro_f1_high}
    return {"macro_f1": result.macro_f1, **interval, **{f"f1_{m.name.lower()}": float(result.f1[m]) for m in Motif}}


@torch.no_grad()
def motif_tables(model: Model, events: Sequence[Event]) -> list[npt.NDArray[np.int64]]:
    """Confusion of each event's voxels above the model's threshold: [5, 5], row truth, column prediction."""
    assert model.semantic is not None
    device, tables = next(model.parameters()).device, []
    for batch in packs(events, model.config.min_energy_mev):
        found = model.semantic(model.encoder(batch.to(device))).argmax(1).cpu()
        lengths = batch.start.diff().tolist()
        both = zip(torch.split(batch.motif, lengths), torch.split(found, lengths), strict=True)
        tables += [confusion(truth, answer) for truth, answer in both]
    return tables
