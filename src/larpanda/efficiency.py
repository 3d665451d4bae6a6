"""A study's tables, ratios and figures from its result files: Tables 1 and 2, Figures 6 and 10 of the paper."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from larpanda.display.figures import MOTIF_NAME, lines_svg
from larpanda.evaluate.clustering import Estimate
from larpanda.event import Motif
from larpanda.publish import publish_text
from larpanda.study import ROWS, SUPERVISED, CellResult, Score, Validation, read_results

NAMES = {
    "uresnet": "U-ResNet, from scratch",
    "scratch": "transformer, from scratch",
    "linear": "pre-trained, linear",
    "decoder": "pre-trained, decoder",
    "full": "pre-trained, full",
    "linear_k": "pre-trained on the K events, linear",
    "full_k": "pre-trained on the K events, full",
}
DRAWS = 2000


def told(one: Estimate) -> str:
    """A ratio as text; an infinite one is only known to be above its lower end."""
    if math.isinf(one.value):
        return f"more than {one.low:.2g}"
    return f"{one.value:.3g} [{one.low:.3g}, {'more' if math.isinf(one.high) else f'{one.high:.3g}'}]"


def write_labels(out: Path) -> str:
    """Write labels.md and an SVG of each test set from the results in a study's folder; returns the tables.

    Raises:
        ValueError: there is no result.
    """
    results = _results(out)
    parts = []
    for source in dict.fromkeys(score.source for result in results for score in result.tests):
        name = Path(source).stem
        parts.append(f"{name}\n\n{table(results, source)}\n\n{class_table(results, source)}")
        for row, k in sorted({(r.row, r.labels) for r in results if r.row not in SUPERVISED and r.labels == 100}):
            with suppress(ValueError):  # not made yet
                ratio = label_efficiency(results, source, row, k)
                parts.append(
                    f"{NAMES[row]} with {k} labels: as good as from scratch with {told(ratio)} times the labels"
                )
        publish_text(out / f"labels-{name}.svg", labels_svg(results, source))
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
            lines.append(
                f"{NAMES[row]}: {told(transfer(results, row))} times fewer event samples to the score from scratch"
            )
    return "\n".join(lines)


def _results(out: Path) -> list[CellResult]:
    if not (results := read_results(out)):
        raise ValueError(f"{out / 'results'}: no results there; run larpanda study first")
    return results


def pooled(scores: Sequence[Score]) -> Estimate:
    """Mean over seeds. Its interval: that over events, and the standard error over seeds, added in squares.

    The seeds share the test events, so the interval over events does not shrink with their number.
    """
    values = np.array([score.macro_f1 for score in scores])
    halves = [(s.high - s.low) / 2 for s in scores if s.low is not None and s.high is not None]
    over_seeds = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    half = math.hypot(float(np.mean(halves)) if halves else 0.0, over_seeds)
    mean = float(values.mean())
    return Estimate(mean, mean - half, mean + half)


def by_cell(results: Sequence[CellResult], source: str) -> dict[tuple[str, int], list[Score]]:
    """The scores of the seeds of each row and number of labels, on one test set."""
    cells: dict[tuple[str, int], list[Score]] = {}
    for result in results:
        for score in result.tests:
            if score.source == source:
                cells.setdefault((result.row, result.labels), []).append(score)
    return cells


def table(results: Sequence[CellResult], source: str) -> str:
    """Table 1 in Markdown: macro F1 [68 %] of each row and number of labels, and how many seeds it is a mean of."""
    cells = by_cell(results, source)
    labels = sorted({k for _, k in cells})
    lines = [f"| macro F1 | {' | '.join(f'{k:,} labels' for k in labels)} |", "|---" * (len(labels) + 1) + "|"]
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
    """Table 2 in Markdown: F1 of each motif with most labels, means over seeds."""
    cells = by_cell(results, source)
    most = max(k for _, k in cells)
    names = [MOTIF_NAME[motif] for motif in Motif]
    lines = [f"| {most:,} labels | macro | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for row in ROWS:
        if scores := cells.get((row, most)):
            mean = np.array([[np.nan if f is None else f for f in score.f1] for score in scores]).mean(0)
            f1 = " | ".join("absent" if np.isnan(f) else f"{f:.3f}" for f in mean)
            lines.append(f"| {NAMES[row]} | {pooled(scores).value:.3f} | {f1} |")
    return "\n".join(lines)


def label_efficiency(results: Sequence[CellResult], source: str, row: str, labels: int, seed: int = 0) -> Estimate:
    """How many times the labels a transformer from scratch needs to score what ``row`` scores with ``labels``.

    Between its numbers of labels its macro F1 is taken to be linear in their logarithm. The interval comes from normal
    deviates of all scores, as wide as their intervals.

    Raises:
        ValueError: scores are missing.
    """
    cells = by_cell(results, source)
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
        score = last.macro_f1 if goal is None else goal
        reached = [point.samples for point in curves[row] if point.macro_f1 >= score]
        return last.samples / reached[0] if reached else 0.0

    return Estimate(ratio(last.macro_f1), ratio(last.high), ratio(last.low))


def mean_curve(results: Sequence[CellResult]) -> list[Validation]:
    """Validations of runs of several seeds, averaged where all have one."""
    if not results:
        return []
    points = zip(*(result.curve for result in results), strict=False)
    return [
        Validation(
            at[0].samples, _mean([p.macro_f1 for p in at]), _mean([p.low for p in at]), _mean([p.high for p in at])
        )
        for at in points
    ]


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else math.nan


def labels_svg(results: Sequence[CellResult], source: str) -> str:
    """Figure 6: macro F1 against the number of labels."""
    cells, lines = by_cell(results, source), []
    for row in ROWS:
        steps = sorted(k for one, k in cells if one == row)
        if steps:
            scores = [pooled(cells[row, k]) for k in steps]
            lines.append(
                (NAMES[row], steps, [s.value for s in scores], [s.low for s in scores], [s.high for s in scores])
            )
    return lines_svg(lines, "labelled events", "macro F1")


def transfer_svg(results: Sequence[CellResult]) -> str:
    """Figure 10: macro F1 on the selection events against event samples seen, with most labels."""
    most, lines = max(result.labels for result in results), []
    for row in ROWS:
        if curve := mean_curve([r for r in results if (r.row, r.labels) == (row, most)]):
            low, high = ([getattr(p, end) for p in curve] for end in ("low", "high"))
            lines.append((NAMES[row], [p.samples for p in curve], [p.macro_f1 for p in curve], low, high))
    return lines_svg(lines, "event samples seen", f"macro F1, {most:,} labels")
