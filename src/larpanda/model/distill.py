"""Self-distillation (paper section 3.3): prototypes on a hypersphere, Sinkhorn targets, matching, loss, teacher.

Knows no data, and nothing of a run but its progress in [0, 1]. Computes all but the encoders in float32. Pairs of M
points and P prototypes exist for a chunk of points at a time only: memory does not grow with M x P.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from larpanda.event import ViewBatch
from larpanda.model.backbone import Encoder, EncoderConfig, Pyramid
from larpanda.parallel import total, world
from larpanda.sparse.neighbors import nearest
from larpanda.sparse.segment import sum_groups

CHUNK = (1 << 23, 1 << 18)  # pairs of points and prototypes at a time: arrays of 32 MB, and of 1 MB in a CPU's cache


@dataclass(frozen=True)
class DistillConfig:
    """The objective; the defaults are the paper's (section 3.3), and the released code's where the paper is silent."""

    prototypes: int = 4096
    width: int = 256
    """Of the space in which points and prototypes are unit vectors."""
    hidden: int = 4096
    """Width of the hidden layer of the projection (released configuration)."""
    level: int = 2
    """The level whose cells are compared: 12 mm, with features up-cast from all coarser ones."""
    radius: float = 2.0
    """Two cells match if their origins are within this distance, voxels: half a cell, as in the released code."""
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    """At the beginning, and after the warm-up."""
    temperature_warmup: float = 0.05
    """Share of the run in which the teacher's temperature rises, linearly."""
    sinkhorn: int = 3
    """Iterations."""
    momentum: tuple[float, float] = (0.994, 1.0)
    """Of the teacher, at the beginning and at the end; a cosine between."""
    local_weight: float = 0.5
    mask_weight: float = 0.5
    swap_weight: float = 0.0
    """Of the released code's third term: masked views against the other global view of their event."""
    masked_only: bool = True
    """Whether the mask loss is over masked points alone (the paper), or all of a masked view (the released code)."""

    def __post_init__(self) -> None:
        temperatures = (self.student_temperature, *self.teacher_temperature)
        if min(temperatures) <= 0 or self.radius <= 0 or self.level < 0 or self.sinkhorn < 0:
            raise ValueError("distill: needs positive temperatures and radius, level >= 0 and sinkhorn >= 0")
        if min(self.prototypes, self.width, self.hidden) < 2:
            raise ValueError("distill: needs at least 2 prototypes, width and hidden")

    def temperature_at(self, progress: float) -> float:
        """The teacher's temperature at ``progress`` in [0, 1] (section 3.3.3)."""
        low, high = self.teacher_temperature
        done = min(progress / self.temperature_warmup, 1.0) if self.temperature_warmup else 1.0
        return low + (high - low) * done

    def momentum_at(self, progress: float) -> float:
        """The teacher's momentum at ``progress`` in [0, 1] (section 3.5)."""
        low, high = self.momentum
        return high - (high - low) * 0.5 * (1.0 + math.cos(math.pi * progress))


class Projection(nn.Module):
    """Up-cast features to unit vectors, and the prototypes among them (section 3.3.1)."""

    def __init__(self, channels: int, config: DistillConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.width)
        )
        for layer in (self.layers[0], self.layers[2]):
            nn.init.trunc_normal_(cast(nn.Linear, layer).weight, std=0.02)
            nn.init.zeros_(cast(nn.Linear, layer).bias)
        self.prototypes = nn.Parameter(torch.randn(config.prototypes, config.width))  # only their directions count

    def forward(self, x: Tensor) -> Tensor:
        """[M, C] -> [M, D] unit vectors."""
        return F.normalize(self.layers(x).float(), dim=1)

    def directions(self) -> Tensor:
        """[P, D] unit vectors: weight normalisation with the norm fixed to 1."""
        return F.normalize(self.prototypes.float(), dim=1)


