"""Which query answers for which true instance, and the loss that follows (paper section 3.2.2, training objective).

Costs and losses of masks are products of [Q, N] and [N, M], never an array of [Q, M, N]: memory is linear in points.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss (Lin et al. 2017, arXiv:1708.02002), as released


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
class SetLoss:
    """The parts of the loss of one event at one block, each without its weight."""

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


def mask_losses(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and Dice loss of every query against every instance.

    Args:
        logits: [N, Q] of the masks.
        target: [N, M] float, 1 where the point belongs to the instance.

    Returns:
        [Q, M] focal loss, the mean over points; [Q, M] Dice loss, 1 - (2 sum(p y) + 1) / (sum(p) + sum(y) + 1).
    """
    p = logits.sigmoid()
    inside = ALPHA * (1.0 - p) ** GAMMA * F.softplus(-logits)  # of a point that belongs to the instance
    outside = (1.0 - ALPHA) * p**GAMMA * F.softplus(logits)
    focal = ((inside - outside).t() @ target + outside.sum(0)[:, None]) / max(len(logits), 1)
    dice = 1.0 - (2.0 * (p.t() @ target) + 1.0) / (p.sum(0)[:, None] + target.sum(0) + 1.0)
    return focal, dice


def assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of queries and instances of least total cost (Hungarian algorithm).

    Args:
        cost: [Q, M], finite.

    Returns:
        [K] int64 queries and [K] int64 instances, K = min(Q, M), on the device of the cost.
    """
    from scipy.optimize import linear_sum_assignment

    query, instance = linear_sum_assignment(cost.detach().double().cpu().numpy())
    return torch.from_numpy(query).to(cost.device), torch.from_numpy(instance).to(cost.device)


def set_loss(mask: Tensor, class_logits: Tensor, instance: Tensor, kind: Tensor, config: SetLossConfig) -> SetLoss:
    """The loss of one event at one block.

    Args:
        mask: [N, Q] logits of the points that masks are over.
        class_logits: [Q, C + 1], the last: no object.
        instance: [N] int64 in 0..M - 1, or negative: a point of no instance, which no mask should have.
        kind: [M] int64 in 0..C - 1, the class of each instance; negative: unknown, which teaches masks alone.
        config: weights of the cost.

    Returns:
        The parts. An event without instances has the no-object term alone; one with more than Q of them trains the Q
        that fit best.
    """
    mask, class_logits = mask.float(), class_logits.float()  # float32 also under autocast
    zero = mask.sum() * 0.0 + class_logits.sum() * 0.0
    nothing = class_logits.shape[1] - 1
    log_p = class_logits.log_softmax(1)
    unmatched = torch.ones(len(class_logits), dtype=torch.bool, device=mask.device)
    focal = dice = classes = zero
    if len(kind):
        known = instance >= 0
        target = mask.new_zeros(len(mask), len(kind))
        target[known.nonzero()[:, 0], instance[known]] = 1.0
        focal_of, dice_of = mask_losses(mask, target)
        # who answers is decided among real classes: how sure a query is of being something is not asked
        class_of = -class_logits[:, :nothing].log_softmax(1)[:, kind.clamp(min=0)] * (kind >= 0)
        cost = config.cost_focal * focal_of + config.cost_dice * dice_of + config.cost_classes * class_of
        query, row = assign(cost)
        focal, dice = focal_of[query, row].mean(), dice_of[query, row].mean()
        unmatched[query] = False
        told = kind[row] >= 0
        if told.any():
            classes = -log_p[query[told], kind[row][told]].mean()
    no_object = -log_p[unmatched, nothing].mean() if unmatched.any() else zero
    return SetLoss(focal + zero, dice, classes, no_object)
