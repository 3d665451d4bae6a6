"""Self-distillation: Sinkhorn, cross-entropy, matching, teacher against textbook forms; the loss of a small case."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from larpanda.data.views import ViewConfig, make_views, pack_views
from larpanda.event import UNKNOWN, PointBatch, ViewBatch
from larpanda.model import distill
from larpanda.model.backbone import EncoderConfig
from larpanda.model.distill import DistillConfig, Pairs, SelfDistillation, Side, cross_entropy, match, sinkhorn

ENCODER = EncoderConfig((16, 16, 32), (1, 1, 1), window=32, layer_scale=0.5, drop_path=0.0, mask_token=True)
SMALL = DistillConfig(prototypes=12, width=8, hidden=16, level=1)
STILL = ViewConfig(n_local=2, turn=0.0, flip=0.0, position_jitter=0.0, charge_jitter=0.0, mask_jitter=0.0)


def unit(n, width=8, seed=0):
    return F.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def make(encoder=ENCODER, config=SMALL):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SelfDistillation(encoder, config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        model.teacher.load_state_dict(model.student.state_dict())
    return model


def views_of(events, config=STILL, progress=0.0, seed=0):
    views = [make_views(e, config, progress, np.random.default_rng([seed, i])) for i, e in enumerate(events)]
    n = (2 + config.n_local) * len(events)
    return pack_views(views, torch.full((n, 6), 0.999))


def textbook_sinkhorn(logits, iterations):
    """SwAV's: a matrix rewritten by turns, columns (prototypes) first. [M, P] -> rows that sum to 1."""
    q = logits.double().exp()
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(0, keepdim=True) * q.shape[1]
        q /= q.sum(1, keepdim=True) * q.shape[0]
    return q * q.shape[0]


@pytest.mark.parametrize("temperature", [0.03, 0.07, 1.0])
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_sinkhorn_is_that_of_the_textbook(temperature, iterations):
    x, prototypes = unit(300), unit(12, seed=1)
    logits = x @ prototypes.t() / temperature
    balance = sinkhorn(x, prototypes, temperature, iterations)
    ours = (logits + balance.log_scale).softmax(1).double()
    torch.testing.assert_close(ours, textbook_sinkhorn(logits, iterations), atol=2e-5, rtol=1e-3)
    counts = torch.bincount(logits.argmax(1), minlength=12)
    assert torch.equal(balance.nearest, counts.float())
    plain = sinkhorn(x, prototypes, temperature, 0)
    assert torch.equal(plain.nearest, counts.float())
    assert not plain.log_scale.any()


def test_marginals_of_sinkhorn():
    """Every cell's target sums to 1; with enough iterations every prototype gets the same share."""
    x, prototypes = unit(300), unit(12, seed=1)
    use = []
    for iterations in (1, 3, 100):
        scale = sinkhorn(x, prototypes, 0.05, iterations).log_scale
        target = (x @ prototypes.t() / 0.05 + scale).softmax(1)
        torch.testing.assert_close(target.sum(1), torch.ones(300))
        use.append((target.sum(0) - 300 / 12).abs().max().item())
    assert use[0] > use[1] > use[2]
    assert use[2] < 0.01


@pytest.mark.parametrize("chunk", [1, 40, 10**9])
def test_neither_result_nor_gradient_depends_on_the_chunks(monkeypatch, chunk):
    """Against all pairs and prototypes at once, in double, by autograd."""
    monkeypatch.setattr(distill, "CHUNK", (chunk, chunk))
    x, prototypes, y, targets = unit(50), unit(12, seed=1), unit(40, seed=2), unit(12, seed=3)
    rng = np.random.default_rng(0)
    rows = [torch.from_numpy(rng.integers(0, n, 70)) for n in (50, 40)]
    pairs = Pairs(*rows, torch.ones(70), torch.rand(70), torch.zeros(70))
    scale = sinkhorn(y, targets, 0.05, 3).log_scale
    x.requires_grad_(), prototypes.requires_grad_()
    result = cross_entropy(Side(x, prototypes, 0.1, torch.zeros(12)), Side(y, targets, 0.05, scale), pairs)
    (3 * result.loss).backward()
    double_x, double_prototypes = (t.detach().double().requires_grad_() for t in (x, prototypes))
    log_p = (double_x[pairs.student] @ double_prototypes.t() / 0.1).log_softmax(1)
    q = (y.double()[pairs.teacher] @ targets.double().t() / 0.05 + scale.double()).softmax(1)
    value = -(q * log_p).sum(1)
    (3 * (value * pairs.weight).sum()).backward()
    torch.testing.assert_close(result.value.double(), value.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.entropy.double(), -(q * q.log()).sum(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad.double(), double_x.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prototypes.grad.double(), double_prototypes.grad, atol=1e-4, rtol=1e-4)


def test_cross_entropy_is_entropy_plus_divergence():
    """Equation of section 3.3.3, for random q and p; the divergence by another way (PyTorch's)."""
    x, prototypes, y, targets = unit(80), unit(12, seed=1), unit(80, seed=2), unit(12, seed=3)
    rows = torch.arange(80)
    scale = torch.randn(12, generator=torch.Generator().manual_seed(4))
    pairs = Pairs(rows, rows, torch.full((80,), 1 / 80), torch.full((80,), 1 / 80), rows * 0)
    result = cross_entropy(Side(x, prototypes, 0.1, torch.zeros(12)), Side(y, targets, 0.06, scale), pairs)
    log_p = (x @ prototypes.t() / 0.1).double().log_softmax(1)
    log_q = (y @ targets.t() / 0.06 + scale).double().log_softmax(1)
    divergence = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)
    assert (result.value - result.entropy - divergence).abs().max() < 1e-6 * result.value.max()


