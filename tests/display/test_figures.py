"""The figures say the numbers they are given, the same way every time."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from larpanda.display import figures
from larpanda.display.figures import (
    INSTANCE_COLORS,
    MOTIF_COLOR,
    MOTIF_NAME,
    bars_svg,
    boxes_svg,
    confusion_svg,
    distributions_svg,
    histogram_svg,
    lines_svg,
)

NAMES = list(MOTIF_NAME.values())
NAN = float("nan")


def words(svg: str) -> list[str]:
    return [
        "".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter() if "text" in element.tag
    ]


def test_confusion_is_normalised_both_ways():
    counts = np.array([[80, 15, 5], [10, 190, 0], [0, 5, 45]])
    text = words(confusion_svg(counts, ["a", "b", "c"]))
    recall = [f"{100 * share:.1f}" if share else "0" for share in (counts / counts.sum(1, keepdims=True)).ravel()]
    precision = [f"{100 * share:.1f}" if share else "0" for share in (counts / counts.sum(0, keepdims=True)).ravel()]
    cells = [word for word in text if word.replace(".", "").isdigit()]
    assert sorted(recall + precision) == sorted(word for word in cells if word in recall + precision)
    assert text.index("80.0") < text.index("88.9")  # recall of the first class stands before its precision


def test_classes_without_entries_stay_empty():
    text = words(confusion_svg([[5, 0], [0, 0]], ["a", "b"]))
    assert "100.0" in text
    assert not any("nan" in word for word in text)


def test_small_shares_are_not_called_zero():
    assert "<0.1" in words(confusion_svg([[100_000, 1], [0, 7]], ["a", "b"]))


def test_bars_say_value_and_absence():
    values = [0.912, 0.98, NAN, 0.7, 0.0]
    text = words(bars_svg(values, [0.9, 0.97, NAN, NAN, 0.0], [0.92, 0.99, NAN, NAN, 0.0], NAMES))
    assert [word for word in text if word in ("0.912", "0.980", "absent", "0.700", "0.000")] == [
        "0.912", "0.980", "absent", "0.700", "0.000",
    ]  # fmt: skip
    assert set(NAMES) <= set(text)


def test_bars_have_the_colours_of_their_motifs():
    svg = bars_svg([0.5] * 5, [0.4] * 5, [0.6] * 5, [name.lower() for name in NAMES])
    assert all(color.lower() in svg for color in MOTIF_COLOR.values())


def test_figures_repeat_and_can_stand_in_a_page():
    for draw in (
        lambda: confusion_svg(np.eye(5), NAMES),
        lambda: bars_svg([0.5] * 5, [NAN] * 5, [NAN] * 5, NAMES),
    ):
        svg = draw()
        assert svg == draw()
        assert svg.startswith("<svg")
        assert "matplotlib.org" not in svg
    assert "<b>" not in confusion_svg(np.eye(2), ["<b>", "$x"])
    assert words(bars_svg([0.5], [NAN], [NAN], ["<b>"]))[0] != ""


def test_mistakes_are_named():
    for counts in (np.eye(4), np.ones(5), -np.eye(5), np.full((5, 5), NAN)):
        with pytest.raises(ValueError, match="for 5 names"):
            confusion_svg(counts, NAMES)
    with pytest.raises(ValueError, match=r"lengths \[4, 5\]"):
        bars_svg([0.5] * 5, [0.4] * 5, [0.6] * 5, NAMES[:4])


def test_colours_differ():
    assert len({*MOTIF_COLOR.values()}) == 5
    assert len({*INSTANCE_COLORS}) == 24


def test_lines_have_their_names_and_a_fitting_axis():
    few = lines_svg([("only one", [1, 2], [0.5, 0.6], [0.4, 0.5], [0.6, 0.7])], "labels", "macro F1")
    wide = [(name, [10, 1000], [0.5, 0.6], [np.nan, 0.5], [np.nan, 0.7]) for name in ("first", "second")]
    many = lines_svg(wide, "labels", "macro F1")
    assert few.startswith("<svg")
    assert "macro F1" in few
    assert "only one" not in few  # nothing to tell apart
    assert "first" in many
    assert "second" in many
    assert many == lines_svg(wide, "labels", "macro F1")
    assert lines_svg([], "x", "y").startswith("<svg")


def test_distributions_say_their_quartiles():
    values = [0.0, 0.25, 0.5, 0.75, 1.0, NAN]
    drawn = distributions_svg([("ARI", [("aggregated", values), ("muon", [])]), ("purity", [("aggregated", [0.5])])])
    text = words(drawn)
    assert any("aggregated [0.250, 0.750]" in word for word in text)
    assert any("muon no event" in word for word in text)
    assert drawn == distributions_svg(
        [("ARI", [("aggregated", values), ("muon", [])]), ("purity", [("aggregated", [0.5])])]
    )


def test_boxes_are_of_the_paper_and_mark_the_doubtful_one():
    number, values = [1, 1, 2, 2, 2, 5], [0.0, 1.0, 0.5, 0.6, NAN, NAN]
    text = " ".join(words(boxes_svg([("ARI", values)], number, "interactions", doubtful=1)))
    assert "1*" in text
    assert "interactions, and how many events" in text
    assert "5" not in text.split("interactions")[0].split("1*")[1]  # nothing is known of events with five
    panel = Figure().subplots()
    figures._box(panel, [np.arange(101.0)], [0.0], vertical=True)
    ends = {float(y) for line in panel.get_lines() for y in np.atleast_1d(line.get_ydata())}
    assert {10.0, 25.0, 50.0, 75.0, 90.0} <= ends | {25.0, 75.0}
    assert len(panel.get_lines()) == 6  # two whiskers, two caps, median, mean: no outliers


def test_a_histogram_says_what_it_counts():
    for counts in ([0, 0, 0], [1, 3, 2], [5, 1000, 0]):
        drawn = histogram_svg(counts, [1, 10, 100, 1000], "voxels & more", "events")
        assert {"voxels & more", "events"} <= set(words(drawn))
        assert drawn == histogram_svg(counts, [1, 10, 100, 1000], "voxels & more", "events")
