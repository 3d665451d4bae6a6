"""The linear probe against scikit-learn, and what it must not depend on."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from larpanda.evaluate.probe import fit_probes


@pytest.fixture
def data():
    """Three overlapping classes in 6 dimensions of very different size, one of them constant."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 900)
    x = rng.normal(size=(900, 6)) + np.eye(6)[label] * 1.5
    x = x * [1.0, 100.0, 0.01, 1.0, 1.0, 0.0] + [0.0, 50.0, 0.0, 0.0, 3.0, 7.0]
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(label)


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_weights_are_those_of_scikit_learn(data, penalty):
    x, label = data
    (probe,) = fit_probes(x, label, 3, [penalty], 2000)
    varies = x.std(0) > 0
    scaled = ((x - x.mean(0)) / x.std(0, correction=0))[:, varies].double().numpy()
    oracle = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-10, max_iter=10_000).fit(scaled, label.numpy())
    ours = probe.weight[varies] * x.std(0, correction=0)[varies, None]
    ours = ours - ours.mean(1, keepdim=True)  # classes may share a constant
    expected = oracle.coef_.T - oracle.coef_.T.mean(1, keepdims=True)
    np.testing.assert_allclose(ours.numpy(), expected, atol=0.01)
    assert (probe.predict(x).numpy() == oracle.predict(scaled)).mean() > 0.995
    assert not probe.weight[~varies].any()


def test_a_fit_can_begin_where_another_ended(data):
    """At the minimum there is nowhere to go: no iteration changes it; from there one more fit is the same."""
    x, label = data
    (there,) = fit_probes(x, label, 3, [1e-3], 2000)
    (again,) = fit_probes(x, label, 3, [1e-3], 1, first=there)
    torch.testing.assert_close(again.predict(x), there.predict(x))
    torch.testing.assert_close(again.weight * x.std(0)[:, None], there.weight * x.std(0)[:, None], atol=2e-3, rtol=2e-3)


def test_a_stronger_penalty_gives_smaller_weights(data):
    sizes = [probe.weight[[0, 3, 4]].square().sum().item() for probe in fit_probes(*data, 3, (1.0, 1e-2, 1e-4))]
    assert sizes == sorted(sizes)


def test_the_scale_of_a_feature_does_not_matter(data):
    x, label = data
    a, b = (fit_probes(y, label, 3, [1e-3], 500)[0] for y in (x, x * 1000 - 3))
    assert (a.predict(x) == b.predict(x * 1000 - 3)).float().mean() > 0.995


def test_what_cannot_be_fitted(data):
    x, label = data
    with pytest.raises(ValueError, match="at least one labelled point"):
        fit_probes(x[:0], label[:0], 3)
    with pytest.raises(ValueError, match="not finite"):
        fit_probes(x * torch.nan, label, 3)
