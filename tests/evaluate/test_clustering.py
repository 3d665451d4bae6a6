"""Instance metrics against scikit-learn and brute force, and what they are for hand-made and empty events."""

import json
import math
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from larpanda.evaluate.clustering import (
    CONVENTIONS,
    NONE,
    class_confusion,
    class_rand_index,
    efficiency,
    matches,
    overlap,
    panoptic_quality,
    purity,
    quality,
    rand_index,
)
from larpanda.evaluate.summary import clustering


def random_case(rng, n=None, classes=5):
    """Truth and a prediction that is partly right; classes of voxels, constant within an instance; energies."""
    n = int(rng.integers(1, 200)) if n is None else n
    k = int(rng.integers(1, 8))
    truth = rng.integers(NONE, k, n)
    predicted = np.where(rng.random(n) < rng.random(), truth, rng.integers(NONE, k + 1, n))
    renamed = rng.permutation(k + 1)
    predicted = np.where(predicted == NONE, NONE, renamed[predicted])
    kind, found_kind = rng.integers(0, classes, k), rng.integers(0, classes, k + 1)
    agree = rng.random(k + 1) < 0.7
    found_kind = np.where(agree, np.append(kind, 0)[np.argsort(renamed)], found_kind)
    return truth, predicted, kind[truth], found_kind[predicted], rng.uniform(0.1, 5, n)


def cases(n=200, seed=0):
    rng = np.random.default_rng(seed)
    return [random_case(rng) for _ in range(n)]


DOMAINS = {
    "all": lambda t, p: np.ones(len(t), bool),
    "thing": lambda t, p: t != NONE,
    "predicted_thing": lambda t, p: p != NONE,
    "both": lambda t, p: (t != NONE) & (p != NONE),
}


@pytest.mark.parametrize("domain", DOMAINS)
def test_rand_index_is_that_of_scikit_learn(domain):
    for truth, predicted, *_ in cases():
        inside = DOMAINS[domain](truth, predicted)
        found = rand_index(overlap(truth, predicted), domain)
        if inside.any():
            assert found == pytest.approx(adjusted_rand_score(truth[inside], predicted[inside]), abs=1e-12)
        else:
            assert math.isnan(found)


def test_rand_index_is_exact_at_200_000_voxels():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 40, 200_000)
    predicted = np.where(rng.random(200_000) < 0.9, truth, rng.integers(0, 40, 200_000))
    assert rand_index(overlap(truth, predicted)) == pytest.approx(adjusted_rand_score(truth, predicted), abs=1e-12)
    one = np.zeros(200_000, int)
    split = one.copy()
    split[0] = 1
    assert rand_index(overlap(one, one)) == 1.0
    assert rand_index(overlap(one, split)) == 0.0
    alone = np.arange(200_000)
    assert rand_index(overlap(alone, alone)) == 1.0


def brute_iou(truth, predicted, a, b, void):
    shared = ((truth == a) & (predicted == b)).sum()
    found = (predicted == b) & ((truth != NONE) if void else True)
    return shared / (((truth == a) | found).sum())


def brute_quality(case, classes, min_voxels, stuff):
    """Panoptic quality's sums by looking at every pair of instances."""
    truth, predicted, kind, found_kind, _ = case
    n = classes + stuff
    total = np.zeros((n, 4))
    if stuff:  # as a class like others
        truth, predicted = np.where(truth == NONE, 1000, truth), np.where(predicted == NONE, 1000, predicted)
        kind, found_kind = np.where(truth == 1000, classes, kind), np.where(predicted == 1000, classes, found_kind)
    true, found = np.unique(truth[truth != NONE]), np.unique(predicted[predicted != NONE])
    class_of = {a: kind[truth == a][0] for a in true}
    found_class_of = {b: found_kind[predicted == b][0] for b in found}
    pairs = {
        (a, b): iou
        for a, b in product(true, found)
        if (iou := brute_iou(truth, predicted, a, b, not stuff)) > 0.5 and class_of[a] == found_class_of[b]
    }
    for (a, _), iou in pairs.items():
        total[class_of[a]] += [iou, 1, 0, 0]
    for a in set(true) - {a for a, _ in pairs}:
        total[class_of[a], 3] += (truth == a).sum() >= min_voxels
    for b in set(found) - {b for _, b in pairs}:
        on_void = ((predicted == b) & (truth == NONE)).sum() > 0.5 * (predicted == b).sum()
        total[found_class_of[b], 2] += not on_void
    return total


@pytest.mark.parametrize(("min_voxels", "stuff"), [(1, False), (5, False), (1, True)])
def test_panoptic_quality_is_that_of_brute_force(min_voxels, stuff):
    for case in cases(seed=2):
        found = quality(overlap(*case), 5, min_voxels, stuff)
        np.testing.assert_allclose(found, brute_quality(case, 5, min_voxels, stuff), atol=1e-12)


