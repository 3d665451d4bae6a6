"""How masks become instances: the paper's way one step after the other, voxels that vote together, gaps."""

import math
from dataclasses import replace

import pytest
import torch

from larpanda.model.panoptic import NO_MASK, Instances
from larpanda.model.selection import AS_PUBLISHED, INTERACTIONS, PARTICLES, _voted, select

PLACE = torch.stack([torch.arange(60) % 9, torch.arange(60) // 9 * 2, torch.arange(60) % 2], 1).float()  # [60, 3]


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
    """The paper's inference and matrix NMS, and the least share kept: a query, a pair and a point at a time."""
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
        if len(new) >= max(config.min_points, config.min_kept * len(points)):
            for i in new:
                owner[i] = len(queries)
            queries.append(q)
            scores.append(score)
    return owner, queries, scores


@pytest.mark.parametrize(
    "config",
    [
        AS_PUBLISHED,
        replace(AS_PUBLISHED, min_points=8),
        replace(AS_PUBLISHED, score_threshold=0.3, sigma=0.5),
        replace(AS_PUBLISHED, mask_threshold=0.3, min_kept=0.5),
    ],
)
def test_selection_is_that_of_one_query_after_the_other(config):
    for seed in range(100):
        found = random_instances(seed)
        owner, queries, scores = one_after_the_other(found, 3, config)
        result = select(found, PLACE, None, 3, config)
        assert result.owner.tolist() == owner
        assert result.query.tolist() == queries
        assert result.score.tolist() == pytest.approx(scores, rel=1e-5)
        assert result.class_probability.shape == (len(queries), 3)


def test_selection_covers_all_if_asked_to():
    for seed in range(30):
        found = random_instances(seed)
        some, all_ = (select(found, PLACE, None, 3, replace(AS_PUBLISHED, cover_all=cover)) for cover in (False, True))
        if not len(some.query):
            continue
        thing = found.led_probability < 0.5
        assert (all_.owner[thing] >= 0).all()
        assert (all_.owner[~thing] == -1).all()
        assert torch.equal(all_.owner[some.owner >= 0], some.owner[some.owner >= 0])
        p = found.mask_logits[some.query].sigmoid()
        left = thing & (some.owner < 0)
        assert torch.equal(all_.owner[left], p[:, left].argmax(0))


@pytest.mark.parametrize("config", [AS_PUBLISHED, PARTICLES, INTERACTIONS, replace(PARTICLES, gap_cm=0.6)])
def test_selection_does_not_depend_on_the_order_of_points_or_queries(config):
    for seed in range(20):
        found, motif = random_instances(seed), torch.randint(5, (60,))
        points, queries = torch.randperm(60), torch.randperm(6)
        moved = Instances(
            found.mask_logits[queries][:, points], found.class_logits[queries], found.led_probability[points]
        )
        a, b = select(found, PLACE, motif, 3, config), select(moved, PLACE[points], motif[points], 3, config)
        assert torch.equal(b.owner, a.owner[points])
        assert torch.equal(queries[b.query], a.query)


def test_voxels_that_touch_vote_together():
    """Flood fill by hand: each voxel has the mean of its piece, if it is no low-energy deposit."""
    for seed, together in ((0, "fragment"), (1, "all"), (2, "fragment"), (3, "none")):
        found, motif = random_instances(seed), torch.randint(2, (60,)) * 2  # no tracks, which are divided besides
        led = found.led_probability >= 0.5
        expected = found.mask_logits.sigmoid()
        left = set(range(60)) if together != "none" else set()
        while left:
            piece, new = [], [left.pop()]
            while new:
                piece.append(one := new.pop())
                near = [
                    i
                    for i in left
                    if (PLACE[i] - PLACE[one]).abs().max() <= 1
                    and not led[i]
                    and not led[one]
                    and (together == "all" or motif[i] == motif[one])
                ]
                left -= set(near)
                new += near
            expected[:, piece] = found.mask_logits.sigmoid()[:, piece].mean(1, keepdim=True)
        config = replace(AS_PUBLISHED, together=together)
        assert torch.allclose(_voted(found, PLACE, motif, config), expected, atol=1e-6)


def test_particles_that_touch_stay_apart_where_no_motifs_are_known():
    """A vertex of three tracks: of a model with a head for particles alone, masks are all that is known."""
    way = torch.arange(1, 21)[:, None]
    position = torch.cat([way * torch.tensor(axis) for axis in ([1, 0, 0], [0, 1, 0], [0, 0, 1])]).float()
    truth = torch.arange(3).repeat_interleave(20)
    masks = (torch.nn.functional.one_hot(truth).t() - 0.5) * 16.0
    kinds = torch.tensor([[9.0, 0.0, 0.0]]).expand(3, 3)
    found = select(Instances(masks, kinds, torch.zeros(60)), position, None, 2, PARTICLES)
    assert found.query[found.owner].tolist() == truth.tolist()


def test_two_tracks_in_one_mask_are_two_instances_of_its_class():
    track = torch.stack([torch.arange(40), torch.zeros(40), torch.zeros(40)], 1)
    position = torch.cat([track, track[:30] + torch.tensor([0, 200, 0]), torch.tensor([[400.0, 0, 0]])])  # 60 cm apart
    mask = torch.full((2, 71), 8.0)
    mask[1] = NO_MASK
    kinds = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    found = Instances(mask, kinds, torch.zeros(71))
    one = select(found, position, None, 2, replace(PARTICLES, gap_cm=math.inf))
    assert one.owner.tolist() == [0] * 71
    two = select(found, position, None, 2, PARTICLES)
    assert two.owner.tolist() == [0] * 40 + [1] * 30 + [-1]  # a voxel alone is no instance
    assert two.query.tolist() == [0, 0]
    assert two.kind.tolist() == [1, 1]
    assert two.score[0] == two.score[1]
    all_ = select(found, position, None, 2, replace(PARTICLES, cover_all=True))
    assert all_.owner[-1] == 0


def test_queries_that_are_all_used_are_told_and_nothing_found_is_no_error():
    found = random_instances(1)
    something = torch.full((6, 5), -9.0)
    something[:, 0] = 9.0
    apart = (torch.eye(6).repeat_interleave(10, 1) - 0.5) * 10.0
    assert select(Instances(apart, something, found.led_probability), PLACE, None, 3, AS_PUBLISHED).all_used
    same = apart[[0, 0, 1, 2, 3, 4]]  # two of a mask: one of them is free
    assert not select(Instances(same, something, found.led_probability), PLACE, None, 3, AS_PUBLISHED).all_used
    nothing = -something
    nothing[:, 4] = 20.0
    empty = select(
        Instances(found.mask_logits, nothing, found.led_probability), PLACE, None, 3, replace(PARTICLES, cover_all=True)
    )
    assert not empty.all_used
    assert empty.owner.tolist() == [-1] * 60
    assert len(empty.query) == 0
    no_points = select(Instances(torch.zeros(6, 0), something, torch.zeros(0)), PLACE[:0], None, 3)
    assert len(no_points.owner) == len(no_points.query) == 0
