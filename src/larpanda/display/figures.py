"""The figures of a metrics report, as SVG text, and the colours that all our pictures share. Computes no metric."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from larpanda.event import Motif

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

MOTIF_NAME = {
    Motif.SHOWER: "shower",
    Motif.TRACK: "track",
    Motif.MICHEL: "Michel",
    Motif.DELTA: "delta",
    Motif.LED: "LED",
}
# The palette of Okabe and Ito (2008). Of the ways to hand it out, one of the few whose least distance in OKLab, also as
# seen without red, green or blue cones (Machado et al. 2009), is 0.13; what touches a track is furthest from its blue.
MOTIF_COLOR = {
    Motif.SHOWER: "#E69F00",
    Motif.TRACK: "#0072B2",
    Motif.MICHEL: "#D55E00",
    Motif.DELTA: "#56B4E9",
    Motif.LED: "#999999",
}
_OTHER_COLOR = "#4C566A"  # of a class that is no motif
# Of particles and interactions, by their number: each as far in OKLab as can be from those before it, of lightness 0.54
# to 0.80 and chroma 0.09 to 0.19, so that all read on white and on black.
# fmt: off
INSTANCE_COLORS = (
    "#0078B0", "#F8A800", "#E880F0", "#C03830", "#00D8D8", "#389800", "#A040B0", "#70A0F8",
    "#88D040", "#F87078", "#B08018", "#10A898", "#B078A8", "#7068E8", "#308060", "#C8B0F0",
    "#98B070", "#D84888", "#F8A0B0", "#B070F0", "#985878", "#E06010", "#00C070", "#986030",
)
# fmt: on


def confusion_svg(counts: npt.ArrayLike, names: Sequence[str]) -> str:
    """Draw a confusion matrix twice: as shares of each true class, and as shares of each predicted class.

    Args:
        counts: [C, C] voxels (or particles), row = truth, column = prediction.
        names: [C] of the classes.

    Returns:
        One ``<svg>`` element, the same text for the same numbers. The diagonal is recall on the left, precision on
        the right; a class without any entry has empty cells.

    Raises:
        ValueError: counts is not a square of numbers that are not negative, with one name a row.
    """
    from matplotlib.figure import Figure

    table = np.asarray(counts, dtype=np.float64)
    if table.shape != (len(names), len(names)) or not (table >= 0).all():
        raise ValueError(
            f"counts has shape {table.shape} for {len(names)} names; expected [C, C], no entry negative or NaN"
        )
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = ("% of each true class (recall)", "% of each predicted class (precision)")
    for panel, title, axis in zip(panels, titles, (1, 0), strict=True):
        support = table.sum(axis=axis, keepdims=True)
        share = np.divide(table, support, out=np.full_like(table, np.nan), where=support > 0)
        panel.imshow(share, vmin=0, vmax=1, cmap="Blues")
        for row, column in np.ndindex(*share.shape):
            if np.isfinite(value := share[row, column]):
                dark = "white" if value > 0.55 else "#222222"
                panel.text(column, row, _percent(value), ha="center", va="center", color=dark, fontsize=10)
        total = support.ravel()
        labels = [f"{name}\n{_count(n)}" for name, n in zip(names, total, strict=True)]
        panel.set_xticks(range(len(names)), labels if axis == 0 else names)
        panel.set_yticks(range(len(names)), labels if axis == 1 else names)
        panel.tick_params(length=0)
        panel.set_xlabel("predicted")
        panel.set_ylabel("true")
        panel.set_title(title, fontsize=11)
        panel.spines[:].set_visible(False)
    return svg_text(figure)


def bars_svg(values: Sequence[float], low: Sequence[float], high: Sequence[float], names: Sequence[str]) -> str:
    """Draw one bar a class with its 68 % interval.

    Args:
        values: [C] between 0 and 1, for example F1; NaN for a class that does not occur, shown as "absent".
        low: [C] lower ends of the intervals; NaN for none.
        high: [C] upper ends of the intervals; NaN for none.
        names: [C] of the classes; those of motifs get their colours.

    Returns:
        One ``<svg>`` element, the same text for the same numbers.

    Raises:
        ValueError: the four do not have the same length.
    """
    from matplotlib.figure import Figure

    lengths = {len(values), len(low), len(high), len(names)}
    if len(lengths) != 1:
        raise ValueError(f"values, low, high and names have lengths {sorted(lengths)}; expected one")
    colors = {MOTIF_NAME[motif].lower(): color for motif, color in MOTIF_COLOR.items()}
    figure = Figure(figsize=(6.4, 0.7 + 0.46 * len(names)), layout="constrained")
    panel = figure.subplots()
    for row, (value, bottom, top, name) in enumerate(zip(values, low, high, names, strict=True)):
        if np.isnan(value):
            panel.text(0.01, row, "absent", va="center", color="#777777", style="italic")
            continue
        panel.barh(row, value, height=0.62, color=colors.get(name.lower(), _OTHER_COLOR))
        if bounded := not (np.isnan(bottom) or np.isnan(top)):
            panel.plot([bottom, top], [row, row], color="#222222", linewidth=1.4, solid_capstyle="butt")
            panel.plot([bottom, top], [row, row], "|", color="#222222", markersize=7)
        panel.text(max(value, top) + 0.015 if bounded else value + 0.015, row, f"{value:.3f}", va="center")
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_xlim(0, 1.12)  # room for the number beside a full bar
    panel.set_xticks(np.linspace(0, 1, 6))
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color="#DDDDDD", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    return svg_text(figure)


def lines_svg(
    lines: Sequence[tuple[str, Sequence[float], Sequence[float], Sequence[float], Sequence[float]]], x: str, y: str
) -> str:
    """Draw lines with an interval at each point, over a logarithmic axis if the places span more than a factor of 10.

    Args:
        lines: name, then places, values, lower and upper ends, each of one length; NaN ends are left out.
        x: what the places are.
        y: what the values are.

    Returns:
        One ``<svg>`` element, the same text for the same numbers.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 4.8), layout="constrained")
    panel = figure.subplots()
    for i, (name, places, values, low, high) in enumerate(lines):
        color = INSTANCE_COLORS[i % len(INSTANCE_COLORS)]
        panel.plot(places, values, "o-", color=color, markersize=3.5, linewidth=1.4, label=name)
        panel.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
    everywhere = [place for _, places, *_ in lines for place in places]
    if everywhere and min(everywhere) > 0 and max(everywhere) > 10 * min(everywhere):
        panel.set_xscale("log")
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.grid(color="#E4E4E4", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)  # inside it would hide lines
    return svg_text(figure)