@pytest.mark.parametrize("stuff", [False, True])
def test_a_true_instance_of_unknown_class_is_neither_right_nor_wrong(stuff):
    """Class numbers are those of the event without its voxels, if what matched it is away, too."""
    rng = np.random.default_rng(4)
    for _ in range(50):
        truth = np.repeat(rng.integers(-1, 4, 12), 10)
        predicted = np.where(rng.random(120) < 0.7, truth, rng.integers(-1, 4, 120))
        kind, found_kind = truth % 3, predicted % 3
        told = np.where(truth == 2, -1, kind)
        table = overlap(truth, predicted, told, found_kind)
        pairs = matches(overlap(truth, predicted), void=not stuff)
        same = pairs.found[np.unique(truth[truth >= 0])[pairs.true] == 2]
        gone = np.isin(predicted, np.unique(predicted[predicted >= 0])[same])
        as_other = np.where(truth == 2, 3, kind)  # a class that no prediction has
        expected = quality(overlap(truth, predicted, as_other, found_kind), 4, stuff=stuff)
        expected[3, 3] = 0.0
        for one in np.unique(predicted[gone]):
            expected[found_kind[predicted == one][0], 2] -= 1
        found = quality(table, 4, stuff=stuff)
        np.testing.assert_allclose(found, expected)
        if stuff:
            continue
        counts, missed, false = class_confusion(table, 3)
        assert counts.sum() + missed.sum() == len(set(truth[truth >= 0]) - {2})
        assert counts.sum() + false.sum() + len(same) == len(set(predicted[predicted >= 0]))
        assert rand_index(table) == rand_index(overlap(truth, predicted, kind, found_kind))


def test_without_any_class_the_clusters_still_count():
    truth = np.repeat([0, 1], 10)
    result = clustering([overlap(truth, truth, np.full(20, -1), truth)], 5, resamples=2)
    assert result.means["ari"].value == result.means["purity"].value == 1.0
    assert np.isnan(result.means["pq"].value)
    assert np.isnan(result.means["sq"].value)


def test_purity_and_efficiency_are_those_of_brute_force():
    for case in cases(seed=3):
        truth, predicted, _, _, energy = case
        table = overlap(*case)
        for weight, by_energy in ((np.ones(len(truth)), False), (energy, True)):

            def largest(of, other, weight=weight):
                shares = []
                for a in np.unique(of[of != NONE]):
                    inside = of == a
                    best = max(
                        (weight[inside & (other == b)].sum() for b in np.unique(other[other != NONE])), default=0
                    )
                    shares.append(best / weight[inside].sum())
                return np.mean(shares) if shares else np.nan

            assert purity(table, by_energy) == pytest.approx(largest(predicted, truth), nan_ok=True)
            assert efficiency(table, by_energy) == pytest.approx(largest(truth, predicted), nan_ok=True)


def test_a_perfect_prediction_scores_1_everywhere():
    rng = np.random.default_rng(4)
    tables = []
    for _ in range(5):
        truth = rng.integers(NONE, 6, 300)
        kind = rng.integers(0, 5, 6)[truth]
        renamed = np.where(truth == NONE, NONE, rng.permutation(6)[truth] * 7)
        tables.append(overlap(truth, renamed, kind, kind, rng.uniform(0.1, 5, 300)))
    result = clustering(tables, 5)
    for name, one in result.means.items():
        assert one.value == pytest.approx(0.0 if name == "fraction_unassigned" else 1.0), name
    assert not result.missed.any()
    assert not result.false.any()
    assert np.count_nonzero(result.confusion - np.diag(np.diag(result.confusion))) == 0
    for ari in result.class_ari.values():
        assert all(math.isnan(value) or value == 1.0 for value in ari)


def test_the_class_of_an_instance_is_not_that_of_the_voxel_with_its_number():
    """The released evaluator's mistake: with voxels in an order of their own it gives 0 to a perfect prediction."""
    truth = np.array([2, 2, 2, 0, 0, 1, 1, 1])
    kind = np.array([4, 4, 4, 2, 2, 1, 1, 1])
    confusion, missed, false = class_confusion(overlap(truth, truth, kind, kind), 5)
    assert confusion[4, 4] == confusion[2, 2] == confusion[1, 1] == 1
    assert confusion.sum() == 3
    assert not missed.any()
    assert not false.any()


def test_a_hand_made_event():
    """Two true instances of 6 and 4; the first found but for one voxel that the second's match has, and one of void."""
    truth = np.array([0] * 6 + [1] * 4 + [NONE] * 2)
    predicted = np.array([5] * 5 + [9] * 5 + [5, NONE])
    table = overlap(truth, predicted, np.where(truth == 0, 2, 1), np.where(predicted == 5, 2, 0))
    pairs = matches(table)
    assert pairs.iou.tolist() == [5 / 6, 4 / 5]  # the voxel of void does not count
    assert matches(table, void=False).iou.tolist() == [5 / 7, 4 / 5]
    parts = quality(table, 3)
    assert parts.tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [5 / 6, 1, 0, 0]]
    pq, sq, rq = panoptic_quality(parts)
    assert (pq, sq, rq) == pytest.approx((5 / 18, 5 / 6, 1 / 3))
    assert panoptic_quality(parts, micro=True)[0] == pytest.approx((5 / 6) / 2)
    assert purity(table) == pytest.approx((5 / 6 + 4 / 5) / 2)
    assert efficiency(table) == pytest.approx((5 / 6 + 1) / 2)
    confusion, missed, false = class_confusion(table, 3)
    assert confusion[2, 2] == confusion[1, 0] == 1
    assert not missed.any()
    assert not false.any()


