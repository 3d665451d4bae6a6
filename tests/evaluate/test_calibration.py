"""Calibration against closed forms and draws from known probabilities."""

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from larpanda.evaluate.calibration import calibration, calibration_as_json, fit_temperature


def drawn(n, scale, seed=0):
    """Logits, and classes that were drawn from the probabilities of the logits over a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 5))
    p = np.exp(logits / scale)
    p /= p.sum(1, keepdims=True)
    return logits, (p.cumsum(1) > rng.random((n, 1))).argmax(1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_classes_were_drawn_with_is_found(temperature):
    logits, label = drawn(40_000, temperature)
    assert fit_temperature(logits, label) == pytest.approx(temperature, rel=0.03)
    p = np.exp(logits / temperature)
    assert calibration(p / p.sum(1, keepdims=True), label).error < 0.01


def test_bins_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    p = rng.dirichlet([0.5] * 3, 2000)
    label = rng.integers(0, 3, 2000)
    result = calibration(p, label)
    right, said = calibration_curve(p.argmax(1) == label, p.max(1), n_bins=10)
    filled = np.array(result.count) > 0
    np.testing.assert_allclose(np.array(result.said)[filled], said)
    np.testing.assert_allclose(np.array(result.right)[filled], right)
    assert sum(result.count) == 2000
    gaps = np.abs(np.array(result.said) - np.array(result.right))[filled]
    assert result.error == pytest.approx((gaps * np.array(result.count)[filled]).sum() / 2000)


def test_nothing_and_no_mistakes():
    nothing = calibration(np.zeros((0, 5)), [])
    assert math.isnan(nothing.error)
    assert calibration_as_json(nothing)["ece"] is None
    assert fit_temperature(np.zeros((0, 5)), []) == 1.0
    assert fit_temperature([[9.0, 0.0], [0.0, 5.0]], [0, 1]) == 1.0
    assert calibration([[1.0, 0.0], [0.0, 1.0]], [0, 1]).error == 0.0
