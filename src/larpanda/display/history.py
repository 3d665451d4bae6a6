"""The page of a run's curves: what was logged, against the step, as SVG. Reads no log and judges nothing."""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from larpanda.display.figures import INSTANCE_COLORS, MOTIF_COLOR, MOTIF_NAME, svg_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]
MOST_POINTS = 800  # of a curve as it is drawn
SMOOTH_FROM = 200  # steps; a shorter curve is drawn as it is


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A number that was logged at some steps."""

    step: Floats  # [N] ascending
    value: Floats  # [N] finite


@dataclass(frozen=True)
class Panel:
    """Curves that share their axes."""

    title: str
    keys: Mapping[str, str]
    """Key of the log -> name of the curve."""
    log: bool = False
    """Whether the axis is logarithmic, if all values are positive."""
    marks: bool = False
    """For numbers of few steps."""
    colors: Sequence[str] = INSTANCE_COLORS


@dataclass(frozen=True)
class Group:
    """Panels that tell of one thing."""

    title: str
    note: str
    panels: tuple[Panel, ...]


_LEVELS = 16  # more than any encoder has
GROUPS = (
    Group(
        "Loss",
        "Entropy of the targets plus KL divergence, so it may rise while the model learns: read it with the next two.",
        (
            Panel("loss", {"loss": "loss"}),
            Panel("its terms, each without its weight", {"local": "local", "mask": "masked", "swap": "swapped"}),
            Panel("accuracy of the batch", {"accuracy": "accuracy"}),
        ),
    ),
    Group(
        "Targets",
        "At log P the targets say nothing (uniform collapse); at 0 each is one prototype. KL near 0: no gradient.",
        (
            Panel("entropy of the targets h(q), nats", {"entropy": "h(q)"}),
            Panel("KL of the student from the teacher, nats", {"kl": "KL"}, log=True),
        ),
    ),
    Group(
        "Prototypes and features",
        "Few prototypes in use, or a spread near 0: all cells look alike (single-prototype collapse).",
        (
            Panel("share of prototypes nearest to any cell", {"usage": "usage"}),
            Panel("perplexity of nearest prototypes", {"perplexity": "perplexity"}, log=True),
            Panel("spread of features over cells", {f"spread_{i}": f"level {i}" for i in range(_LEVELS)}),
        ),
    ),
    Group(
        "Validation",
        "Voxels of events that were not trained on; in pre-training from a linear probe of the frozen features.",
        (
            Panel("macro F1", {"validation_macro_f1": "macro F1"}, marks=True),
            Panel(
                "F1 of each motif",
                {f"validation_f1_{motif.name.lower()}": name for motif, name in MOTIF_NAME.items()},
                marks=True,
                colors=tuple(MOTIF_COLOR.values()),
            ),
        ),
    ),
    Group(
        "Gradient and matching",
        "Norm before clipping; share of the cells of local views, and of masked cells, that have a target.",
        (
            Panel("gradient norm", {"gradient": "gradient"}, log=True),
            Panel("share of cells with a target", {"matched_local": "local", "matched_mask": "masked"}),
        ),
    ),
    Group(
        "Schedules",
        "What the run was told to do.",
        (
            Panel("learning rate", {"lr": "learning rate"}),
            Panel("weight decay", {"weight_decay": "weight decay"}),
            Panel("teacher's temperature", {"temperature": "temperature"}),
            Panel("teacher's momentum", {"momentum": "momentum"}),
            Panel("share of patches masked", {"mask_ratio": "share"}),
            Panel("edge of a masked patch, voxels", {"mask_voxels": "edge"}),
        ),
    ),
    Group(
        "Speed",
        "A share of waiting far from 0 says that reading and making views is slower than the model.",
        (
            Panel("events a second", {"events_per_s": "events"}),
            Panel("points a second", {"points_per_s": "points"}),
            Panel("seconds a step", {"seconds": "seconds"}, log=True),
            Panel("share of time waiting for data", {"waited": "waiting"}),
        ),
    ),
)
_NOT_DRAWN = {"step", "eta_s"}


def curves_page(
    title: str, text: str, curves: Mapping[str, Curve], lines: Mapping[str, tuple[float, str]], alarms: Sequence[float]
) -> str:
    """Draw all curves of a run; groups without any are left out, keys that no group knows stand at the end.

    Args:
        title: of the page.
        text: shown above the curves, for example the state of the run.
        curves: by key of the log.
        lines: by key, a level to draw across its panel and what it is, for example log P.
        alarms: steps to mark.

    Returns:
        A self-contained page, the same text for the same numbers. A curve of more than 200 steps has its running mean
        over a hundredth of them in front of the raw values; one of more than 800 is thinned, its raw extremes kept.
    """
    sections = []
    for group in (*GROUPS, _others(curves)):
        drawn = [
            _panel_svg(panel, curves, lines, alarms) for panel in group.panels if panel.keys.keys() & curves.keys()
        ]
        if drawn:
            figures = "".join(f"<figure>{svg}</figure>" for svg in drawn)
            note = f"<p>{html.escape(group.note)}</p>" if group.note else ""
            sections.append(f"<h2>{html.escape(group.title)}</h2>{note}<div>{figures}</div>")
    return _PAGE.format(title=html.escape(title), text=html.escape(text), sections="\n".join(sections))


def _others(curves: Mapping[str, Curve]) -> Group:
    known = {key for group in GROUPS for panel in group.panels for key in panel.keys} | _NOT_DRAWN
    rest = [key for key in curves if key not in known]
    panels = (Panel(key, {key: key}, marks=key.startswith("validation_")) for key in rest)
    return Group("Other numbers of the log", "", tuple(panels))


def _panel_svg(
    panel: Panel, curves: Mapping[str, Curve], lines: Mapping[str, tuple[float, str]], alarms: Sequence[float]
) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 2.7), layout="constrained")
    axes = figure.subplots()
    shown = [(curves[key], name, i) for i, (key, name) in enumerate(panel.keys.items()) if key in curves]
    for curve, name, i in shown:
        _draw(axes, curve, name, panel.colors[i % len(panel.colors)], panel.marks)
    levels = [lines[key] for key in panel.keys if key in lines]
    for level, what in levels:
        axes.axhline(level, color="#444444", linewidth=1, linestyle="--", label=what)
    if panel.log and all((curve.value > 0).all() for curve, _, _ in shown):
        axes.set_yscale("log")
    for step in alarms[:: max(1, len(alarms) // 20)]:
        axes.axvline(step, color="#C03830", linewidth=0.8, linestyle=":")
    if len(shown) > 1 or levels:
        axes.legend(fontsize=7, frameon=False)
    axes.set_title(panel.title.replace("$", r"\$"), fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="#E4E4E4", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return svg_text(figure)


def _draw(axes: "Axes", curve: Curve, name: str, color: str, marks: bool) -> None:
    n = len(curve.step)
    rows = thin(curve.value)
    if marks or n < 2:
        axes.plot(curve.step[rows], curve.value[rows], "o-", color=color, markersize=4, linewidth=1, label=name)
        return
    smooth = n > SMOOTH_FROM
    axes.plot(
        curve.step[rows],
        curve.value[rows],
        color=color,
        linewidth=0.6 if smooth else 1.2,
        alpha=0.3 if smooth else 1.0,
        label=None if smooth else name,
    )
    if smooth:
        every = slice(None, None, -(-n // MOST_POINTS))
        axes.plot(curve.step[every], running_mean(curve.value)[every], color=color, linewidth=1.4, label=name)


def thin(value: Floats) -> npt.NDArray[np.int64]:
    """Choose at most MOST_POINTS rows of [N] values: least and greatest of each stretch, so that no spike goes."""
    n = len(value)
    if n <= MOST_POINTS:
        return np.arange(n)
    edges = np.linspace(0, n, MOST_POINTS // 2 + 1).astype(np.int64)
    return np.fromiter(_extremes(value, edges), np.int64)


def _extremes(value: Floats, edges: npt.NDArray[np.int64]) -> Iterator[int]:
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        stretch = value[first:last]
        yield from sorted({first + int(stretch.argmin()), first + int(stretch.argmax())})


def running_mean(value: Floats) -> Floats:
    """Mean of [N] values over a hundredth of them around each; at the ends over as many as there are."""
    n = len(value)
    half = max(1, n // 200)
    begin = value[0]  # sums of what is constant are then exact
    summed = np.concatenate([[0.0], np.cumsum(value - begin)])
    low, high = np.maximum(np.arange(n) - half, 0), np.minimum(np.arange(n) + half + 1, n)
    mean: Floats = begin + (summed[high] - summed[low]) / (high - low)
    return mean


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
pre {{ background: #f4f4f4; padding: 1rem; white-space: pre-wrap; }}
div {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem; }}
figure {{ margin: 0; }}
svg {{ width: 100%; height: auto; }}
</style>
<h1>{title}</h1>
<pre>{text}</pre>
{sections}
</html>
"""