def test_rand_index_of_a_class_in_three_ways():
    """Two muons split right, an electron merged with one of them."""
    truth = np.array([0] * 10 + [1] * 10 + [2] * 4)
    predicted = np.array([0] * 10 + [1] * 14)
    kind, found = np.where(truth < 2, 2, 1), np.full(24, 2)
    table = overlap(truth, predicted, kind, found)
    assert class_rand_index([table], 2, "mask") == 1.0
    assert class_rand_index([table], 2, "pooled") == 1.0
    one = adjusted_rand_score(np.where(kind == 2, truth, 9), predicted)
    assert class_rand_index([table], 2, "one_vs_rest") == pytest.approx(one)
    assert math.isnan(class_rand_index([table], 1, "mask"))  # a single electron says nothing
    assert math.isnan(class_rand_index([table], 4, "pooled"))
    # pooled over events is not a mean over events: the same numbers in two events are other instances
    several = [overlap(*case) for case in cases(20, seed=5)]
    labels = [
        (
            truth[(truth != NONE) & (kind == 3)] + 100 * i,
            np.where(predicted == NONE, 50, predicted)[(truth != NONE) & (kind == 3)] + 100 * i,
        )
        for i, (truth, predicted, kind, _, _) in enumerate(cases(20, seed=5))
    ]
    expected = adjusted_rand_score(*(np.concatenate(side) for side in zip(*labels, strict=True)))
    assert class_rand_index(several, 3, "pooled") == pytest.approx(expected, abs=1e-12)


def test_events_without_anything_have_a_defined_value():
    nothing = np.full(5, NONE)
    empty, all_led = overlap(nothing[:0], nothing[:0]), overlap(nothing, nothing)
    led_called_one = overlap(nothing, np.zeros(5, int))
    for table in (empty, all_led):
        assert math.isnan(rand_index(table))
        assert math.isnan(purity(table))
        assert math.isnan(efficiency(table))
        assert quality(table, 2).sum() == 0
    assert rand_index(all_led, "all") == 1.0
    assert purity(led_called_one) == 0.0
    assert quality(led_called_one, 1).sum() == 0  # it lies on void
    missed = overlap(np.zeros(5, int), nothing)
    assert rand_index(missed) == 1.0  # both are one cluster: fraction_unassigned tells that all is lost
    result = clustering([empty, all_led, missed], 1)
    assert result.left_out["ari"] == 2
    assert result.means["ari"].value == 1.0
    assert result.means["fraction_unassigned"].value == 1.0
    assert result.means["pq"].value == 0.0
    assert math.isnan(clustering([], 2).means["ari"].value)
    assert math.isnan(clustering([missed], 1).means["ari"].low)


def test_nothing_depends_on_the_order_of_voxels_instances_or_events():
    rng = np.random.default_rng(6)
    drawn = cases(12, seed=7)
    tables = [overlap(*case) for case in drawn]
    turned = []
    for case in drawn:
        order = rng.permutation(len(case[0]))
        turned.append(overlap(*(column[order] for column in case)))
    a, b = (clustering(one, 5, seed=3, resamples=50) for one in (tables, turned[::-1]))
    for name in a.means:
        values = [(one.means[name].value, one.means[name].low, one.means[name].high) for one in (a, b)]
        np.testing.assert_allclose(*values, rtol=1e-12)
    np.testing.assert_allclose(a.parts, b.parts, rtol=1e-12)
    assert (a.confusion == b.confusion).all()
    assert all(one.low <= one.value <= one.high for name, one in a.means.items() if name.startswith("ari"))


def test_bad_labels_are_named():
    with pytest.raises(ValueError, match="predicted has 2 rows and truth 3"):
        overlap(np.zeros(3, int), np.zeros(2, int))
    with pytest.raises(ValueError, match="truth has an instance -2"):
        overlap(np.array([-2, 0]), np.zeros(2, int))
    with pytest.raises(ValueError, match="true_class has -2 where there is an instance; expected classes from -1 up"):
        overlap(np.array([NONE, 0]), np.zeros(2, int), np.array([-1, -2]))
    with pytest.raises(ValueError, match="found_class has -1 where there is an instance; expected classes from 0 up"):
        overlap(np.zeros(2, int), np.array([NONE, 0]), None, np.array([-1, -1]))


def test_the_conventions_are_those_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    page = text.partition("## Particles and interactions")[2].partition("## Kinematics")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.*?) \|$", page, re.M)) == CONVENTIONS


def test_every_number_has_its_convention():
    assert json.dumps(dict(CONVENTIONS))
    result = clustering([overlap(*case) for case in cases(3)], 5, resamples=2)
    assert set(result.means) <= set(CONVENTIONS)
    assert {f"ari_class_{mode}" for mode in result.class_ari} <= set(CONVENTIONS)
