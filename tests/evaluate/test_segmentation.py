"""Motif metrics against scikit-learn, and what an interval over events has to do."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from larpanda.evaluate.segmentation import (
    CONVENTIONS,
    as_json,
    confusion,
    parts_as_json,
    segmentation,
    segmentation_by,
)
from larpanda.event import UNKNOWN, Motif

NAMES = [motif.name.lower() for motif in Motif]
LABELS = st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 4)), max_size=40)


def pair(rows):
    truth, predicted = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    return truth, predicted


def random_events(count, seed, accuracy=0.8):
    """Events whose quality and composition differ, as real ones do."""
    rng = np.random.default_rng(seed)
    matrices = []
    for _ in range(count):
        truth = rng.choice(5, size=rng.integers(20, 400), p=rng.dirichlet([4, 4, 0.3, 0.5, 2]))
        right = rng.random(len(truth)) < rng.beta(20 * accuracy, 20 * (1 - accuracy))
        matrices.append(confusion(truth, np.where(right, truth, rng.integers(0, 5, len(truth)))))
    return matrices


def same(a, b):
    return json.dumps(as_json(a)) == json.dumps(as_json(b))


@given(st.lists(LABELS, max_size=6))
def test_agrees_with_scikit_learn(events):
    truth, predicted = (np.concatenate([pair(rows)[k] for rows in events] or [np.zeros(0, int)]) for k in (0, 1))
    truth, predicted = truth[truth >= 0], predicted[truth >= 0]
    result = segmentation([confusion(*pair(rows)) for rows in events], resamples=2)
    present = sorted({*truth.tolist(), *predicted.tolist()})
    assert result.voxels == len(truth)
    assert result.absent == tuple(NAMES[k] for k in range(5) if k not in present)
    assert np.isnan(result.f1).tolist() == [k not in present for k in range(5)]
    if not present:
        assert np.isnan([result.macro_f1, result.mean_iou]).all()
        return
    of = {"labels": present, "average": None, "zero_division": 0}
    assert (result.confusion == metrics.confusion_matrix(truth, predicted, labels=range(5))).all()
    np.testing.assert_allclose(result.f1[present], metrics.f1_score(truth, predicted, **of))
    np.testing.assert_allclose(result.precision[present], metrics.precision_score(truth, predicted, **of))
    np.testing.assert_allclose(result.recall[present], metrics.recall_score(truth, predicted, **of))
    of["average"] = "macro"
    assert result.macro_f1 == pytest.approx(metrics.f1_score(truth, predicted, **of))
    assert result.mean_iou == pytest.approx(metrics.jaccard_score(truth, predicted, **of))


def test_an_absent_motif_does_not_lower_the_mean_and_a_missed_one_does():
    perfect = np.diag([10, 20, 0, 5, 7])
    assert segmentation([perfect]).macro_f1 == 1
    assert segmentation([perfect]).absent == ("michel",)
    missed = perfect.copy()
    missed[Motif.MICHEL, Motif.TRACK] = 1
    result = segmentation([missed])
    assert result.f1[Motif.MICHEL] == 0
    assert result.precision[Motif.MICHEL] == 0
    assert result.macro_f1 == pytest.approx((1 + 40 / 41 + 0 + 1 + 1) / 5)


def test_is_pooled_over_voxels_not_averaged_over_events():
    good, bad = np.diag([1000, 1000, 1000, 1000, 1000]), np.full((5, 5), 1)
    assert segmentation([good, bad]).macro_f1 == pytest.approx(segmentation([good + bad]).macro_f1)
    assert segmentation([good, bad]).macro_f1 > 0.99


def test_tensors_and_arrays_of_any_integer_type_count_the_same():
    truth, predicted = [0, 1, 4, -1, 2], [0, 4, 4, -1, 2]
    expected = confusion(np.array(truth), np.array(predicted))
    assert expected.dtype == np.int64
    assert expected.sum() == 4
    assert (confusion(torch.tensor(truth), torch.tensor(predicted, dtype=torch.int8)) == expected).all()
    assert confusion(np.array([2, 0], np.uint8), np.array([1, 1], np.uint8), classes=3).tolist() == [
        [0, 1, 0],
        [0, 0, 0],
        [0, 1, 0],
    ]


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([0, 1], [0, UNKNOWN], "1 of 2 labelled voxels have no prediction"),
        ([0, 5], [0, 0], r"truth spans 0\.\.5; expected 0\.\.4"),
        ([0, 1], [0, -2], r"predicted spans -2\.\.0"),
        ([0, 1], [0], "2 true labels but 1 predicted"),
        ([0, 1], [0.0, 1.0], "expected integers"),
        ([[0], [1]], [0, 1], "expected integers"),
    ],
)
def test_rejects_labels_that_cannot_be_compared(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        confusion(np.array(truth), np.array(predicted))


def test_rejects_a_matrix_of_other_classes():
    with pytest.raises(ValueError, match=r"confusion matrix 1 has shape \(4, 4\)"):
        segmentation([np.zeros((5, 5), int), np.zeros((4, 4), int)])


def test_the_order_of_events_changes_nothing_and_the_seed_only_the_interval():
    events = random_events(30, seed=1)
    shuffled = [events[k] for k in np.random.default_rng(0).permutation(30)]
    assert same(segmentation(events, seed=3), segmentation(shuffled, seed=3))
    other = segmentation(events, seed=4)
    assert other.macro_f1 == segmentation(events, seed=3).macro_f1
    assert other.macro_f1_low != segmentation(events, seed=3).macro_f1_low


def test_the_interval_is_that_of_a_plain_bootstrap():
    events, rng = random_events(40, seed=2), np.random.default_rng(99)
    macro = []
    for _ in range(2000):
        drawn = sum(events[k] for k in rng.integers(40, size=40))
        macro.append(np.mean([2 * drawn[k, k] / (drawn[k].sum() + drawn[:, k].sum()) for k in range(5)]))
    result = segmentation(events, resamples=4000)
    low, high = np.quantile(macro, [0.16, 0.84])
    tolerance = 0.1 * (high - low)  # about four standard errors of these quantiles
    assert result.macro_f1_low == pytest.approx(low, abs=tolerance)
    assert result.macro_f1_high == pytest.approx(high, abs=tolerance)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    truth = segmentation(random_events(4000, seed=5), resamples=1).macro_f1
    covered = 0
    for k in range(100):
        sample = segmentation(random_events(60, seed=100 + k), resamples=200)
        covered += sample.macro_f1_low <= truth <= sample.macro_f1_high
    assert 54 <= covered <= 82  # 68 +- 3 standard deviations of a binomial


def test_the_interval_shrinks_with_the_number_of_events_and_needs_two():
    widths = []
    for count in (25, 400):
        result = segmentation(random_events(count, seed=6))
        assert result.macro_f1_low < result.macro_f1 < result.macro_f1_high
        assert (result.f1_low <= result.f1).all()
        assert (result.f1 <= result.f1_high).all()
        widths.append(result.macro_f1_high - result.macro_f1_low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.5)  # sqrt(400 / 25)
    alone = segmentation(random_events(1, seed=7))
    assert np.isnan([alone.macro_f1_low, alone.macro_f1_high, *alone.f1_low, *alone.f1_high]).all()


def test_events_without_labels_change_no_number():
    events = random_events(10, seed=8)
    silent = confusion(np.full(50, UNKNOWN), np.full(50, UNKNOWN))
    assert same(segmentation(events), segmentation([*events, silent, silent]))
    assert segmentation([*events, silent]).events == 11
    assert np.isnan(segmentation([events[0], silent]).macro_f1_low)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_json_is_valid_and_complete(count):
    result = segmentation(random_events(count, seed=9))
    text = json.dumps(as_json(result), allow_nan=False)
    back = json.loads(text)
    assert list(back) == [
        *("macro_f1", "macro_f1_low", "macro_f1_high", "f1", "f1_low", "f1_high"),
        *("precision", "recall", "mean_iou", "support", "confusion", "absent"),
    ]
    for key in ("f1", "f1_low", "f1_high", "precision", "recall", "support"):
        assert list(back[key]) == NAMES
    assert sum(back["support"].values()) == result.voxels == np.sum(back["confusion"])
    assert json.dumps(dict(CONVENTIONS))
    if count == 0:
        assert back["macro_f1"] is None
        assert back["absent"] == NAMES


def test_the_page_of_the_metrics_lists_exactly_these_conventions():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text().split("## Particles and interactions")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.*?) \|$", page, re.M)) == CONVENTIONS


def test_parts_are_the_metrics_of_their_events():
    tables = random_events(23, seed=3)
    value = np.random.default_rng(0).permutation(23) / 7
    parts = segmentation_by(value, tables, parts=4)
    assert sum(part.result.events for part in parts) == 23
    assert [part.result.events for part in parts] == [6, 6, 6, 5]
    for part in parts:
        inside = [t for t, v in zip(tables, value, strict=True) if part.low <= v <= part.high]
        expected = segmentation(inside)
        assert part.result.macro_f1 == expected.macro_f1
        assert part.result.macro_f1_low == expected.macro_f1_low
    written = parts_as_json(parts)
    assert json.loads(json.dumps(written)) == written
    assert written[0]["f1"]["track"] == parts[0].result.f1[1]


def test_parts_of_few_events_and_of_none():
    tables = random_events(3, seed=3)
    (whole,) = segmentation_by([2.0, 1.0, 1.5], tables)
    assert (whole.low, whole.high, whole.result.events) == (1.0, 2.0, 3)
    assert segmentation_by([], []) == ()
    with pytest.raises(ValueError, match="2 values for 3 events"):
        segmentation_by([1.0, 2.0], tables)


def test_f1_is_that_of_scikit_learn_in_200_random_cases():
    rng = np.random.default_rng(5)
    for case in range(200):
        n, classes = rng.integers(1, 400), rng.integers(1, 6)
        truth = rng.integers(0, classes, n)
        predicted = np.where(rng.random(n) < rng.random(), truth, rng.integers(0, classes, n))
        result = segmentation([confusion(truth, predicted)], resamples=1)
        present = np.union1d(truth, predicted)
        expected = metrics.f1_score(truth, predicted, labels=present, average=None, zero_division=0)
        np.testing.assert_allclose(result.f1[present], expected, rtol=1e-12, err_msg=f"case {case}")
        assert result.macro_f1 == pytest.approx(expected.mean())
        iou = metrics.jaccard_score(truth, predicted, labels=present, average="macro", zero_division=0)
        assert result.mean_iou == pytest.approx(iou)
