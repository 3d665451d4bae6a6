"""Particles or interactions with labels (paper section 3.2.2): the task of a query head, and its validation."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from larpanda.data.views import Augmentation
from larpanda.evaluate.calibration import calibration, fit_temperature
from larpanda.evaluate.clustering import Overlap, matches, overlap
from larpanda.evaluate.summary import clustering
from larpanda.event import UNKNOWN, Event, PointBatch, Species
from larpanda.model.backbone import Pyramid
from larpanda.model.bundle import Model
from larpanda.model.matching import SetLossConfig, set_loss
from larpanda.model.panoptic import Decoded, PanopticHead, SelectConfig, select
from larpanda.parallel import total
from larpanda.train.tasks import LabelledBatch, LabelledBatches, Losses

What = Literal["particle", "interaction"]


def head_of(model: Model, what: What) -> PanopticHead:
    """The head for particles or for interactions, which the model has."""
    head = model.particle if what == "particle" else model.interaction
    assert head is not None
    return head


def n_things(what: What) -> int:
    """How many classes are instances: the species, or one kind of interaction."""
    return len(Species) if what == "particle" else 1


class Panoptic:
    """Instances with labels: every block's masks are matched to the true ones, and low-energy deposits told apart."""

    def __init__(
        self, model: Model, what: What, augmentation: Augmentation, loss: SetLossConfig, validation: Sequence[Event]
    ) -> None:
        """Learn to predict instances.

        Args:
            model: with the head. An encoder without gradients is run without stochastic depth.
            what: particles or interactions.
            augmentation: of the events.
            loss: weights of its parts.
            validation: events with truth.
        """
        self.model, self.what, self.config, self.validation = model, what, loss, validation
        self.head = head_of(model, what)
        self.frozen = not any(p.requires_grad for p in model.encoder.parameters())
        self.batch = LabelledBatches(augmentation, model.config.min_energy_mev, model.encoder.n_draws)

    def loss(self, batch: LabelledBatch, progress: float) -> Losses:
        """The set loss of every block, the mean over events, and that of low-energy deposits, the mean over cells."""
        with torch.set_grad_enabled(not self.frozen):
            pyramid = self.model.encoder(batch.points, None if self.frozen else batch.draws)
        instance = cell_values(pyramid, getattr(batch.points, self.what))
        kind = cell_values(pyramid, batch.points.species) if self.what == "particle" else instance * 0
        done = self.head.decode(pyramid, instance >= 0)
        parts = self._set_losses(done, instance, kind)
        share = 1.0 / total(parts.new_tensor(float(len(batch.points.start) - 1)))
        names = ("focal", "dice", "classes", "no_object")
        weights = parts.new_tensor([getattr(self.config, name) for name in names])
        led = F.binary_cross_entropy_with_logits(done.led.float(), (instance < 0).float(), reduction="sum")
        led = led / total(led.new_tensor(float(len(instance))))
        shown = {f"{name}_loss": value * share for name, value in zip(names, parts.detach()[-1], strict=True)}
        loss = (parts * weights).sum() * share + self.config.led * led
        return Losses(loss, {**shown, "led_loss": led.detach()})

    def _set_losses(self, done: Decoded, instance: Tensor, kind: Tensor) -> Tensor:
        """[blocks, 4] sums over the events: focal, Dice, classes, no object."""
        n_things = done.start.diff().tolist()
        truth = [
            numbered(*one)
            for one in zip(*(torch.split(x[done.thing], n_things) for x in (instance, kind)), strict=True)
        ]
        rows = []
        for masks, classes in zip(done.masks, done.classes, strict=True):
            each = []
            for mask, class_logits, (number, kinds) in zip(torch.split(masks, n_things), classes, truth, strict=True):
                one = set_loss(mask, class_logits, number, kinds, self.config)
                each.append(torch.stack([one.focal, one.dice, one.classes, one.no_object]))
            rows.append(torch.stack(each).sum(0))
        return torch.stack(rows)

    def after_step(self, progress: float) -> None:
        """Nothing to do."""

    def alarm(self, record: Mapping[str, float | int]) -> str | None:
        """Nothing to say."""

    def evaluate(self) -> Mapping[str, float]:
        """ARI, PQ, purity and efficiency over the validation events."""
        tables = [instance_table(self.model, self.what, event, SelectConfig()) for event in self.validation]
        means = clustering(tables, n_things(self.what), resamples=200).means
        names = ("ari", "pq", "sq", "rq", "purity", "efficiency", "fraction_unassigned")
        ends = {"ari_low": means["ari"].low, "ari_high": means["ari"].high}
        return {"ari": means["ari"].value, **ends, **{name: means[name].value for name in names[1:]}}

    @torch.no_grad()
    def calibrate(self) -> Mapping[str, float]:
        """Divide class logits by the temperature that the matched particles of the validation events ask for.

        It goes into the weights of the last layer. The order of a query's classes stays.

        Returns:
            The temperature, and the expected calibration error on these events before and after.
        """
        found = [find_instances(self.model, self.what, event, SelectConfig()) for event in self.validation]
        parts = [matched_classes(*one) for one in found]
        logits = torch.cat([part[0] for part in parts]).clamp(min=torch.finfo(torch.float32).tiny).log()
        label = torch.cat([part[1] for part in parts]).numpy()
        temperature = fit_temperature(logits.numpy(), label)
        for weights in self.head.class_out.parameters():
            weights.div_(temperature)
        before, after = (calibration((logits / t).softmax(1).numpy(), label).error for t in (1.0, temperature))
        return {"class_temperature": temperature, "class_ece_before": before, "class_ece": after}


