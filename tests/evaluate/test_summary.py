"""Values of single events against the numbers that they are averaged to."""

import math

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from larpanda.evaluate.clustering import NONE, overlap
from larpanda.evaluate.summary import clustering, per_event_as_json


def made(seed, n=120):
    rng = np.random.default_rng(seed)
    truth = rng.integers(NONE, 5, n)
    predicted = np.where(rng.random(n) < 0.8, truth, rng.integers(NONE, 5, n))
    kinds = rng.integers(0, 3, 5)
    return truth, predicted, kinds[truth], kinds[predicted]


def test_means_over_events_are_those_of_the_values():
    cases = [made(seed) for seed in range(6)]
    result = clustering([overlap(*case) for case in cases], 3, resamples=2)
    for name in ("ari", "purity", "efficiency"):
        assert result.each.values[name].mean() == pytest.approx(result.means[name].value)
    means = [float(np.mean(column[~np.isnan(column)])) for column in result.each.of_class["ari"].T]
    assert means == pytest.approx(list(result.class_ari["one_vs_rest"]))
    assert result.each.true_instances.tolist() == [len(set(truth[truth >= 0])) for truth, *_ in cases]


def test_values_of_a_class_by_brute_force():
    truth, predicted, kind, found_kind = made(7)
    each = clustering([overlap(truth, predicted, kind, found_kind)], 3, resamples=2).each
    for c in range(3):
        mine, theirs = set(truth[(truth >= 0) & (kind == c)]), set(predicted[(predicted >= 0) & (found_kind == c)])
        share = lambda a, i, b: max(((a == i) & (b == j)).sum() for j in set(b[b >= 0])) / (a == i).sum()  # noqa: E731
        expected = [
            np.mean([share(predicted, i, truth) for i in theirs]) if theirs else math.nan,
            np.mean([share(truth, i, predicted) for i in mine]) if mine else math.nan,
            adjusted_rand_score(
                np.where(np.isin(truth, list(mine)), truth, NONE),
                np.where(np.isin(predicted, list(theirs)), predicted, NONE),
            )
            if mine
            else math.nan,
        ]
        got = [each.of_class[name][0, c] for name in ("purity", "efficiency", "ari")]
        assert got == pytest.approx(expected, nan_ok=True)


def test_what_does_not_exist_is_null():
    nothing = np.full(4, NONE)
    each = clustering([overlap(nothing, nothing)], 2, resamples=2).each
    assert per_event_as_json(each, ["a", "b"])["ari"] == [None]
    assert per_event_as_json(each, ["a", "b"])["purity_class"] == {"a": [None], "b": [None]}
    one = per_event_as_json(clustering([overlap(nothing + 1, nothing)], 1, resamples=2).each, ["interaction"])
    assert one["efficiency"] == [0.0]
    assert "purity_class" not in one
