"""A study's tables, ratios and figures from its result files: Tables 1 to 4, Figures 6 and 10 of the paper."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from larpanda.display.figures import lines_svg
from larpanda.evaluate.summary import Estimate
from larpanda.event import Motif, Species
from larpanda.publish import publish_text
from larpanda.results import HEADLINE, ROWS, SUPERVISED, CellResult, Score, Task, Validation, read_grid, read_results

NAMES = {
    "uresnet": "U-ResNet, from scratch",
    "scratch": "transformer, from scratch",
    "linear": "pre-trained, linear",
    "decoder": "pre-trained, decoder",
    "full": "pre-trained, full",
    "linear_k": "pre-trained on the K events, linear",
    "full_k": "pre-trained on the K events, full",
}
TITLE = {"macro_f1": "macro F1", "ari": "ARI", "pq": "PQ"}
TABLES: dict[Task, tuple[str, ...]] = {  # what a table by labels is made of
    "semantic": ("macro_f1",),
    "particle": ("pq", "ari"),
    "interaction": ("pq", "ari"),
}
CLASSES: dict[Task, tuple[Motif | Species, ...]] = {
    "semantic": tuple(Motif),
    "particle": tuple(Species),
    "interaction": (),
}
DRAWS = 2000


def told(one: Estimate) -> str:
    """A ratio as text; an infinite one is only known to be above its lower end."""
    if math.isinf(one.value):
        return f"more than {one.low:.3g}"
    return f"{one.value:.3g} [{one.low:.3g}, {'more' if math.isinf(one.high) else f'{one.high:.3g}'}]"


def write_labels(out: Path) -> str:
    """Write labels.md and an SVG of each test set from the results in a study's folder; returns the tables.

    Raises:
        ValueError: there is no result.
    """
    results = _results(out)
    parts = []
    for source, events in dict.fromkeys((j.source, j.events) for result in results for j in result.tests):
        tables = [table(results, source, score) for score in TABLES[results[0].task]]
        parts += [f"**{Path(source).name}, {events:,} events**", *tables, class_table(results, source)]
        for row, k in sorted({(r.row, r.labels) for r in results if r.row not in SUPERVISED and r.labels == 100}):
            with suppress(ValueError):  # not made yet
                ratio = label_efficiency(results, source, row, k)
                least = min(r.labels for r in results if r.row == "scratch") / k
                words = f"no better than from scratch with {least:g}" if ratio.value <= least else ""
                words = words or f"as good as from scratch with {told(ratio)}"
                parts.append(f"{NAMES[row]} with {k} labels: {words} times the labels")
        publish_text(out / f"labels-{Path(source).stem}.svg", labels_svg(results, source))
    if tried := read_grid(out):
        parts += [f"**Learning rates, {tried[0].labels:,} labels, {tried[0].samples:,} samples**", grid_table(tried)]
    text = "\n\n".join(parts)
    publish_text(out / "labels.md", text + "\n")
    return text


def write_transfer(out: Path) -> str:
    """Write transfer.svg from the results in a study's folder; returns the ratios.

    Raises:
        ValueError: there is no result.
    """
    results = _results(out)
    publish_text(out / "transfer.svg", transfer_svg(results))
    lines = []
    for row in dict.fromkeys(result.row for result in results if result.row not in SUPERVISED):
        with suppress(ValueError):  # not made yet
            ratio = transfer(results, row)
            words = f"{told(ratio)} times fewer event samples to" if ratio.value else "does not reach"
            lines.append(f"{NAMES[row]}: {words} the score from scratch")
    return "\n".join(lines)


def _results(out: Path) -> list[CellResult]:
    if not (results := read_results(out)):
        raise ValueError(f"{out / 'results'}: no results there; run larpanda study first")
    return results


def pooled(scores: Sequence[Score]) -> Estimate:
    """Mean over seeds. Its interval: that over events, and the standard error over seeds, added in squares.

    The seeds share the test events, so the interval over events does not shrink with their number.
    """
    values = np.array([math.nan if score.value is None else score.value for score in scores])
    halves = [(s.high - s.low) / 2 for s in scores if s.low is not None and s.high is not None]
    over_seeds = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    half = math.hypot(float(np.mean(halves)) if halves else 0.0, over_seeds)
    mean = float(values.mean())
    return Estimate(mean, mean - half, mean + half)


def by_cell(results: Sequence[CellResult], source: str, name: str) -> dict[tuple[str, int], list[Score]]:
    """The scores of the seeds of each row and number of labels, on one test set."""
    cells: dict[tuple[str, int], list[Score]] = {}
    for result in results:
        for judged in result.tests:
            if judged.source == source:
                cells.setdefault((result.row, result.labels), []).append(judged.score(name))
    return cells


def table(results: Sequence[CellResult], source: str, name: str) -> str:
    """Tables 1 and 3 in Markdown: a score [68 %] of each row and number of labels, and the number of seeds."""
    cells = by_cell(results, source, name)
    labels = sorted({k for _, k in cells})
    lines = [f"| {TITLE[name]} | {' | '.join(f'{k:,} labels' for k in labels)} |", "|---" * (len(labels) + 1) + "|"]
    for row in ROWS:
        if not any((row, k) in cells for k in labels):
            continue
        texts = []
        for k in labels:
            if scores := cells.get((row, k)):
                one = pooled(scores)
                seeds = f" ({len(scores)})" if len(scores) > 1 else ""
                texts.append(f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]{seeds}")
            else:
                texts.append("")
        lines.append(f"| {NAMES[row]} | {' | '.join(texts)} |")
    return "\n".join(lines)


def class_table(results: Sequence[CellResult], source: str) -> str:
    """Tables 2 and 4 in Markdown: the headline score, and that of each class, with most labels; means over seeds."""
    headline = _headline(results)
    short = {"macro_f1": "f1_", "ari": "ari_"}[headline]
    most = max(result.labels for result in results)
    names = [f"{short}{one.name.lower()}" for one in CLASSES[results[0].task]]
    extra = [name for name in TABLES[results[0].task] if name != headline]
    columns = {name: by_cell(results, source, name) for name in (headline, *extra, *names)}
    titles = [TITLE.get(name, name.removeprefix(short).replace("led", "LED")) for name in columns]
    lines = [f"| {most:,} labels | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for row in ROWS:
        if (row, most) in columns[headline]:
            values = [pooled(cells[row, most]).value for cells in columns.values()]
            texts = ("absent" if math.isnan(value) else f"{value:.3f}" for value in values)
            lines.append(f"| {NAMES[row]} | {' | '.join(texts)} |")
    return "\n".join(lines)


def grid_table(tried: Sequence[CellResult]) -> str:
    """The learning rates that were tried, in Markdown: the headline score on the selection events; * is taken."""
    rates = sorted({result.lr for result in tried})
    lines = [
        f"| {TITLE[_headline(tried)]} | {' | '.join(f'{lr:g}' for lr in rates)} |",
        "|---" * (len(rates) + 1) + "|",
    ]
    for row in ROWS:
        scores = {result.lr: result.best for result in tried if result.row == row}
        if scores:
            best = max(scores, key=lambda lr: (scores[lr], -lr))
            texts = (f"{scores[lr]:.3f}{'*' * (lr == best)}" if lr in scores else "" for lr in rates)
            lines.append(f"| {NAMES[row]} | {' | '.join(texts)} |")
    return "\n".join(lines)


def label_efficiency(results: Sequence[CellResult], source: str, row: str, labels: int, seed: int = 0) -> Estimate:
    """How many times the labels a transformer from scratch needs to score what ``row`` scores with ``labels``.

    Between its numbers of labels its headline score is taken to be linear in their logarithm. The interval comes from
    normal deviates of all scores, as wide as their intervals.

    Raises:
        ValueError: scores are missing.
    """
    cells = by_cell(results, source, _headline(results))
    steps = sorted(k for one, k in cells if one == "scratch")
    if len(steps) < 2 or (row, labels) not in cells:
        raise ValueError(
            f"needs {row} with {labels} labels and the transformer from scratch with two numbers of labels"
        )
    target, scratch = pooled(cells[row, labels]), [pooled(cells["scratch", k]) for k in steps]

    def ratio(goal: float, scores: npt.NDArray[np.float64]) -> float:
        return crossing(np.log10(steps), scores, goal, lambda x: float(10.0**x)) / labels

    rng = np.random.default_rng(seed)
    means = np.array([target.value, *(one.value for one in scratch)])
    widths = np.array([(one.high - one.low) / 2 for one in (target, *scratch)])
    drawn = [ratio(draw[0], draw[1:]) for draw in rng.normal(means, widths, (DRAWS, len(means)))]
    low, high = np.quantile(drawn, (0.16, 0.84), method="lower")
    value = ratio(means[0], means[1:])
    return Estimate(value, steps[-1] / labels if math.isinf(value) else float(low), float(high))


def crossing(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], goal: float, back: Callable[[float], float] = float
) -> float:
    """Where a line through points first reaches a goal; its first point if that does, infinite if none does.

    Args:
        x: [N] ascending.
        y: [N].
        goal: to reach.
        back: from x to what is asked for.
    """
    for i in range(len(x)):
        if y[i] >= goal:
            share = (goal - y[i - 1]) / (y[i] - y[i - 1]) if i else 0.0
            return back(x[i - 1] + share * (x[i] - x[i - 1]) if i else x[0])
    return math.inf


def transfer(results: Sequence[CellResult], row: str) -> Estimate:
    """How many times fewer event samples ``row`` needs, with most labels, to the last score of training from scratch.

    On the selection events, as they were validated: a score counts when it is measured, so the ratio is not
    exaggerated. The interval is what the interval of the score from scratch gives; means over seeds.

    Raises:
        ValueError: scores are missing.
    """
    most = max((result.labels for result in results), default=0)
    curves = {one: mean_curve([r for r in results if (r.row, r.labels) == (one, most)]) for one in ("scratch", row)}
    if not all(curves.values()):
        raise ValueError(f"needs {row} and the transformer from scratch with {most} labels")
    last = curves["scratch"][-1]

    def ratio(goal: float | None) -> float:
        score = last.value if goal is None else goal
        reached = [point.samples for point in curves[row] if point.value >= score]
        return last.samples / reached[0] if reached else 0.0

    return Estimate(ratio(last.value), ratio(last.high), ratio(last.low))


def mean_curve(results: Sequence[CellResult]) -> list[Validation]:
    """Validations of runs of several seeds, averaged where all have one."""
    if not results:
        return []
    points = zip(*(result.curve for result in results), strict=False)
    return [
        Validation(at[0].samples, _mean([p.value for p in at]), _mean([p.low for p in at]), _mean([p.high for p in at]))
        for at in points
    ]


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else math.nan


def labels_svg(results: Sequence[CellResult], source: str) -> str:
    """Figure 6: the headline score against the number of labels."""
    cells, lines = by_cell(results, source, _headline(results)), []
    for row in ROWS:
        steps = sorted(k for one, k in cells if one == row)
        if steps:
            scores = [pooled(cells[row, k]) for k in steps]
            lines.append(
                (NAMES[row], steps, [s.value for s in scores], [s.low for s in scores], [s.high for s in scores])
            )
    return lines_svg(lines, "labelled events", TITLE[_headline(results)])


def transfer_svg(results: Sequence[CellResult]) -> str:
    """Figure 10: the headline score on the selection events against event samples seen, with most labels."""
    most, lines = max(result.labels for result in results), []
    for row in ROWS:
        if curve := mean_curve([r for r in results if (r.row, r.labels) == (row, most)]):
            low, high = ([getattr(p, end) for p in curve] for end in ("low", "high"))
            lines.append((NAMES[row], [p.samples for p in curve], [p.value for p in curve], low, high))
    return lines_svg(lines, "event samples seen", f"{TITLE[_headline(results)]}, {most:,} labels")


def _headline(results: Sequence[CellResult]) -> str:
    return HEADLINE[results[0].task]
