"""The loss of the semantic head."""

import pytest
import torch

from larpanda.event import UNKNOWN
from larpanda.model.semantic import lovasz_softmax, semantic_loss


def test_at_the_corners_lovasz_is_one_minus_the_mean_iou():
    """The Lovasz extension of a set function equals it where every probability is 0 or 1 (arXiv:1705.08790)."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        truth = torch.randint(0, 4, (60,), generator=generator)
        chosen = torch.randint(0, 5, (60,), generator=generator)
        iou = []
        for c in truth.unique():
            both = ((truth == c) & (chosen == c)).sum()
            either = ((truth == c) | (chosen == c)).sum()
            iou.append(both / either)
        probability = torch.nn.functional.one_hot(chosen, 5).double()
        assert lovasz_softmax(probability, truth).item() == pytest.approx(1 - torch.stack(iou).mean().item())


def test_lovasz_is_convex_along_a_line_and_has_gradients():
    truth = torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(1))
    a, b = (torch.rand(40, 5, dtype=torch.double, generator=torch.Generator().manual_seed(s)) for s in (2, 3))
    losses = [lovasz_softmax(a + (b - a) * t, truth).item() for t in torch.linspace(0, 1, 21).tolist()]
    assert min(torch.tensor(losses).diff().diff()) > -1e-9
    assert torch.autograd.gradcheck(lambda p: lovasz_softmax(p, truth), a.requires_grad_())


def test_points_without_truth_do_not_count():
    logits = torch.randn(10, 5, generator=torch.Generator().manual_seed(0))
    motif = torch.tensor([0, 1, 2, 3, 4, 0, 1, -1, -1, -1])
    assert semantic_loss(logits, motif, 0.5) == semantic_loss(logits[:7], motif[:7], 0.5)
    assert semantic_loss(logits, torch.full((10,), UNKNOWN), 0.5).isfinite()
