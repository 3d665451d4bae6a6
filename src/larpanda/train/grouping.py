"""Particles and interactions from fragments, on a model whose encoder and motifs are frozen (``model.fragments``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from larpanda.event import UNKNOWN, Event, PointBatch
from larpanda.model.bundle import Model, What
from larpanda.model.fragments import FragmentHead, Fragments
from larpanda.model.matching import SetLossConfig, Truth, set_loss
from larpanda.parallel import total
from larpanda.train.frozen import FrozenBatches
from larpanda.train.instances import calibrated, scores
from larpanda.train.tasks import Losses


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """How instances share the fragments of B events: a row for each pair that has points, R in all.

    Points of no instance are a row of their fragment as well. Rows of an event lie together.
    """

    fragment: Tensor  # [R] int64
    instance: Tensor  # [R] int64, numbered in any way within its event; UNKNOWN: of none
    kind: Tensor  # [R] int64, its class
    points: Tensor  # [R] float32: how many

    @classmethod
    def of(cls, fragment: Tensor, instance: Tensor, kind: Tensor) -> "Shares":
        """[N] int64 each, of the points of one event."""
        rows = fragment >= 0
        pairs, row, points = torch.unique(
            torch.stack([fragment[rows], instance[rows]]), dim=1, return_inverse=True, return_counts=True
        )
        kinds = torch.full_like(points, UNKNOWN).scatter_reduce(0, row, kind[rows], "amax", include_self=False)
        return cls(pairs[0], pairs[1], kinds, points.float())

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return self.fragment.nbytes + self.instance.nbytes + self.kind.nbytes + self.points.nbytes

    def to(self, device: torch.device) -> "Shares":
        """The same on a device."""
        return Shares(*(x.to(device) for x in (self.fragment, self.instance, self.kind, self.points)))


@dataclass(frozen=True, slots=True, eq=False)
class LabelledFragments:
    """The fragments of events and what is true of them: of one event, or of several end to end."""

    fragments: Fragments
    particle: Shares
    interaction: Shares

    @classmethod
    @torch.no_grad()
    def of(cls, model: Model, event: Event) -> "LabelledFragments":
        """Those of an event with truth; features in float16."""
        assert model.semantic is not None
        points = PointBatch.pack([event.visible(model.config.min_energy_mev)[0]])
        seen = points.to(next(model.parameters()).device)
        pyramid = model.encoder(seen)
        made, of_point = Fragments.of(seen, pyramid, model.semantic(pyramid))
        of_point = of_point.cpu()
        return cls(
            made.half().to(torch.device("cpu")),
            Shares.of(of_point, points.particle, points.species),
            Shares.of(of_point, points.interaction, torch.zeros_like(points.interaction)),
        )

    def __len__(self) -> int:
        return len(self.fragments.shape)

    @property
    def n_points(self) -> int:
        """Points in the fragments of all events."""
        return int(self.particle.points.sum())

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return self.fragments.nbytes + self.particle.nbytes + self.interaction.nbytes

    def to(self, device: torch.device) -> "LabelledFragments":
        """The same on a device."""
        return LabelledFragments(self.fragments.to(device), self.particle.to(device), self.interaction.to(device))

    @classmethod
    def pack(cls, parts: Sequence["LabelledFragments"]) -> "LabelledFragments":
        """Lay events end to end."""
        offsets = [0]
        for part in parts:
            offsets.append(offsets[-1] + len(part))

        def shares(of: Sequence[Shares]) -> Shares:
            moved = [one.fragment + offset for one, offset in zip(of, offsets, strict=False)]
            rest = (torch.cat([getattr(one, name) for one in of]) for name in ("instance", "kind", "points"))
            return Shares(torch.cat(moved), *rest)

        fragments = Fragments.pack([part.fragments for part in parts])
        return cls(fragments, shares([part.particle for part in parts]), shares([part.interaction for part in parts]))


class Grouping:
    """A task of the loop: heads that look at fragments learn which belong together."""

    def __init__(self, model: Model, heads: Sequence[What], loss: SetLossConfig, validation: Sequence[Event]) -> None:
        """Learn heads of a model. validation: events with truth."""
        self.model, self.heads, self.config, self.validation = model, heads, loss, validation
        self.batch = FrozenBatches()

    def loss(self, batch: LabelledFragments, progress: float) -> Losses:
        """The set loss of every block, the mean over events; of several heads the sum."""
        fragments = batch.fragments
        share = 1.0 / total(fragments.shape.new_tensor(float(len(fragments.start) - 1)))
        losses, parts = [], {}
        for what in self.heads:
            head = getattr(self.model, what)
            assert isinstance(head, FragmentHead)
            of: Shares = getattr(batch, what)
            row_event = torch.repeat_interleave(fragments.start.diff())[of.fragment]
            truth = Truth.of(row_event, of.instance, of.kind)
            rows = torch.bincount(row_event, minlength=len(fragments.start) - 1)
            start = torch.cat([rows.new_zeros(1), rows.cumsum(0)])
            blocks = [
                set_loss(masks[of.fragment], classes, start, truth, self.config, of.points)
                for masks, classes in zip(*head.decode(fragments), strict=True)
            ]
            losses += [one.total(self.config) for one in blocks]
            for name in ("focal", "dice", "classes", "no_object"):
                parts[self._said(what, f"{name}_loss")] = getattr(blocks[-1], name).detach() * share
        return Losses(torch.stack(losses).sum() * share, parts)

    def after_step(self, progress: float) -> None:
        """Nothing to do."""

    def alarm(self, record: Mapping[str, float | int]) -> str | None:
        """Nothing to say."""

    def evaluate(self) -> Mapping[str, float]:
        """ARI, PQ, purity and efficiency of every head; of several, first the mean of their ARI."""
        found = {what: scores(self.model, what, self.validation) for what in self.heads}
        said = {self._said(what, key): value for what, of in found.items() for key, value in of.items()}
        if len(found) == 1:
            return said
        return {"headline": sum(of["ari"] for of in found.values()) / len(found), **said}

    def calibrate(self) -> Mapping[str, float]:
        """The class probabilities of particles."""
        if "particle" not in self.heads:
            return {}
        return {self._said("particle", key): value for key, value in calibrated(self.model, self.validation).items()}

    def _said(self, head: str, key: str) -> str:
        return key if len(self.heads) == 1 else f"{head}_{key}"
