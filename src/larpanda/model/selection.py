"""How masks of queries become instances (paper section 3.2.2, inference), and what we do that the paper does not.

A head that has learnt from few events says well which particle a trajectory belongs to, and badly so voxel by voxel.
Therefore voxels of a fragment vote together, if motifs are known, and what has a gap is divided: PARTICLES and
INTERACTIONS. With AS_PUBLISHED neither is done.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from larpanda.event import UNKNOWN, VOXEL_CM, Motif, PointBatch, Species
from larpanda.model.bundle import Found, What
from larpanda.model.fragments import parts
from larpanda.model.panoptic import Instances
from larpanda.sparse.pieces import pieces, touching


@dataclass(frozen=True)
class SelectConfig:
    """How masks become instances."""

    mask_threshold: float = 0.3
    """A point is in a mask from this probability on."""
    min_points: int = 2
    """Of an instance."""
    min_kept: float = 0.5
    """Share of its mask that better instances leave to an instance; one with less gives its points to the next."""
    score_threshold: float = 0.0
    """Of the score after suppression; the released code has 0.5, also on the class alone."""
    sigma: float = 2.0
    """Of matrix NMS: how strongly overlap with a better mask of the class lowers the score."""
    together: Literal["fragment", "all", "none"] = "fragment"
    """Who has the mean of their mask probabilities: voxels of a fragment, all that touch, or no one.

    Where motifs are not known there are no fragments, and ``fragment`` is ``none``: at a vertex all particles touch.
    """
    gap_cm: float = 40.0
    """An instance with such a gap is divided; infinite: none is."""
    cover_all: bool = False
    """Give every point that is no low-energy deposit and in no instance to the one whose mask is least unlikely."""


PARTICLES = SelectConfig()
INTERACTIONS = SelectConfig(together="all", gap_cm=60.0)  # vertices join motifs
AS_PUBLISHED = SelectConfig(mask_threshold=0.5, min_kept=0.0, together="none", gap_cm=math.inf)


@dataclass(frozen=True, slots=True, eq=False)
class Selected:
    """The K instances of an event, best first."""

    owner: Tensor  # [N] int64: the instance of each point, UNKNOWN for none
    query: Tensor  # [K] int64
    kind: Tensor  # [K] int64, class
    score: Tensor  # [K] float32: class probability times mean mask probability, after suppression
    class_probability: Tensor  # [K, things] float32, of the real classes
    all_used: bool  # every query became an instance: there may be more of them than the event had queries for

    def cpu(self) -> "Selected":
        """The same on the CPU."""
        of = (self.owner.cpu(), self.query.cpu(), self.kind.cpu(), self.score.cpu(), self.class_probability.cpu())
        return Selected(*of, self.all_used)


def n_things(what: What) -> int:
    """How many classes are instances: the species, or one kind of interaction."""
    return len(Species) if what == "particle" else 1


def select_all(found: Found, what: What, points: PointBatch, config: SelectConfig | None = None) -> list[Selected]:
    """The instances of every event of a batch, of a head that was asked.

    Args:
        found: what the heads say of the batch.
        what: which of them.
        points: the batch.
        config: how; None: PARTICLES or INTERACTIONS.
    """
    config = config or (PARTICLES if what == "particle" else INTERACTIONS)
    of_events = found.particle if what == "particle" else found.interaction
    assert of_events is not None
    if found.fragment is not None and config.together == "fragment":
        config = replace(config, together="none")  # its voxels have one probability as it is
    lengths = points.start.diff().tolist()
    motifs: Sequence[Tensor | None] = [None] * len(lengths)
    if found.logits is not None:
        motifs = torch.split(found.logits.argmax(1), lengths)
    places = torch.split(points.position, lengths)
    return [
        select(one, place, motif, n_things(what), config)
        for one, place, motif in zip(of_events, places, motifs, strict=True)
    ]


@torch.no_grad()
def select(
    found: Instances, position: Tensor, motif: Tensor | None, things: int, config: SelectConfig = PARTICLES
) -> Selected:
    """Turn the masks of one event into instances that share no points.

    Args:
        found: of the head, over N points.
        position: [N, 3] of them, voxels.
        motif: [N] int64, their predicted motifs; None: not known.
        things: classes below this are instances; those above (LED) and no object are not.
        config: how.

    Class by argmax, masks by threshold, suppression within a class by matrix NMS (Wang et al. 2020, arXiv:2003.10152,
    Gaussian), and each point to the best instance whose mask has it. Pieces of an instance that is divided have its
    class and score. Depends on the order of points in rounding only.
    """
    probability = found.class_logits.float().softmax(1)
    kind = probability.argmax(1)
    p = _voted(found, position, motif, config)
    inside = p >= config.mask_threshold
    size = inside.sum(1)
    some = kind < things
    kept = (some & (size >= config.min_points)).nonzero()[:, 0]
    confidence = (p * inside).sum(1) / size.clamp(min=1)
    score = probability.gather(1, kind[:, None])[:, 0] * confidence
    kept = kept[score[kept].argsort(descending=True, stable=True)]
    score = score[kept] * _suppression(inside[kept], kind[kept], config.sigma)
    order = score.argsort(descending=True, stable=True)
    order = order[score[order] >= config.score_threshold]
    kept, score = kept[order], score[order]
    owner = _exclusive(inside[kept], config)
    all_used = len(kind) > 0 and bool((torch.bincount(owner[owner >= 0], minlength=len(kind)) > 0).all())
    owner, of = _divided(owner, position, config)
    kept, score = kept[of], score[of]
    if config.cover_all and len(kept):
        open_ = (owner < 0) & (found.led_probability < 0.5)
        owner[open_] = p[kept][:, open_].argmax(0)
    return Selected(owner, kept, kind[kept], score, probability[kept, :things], all_used)


def _voted(found: Instances, position: Tensor, motif: Tensor | None, config: SelectConfig) -> Tensor:
    """[Q, N] mask probabilities: of each fragment, or of voxels that touch, the mean."""
    p = found.mask_logits.float().sigmoid()
    if config.together == "none" or (motif is None and config.together == "fragment") or not len(position):
        return p
    voxel, led = position.double().cpu().numpy(), (found.led_probability >= 0.5).cpu().numpy()
    if motif is None or config.together == "all":  # without motifs only the latter is left
        piece = torch.from_numpy(touching(voxel, np.where(led, UNKNOWN, 0))).to(p.device)
    else:
        piece = torch.from_numpy(parts(voxel, np.where(led, Motif.LED, motif.cpu().numpy()))).to(p.device)
    alone = piece < 0
    n = int(piece.max()) + 1
    piece = torch.where(alone, n, piece)
    sums = p.new_zeros(len(p), n + 1).index_add_(1, piece, p)
    return torch.where(alone, p, (sums / torch.bincount(piece, minlength=n + 1).clamp(min=1))[:, piece])


def _suppression(inside: Tensor, kind: Tensor, sigma: float) -> Tensor:
    """[K, N] masks and [K] classes, best first -> [K] factors of the scores: matrix NMS."""
    x = inside.float()
    shared, size = x @ x.t(), x.sum(1)
    iou = (shared / (size[:, None] + size - shared).clamp(min=1.0)).triu(1)  # [i, j]: of j with the better i
    iou = iou * (kind[:, None] == kind)
    worst = iou.amax(0) if len(iou) else size  # of each with those better than itself
    return torch.exp(-sigma * (iou**2 - worst[:, None] ** 2)).where(iou > 0, 1.0).amin(0) if len(iou) else size


def _exclusive(inside: Tensor, config: SelectConfig) -> Tensor:
    """[K, N] masks, best first -> [N] the first that has the point, UNKNOWN if none; none with too few points."""
    owner = inside.new_full((inside.shape[1],), UNKNOWN, dtype=torch.long)
    for number, mask in enumerate(inside):
        mine = mask & (owner < 0)
        n = mine.sum()
        enough = (n >= config.min_points) & (n >= config.min_kept * mask.sum())
        owner = owner.masked_fill(mine & enough, number)
    return owner


def _divided(owner: Tensor, position: Tensor, config: SelectConfig) -> tuple[Tensor, Tensor]:
    """[N] owners -> [N] owners numbered without holes, in their order, divided at gaps; [K] the former number of each.

    Pieces of one are ordered by size, and equal ones by place. One with too few points is none.
    """
    rows = (owner >= 0).nonzero()[:, 0]
    former, place = owner[rows].cpu().numpy(), position[rows].double().cpu().numpy()
    piece = np.unique(former, return_inverse=True)[1]
    if math.isfinite(config.gap_cm):
        piece = pieces(place, config.gap_cm / VOXEL_CM, former)
    size = np.bincount(piece)
    by_place = np.lexsort(place.T)[::-1]
    first, of = np.empty((len(size), 3)), np.empty(len(size), np.int64)
    first[piece[by_place]], of[piece[by_place]] = place[by_place], former[by_place]  # of each the first by place
    order = np.lexsort([*first.T, -size, of])
    order = order[size[order] >= config.min_points]
    number = np.full(len(size), UNKNOWN)
    number[order] = np.arange(len(order))
    result = torch.full_like(owner, UNKNOWN)
    result[rows] = torch.from_numpy(number[piece]).to(owner.device)
    return result, torch.from_numpy(of[order]).to(owner.device)
