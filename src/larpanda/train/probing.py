"""What a linear probe reads off a frozen encoder (paper section 3.5): motifs of points from their up-cast features."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from larpanda.evaluate.probe import Probe, fit_probes
from larpanda.evaluate.segmentation import Segmentation, confusion, segmentation
from larpanda.event import UNKNOWN, Event, Motif, PointBatch
from larpanda.model.backbone import Encoder
from larpanda.model.unet import UResNet


@dataclass(frozen=True)
class ProbeConfig:
    """The linear probe of a pre-training run. Its events are taken from the beginning of the probe's data in turn."""

    train_events: int = 60
    """Train the probe."""
    choose_events: int = 30
    """Choose its penalty."""
    test_events: int = 60
    """Judge it: their macro F1 is what the log shows."""
    points: int = 60_000
    """At most so many points train it, drawn with the run's seed."""

    def __post_init__(self) -> None:
        if min(self.train_events, self.choose_events, self.test_events, self.points) < 1:
            raise ValueError("probe: train_events, choose_events, test_events and points must be at least 1")

    @property
    def n_events(self) -> int:
        """Events with truth that the probe needs."""
        return self.train_events + self.choose_events + self.test_events


@torch.no_grad()
def features(encoder: Encoder | UResNet, events: Sequence[Event]) -> Tensor:
    """Up-cast features of the points of events (as the model sees them), end to end: [N, C] float32, finest first."""
    device = next(encoder.parameters()).device
    parts = []
    for event in events:
        pyramid = encoder(PointBatch.pack([event]).to(device))
        parts.append(pyramid.at_points(pyramid.upcast()).float().cpu())
    return torch.cat(parts)


def probe_motifs(
    encoder: Encoder | UResNet,
    train: Sequence[Event],
    choose: Sequence[Event],
    test: Sequence[Event],
    min_energy_mev: float,
    points: int,
    every_point: bool = False,
    seed: int = 0,
) -> tuple[Segmentation, float]:
    """Fit a multinomial logistic regression to frozen features, and judge it.

    Args:
        encoder: whose features.
        train: events with truth to fit it.
        choose: events with truth on which its penalty is chosen, by macro F1.
        test: events with truth on which it is judged.
        min_energy_mev: threshold of the voxels that are seen.
        points: so many, drawn from those of ``train``, are fitted for each penalty.
        every_point: fit once more with the chosen penalty to all points of ``train``.
        seed: of that draw, and of the bootstrap.

    Returns:
        The scores on ``test``, and the penalty.

    Raises:
        ValueError: no point of ``train`` has truth.
    """
    seen = [event.visible(min_energy_mev)[0] for event in train]
    x, label = features(encoder, seen), torch.cat([event.motif for event in seen])
    rows = (label != UNKNOWN).nonzero()[:, 0]
    if not len(rows):
        raise ValueError("the probe's events have no motif labels; it needs truth")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    drawn = rows[order[:points].sort().values]
    probes = fit_probes(x[drawn], label[drawn], len(Motif))

    def judged(events: Sequence[Event], candidates: Sequence[Probe]) -> list[Segmentation]:
        tables: list[list[npt.NDArray[np.int64]]] = [[] for _ in candidates]
        for event in (event.visible(min_energy_mev)[0] for event in events):
            here = features(encoder, [event])
            for table, probe in zip(tables, candidates, strict=True):
                table.append(confusion(event.motif, probe.predict(here)))
        return [segmentation(table, seed=seed) for table in tables]

    scores = judged(choose, probes)
    best = probes[max(range(len(probes)), key=lambda number: scores[number].macro_f1)]
    if every_point and len(drawn) < len(rows):
        if len(rows) < len(label):
            x, label = x[rows], label[rows]
        (best,) = fit_probes(x, label, len(Motif), [best.penalty], first=best)
    return judged(test, [best])[0], best.penalty