def distributions_svg(panels: Sequence[tuple[str, Sequence[tuple[str, npt.ArrayLike]]]]) -> str:
    """Figure 7 of the paper: histograms of events' values between 0 and 1, each with a box plot above it.

    Args:
        panels: a column each: what the values are, and its rows: name, values of events (NaN: left out).

    Returns:
        One ``<svg>`` element. Of a box plot: red diamond the mean, line the median, box the quartiles, whiskers the
        10th and 90th percentile; counts are on a logarithmic axis.
    """
    from matplotlib.figure import Figure

    n_rows = max(len(rows) for _, rows in panels)
    figure = Figure(figsize=(3.1 * len(panels), 1.5 * n_rows), layout="constrained")
    grid = figure.add_gridspec(2 * n_rows, len(panels), height_ratios=[1, 2.6] * n_rows)
    for column, (title, rows) in enumerate(panels):
        for row, (name, values) in enumerate(rows):
            known = _known(values)
            above = figure.add_subplot(grid[2 * row, column])
            panel = figure.add_subplot(grid[2 * row + 1, column])
            _box(above, [known], [0.0], vertical=False)
            above.set_xlim(0, 1.02)
            above.axis("off")
            quartiles = "[{:.3f}, {:.3f}]".format(*np.quantile(known, (0.25, 0.75))) if len(known) else "no event"
            above.set_title(f"{title if row == 0 else ''}\n{name} {quartiles}".lstrip(), fontsize=8, loc="left")
            panel.hist(known, bins=np.linspace(0, 1, 51).tolist(), color=INSTANCE_COLORS[column], log=bool(len(known)))
            panel.set_xlim(0, 1.02)
            panel.tick_params(labelsize=7)
            panel.spines[["top", "right"]].set_visible(False)
    return svg_text(figure)


