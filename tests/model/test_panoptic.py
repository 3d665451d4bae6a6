"""The query decoder: what must not change an event's masks, and the limits."""

import math
from dataclasses import replace

import pytest
import torch

from larpanda.event import Event, PointBatch
from larpanda.model.bundle import Bundle, Model, ModelConfig
from larpanda.model.panoptic import NO_MASK, Instances, PanopticConfig, SelectConfig, select
from larpanda.reconstruct import Reconstructor

TOLERANCE = 1e-5
CONFIG = PanopticConfig(queries=5, classes=6, channels=16, head_dim=8, blocks=2)


def model_with(config, encoder):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(ModelConfig(encoder, particle=config))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model.requires_grad_(False)


@pytest.fixture
def model(tiny_model, make_cloud):
    """It takes about half of the points for low-energy deposits."""
    model = model_with(CONFIG, tiny_model.config.encoder)
    probability = found(model, make_cloud(40, seed=40))[0].led_probability
    middle = probability.logit().sort().values[19:21].mean()  # between two points: rounding decides about none
    model.particle.led_out.bias -= middle
    return model


def found(model, *events):
    return model.particle(model.encoder(PointBatch.pack(events)))


def assert_same(a, b):
    for name in ("mask_logits", "class_logits", "led_probability"):
        x, y = getattr(a, name), getattr(b, name)
        in_mask = y != NO_MASK
        assert torch.equal(x == NO_MASK, ~in_mask)
        assert (x - y)[in_mask].abs().max() <= TOLERANCE * y[in_mask].abs().max()


def test_batch_mates_and_the_order_of_points_change_nothing(model, make_cloud):
    events = [make_cloud(n, seed=n) for n in (300, 40, 120)]
    together = found(model, *events)
    for event, mine in zip(events, together, strict=True):
        assert mine.mask_logits.shape == (5, len(event))
        assert mine.class_logits.shape == (5, 7)
        assert 0 < (mine.led_probability < 0.5).sum() < len(event)
        assert_same(mine, found(model, event)[0])
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    names = ("position", "energy", "motif", "species", "particle", "interaction")
    (moved,) = found(model, Event(*(getattr(events[0], name)[order] for name in names)))
    assert torch.equal(moved.mask_logits == NO_MASK, together[0].mask_logits[:, order] == NO_MASK)
    assert (moved.class_logits - together[0].class_logits).abs().max() <= TOLERANCE * moved.class_logits.abs().max()


def test_low_energy_deposits_are_in_no_mask(model, make_cloud):
    (one,) = found(model, make_cloud(300))
    assert torch.equal((one.mask_logits == NO_MASK).all(0), one.led_probability >= 0.5)
    assert torch.equal((one.mask_logits == NO_MASK).any(0), one.led_probability >= 0.5)


def test_an_event_of_low_energy_deposits_only(model, make_cloud):
    torch.nn.init.constant_(model.particle.led_out.bias, 1e4)
    (one, _) = found(model, make_cloud(50), make_cloud(20, seed=1))
    assert (one.mask_logits == NO_MASK).all()
    assert one.class_logits.isfinite().all()


@pytest.mark.parametrize("field", ["mask_after_update", "position_in_keys"])
def test_each_setting_acts(model, make_cloud, field):
    other = model_with(replace(CONFIG, **{field: False}), model.config.encoder)
    other.load_state_dict(model.state_dict())
    event = make_cloud(200)
    assert not torch.allclose(found(other, event)[0].mask_logits, found(model, event)[0].mask_logits)


def test_rows_that_the_model_does_not_see_are_nan(model):
    reconstructor = Reconstructor(Bundle(model, "mine", {}, ""), "cpu")
    event = Event.from_arrays([[1, 2, 3], [1, 2, 4], [9, 9, 9]], [1.0, 0.1, 1.0])
    one = reconstructor.instances(event, "particle")
    assert one.mask_logits.isnan().any(0).tolist() == one.led_probability.isnan().tolist() == [False, True, False]
    dark = reconstructor.instances(Event.from_arrays([[1, 2, 3]], [0.05]), "particle")
    assert dark.mask_logits.isnan().all()
    assert dark.class_logits.isnan().all()
    with pytest.raises(ValueError, match=r"no interaction head \(its heads: particle\)"):
        reconstructor.instances(event, "interaction")
    with pytest.raises(ValueError, match="expected 'particle' or 'interaction'"):
        reconstructor.instances(event, "muon")


def test_a_width_that_cannot_be_split():
    with pytest.raises(ValueError, match="width 20 is not a multiple of the head dimension 16"):
        PanopticConfig(channels=20)


