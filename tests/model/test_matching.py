"""The set loss against sums over points and pairs, the assignment against all permutations."""

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

from larpanda.model import matching
from larpanda.model.matching import SetLossConfig, Truth, assign


def random_event(seed=0, n=40, q=5, m=3, classes=4):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.randn(n, q, generator=rng) * 2
    class_logits = torch.randn(q, classes + 1, generator=rng)
    instance = torch.randint(-1, max(m, 1), (n,), generator=rng)
    return mask, class_logits, instance, torch.randint(0, classes, (m,), generator=rng)


def one_event(instance, kind):
    return torch.tensor([0, len(instance)]), Truth(instance, torch.zeros_like(kind), kind)


def mask_losses(mask, instance, kind):
    return matching.mask_losses(mask, *one_event(instance, kind), torch.ones(len(mask)))


def set_loss(mask, class_logits, instance, kind, config):
    return matching.set_loss(mask, class_logits[None], *one_event(instance, kind), config)


def focal_of_points(logits, target):
    """Sigmoid focal loss as torchvision writes it: alpha_t (1 - p_t)^2 BCE."""
    p = logits.sigmoid()
    p_t = p * target + (1 - p) * (1 - target)
    alpha = 0.25 * target + 0.75 * (1 - target)
    return (alpha * (1 - p_t) ** 2 * F.binary_cross_entropy_with_logits(logits, target, reduction="none")).mean()


def test_mask_losses_are_those_of_every_pair():
    mask, _, instance, kind = random_event()
    target = F.one_hot(instance.clamp(min=0), 3).float() * (instance >= 0)[:, None]
    focal, dice = mask_losses(mask, instance, kind)
    for q in range(5):
        for m in range(3):
            torch.testing.assert_close(focal[m, q], focal_of_points(mask[:, q], target[:, m]))
            p, y = mask[:, q].sigmoid(), target[:, m]
            torch.testing.assert_close(dice[m, q], 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1))


@pytest.mark.parametrize(("q", "m"), [(5, 3), (4, 4), (2, 4)])
def test_the_assignment_is_the_best_of_all(q, m):
    for seed in range(20):
        cost = torch.randn(q, m, generator=torch.Generator().manual_seed(seed))
        instance, query = assign(cost.t(), torch.zeros(m, dtype=torch.long))
        small, large = sorted((q, m))
        square = cost if q <= m else cost.t()
        best = min(sum(square[i, j] for i, j in enumerate(chosen)) for chosen in permutations(range(large), small))
        torch.testing.assert_close(cost[query, instance].sum(), best)


def test_the_loss_is_that_of_the_pairs():
    config = SetLossConfig()
    mask, class_logits, instance, kind = random_event(seed=3)
    focal, dice = mask_losses(mask, instance, kind)
    cost = focal + dice - class_logits[:, :-1].log_softmax(1)[:, kind].t()
    row, query = assign(cost, torch.zeros_like(kind))
    loss = set_loss(mask, class_logits, instance, kind, config)
    torch.testing.assert_close(loss.focal, focal[row, query].mean())
    torch.testing.assert_close(loss.dice, dice[row, query].mean())
    torch.testing.assert_close(loss.classes, F.cross_entropy(class_logits[query], kind[row]))
    rest = [q for q in range(5) if q not in query.tolist()]
    torch.testing.assert_close(loss.no_object, F.cross_entropy(class_logits[rest], torch.full((len(rest),), 4)))
    parts = (2 * loss.focal, 5 * loss.dice, 2 * loss.classes, 0.5 * loss.no_object)
    torch.testing.assert_close(loss.total(config), sum(parts))


def test_the_loss_does_not_depend_on_the_order_of_points_instances_or_queries():
    config = SetLossConfig()
    mask, class_logits, instance, kind = random_event(seed=4)
    expected = set_loss(mask, class_logits, instance, kind, config).total(config)
    points, queries = torch.randperm(40), torch.randperm(5)
    renamed = torch.tensor([2, 0, 1])
    moved = torch.where(instance >= 0, renamed[instance.clamp(min=0)], -1)
    kinds = torch.empty_like(kind)
    kinds[renamed] = kind
    found = set_loss(mask[points][:, queries], class_logits[queries], moved[points], kinds, config).total(config)
    torch.testing.assert_close(found, expected)


def test_the_right_answer_costs_next_to_nothing_and_has_the_gradient_of_finite_differences():
    _, _, instance, kind = random_event(seed=5)
    right = (F.one_hot(instance.clamp(min=0), 5).float() * (instance >= 0)[:, None] - 0.5) * 40
    classes = torch.full((5, 5), -20.0)
    classes[torch.arange(3), kind] = 20.0
    classes[3:, 4] = 20.0
    config = SetLossConfig()
    assert set_loss(right, classes, instance, kind, config).total(config) < 1e-6
    mask, class_logits, instance, kind = random_event(seed=6, n=12)
    mask, class_logits = mask.requires_grad_(), class_logits.requires_grad_()
    set_loss(mask, class_logits, instance, kind, config).total(config).backward()
    for x in (mask, class_logits):
        for place in ((0, 0), (1, 2), (4, 3)):
            ends = []
            for step in (1e-2, -1e-2):
                moved = x.detach().clone()
                moved[place] += step
                others = (moved, class_logits.detach()) if x is mask else (mask.detach(), moved)
                ends.append(set_loss(*others, instance, kind, config).total(config).item())
            assert x.grad[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-2, abs=2e-3)


