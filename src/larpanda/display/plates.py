"""The paper's Figures 2, 5 and 11 to 15: what each is drawn from, and the drawing. Makes and judges nothing.

Points are pictures within the SVG: a mark for each would take a hundred bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from larpanda.display.figures import INSTANCE_COLORS, MOTIF_COLOR, MOTIF_NAME, svg_text
from larpanda.event import IMAGE_VOXELS, UNKNOWN, Motif, Species

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Integers: TypeAlias = tuple[int, ...]
Numbers: TypeAlias = tuple[float, ...]
RASTER_DPI = 200
NO_LABEL = "#D0D0D0"
SEEN, LOCAL, MASKED = "#0078B0", "#389800", "#E06010"  # of INSTANCE_COLORS
DIRECTIONS = {"zy": "z across, y up", "zx": "z across, x up"}


@dataclass(frozen=True)
class Made:
    """How a figure's numbers were made."""

    source: str
    """Of the events."""
    seed: int
    """Of what is drawn by chance."""
    model: str | None
    """None: there is none in the figure."""
    weights_sha256: str | None
    command: str
    machine: str
    larpanda: str


@dataclass(frozen=True)
class Embedding:
    """Figure 2: P points of events in the plane, by their features."""

    made: Made
    events: int
    event: Integers
    """[P] number of the event in its source."""
    point: Integers
    """[P] number of the point in the event, as a model sees it (``Event.visible``)."""
    motif: Integers
    """[P], a Motif."""
    species: Integers
    """[P], a Species or UNKNOWN."""
    x: Numbers
    """[P] place by features of the pre-trained encoder."""
    y: Numbers
    random_x: Numbers
    """[P] place by those of the same encoder with random weights."""
    random_y: Numbers

    def __post_init__(self) -> None:
        _check_lengths(self, "event", "point", "motif", "species", "x", "y", "random_x", "random_y")


@dataclass(frozen=True)
class Crop:
    """A view of an event, M points."""

    kind: Literal["global", "masked", "local"]
    point: Integers
    """[M] the event's point that lies nearest to where the view's came from."""
    z: Integers
    """[M] place in the view, voxels."""
    y: Integers
    masked: Integers
    """Rows of points that the student is not told of."""

    def __post_init__(self) -> None:
        _check_lengths(self, "point", "z", "y")


@dataclass(frozen=True)
class RecipeViews:
    """The views that a recipe makes."""

    recipe: str
    removed: bool
    """Masked points are taken away from the student's view, not hidden."""
    crops: tuple[Crop, ...]


@dataclass(frozen=True)
class Views:
    """Figure 5: an event of N points, and views of it."""

    made: Made
    entry: int
    """Number of the event in its source."""
    z: Integers
    """[N] voxels."""
    y: Integers
    recipes: tuple[RecipeViews, ...]

    def __post_init__(self) -> None:
        _check_lengths(self, "z", "y")
        _check_some(self, "recipes")
        if any(point >= len(self.z) for recipe in self.recipes for crop in recipe.crops for point in crop.point):
            raise ValueError(f"a view has a point that is none of the event's {len(self.z)}")


@dataclass(frozen=True)
class Projection:
    """M cells in which voxels of an event are seen; of voxels behind one another the labels of the nearest."""

    axes: Literal["zy", "zx"]
    across: Integers
    """[M] number of the cell along the first axis, from the image corner."""
    up: Integers
    true: Integers
    """[M] a Motif, or the number of a colour; UNKNOWN: none."""
    found: Integers

    def __post_init__(self) -> None:
        _check_lengths(self, "across", "up", "true", "found")


@dataclass(frozen=True)
class EventScore:
    """A number of an event."""

    name: str
    value: float


@dataclass(frozen=True)
class Example:
    """An event: truth and prediction."""

    entry: int
    """Number of the event in its source."""
    chosen: Literal["random", "worst"]
    voxels: int
    """Above threshold."""
    scores: tuple[EventScore, ...]
    """The first is what the worst are chosen by."""
    projections: tuple[Projection, ...]


@dataclass(frozen=True)
class Examples:
    """Figures 11 to 13: events by chance, and the worst of many."""

    made: Made
    task: Literal["semantic", "particle", "interaction"]
    judged: int
    """Events among which the worst were looked for: those with a score."""
    cell_voxels: int
    """Edge of a drawn cell."""
    examples: tuple[Example, ...]

    def __post_init__(self) -> None:
        _check_some(self, "examples")