def test_a_student_that_agrees_has_no_divergence(make_cloud):
    """Equal temperatures, no Sinkhorn, identical views (nothing turned, masked or jittered), student = teacher."""
    config = replace(SMALL, student_temperature=0.1, sinkhorn=0, masked_only=False)
    whole = replace(STILL, global_share=(1.0, 1.0), local_share=(1.0, 1.0), mask_ratio=(1e-9, 1e-9))
    model = make(config=config)
    result = model(views_of([make_cloud(120, seed=s) for s in range(3)], whole), 0.1)
    assert result.kl.abs() < 1e-6
    assert result.matched_local == result.matched_mask * 0 + 1  # every cell found its own
    torch.testing.assert_close(result.loss, result.entropy, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(result.local, result.mask, atol=1e-6, rtol=1e-6)


def hand_made():
    """One event: two global views of two cells each (12 mm apart in x), one local view of one cell."""

    def batch(*views):
        position = torch.tensor([point for view in views for point in view])
        none = torch.full((len(position),), UNKNOWN)
        start = torch.tensor([0, *(len(view) for view in views)]).cumsum(0)
        return PointBatch(position, torch.ones(len(position)), none, none, none, none, start), position

    a, b = [10.0, 10.0, 10.0], [20.0, 10.0, 10.0]
    teacher, teacher_origin = batch([a, b], [a, b])
    student, student_origin = batch([a, b], [a, b], [b])
    masked = torch.tensor([True, False, True, True, False])
    return ViewBatch(teacher, teacher_origin, student, student_origin, masked, torch.full((3, 6), 0.999))


def test_pairs_and_weights_of_a_hand_made_case():
    """Masked: a cell of the first view, two of the second, each view weighing the same; local: one, whole weight."""
    views, model = hand_made(), make()
    whole, seen = model.teacher.encoder(views.teacher), model.student.encoder(views.student)
    pairs, share = match(views, whole, seen, replace(SMALL, local_weight=0.4, mask_weight=0.6))
    origin = {}
    for name, pyramid, batch in (("teacher", whole, views.teacher), ("student", seen, views.student)):
        cell = pyramid.cell_of_points(1)
        origin[name] = {int(cell[i]): (int(batch.event_id[i]), *batch.position[i].tolist()) for i in range(len(cell))}
    found = {
        (origin["student"][s], origin["teacher"][t]): round(w, 6)
        for s, t, w in zip(pairs.student.tolist(), pairs.teacher.tolist(), pairs.weight.tolist(), strict=True)
    }
    a, b = (10.0, 10.0, 10.0), (20.0, 10.0, 10.0)
    assert found == {
        ((2, *b), (0, *b)): 0.4,
        ((0, *a), (0, *a)): 0.3,
        ((1, *a), (1, *a)): 0.15,
        ((1, *b), (1, *b)): 0.15,
    }
    assert share.tolist() == [1.0, 1.0]
    swapped, _ = match(views, whole, seen, replace(SMALL, swap_weight=0.5))
    chosen = swapped.term == distill.SWAP
    targets = {origin["teacher"][t] for t in swapped.teacher[chosen].tolist()}
    assert targets == {(1, *a), (0, *a), (0, *b)}  # of the other global view
    everything, _ = match(views, whole, seen, replace(SMALL, masked_only=False))
    assert (everything.term == distill.MASK).sum() == 4


def test_what_is_too_far_away_has_no_target():
    views = hand_made()
    moved = views.student_origin.clone()
    moved[:4] += torch.tensor([0.0, 2.5, 0.0])
    far = replace(views, student_origin=moved)
    model = make()
    whole, seen = model.teacher.encoder(far.teacher), model.student.encoder(far.student)
    pairs, share = match(far, whole, seen, SMALL)
    assert pairs.term.tolist() == [distill.LOCAL]
    assert share.tolist() == [1.0, 0.0]
    assert len(match(far, whole, seen, replace(SMALL, radius=3.0))[0].term) == 4


def test_the_loss_of_a_hand_made_case():
    """By the definition, cell by cell, without any of the module's own functions but the towers."""
    views, model = hand_made(), make()
    result = model(views, 0.05)
    with torch.no_grad():
        whole, seen = model.teacher.encoder(views.teacher), model.student.encoder(views.student, None, views.masked)
        y, x = model.teacher.projection(whole.upcast(1)), model.student.projection(seen.upcast(1))
        w = F.normalize(model.teacher.projection.prototypes, dim=1)
        q = textbook_sinkhorn(y @ w.t() / 0.05, 3)
        log_p = (x @ w.t() / 0.1).double().log_softmax(1)
        told, asked = whole.cell_of_points(1), seen.cell_of_points(1)
        ce = {(s, t): -(q[told[t]] * log_p[asked[s]]).sum() for s, t in ((0, 0), (2, 2), (3, 3), (4, 1))}
    expected = 0.5 * ce[4, 1] + 0.5 * (ce[0, 0] + (ce[2, 2] + ce[3, 3]) / 2) / 2
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert result.local.item() == pytest.approx(ce[4, 1].item(), rel=1e-5)
    assert result.kl.item() + result.entropy.item() == pytest.approx(result.loss.item(), rel=1e-5)


def test_gradients_reach_the_student_alone(make_cloud):
    model = make()
    model(views_of([make_cloud(150)], replace(STILL, mask_voxels=(6.0, 6.0))), 0.05).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.student.parameters())
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


