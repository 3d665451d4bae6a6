"""The page of curves: what is there is drawn, whole, and nothing else."""

import re

import numpy as np
import pytest

from larpanda.display.history import MOST_POINTS, Curve, curves_page, running_mean, thin


def curve(values, first=1):
    values = np.asarray(values, dtype=np.float64)
    return Curve(np.arange(first, first + len(values), dtype=np.float64), values)


def page(curves, lines=None, alarms=(), text="state"):
    return curves_page("a run", text, curves, lines or {}, alarms)


def titles(text):
    return re.findall(r"<h2>(.*?)</h2>", text)


def n_points(text):
    """Vertices of the longest line of a page."""
    return max(len(re.findall("[ML]", path)) for path in re.findall(r'd="(.*?)"', text, re.S))


def test_a_fine_tuning_run_has_its_groups_only():
    text = page({"loss": curve([3, 2, 1]), "accuracy": curve([0.1, 0.5, 0.8]), "validation_macro_f1": curve([0.7])})
    assert titles(text) == ["Loss", "Validation"]
    assert text.count("<svg") == 3
    assert "NaN" not in text


def test_what_no_group_knows_is_drawn_at_the_end():
    text = page({"loss": curve([1, 2]), "dice": curve([0.1, 0.2]), "eta_s": curve([9, 8]), "step": curve([1, 2])})
    assert titles(text) == ["Loss", "Other numbers of the log"]
    assert ">dice<" in text
    assert "eta_s" not in text


def test_names_of_levels_motifs_and_lines_are_written():
    curves = {f"spread_{level}": curve([1, 0.9]) for level in range(5)}
    curves |= {f"validation_f1_{motif}": curve([0.2, 0.4]) for motif in ("shower", "track", "michel", "delta", "led")}
    text = page(curves | {"entropy": curve([2.0, 1.9])}, lines={"entropy": (2.1, "log P, P = 8")}, alarms=[1.5])
    assert titles(text) == ["Targets", "Prototypes and features", "Validation"]
    for name in ("level 0", "level 4", "Michel", "LED", "h(q)", "log P, P = 8"):
        assert f">{name}<" in text
    assert text.count("#c03830") >= 3  # the alarm, in every panel


def test_a_page_is_the_same_again_and_loads_nothing():
    curves = {"loss": curve(np.linspace(9, 1, 300)), "gradient": curve(np.geomspace(1e-3, 10, 300))}
    text = page(curves, text="<b> & state")
    assert text == page(curves, text="<b> & state")
    assert "&lt;b&gt; &amp; state" in text
    assert not re.search(r'(src|href)="(?!#)', text)
    assert "@import" not in text


def test_long_curves_are_thinned_and_smoothed_but_keep_their_spikes():
    value = np.random.default_rng(0).standard_normal(100_000)
    value[77_777] = 1000.0
    rows = thin(value)
    assert len(rows) <= MOST_POINTS
    assert 77_777 in rows
    assert (np.diff(rows) > 0).all()
    text = page({"loss": curve(value)})
    assert 2 < n_points(text) <= MOST_POINTS
    assert len(text) < 300_000
    assert n_points(page({"loss": curve(value[:150])})) <= 150
    assert thin(value[:50]).tolist() == list(range(50))


@pytest.mark.parametrize("n", [1, 2, 3, 250, 999])
def test_the_running_mean_is_that_of_a_loop(n):
    value = np.random.default_rng(1).standard_normal(n)
    half = max(1, n // 200)
    expected = [value[max(0, i - half) : i + half + 1].mean() for i in range(n)]
    np.testing.assert_allclose(running_mean(value), expected, atol=1e-12)
    assert (running_mean(np.full(n, 0.07)) == 0.07).all()


@pytest.mark.parametrize("value", [[0.0, -1.0], [0.0, 0.0, 0.0], [5.0]])
def test_values_that_have_no_logarithm_are_drawn_all_the_same(value):
    assert page({"kl": curve(value)}).count("<svg") == 1