def random_instances(seed, q=6, n=60, classes=4):
    """Masks that overlap, of few classes, so that all of suppression and assignment happens."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.randn(q, n, generator=rng) * 3
    mask[1] = mask[0] + torch.randn(n, generator=rng) * 0.5
    logits = torch.randn(q, classes + 1, generator=rng) * 2
    led = torch.rand(n, generator=rng)
    mask[:, led >= 0.5] = NO_MASK
    return Instances(mask, logits, led)


def one_after_the_other(found, things, config):
    """The paper's inference and matrix NMS, a query, a pair and a point at a time."""
    kept = []
    for q in range(len(found.class_logits)):
        probability = found.class_logits[q].softmax(0)
        kind = int(probability.argmax())
        p = found.mask_logits[q].sigmoid()
        points = {i for i in range(len(p)) if p[i] >= config.mask_threshold}
        if kind < things and len(points) >= config.min_points:
            score = float(probability[kind]) * sum(float(p[i]) for i in points) / len(points)
            kept.append([score, q, kind, points])
    kept.sort(key=lambda one: -one[0])

    def iou(a, b):
        return len(a[3] & b[3]) / len(a[3] | b[3]) if a[2] == b[2] else 0.0

    worst = [max((iou(kept[i], kept[j]) for i in range(j)), default=0.0) for j in range(len(kept))]
    factors = [
        min((math.exp(-config.sigma * (iou(kept[i], kept[j]) ** 2 - worst[i] ** 2)) for i in range(j)), default=1.0)
        for j in range(len(kept))
    ]
    for one, factor in zip(kept, factors, strict=True):
        one[0] *= min(factor, 1.0)
    kept = sorted((one for one in kept if one[0] >= config.score_threshold), key=lambda one: -one[0])
    owner, queries, scores = [-1] * found.mask_logits.shape[1], [], []
    for score, q, _, points in kept:
        new = [i for i in points if owner[i] < 0]
        if len(new) >= config.min_points:
            for i in new:
                owner[i] = len(queries)
            queries.append(q)
            scores.append(score)
    return owner, queries, scores


@pytest.mark.parametrize(
    "config", [SelectConfig(), SelectConfig(min_points=8), SelectConfig(score_threshold=0.3, sigma=0.5)]
)
def test_selection_is_that_of_one_query_after_the_other(config):
    for seed in range(100):
        found = random_instances(seed)
        owner, queries, scores = one_after_the_other(found, 3, config)
        result = select(found, 3, config)
        assert result.owner.tolist() == owner
        assert result.query.tolist() == queries
        assert result.score.tolist() == pytest.approx(scores, rel=1e-5)
        assert result.class_probability.shape == (len(queries), 3)


def test_selection_covers_all_if_asked_to():
    for seed in range(30):
        found = random_instances(seed)
        some, all_ = select(found, 3, SelectConfig()), select(found, 3, SelectConfig(cover_all=True))
        if not len(some.query):
            continue
        thing = found.led_probability < 0.5
        assert (all_.owner[thing] >= 0).all()
        assert (all_.owner[~thing] == -1).all()
        assert torch.equal(all_.owner[some.owner >= 0], some.owner[some.owner >= 0])
        p = found.mask_logits[some.query].sigmoid()
        left = thing & (some.owner < 0)
        assert torch.equal(all_.owner[left], p[:, left].argmax(0))


def test_selection_does_not_depend_on_the_order_of_points_or_queries():
    found = random_instances(7)
    points, queries = torch.randperm(60), torch.randperm(6)
    moved = Instances(found.mask_logits[queries][:, points], found.class_logits[queries], found.led_probability[points])
    a, b = select(found, 3, SelectConfig()), select(moved, 3, SelectConfig())
    assert torch.equal(b.owner, a.owner[points])
    assert torch.equal(queries[b.query], a.query)


def test_queries_that_are_all_used_are_told_and_nothing_found_is_no_error():
    found = random_instances(1)
    something = torch.full((6, 5), -9.0)
    something[:, 0] = 9.0
    apart = (torch.eye(6).repeat_interleave(10, 1) - 0.5) * 10.0
    assert select(Instances(apart, something, found.led_probability), 3, SelectConfig()).all_used
    same = apart[[0, 0, 1, 2, 3, 4]]  # two of a mask: one of them is free
    assert not select(Instances(same, something, found.led_probability), 3, SelectConfig()).all_used
    nothing = -something
    nothing[:, 4] = 20.0
    empty = select(Instances(found.mask_logits, nothing, found.led_probability), 3, SelectConfig(cover_all=True))
    assert not empty.all_used
    assert empty.owner.tolist() == [-1] * 60
    assert len(empty.query) == 0
    no_points = select(Instances(torch.zeros(6, 0), something, torch.zeros(0)), 3, SelectConfig())
    assert len(no_points.owner) == len(no_points.query) == 0


def test_masks_are_over_true_instances_as_well_if_told(model, make_cloud):
    pyramid = model.encoder(PointBatch.pack([make_cloud(80, seed=1), make_cloud(50, seed=2)]))
    alone = model.particle.decode(pyramid)
    also = torch.zeros(len(alone.led), dtype=torch.bool)
    also[::3] = True
    more = model.particle.decode(pyramid, also)
    assert set(more.thing.tolist()) == set(alone.thing.tolist()) | set(also.nonzero()[:, 0].tolist())
    assert len(more.masks) == len(more.classes) == CONFIG.blocks
    assert more.masks[0].shape == (len(more.thing), 5)
    assert more.start.tolist()[-1] == len(more.thing)