@dataclass(frozen=True)
class BatchSpeed:
    """Measured with batches of one size, in a process of its own."""

    batch: int
    events_per_s: Numbers
    """Of each pass."""
    base_mb: float
    """Peak of memory before the first event: Python, PyTorch, weights."""
    peak_mb: float


@dataclass(frozen=True)
class Throughput:
    """Figures 14 and 15: speed and memory against batch size."""

    made: Made
    heads: Literal["semantic", "panoptic"]
    events: int
    """Of a pass."""
    voxels: int
    """Of an event, above threshold; median."""
    threads: int
    speeds: tuple[BatchSpeed, ...]

    def __post_init__(self) -> None:
        _check_some(self, "speeds")


Plate: TypeAlias = Embedding | Views | Examples | Throughput


def _check_lengths(one: object, *names: str) -> None:
    lengths = {name: len(getattr(one, name)) for name in names}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"lengths differ ({told}); expected one of each a point")


def _check_some(one: object, name: str) -> None:
    if not getattr(one, name):
        raise ValueError(f"{name} are none; expected at least one")


def plate_svg(plate: Plate) -> str:
    """Draw a figure: one ``<svg>`` element, the same text for the same numbers."""
    match plate:
        case Embedding():
            return _embedding_svg(plate)
        case Views():
            return _views_svg(plate)
        case Examples():
            return _examples_svg(plate)
        case Throughput():
            return _throughput_svg(plate)


def _embedding_svg(plate: Embedding) -> str:
    """Above the pre-trained encoder, below random weights; left by motif, right by species."""
    figure = _figure(9.2, 9.4)
    axes = figure.subplots(2, 2)
    motif, species = np.array(plate.motif), np.array(plate.species)
    of_species = np.isin(motif, (Motif.SHOWER, Motif.TRACK)) & (species != UNKNOWN)
    species_color = [INSTANCE_COLORS[s] if known else NO_LABEL for s, known in zip(species, of_species, strict=True)]
    colors = (_colors(plate.motif, "semantic"), species_color)
    titles = ("motif", "species of showers and tracks")
    maps = (("pre-trained", plate.x, plate.y), ("random weights", plate.random_x, plate.random_y))
    for row, (name, x, y) in zip(axes, maps, strict=True):
        for panel, title, color in zip(row, titles, colors, strict=True):
            _dots(panel, x, y, color, 4.0)
            panel.set_title(f"{name}: {title}", fontsize=9)
            _frame(panel)
    legends = (_motif_marks(), [_mark(INSTANCE_COLORS[one], one.name.lower()) for one in Species])
    for panel, marks in zip(axes[1], legends, strict=True):
        panel.legend(handles=marks, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=5, fontsize=8, frameon=False)
    return svg_text(figure)


def _views_svg(plate: Views) -> str:
    """Two rows a recipe: which part of the event a view is, and the view."""
    n = max(len(recipe.crops) for recipe in plate.recipes)
    figure = _figure(1.5 * n, 3.2 * len(plate.recipes))
    rows = figure.subplots(2 * len(plate.recipes), n, squeeze=False)
    z, y = np.array(plate.z), np.array(plate.y)
    ends = min(z.min(), y.min()) - 10, max(z.max(), y.max()) + 10
    middle = IMAGE_VOXELS / 2  # of a view
    for i, recipe in enumerate(plate.recipes):
        places = np.concatenate([part for crop in recipe.crops for part in (crop.z, crop.y)])
        half = 1.05 * np.abs(places - middle).max(initial=1.0)
        for j in range(n):
            where, view = rows[2 * i, j], rows[2 * i + 1, j]
            if j >= len(recipe.crops):
                where.axis("off")
                view.axis("off")
                continue
            crop = recipe.crops[j]
            point = np.array(crop.point, np.int64)
            masked = np.isin(np.arange(len(point)), crop.masked)
            color = np.where(masked, MASKED, LOCAL if crop.kind == "local" else SEEN)
            _dots(where, [*z, *z[point]], [*y, *y[point]], [*[NO_LABEL] * len(z), *color], 1.0)
            shown = ~masked | (not recipe.removed)
            _dots(view, np.array(crop.z)[shown], np.array(crop.y)[shown], color[shown].tolist(), 1.0)
            where.set_title(crop.kind, fontsize=8)
            _frame(where, *ends)
            _frame(view, middle - half, middle + half)
        rows[2 * i, 0].set_ylabel(f"{recipe.recipe}\nin the event", fontsize=8)
        rows[2 * i + 1, 0].set_ylabel("as it is seen", fontsize=8)
    named = ((SEEN, "global view"), (MASKED, "masked"), (LOCAL, "local view"), (NO_LABEL, "rest of the event"))
    marks = [_mark(color, name) for color, name in named]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=8, frameon=False)
    return svg_text(figure)