class Tower(nn.Module):
    """An encoder and its projection: what student and teacher both are."""

    def __init__(self, encoder: EncoderConfig, config: DistillConfig) -> None:
        super().__init__()
        if config.level >= len(encoder.channels):
            raise ValueError(f"distill: level {config.level} of an encoder with {len(encoder.channels)} levels")
        self.encoder = Encoder(encoder)
        self.projection = Projection(sum(encoder.channels[config.level :]), config)


@dataclass(frozen=True, slots=True, eq=False)
class Distilled:
    """What a step of self-distillation gives: scalars, this process's shares, which sum to the values of the batch."""

    loss: Tensor  # with gradient
    local: Tensor  # cross-entropy of the terms, each without its weight
    mask: Tensor
    swap: Tensor
    entropy: Tensor  # h(q) of the targets, averaged as the loss is
    kl: Tensor  # KL divergence of the student's distribution from the targets: cross-entropy less entropy
    matched_local: Tensor  # share of the cells of local views that have a target
    matched_mask: Tensor  # share of the masked cells that have one
    usage: Tensor  # share of the prototypes that are the nearest one of any of the teacher's cells
    perplexity: Tensor  # of nearest prototypes: as if so many were in equal use
    spread: tuple[Tensor, ...]  # standard deviation of the teacher's features over cells, finest level first


class SelfDistillation(nn.Module):
    """A student that learns, and a teacher that is its moving average (section 3.3.3)."""

    def __init__(self, encoder: EncoderConfig, config: DistillConfig) -> None:
        super().__init__()
        self.config = config
        self.student = Tower(encoder, config)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, views: ViewBatch, temperature: float) -> Distilled:
        """Compare the student's views with what the teacher makes of whole ones; temperature: of the teacher."""
        config = self.config
        with torch.no_grad():
            whole = self.teacher.encoder(views.teacher)
        seen = self.student.encoder(views.student, views.draws, views.masked)
        with torch.autocast(views.student.energy.device.type, enabled=False):  # cosines are divided by 0.03 or so
            with torch.no_grad():
                target = self.teacher.projection(whole.upcast(config.level).float())
            answer = self.student.projection(seen.upcast(config.level).float())
            prototypes, told = self.student.projection.directions(), self.teacher.projection.directions()
            balance = sinkhorn(target, told, temperature, config.sinkhorn)
            pairs, matched = match(views, whole, seen, config)
            result = cross_entropy(
                Side(answer, prototypes, config.student_temperature, torch.zeros_like(balance.log_scale)),
                Side(target, told, temperature, balance.log_scale),
                pairs,
            )
        terms = torch.zeros(3, device=answer.device).index_add_(0, pairs.term, result.value * pairs.share)
        local, mask, swap = terms.unbind()
        usage = balance.nearest.count_nonzero() / config.prototypes
        share = balance.nearest / balance.nearest.sum().clamp(min=1)
        scale = pairs.weight / total(pairs.weight.sum()).clamp(min=1e-12)  # a term may have no pairs in a batch
        return Distilled(
            loss=result.loss,
            local=local,
            mask=mask,
            swap=swap,
            entropy=(result.entropy * scale).sum(),
            kl=((result.value - result.entropy) * scale).sum(),
            matched_local=matched[0],
            matched_mask=matched[1],
            usage=usage / world(),
            perplexity=torch.special.entr(share).sum().exp() / world(),
            spread=tuple(deviation / world() for deviation in _deviations(whole.features)),
        )

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student (section 3.3.3)."""
        ours: list[Tensor] = list(self.teacher.parameters())
        theirs: list[Tensor] = list(self.student.parameters())
        torch._foreach_lerp_(ours, theirs, 1.0 - momentum)


LOCAL, MASK, SWAP = range(3)  # the terms of the loss


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Cells of the student that have a target."""

    student: Tensor  # [M] int64, row of the student's cells
    teacher: Tensor  # [M] int64, row of the teacher's cells
    share: Tensor  # [M] float32, in the mean of its term
    weight: Tensor  # [M] float32, in the loss: share times the weight of the term
    term: Tensor  # [M] int64, LOCAL, MASK or SWAP


