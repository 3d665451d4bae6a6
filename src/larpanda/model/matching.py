"""Which query answers for which true instance, and the loss that follows (paper section 3.2.2, training objective).

Costs and losses of masks are sums over the points of each instance, never an array of queries by instances by points:
memory is linear in points, and all events of a batch are summed at once.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from larpanda.event import UNKNOWN
from larpanda.sparse.segment import sum_groups

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss (Lin et al. 2017, arXiv:1708.02002), as released
NEVER = 1e9  # a cost that no pair of numbers has


@dataclass(frozen=True)
class SetLossConfig:
    """Weights of the set loss; the defaults are the paper's (section 3.2.2)."""

    focal: float = 2.0
    dice: float = 5.0
    classes: float = 2.0
    """Of the class of matched queries, the mean over them."""
    no_object: float = 0.5
    """Of the class of the others."""
    led: float = 1.0
    """Of telling low-energy deposits from the rest (released code)."""
    cost_focal: float = 1.0
    """In the cost that chooses who answers for whom; so the next two."""
    cost_dice: float = 1.0
    cost_classes: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The M true instances of a batch, event by event."""

    instance: Tensor  # [N] int64: of each point that masks are over, in 0..M - 1, or negative: a point of none
    event: Tensor  # [M] int64, not falling
    kind: Tensor  # [M] int64: the class; negative: unknown, which teaches masks alone

    @classmethod
    def of(cls, event_id: Tensor, label: Tensor, kind: Tensor) -> "Truth":
        """Number the instances of a batch.

        Args:
            event_id: [N] int64, the event of each point, not falling.
            label: [N] int64, its instance, numbered in any way within its event; negative for none.
            kind: [N] int64, its class, negative if unknown. An instance has the class that most of its points have.
        """
        known = label >= 0
        width = int(label.max()) + 1 if len(label) else 1
        keys, row = torch.unique(event_id[known] * width + label[known], return_inverse=True)
        instance = torch.full_like(label, UNKNOWN)
        instance[known] = row
        n_kinds = int(kind.max()) + 2 if len(kind) else 1
        votes = torch.bincount(row * n_kinds + kind[known] + 1, minlength=len(keys) * n_kinds).view(len(keys), n_kinds)
        return cls(instance, keys // width, votes.argmax(1) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class SetLoss:
    """The parts of the loss at one block, each without its weight: sums over the events of a batch."""

    focal: Tensor  # scalars
    dice: Tensor
    classes: Tensor
    no_object: Tensor

    def total(self, config: SetLossConfig) -> Tensor:
        """Their weighted sum."""
        return (
            config.focal * self.focal
            + config.dice * self.dice
            + config.classes * self.classes
            + config.no_object * self.no_object
        )


def mask_losses(logits: Tensor, start: Tensor, truth: Truth, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and Dice loss of every instance against every query of its event.

    Args:
        logits: [N, Q] of the masks.
        start: [B + 1] int64, event b owns points start[b]:start[b + 1].
        truth: of the batch.
        weight: [N] float, how many points a row stands for.

    Returns:
        [M, Q] focal loss, the mean over the event's points; [M, Q] Dice loss, 1 - (2 sum(p y) + 1) / (sum(p) + sum(y)
        + 1), where y is 1 where the point belongs to the instance.
    """
    n, m, rows = len(start) - 1, len(truth.kind), start.diff()
    p = logits.sigmoid()
    inside = ALPHA * (1.0 - p) ** GAMMA * F.softplus(-logits)  # of a point that belongs to the instance
    outside = (1.0 - ALPHA) * p**GAMMA * F.softplus(logits)
    # one group for the points of each instance, and one for those of an event that belong to none
    group = torch.where(truth.instance >= 0, truth.instance, m + torch.repeat_interleave(rows))
    terms = torch.cat([inside - outside, outside, p, torch.ones_like(p[:, :1])], 1)
    sums = sum_groups(terms * weight[:, None], group, m + n)
    of_event = sum_groups(sums, torch.cat([truth.event, torch.arange(n, device=start.device)]), n)[truth.event]
    widths = [p.shape[1]] * 3 + [1]
    (instead, _, overlap, size), (_, all_outside, all_p, points) = (
        torch.split(x, widths, 1) for x in (sums[:m], of_event)
    )
    focal = (instead + all_outside) / points
    return focal, 1.0 - (2.0 * overlap + 1.0) / (all_p + size + 1.0)


def assign(cost: Tensor, event: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of instances and queries of least total cost in each event (Hungarian algorithm).

    Args:
        cost: [M, Q]; what is no number, or infinite, is the dearest or the cheapest of all, so that a step whose loss
            is no number comes to an end and can be left out.
        event: [M] int64, not falling: the event of each instance.

    Returns:
        [K] int64 instances and [K] int64 queries, on the device of the cost: min(instances, Q) pairs of each event.
    """
    from scipy.optimize import linear_sum_assignment

    rows, queries, first = [], [], 0
    count = torch.unique_consecutive(event, return_counts=True)[1].tolist()
    for part in torch.split(cost.detach().double().cpu(), count):
        row, query = linear_sum_assignment(part.nan_to_num(NEVER, NEVER, -NEVER).numpy())
        rows.append(torch.from_numpy(row) + first)
        queries.append(torch.from_numpy(query))
        first += len(part)
    none = torch.zeros(0, dtype=torch.long)
    return torch.cat([none, *rows]).to(cost.device), torch.cat([none, *queries]).to(cost.device)


def set_loss(
    mask: Tensor,
    class_logits: Tensor,
    start: Tensor,
    truth: Truth,
    config: SetLossConfig,
    weight: Tensor | None = None,
) -> SetLoss:
    """The loss of a batch at one block: of each event the means over its matched pairs and over its other queries.

    Args:
        mask: [N, Q] logits of the points that masks are over.
        class_logits: [B, Q, C + 1], the last: no object.
        start: [B + 1] int64, event b owns points start[b]:start[b + 1].
        truth: of the batch.
        config: weights of the cost.
        weight: [N] float, how many points a row of the mask stands for; None: one.

    Returns:
        The parts. An event without instances has the no-object term alone; one with more than Q of them trains the Q
        that fit best.
    """
    mask, class_logits = mask.float(), class_logits.float()  # float32 also under autocast
    log_p = class_logits.log_softmax(2)
    focal_of, dice_of = mask_losses(mask, start, truth, mask.new_ones(len(mask)) if weight is None else weight)
    kind = truth.kind.clamp(min=0)
    told = truth.kind >= 0
    # who answers is decided among real classes: how sure a query is of being something is not asked
    real = class_logits[:, :, :-1].detach().log_softmax(2)
    class_of = -real[truth.event, :, kind] * told[:, None]
    cost = config.cost_focal * focal_of + config.cost_dice * dice_of + config.cost_classes * class_of
    row, query = assign(cost, truth.event)
    event, n = truth.event[row], len(start) - 1
    each = 1.0 / torch.bincount(event, minlength=n)[event]
    taught = told[row]
    each_told = taught / torch.bincount(event[taught], minlength=n).clamp(min=1)[event]
    unmatched = torch.ones_like(log_p[:, :, -1])
    unmatched[event, query] = 0.0
    others = unmatched / unmatched.sum(1, keepdim=True).clamp(min=1.0)
    return SetLoss(
        focal=(focal_of[row, query] * each).sum(),
        dice=(dice_of[row, query] * each).sum(),
        classes=-(log_p[event, query, kind[row]] * each_told).sum(),
        no_object=-(log_p[:, :, -1] * others).sum(),
    )
