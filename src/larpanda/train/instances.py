"""Particles or interactions with labels (paper section 3.2.2): what a query head learns from and how it is judged."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from larpanda.evaluate.calibration import calibration, fit_temperature
from larpanda.evaluate.clustering import UNKNOWN_CLASS, Overlap, matches, overlap
from larpanda.evaluate.summary import clustering
from larpanda.event import UNKNOWN, Event, PointBatch
from larpanda.model.backbone import Pyramid
from larpanda.model.bundle import Model, What
from larpanda.model.matching import SetLossConfig, Truth, set_loss
from larpanda.model.panoptic import PanopticHead
from larpanda.model.selection import SelectConfig, n_things, select_all
from larpanda.parallel import total
from larpanda.train.supervised import packs
from larpanda.train.tasks import Losses


class Instances:
    """What a query head learns: masks of every block are matched to the true ones, low-energy deposits told apart."""

    n_draws = 0

    def __init__(self, head: PanopticHead, what: What, loss: SetLossConfig) -> None:
        self.head, self.what, self.config = head, what, loss

    def loss(self, pyramid: Pyramid, points: PointBatch, draws: Tensor) -> Losses:
        """The set loss of every block, the mean over events, and that of low-energy deposits, the mean over cells."""
        label = cell_values(pyramid, getattr(points, self.what))
        kind = cell_values(pyramid, points.species) if self.what == "particle" else label * 0
        done = self.head.decode(pyramid, label >= 0)
        event_id = pyramid.levels[0].cells.event_id[done.thing]
        truth = Truth.of(event_id, label[done.thing], kind[done.thing])
        names = ("focal", "dice", "classes", "no_object")
        blocks = [
            set_loss(masks, classes, done.start, truth, self.config)
            for masks, classes in zip(done.masks, done.classes, strict=True)
        ]
        share = 1.0 / total(done.led.new_tensor(float(len(points.start) - 1)))
        led = F.binary_cross_entropy_with_logits(done.led.float(), (label < 0).float(), reduction="sum")
        led = led / total(led.new_tensor(float(len(label)))).clamp(min=1)
        shown = {f"{name}_loss": getattr(blocks[-1], name).detach() * share for name in names}
        loss = torch.stack([one.total(self.config) for one in blocks]).sum() * share + self.config.led * led
        return Losses(loss, {**shown, "led_loss": led.detach()})

    def evaluate(self, model: Model, events: Sequence[Event]) -> Mapping[str, float]:
        """ARI, PQ, purity and efficiency."""
        return scores(model, self.what, events)

    def calibrate(self, model: Model, events: Sequence[Event]) -> Mapping[str, float]:
        """Of particles the class probabilities."""
        return calibrated(model, events) if self.what == "particle" else {}


def scores(model: Model, what: What, events: Sequence[Event]) -> Mapping[str, float]:
    """ARI, PQ, purity and efficiency of a head."""
    means = clustering(instance_tables(model, what, events), n_things(what), resamples=200).means
    names = ("ari", "pq", "sq", "rq", "purity", "efficiency", "fraction_unassigned")
    ends = {"ari_low": means["ari"].low, "ari_high": means["ari"].high}
    return {"ari": means["ari"].value, **ends, **{name: means[name].value for name in names[1:]}}


@torch.no_grad()
def calibrated(model: Model, events: Sequence[Event]) -> Mapping[str, float]:
    """Divide class logits of particles by the temperature that those of events that are matched ask for.

    It goes into the weights of the last layer. The order of a query's classes stays.

    Returns:
        The temperature, and the expected calibration error on these events before and after.
    """
    assert model.particle is not None
    parts = [matched_classes(*one) for one in find_instances(model, "particle", events)]
    logits = torch.cat([part[0] for part in parts]).clamp(min=torch.finfo(torch.float32).tiny).log()
    label = torch.cat([part[1] for part in parts]).numpy()
    temperature = fit_temperature(logits.numpy(), label)
    for weights in model.particle.class_out.parameters():
        weights.div_(temperature)
    before, after = (calibration((logits / t).softmax(1).numpy(), label).error for t in (1.0, temperature))
    return {"class_temperature": temperature, "class_ece_before": before, "class_ece": after}


def cell_values(pyramid: Pyramid, of_point: Tensor) -> Tensor:
    """Values of points [N] -> of the finest cells [M]: where several points share a cell, of one of them."""
    n = len(pyramid.levels[0].cells.cell)
    return of_point.new_full((n,), UNKNOWN).index_copy_(0, pyramid.point_cell, of_point)


@torch.no_grad()
def find_instances(
    model: Model, what: What, events: Sequence[Event], config: SelectConfig | None = None
) -> Iterator[tuple[Overlap, Tensor]]:
    """How true and predicted instances of each event share the voxels above the model's threshold.

    Args:
        model: with the head; where it has one of motifs, too, voxels of a fragment vote together.
        what: which head.
        events: with truth.
        config: how masks become instances; None: PARTICLES or INTERACTIONS.

    Yields:
        The table, and [P, C] the probabilities of the classes of its predicted instances.
    """
    device = next(model.parameters()).device
    for batch in packs(events, model.config.min_energy_mev):
        lengths = batch.start.diff().tolist()
        columns = (getattr(batch, what), batch.species if what == "particle" else batch.species * 0, batch.energy)
        parts = zip(*(torch.split(column, lengths) for column in columns), strict=True)
        on_device = batch.to(device)
        selected = select_all(model.find(on_device, (what,)), what, on_device, config)
        for chosen, (truth, kind, energy) in zip(selected, parts, strict=True):
            owner = chosen.owner.cpu().numpy()
            kinds = np.append(chosen.kind.cpu().numpy(), 0)
            table = overlap(truth.numpy(), owner, kind.numpy(), kinds[owner], energy.numpy())
            yield table, chosen.class_probability.cpu()


def instance_tables(
    model: Model, what: What, events: Sequence[Event], config: SelectConfig | None = None
) -> list[Overlap]:
    """The tables of ``find_instances``."""
    return [table for table, _ in find_instances(model, what, events, config)]


def matched_classes(table: Overlap, probability: Tensor) -> tuple[Tensor, Tensor]:
    """Of the M matched instances of an event whose class is known: class probabilities [M, C], true classes [M]."""
    pairs = matches(table)
    label = torch.from_numpy(table.true_class[pairs.true])
    told = label != UNKNOWN_CLASS
    return probability[torch.from_numpy(pairs.found)][told], label[told]