def match(views: ViewBatch, whole: Pyramid, seen: Pyramid, config: DistillConfig) -> tuple[Pairs, Tensor]:
    """Find the teacher's cell for each of the student's: the nearest within a radius, in the frame before augmentation.

    Local views look into the first global view of their event, masked ones into themselves unmasked (and, for the
    swapped term, into the other global view). A term is the mean over views of the mean over their pairs, views without
    any pair left out; over all processes.

    Returns:
        The pairs, and [2] float32: this process's share of the share of local and of masked cells that have a target.
    """
    place, place_view, _ = _origins(whole, views.teacher_origin, None, config.level)
    query, query_view, masked = _origins(seen, views.student_origin, views.masked, config.level)
    n_whole, n_seen = len(views.teacher.start) - 1, len(views.student.start) - 1
    n_local = max((n_seen - n_whole) // (n_whole // 2), 1)
    is_local = query_view >= n_whole
    asks = [is_local, ~is_local & (masked | (not config.masked_only))]
    target_view = [torch.where(is_local, 2 * ((query_view - n_whole) // n_local), query_view)] * 2
    weights = [config.local_weight, config.mask_weight]
    if config.swap_weight:
        asks.append(asks[MASK])
        target_view.append(query_view ^ 1)
        weights.append(config.swap_weight)
    students, teachers, terms = [], [], []
    for number, (ask, view) in enumerate(zip(asks, target_view, strict=True)):
        row = ask.nonzero()[:, 0]
        found = nearest(query[row], view[row], place, place_view, config.radius)
        students.append(row[found >= 0])
        teachers.append(found[found >= 0])
        terms.append(torch.full_like(teachers[-1], number))
    student, term = torch.cat(students), torch.cat(terms)
    group = term * n_seen + query_view[student]  # a view within a term
    size = torch.bincount(group, minlength=len(asks) * n_seen).view(len(asks), n_seen)
    asked = torch.stack([asks[LOCAL].sum(), asks[MASK].sum()])
    counts = total(torch.cat([(size > 0).sum(1), asked]).float())
    found_share = size[:2].sum(1) / counts[-2:].clamp(min=1)
    share = 1.0 / (counts[: len(asks)].clamp(min=1)[term] * size.flatten()[group])
    weight = share * query.new_tensor(weights)[term]
    return Pairs(student, torch.cat(teachers), share, weight, term), found_share


def _origins(pyramid: Pyramid, origin: Tensor, masked: Tensor | None, level: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the cells of a level: mean origin [M, 3], view [M], and whether more than half of the points are masked."""
    cells = pyramid.levels[level].cells
    marks = torch.zeros_like(origin[:, :1]) if masked is None else masked[:, None].to(origin.dtype)
    columns = torch.cat([origin, marks, torch.ones_like(marks)], 1)
    total_of = sum_groups(columns, pyramid.cell_of_points(level), len(cells.cell))
    mean = total_of[:, :4] / total_of[:, 4:]
    return mean[:, :3], cells.event_id, mean[:, 3] > 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Balance:
    """What Sinkhorn gives, and what it saw on the way."""

    log_scale: Tensor  # [P] to be added to the logits: the prototypes' scaling vector
    nearest: Tensor  # [P] float32, how many cells have their nearest prototype there


@torch.no_grad()
def sinkhorn(target: Tensor, prototypes: Tensor, temperature: float, iterations: int) -> Balance:
    """Balance the use of prototypes over the cells of all processes (Sinkhorn-Knopp as in SwAV, section 3.3.3).

    The balanced matrix is u_m * exp(cosine_mp / temperature) * v_p with the scaling vectors u of cells and v of
    prototypes. As each cell's row is normalised last, u is what softmax does, so v alone is kept: a cell's target is
    softmax(cosines / temperature + log v).

    Args:
        target: [M, D] unit vectors of this process's cells.
        prototypes: [P, D] unit vectors.
        temperature: of the teacher.
        iterations: of normalising prototypes, then cells; 0 gives the plain softmax.

    Cost: iterations passes over the logits, a chunk at a time.
    """
    n = len(prototypes)
    log_scale, found = target.new_zeros(n), target.new_zeros(n)
    sharp = (prototypes / temperature).t()
    for iteration in range(max(iterations, 1)):
        use = target.new_zeros(n)
        offset = log_scale - 1.0 / temperature  # a cosine is at most 1: no logit is above 0 in the first pass
        for rows in _chunks(len(target), prototypes):
            logits = torch.addmm(offset, target[rows], sharp)
            if iteration == 0:
                found += torch.bincount(logits.argmax(1), minlength=n)
                use += logits.exp_().sum(0)
            else:
                use += logits.softmax(1).sum(0)
        if iterations:
            log_scale = log_scale - total(use).clamp(min=torch.finfo(use.dtype).tiny).log()
            log_scale = log_scale - log_scale.mean()
    return Balance(log_scale, total(found))


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """How points are distributed over prototypes: softmax(x @ prototypes / temperature + log_scale)."""

    x: Tensor  # [M, D] unit vectors
    prototypes: Tensor  # [P, D] unit vectors
    temperature: float
    log_scale: Tensor  # [P]


@dataclass(frozen=True, slots=True, eq=False)
class CrossEntropy:
    """Of M pairs."""

    loss: Tensor  # scalar with gradient: the weighted sum
    value: Tensor  # [M]
    entropy: Tensor  # [M] of the targets


def cross_entropy(student: Side, teacher: Side, pairs: Pairs) -> CrossEntropy:
    """-q log p of each pair (section 3.3.3), with gradients to the student's points and prototypes."""
    return CrossEntropy(*_CrossEntropy.apply(student.x, student.prototypes, student, teacher, pairs))  # type: ignore[no-untyped-call]


class _CrossEntropy(torch.autograd.Function):
    """Value and gradient a chunk of pairs at a time, so that no [M, P] array is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, prototypes: Tensor, student: Side, teacher: Side, pairs: Pairs
    ) -> tuple[Tensor, Tensor, Tensor]:
        value, entropy = x.new_empty(len(pairs.weight)), x.new_empty(len(pairs.weight))
        grad_x, grad_prototypes = torch.zeros_like(x), torch.zeros_like(prototypes)
        sharp, targets = (prototypes / student.temperature).t(), (teacher.prototypes / teacher.temperature).t()
        for rows in _chunks(len(value), prototypes):
            asked = x[pairs.student[rows]]
            log_q = torch.addmm(teacher.log_scale, teacher.x[pairs.teacher[rows]], targets).log_softmax(1)
            log_p = (asked @ sharp).log_softmax(1)
            q = log_q.exp()
            value[rows] = -torch.linalg.vecdot(q, log_p)
            entropy[rows] = -torch.linalg.vecdot(q, log_q)
            # of the cosines
            grad = log_p.exp_().sub_(q).mul_((pairs.weight[rows] / student.temperature)[:, None])
            grad_x.index_add_(0, pairs.student[rows], grad @ prototypes)  # with the swapped term a cell may ask twice
            grad_prototypes += grad.t() @ asked
        ctx.save_for_backward(grad_x, grad_prototypes)
        ctx.mark_non_differentiable(value, entropy)
        return (value * pairs.weight).sum(), value, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_x, grad_prototypes = ctx.saved_tensors
        return grad_x * grad, grad_prototypes * grad, None, None, None


def _deviations(features: Sequence[Tensor]) -> list[Tensor]:
    """Mean over channels of the standard deviation over the cells of all processes; of each level, 0 without cells."""
    sums = [torch.cat([x.sum(0), x.square().sum(0), x.new_tensor([len(x)])]) for x in (f.double() for f in features)]
    result = []
    for both in torch.split(total(torch.cat(sums)), [len(one) for one in sums]):
        first, second = (both[:-1] / both[-1].clamp(min=1)).chunk(2)
        result.append((second - first.square()).clamp(min=0).sqrt().mean())
    return result


def _chunks(n_rows: int, prototypes: Tensor) -> Iterator[slice]:
    step = max(1, CHUNK[prototypes.device.type == "cpu"] // len(prototypes))
    return (slice(first, first + step) for first in range(0, n_rows, step))