def _examples_svg(plate: Examples) -> str:
    """A row an event, truth beside prediction in each projection."""
    n = max(len(example.projections) for example in plate.examples)
    figure = _figure(4.6 * n, 2.55 * len(plate.examples) + 0.3)
    parts = figure.subfigures(len(plate.examples), 1, squeeze=False)[:, 0]
    cells = IMAGE_VOXELS / plate.cell_voxels
    for part, example in zip(parts, plate.examples, strict=True):
        scores = ", ".join(f"{score.name} {score.value:.3f}" for score in example.scores)
        part.suptitle(f"{example.chosen}: event {example.entry}, {example.voxels:,} voxels; {scores}", fontsize=9)
        panels = part.subplots(1, 2 * n)
        for projection, pair in zip(example.projections, panels.reshape(-1, 2), strict=False):
            for panel, name in zip(pair, ("true", "found"), strict=True):
                colors = _colors(getattr(projection, name), plate.task)
                _dots(panel, projection.across, projection.up, colors, 1.0)
                panel.set_xlabel(
                    f"{'truth' if name == 'true' else 'prediction'}, {DIRECTIONS[projection.axes]}", fontsize=7
                )
                _frame(panel, 0, cells)
    if plate.task == "semantic":
        figure.legend(handles=_motif_marks(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return svg_text(figure)


def _throughput_svg(plate: Throughput) -> str:
    """Events a second (blue) and peak of memory (red) against the size of a batch."""
    figure = _figure(6.4, 3.6)
    left = figure.subplots()
    right = left.twinx()
    sizes = [speed.batch for speed in plate.speeds]
    mean = [np.mean(speed.events_per_s) for speed in plate.speeds]
    deviation = [np.std(speed.events_per_s, ddof=1 if len(speed.events_per_s) > 1 else 0) for speed in plate.speeds]
    left.errorbar(sizes, mean, deviation, color=INSTANCE_COLORS[0], marker="o", markersize=4, capsize=3, linewidth=1.3)
    peak = [speed.peak_mb for speed in plate.speeds]
    right.plot(sizes, peak, "s-", color=INSTANCE_COLORS[3], markersize=4, linewidth=1.3)
    left.set_xscale("log", base=2)
    left.set_xticks(sizes, [str(size) for size in sizes])
    left.minorticks_off()
    left.set_xlabel("events in a batch")
    left.set_ylabel("events/s", color=INSTANCE_COLORS[0])
    right.set_ylabel("peak memory, MB", color=INSTANCE_COLORS[3])
    left.set_ylim(0, 1.1 * max(np.add(mean, deviation)))
    right.set_ylim(0, 1.1 * max(peak))
    left.grid(color="#E4E4E4", linewidth=0.6)
    for panel in (left, right):
        panel.spines[["top"]].set_visible(False)
    return svg_text(figure)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=RASTER_DPI, layout="constrained")


def _dots(panel: "Axes", x: npt.ArrayLike, y: npt.ArrayLike, colors: Sequence[str], size: float) -> None:
    # smooth edges would make the files three times as large
    panel.scatter(x, y, s=size, c=list(colors), linewidths=0, rasterized=True, antialiased=False)


def _frame(panel: "Axes", low: float | None = None, high: float | None = None) -> None:
    """A frame without numbers; with ends, those of both axes."""
    if low is not None:
        panel.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_color("#BBBBBB")


def _colors(labels: Sequence[int], task: str) -> list[str]:
    if task == "semantic":
        return [NO_LABEL if label == UNKNOWN else MOTIF_COLOR[Motif(label)] for label in labels]
    return [NO_LABEL if label == UNKNOWN else INSTANCE_COLORS[label % len(INSTANCE_COLORS)] for label in labels]


def _mark(color: str, name: str) -> "Line2D":
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="o", linestyle="", markersize=4, color=color, label=name)


def _motif_marks() -> "list[Line2D]":
    return [_mark(MOTIF_COLOR[motif], MOTIF_NAME[motif]) for motif in Motif]
