"""Lines through points against curves whose length is known."""

import numpy as np
import pytest

from larpanda.analysis.trajectory import loss_profile, trajectory


def voxels(curve):
    """Centres of the 3 mm voxels along a curve [K, 3] in cm."""
    return (np.unique(np.floor(curve / 0.3).astype(int), axis=0) + 0.5) * 0.3


def length_of(curve):
    return np.linalg.norm(np.diff(curve, axis=0), axis=1).sum()


def straight(t):
    return 50 + t[:, None] * np.array([30.0, 20.0, 10.0])


def arc(t):
    return 50 + 15 * np.stack([np.cos(2.5 * t), np.sin(2.5 * t), 0.3 * t], 1)


def kinked(t):
    s = 40 * t[:, None]
    return 50 + np.where(s < 25, s * [0, 0.6, 0.8], 25 * np.array([0, 0.6, 0.8]) + (s - 25) * [1, 0, 0])


@pytest.mark.parametrize("curve", [straight, arc, kinked])
def test_length_and_ends_are_those_of_the_curve(curve):
    true = curve(np.linspace(0, 1, 5000))
    points = voxels(true)
    found = trajectory(points)
    assert found.length == pytest.approx(length_of(true), rel=0.03)
    gaps = [np.linalg.norm(points[found.ends][:, None] - end, axis=2).min() for end in (true[[0]], true[[-1]])]
    assert max(gaps) < 0.4
    nearest = np.linalg.norm(true[:, None] - found.line, axis=2).min(0)
    assert nearest.max() < 0.5
    back = found.reversed()
    assert back.ends.tolist() == found.ends.tolist()[::-1]
    np.testing.assert_allclose(back.along + found.along, found.length)
    assert found.along.min() == 0.0
    assert found.along.max() == pytest.approx(found.length)


def test_gaps_are_bridged_and_the_order_of_points_changes_nothing():
    points = voxels(straight(np.linspace(0, 1, 5000)))
    kept = points[(np.arange(len(points)) % 40) < 25]  # holes of several voxels
    whole, broken = trajectory(points), trajectory(kept)
    assert broken.length == pytest.approx(whole.length, rel=0.05)
    order = np.random.default_rng(0).permutation(len(points))
    again = trajectory(points[order])
    assert again.length == pytest.approx(whole.length, rel=1e-12)
    assert set(map(tuple, points[order][again.ends])) == set(map(tuple, points[whole.ends]))
    np.testing.assert_allclose(again.along, whole.along[order], atol=1e-9)


def test_points_in_one_place_and_few_points():
    assert trajectory(np.ones((1, 3))).length == 0.0
    two = trajectory(np.array([[0.0, 0, 0], [0.3, 0, 0]]))
    assert two.length == pytest.approx(0.3)
    assert sorted(two.ends.tolist()) == [0, 1]
    twice = trajectory(np.array([[0.0, 0, 0], [0.0, 0, 0], [0.3, 0, 0], [5.0, 0, 0]]))
    assert twice.length == pytest.approx(5.0, rel=1e-3)


def test_a_profile_holds_all_energy():
    middles, loss = loss_profile(np.array([0.0, 1.0, 2.0, 9.9]), np.array([1.0, 2.0, 3.0, 4.0]), 9.9, 3.0)
    assert len(middles) == 3
    assert (loss * 3.3).sum() == pytest.approx(10.0)
    assert loss[0] == pytest.approx(6.0 / 3.3)
    assert len(loss_profile(np.zeros(1), np.ones(1), 0.0, 3.0)[0]) == 0