def test_the_teacher_is_a_moving_average(make_cloud):
    """After n steps with a constant student: student + momentum**n * (first teacher - student)."""
    model = make()
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    first = [parameter.clone() for parameter in model.teacher.parameters()]
    for _ in range(5):
        model.update_teacher(0.9)
    for before, now, student in zip(first, model.teacher.parameters(), model.student.parameters(), strict=True):
        torch.testing.assert_close(now, student + 0.9**5 * (before - student), atol=1e-5, rtol=1e-5)
    before = [parameter.clone() for parameter in model.teacher.parameters()]
    model.update_teacher(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.teacher.parameters(), strict=True))


def test_the_schedules_of_the_paper():
    """Temperature 0.04 -> 0.07 over 5 %, momentum 0.994 -> 1 by a cosine (sections 3.3.3 and 3.5)."""
    config, at = DistillConfig(), (0.0, 0.025, 0.05, 0.5, 1.0)
    assert [config.temperature_at(p) for p in at] == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])
    expected = [1 - 0.006 * math.cos(math.pi * p / 2) ** 2 for p in at]
    assert [config.momentum_at(p) for p in at] == pytest.approx(expected)
    assert [config.momentum_at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.994, 0.997, 1.0])


def test_an_event_has_the_targets_that_it_has_alone(make_cloud):
    """Without Sinkhorn, which looks at the whole batch on purpose, batch-mates do not matter."""
    model = make(config=replace(SMALL, sinkhorn=0))
    events = [make_cloud(n, seed=n) for n in (150, 80)]
    views = replace(STILL, mask_voxels=(6.0, 6.0))
    together = model(views_of(events, views), 0.05)
    apart = [
        model(pack_views([make_views(e, views, 0.0, np.random.default_rng([0, i]))], torch.full((4, 6), 0.999)), 0.05)
        for i, e in enumerate(events)
    ]
    assert together.local.item() == pytest.approx(np.mean([one.local.item() for one in apart]), rel=1e-5)
    assert together.mask.item() == pytest.approx(np.mean([one.mask.item() for one in apart]), rel=1e-5)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_views_of_hardly_anything(make_cloud, n):
    """No point, or nothing to match: a finite loss, and no gradient that is not."""
    from larpanda.event import Event

    cloud = make_cloud(3)
    event = Event.from_arrays(cloud.position[:n].numpy(), cloud.energy[:n].numpy())
    model = make()
    result = model(views_of([event], ViewConfig(n_local=2)), 0.05)
    result.loss.backward()
    for name in ("loss", "local", "mask", "entropy", "kl", "matched_local", "matched_mask", "usage", "perplexity"):
        assert getattr(result, name).isfinite(), name
    assert all(spread.isfinite() for spread in result.spread)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.student.parameters())


def test_collapsed_targets_are_seen(make_cloud):
    """All features the same: one prototype is nearest to all, Sinkhorn's targets are uniform, no spread."""
    model = make()
    for tower in (model.student, model.teacher):
        torch.nn.init.zeros_(tower.projection.layers[2].weight)
        torch.nn.init.ones_(tower.projection.layers[2].bias)
    result = model(views_of([make_cloud(150)]), 0.05)
    assert result.usage.item() == pytest.approx(1 / 12)
    assert result.perplexity.item() == pytest.approx(1.0)
    assert result.entropy.item() == pytest.approx(math.log(12), rel=1e-5)
    unmasked = replace(STILL, mask_ratio=(1e-9, 1e-9))  # the mask term has no pairs: the entropy is that of the other
    assert model(views_of([make_cloud(150)], unmasked), 0.05).entropy.item() == pytest.approx(math.log(12), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": 0.0}, "positive temperatures"),
        ({"prototypes": 1}, "at least 2"),
        ({"sinkhorn": -1}, "sinkhorn >= 0"),
    ],
)
def test_impossible_objectives(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_a_level_that_the_encoder_lacks():
    with pytest.raises(ValueError, match="level 3 of an encoder with 3 levels"):
        make(config=replace(SMALL, level=3))