def test_events_without_instances_with_too_many_and_of_unknown_class():
    config = SetLossConfig()
    mask, class_logits, instance, kind = random_event()
    none = set_loss(mask, class_logits, torch.full((40,), -1), kind[:0], config)
    assert none.focal == none.dice == none.classes == 0
    torch.testing.assert_close(none.no_object, F.cross_entropy(class_logits, torch.full((5,), 4)))
    many = set_loss(mask[:, :2], class_logits[:2], instance, kind, config)
    assert many.no_object == 0
    assert torch.isfinite(many.total(config))
    unknown = set_loss(mask, class_logits, instance, torch.full((3,), -1), config)
    assert unknown.classes == 0
    assert unknown.focal > 0
    no_points = set_loss(mask[:0], class_logits, instance[:0], kind[:0], config)
    assert torch.isfinite(no_points.total(config))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_mask_that_is_no_number_is_a_loss_that_is_none_not_an_error(bad):
    """So that the step is left out and told, as with any loss."""
    mask, class_logits, instance, kind = random_event()
    mask[3] = bad
    loss = set_loss(mask, class_logits, instance, kind, SetLossConfig()).total(SetLossConfig())
    assert not torch.isfinite(loss)


def test_a_batch_costs_what_its_events_cost_together_and_its_gradient_is_theirs():
    config, seeds = SetLossConfig(), (7, 8, 9, 10)
    events = [random_event(seed, n=20 + seed, m=m) for seed, m in zip(seeds, (3, 0, 7, 1), strict=True)]
    events[1] = (*events[1][:2], torch.full((28,), -1), events[1][3])
    leaves = [[x.clone().requires_grad_() for x in event[:2]] for event in events]
    alone = [set_loss(*leaf, *event[2:], config).total(config) for leaf, event in zip(leaves, events, strict=True)]
    sum(alone).backward()
    mask = torch.cat([event[0] for event in events]).requires_grad_()
    classes = torch.stack([event[1] for event in events]).requires_grad_()
    start = torch.tensor([0, *(len(event[0]) for event in events)]).cumsum(0)
    first = [0, 3, 3, 10]
    instance = torch.cat([torch.where(e[2] >= 0, e[2] + n, -1) for e, n in zip(events, first, strict=True)])
    of = torch.repeat_interleave(torch.tensor([3, 0, 7, 1]))
    truth = Truth(instance, of, torch.cat([event[3] for event in events]))
    together = matching.set_loss(mask, classes, start, truth, config).total(config)
    together.backward()
    torch.testing.assert_close(together, sum(alone))
    torch.testing.assert_close(mask.grad, torch.cat([leaf[0].grad for leaf in leaves]))
    torch.testing.assert_close(classes.grad, torch.stack([leaf[1].grad for leaf in leaves]))


def test_instances_are_numbered_event_by_event_and_have_the_class_of_most_points():
    event = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1])
    label = torch.tensor([7, 3, 3, -1, 7, 7, 9, -1, 3])
    kind = torch.tensor([2, 0, 0, 4, 1, 2, -1, 0, 1])
    truth = Truth.of(event, label, kind)
    assert truth.instance.tolist() == [1, 0, 0, -1, 1, 1, 2, -1, 3]
    assert truth.event.tolist() == [0, 0, 0, 1]
    assert truth.kind.tolist() == [0, 2, -1, 1]  # a species that is none of the five teaches its mask alone
    for n in (0, 3):
        none = Truth.of(torch.zeros(n, dtype=torch.long), torch.full((n,), -1), torch.zeros(n, dtype=torch.long))
        assert none.instance.tolist() == [-1] * n
        assert len(none.kind) == len(none.event) == 0


def test_memory_is_linear_in_points():
    """No array of queries x instances x points: at 100,000 points it would have 128 M numbers."""
    n, q, m = 100_000, 32, 40
    mask = torch.zeros(n, q, requires_grad=True)
    instance = torch.arange(n) % m
    largest = 0

    def note(grad):
        nonlocal largest
        largest = max(largest, grad.numel())

    with torch.autograd.graph.saved_tensors_hooks(lambda x: (note(x), x)[1], lambda x: x):
        loss = set_loss(mask, torch.zeros(q, 6), instance, torch.zeros(m, dtype=torch.long), SetLossConfig())
        loss.total(SetLossConfig()).backward()
    assert largest <= n * 3 * q