def cell_values(pyramid: Pyramid, of_point: Tensor) -> Tensor:
    """Values of points [N] -> of the finest cells [M]: where several points share a cell, of one of them."""
    n = len(pyramid.levels[0].cells.cell)
    return of_point.new_full((n,), UNKNOWN).index_copy_(0, pyramid.point_cell, of_point)


def numbered(instance: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
    """Instances of one event [N] (UNKNOWN for none) and class of each point -> numbers from 0, and their classes [M].

    The class is that of most of the instance's points, and UNKNOWN if that is what most have.
    """
    known = instance >= 0
    labels, row = torch.unique(instance[known], return_inverse=True)
    number = torch.full_like(instance, UNKNOWN)
    number[known] = row
    width = int(kind.max()) + 2 if len(kind) else 1
    votes = torch.bincount(row * width + kind[known] + 1, minlength=len(labels) * width).view(-1, width)
    return number, votes.argmax(1) - 1 if len(labels) else labels


@torch.no_grad()
def find_instances(model: Model, what: What, event: Event, config: SelectConfig) -> tuple[Overlap, Tensor]:
    """How true and predicted instances of an event share the voxels above the model's threshold.

    Returns:
        The table, and [P, C] the probabilities of the classes of its predicted instances.
    """
    visible = event.visible(model.config.min_energy_mev)[0]
    truth = getattr(visible, what).numpy()
    kind = np.maximum(visible.species.numpy(), 0) if what == "particle" else np.zeros(len(visible), np.int64)
    if not len(visible):
        return overlap(truth, truth), torch.zeros(0, n_things(what))
    device = next(model.parameters()).device
    (found,) = head_of(model, what)(model.encoder(PointBatch.pack([visible]).to(device)))
    chosen = select(found, n_things(what), config)
    owner = chosen.owner.cpu().numpy()
    kinds = np.append(chosen.kind.cpu().numpy(), 0)
    return overlap(truth, owner, kind, kinds[owner], visible.energy.numpy()), chosen.class_probability.cpu()


def instance_table(model: Model, what: What, event: Event, config: SelectConfig) -> Overlap:
    """The table of ``find_instances``."""
    return find_instances(model, what, event, config)[0]


def matched_classes(table: Overlap, probability: Tensor) -> tuple[Tensor, Tensor]:
    """Of the M matched instances of an event the class probabilities [M, C], and the true classes [M]."""
    pairs = matches(table)
    return probability[torch.from_numpy(pairs.found)], torch.from_numpy(table.true_class[pairs.true])