def boxes_svg(panels: Sequence[tuple[str, npt.ArrayLike]], number: npt.ArrayLike, x: str, doubtful: int) -> str:
    """Figure 9 of the paper: box plots of events' values for each number of something, conventions as in Figure 7.

    Args:
        panels: what the values are, and the values [E], NaN: left out.
        number: [E] whole numbers, of which each gets a box.
        x: what they count.
        doubtful: the number whose boxes are drawn pale and marked.

    Returns:
        One ``<svg>`` element.
    """
    from matplotlib.figure import Figure

    groups = np.asarray(number)
    figure = Figure(figsize=(9.2, 1.9 * len(panels)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(panels), 1, sharex=True))
    for panel, (title, values) in zip(axes, panels, strict=True):
        column = np.asarray(values, np.float64)
        parts = {int(n): _known(column[groups == n]) for n in np.unique(groups)}
        parts = {n: part for n, part in parts.items() if len(part)}
        boxes = _box(panel, list(parts.values()), [float(n) for n in parts], vertical=True)
        for n, box in zip(parts, boxes, strict=True):
            box.set_alpha(0.35 if n == doubtful else 1.0)
        panel.set_ylabel(title)
        panel.set_ylim(-0.02, 1.04)
        panel.set_xticks(list(parts), [f"{n}{'*' if n == doubtful else ''}\n{len(part)}" for n, part in parts.items()])
        panel.tick_params(labelsize=8)
        panel.grid(axis="y", color="#E4E4E4", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel(f"{x}, and how many events")
    return svg_text(figure)


def histogram_svg(counts: npt.ArrayLike, edges: npt.ArrayLike, x: str, y: str) -> str:
    """Draw a histogram, x on a logarithmic axis, and y too unless all counts are small.

    Args:
        counts: [N] of the bins.
        edges: [N + 1] of the bins, ascending, above 0.
        x: what was counted, with its unit.
        y: what a count is one of.

    Returns:
        One ``<svg>`` element, the same text for the same numbers.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 2.7), layout="constrained")
    panel = figure.subplots()
    height = np.asarray(counts, np.float64)
    panel.stairs(height, np.asarray(edges, np.float64), fill=True, color=INSTANCE_COLORS[0])
    panel.set_xscale("log")
    if height.max(initial=0) > 20:
        panel.set_yscale("log")
        panel.set_ylim(bottom=0.7)  # a bin of one is seen
    panel.set_xlabel(x, fontsize=8)
    panel.set_ylabel(y, fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    return svg_text(figure)


def _known(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    column = np.asarray(values, np.float64)
    known: npt.NDArray[np.float64] = column[~np.isnan(column)]
    return known


def _box(panel: "Axes", parts: list[npt.NDArray[np.float64]], at: list[float], vertical: bool) -> "Sequence[Patch]":
    """Box plots as the paper draws them; none of nothing."""
    if not any(len(part) for part in parts):
        return []
    drawn = panel.boxplot(
        [part.tolist() for part in parts],
        positions=at,
        widths=0.6,
        orientation="vertical" if vertical else "horizontal",
        whis=(10, 90),
        showmeans=True,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": "#C9DCEB", "linewidth": 0.8},
        meanprops={"marker": "D", "markerfacecolor": "red", "markeredgecolor": "red", "markersize": 3.5},
        medianprops={"color": "black", "linewidth": 1.2},
    )
    boxes: Sequence[Patch] = drawn["boxes"]
    return boxes


def svg_text(figure: "Figure") -> str:
    """The figure as one element: no prolog, so that a page can hold it; no date and no random ids."""
    import matplotlib

    page = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "larpanda", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(page, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = page.getvalue()
    return text[text.index("<svg") :]


def _percent(share: float) -> str:
    if share == 0:
        return "0"
    return "<0.1" if share < 0.001 else f"{100 * share:.1f}"


def _count(n: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if n >= size:
            return f"{n / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{n:g}"
