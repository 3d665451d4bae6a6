"""How well motifs are told apart: the confusion matrix of each event, and precision, recall, F1 and IoU of them all.

Knows labels only: the caller chooses the voxels (``Event.visible`` gives those that CONVENTIONS promises).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from larpanda.event import UNKNOWN, Motif

Counts = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

# One named convention for each number; `larpanda evaluate` writes them beside the numbers.
CONVENTIONS: Mapping[str, str] = {
    "domain": "voxels above the energy threshold of the model; rows that share a voxel are merged and count once",
    "pooling": "voxels of all events in one confusion matrix; never a mean over events or batches",
    "unlabelled": "voxels without true motif are left out",
    "confusion": "row: true motif, column: predicted motif, in the order shower, track, michel, delta, led",
    "precision": "TP / (TP + FP); 0 for a motif that occurs but is never predicted",
    "recall": "TP / (TP + FN); 0 for a motif that is predicted but never occurs",
    "f1": "2 TP / (2 TP + FP + FN)",
    "macro_f1": "unweighted mean of f1 over the motifs present in truth or prediction, LED among them",
    "mean_iou": "unweighted mean of TP / (TP + FP + FN) over the same motifs",
    "absent": "a motif in neither truth nor prediction has null for every number and is not in a mean",
    "support": "voxels of each true motif",
    "by": "events in order of a quantity, cut into parts of equal number or nearly so; low and high are of its events",
    "interval": "_low and _high: 16th and 84th percentile of a bootstrap over events; null for fewer than 2 of them",
}


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """Motif metrics of a set of events. Arrays of C = 5 are in the order of Motif; NaN: the motif is absent."""

    events: int
    voxels: int  # labelled
    confusion: Counts  # [C, C], row truth, column prediction
    precision: Numbers  # [C], 0..1
    recall: Numbers  # [C], 0..1
    f1: Numbers  # [C], 0..1
    f1_low: Numbers  # [C], lower end of the 68 % interval; NaN for fewer than 2 events
    f1_high: Numbers  # [C]
    macro_f1: float  # NaN if nothing is labelled
    macro_f1_low: float
    macro_f1_high: float
    mean_iou: float
    absent: tuple[str, ...]  # motifs in neither truth nor prediction, left out of the means


def confusion(
    truth: Tensor | npt.NDArray[np.integer], predicted: Tensor | npt.NDArray[np.integer], classes: int = len(Motif)
) -> Counts:
    """Count the voxels of one event by true and predicted class.

    Args:
        truth: [N] integers in 0..classes-1, or UNKNOWN (-1): such a voxel is left out.
        predicted: [N] likewise; UNKNOWN only where truth is UNKNOWN too.

    Returns:
        [C, C] int64, row truth, column prediction.

    Raises:
        ValueError: lengths differ, a label is no integer or out of range, or a labelled voxel has no prediction.
    """
    true, found = _labels("truth", truth, classes), _labels("predicted", predicted, classes)
    if len(true) != len(found):
        raise ValueError(f"{len(true)} true labels but {len(found)} predicted ones; expected one of each a voxel")
    known = true != UNKNOWN
    if missing := int((found[known] == UNKNOWN).sum()):
        raise ValueError(
            f"{missing} of {int(known.sum())} labelled voxels have no prediction ({UNKNOWN}); "
            "leave voxels below the energy threshold out before comparing"
        )
    cell = true[known] * classes + found[known]
    return np.bincount(cell, minlength=classes**2).astype(np.int64).reshape(classes, classes)


def segmentation(per_event: Sequence[Counts], *, seed: int = 0, resamples: int = 1000) -> Segmentation:
    """Motif metrics pooled over the voxels of all events, with 68 % intervals from resampling events.

    Voxels of one event are not independent (they share its showers and its mistakes), so whole events are drawn, with
    replacement (Efron and Tibshirani 1993, An Introduction to the Bootstrap). A draw without any voxel of a motif
    leaves that motif out of its macro F1, as the metric itself would.

    Args:
        per_event: E matrices [5, 5] from ``confusion``, in any order: the result does not depend on it.
        seed: of the bootstrap.
        resamples: bootstrap draws.

    Raises:
        ValueError: a matrix has another shape.

    Cost: O(resamples * E) time; 0.2 s for 10,000 events and 1,000 resamples on one core.
    """
    c = len(Motif)
    for e, matrix in enumerate(per_event):
        if np.shape(matrix) != (c, c):
            raise ValueError(f"confusion matrix {e} has shape {np.shape(matrix)}; expected [{c}, {c}], one row a motif")
    flat = np.array(per_event, dtype=np.int64).reshape(len(per_event), c * c)
    flat = flat[flat.any(1)]  # an event without labelled voxels is none to draw
    flat = flat[np.lexsort(flat.T)]  # so that the draws do not depend on the order of the events
    pooled = flat.sum(0).reshape(c, c)
    precision, recall, f1, iou = _scores(pooled)
    f1_low, f1_high, macro_low, macro_high = _bootstrap(flat, c, seed, resamples)
    return Segmentation(
        events=len(per_event),
        voxels=int(pooled.sum()),
        confusion=pooled,
        precision=precision,
        recall=recall,
        f1=f1,
        f1_low=f1_low,
        f1_high=f1_high,
        macro_f1=float(_mean_present(f1)),
        macro_f1_low=macro_low,
        macro_f1_high=macro_high,
        mean_iou=float(_mean_present(iou)),
        absent=tuple(name for name, value in zip(_names(), f1, strict=True) if np.isnan(value)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Motif metrics of the events in which a quantity lies in a range."""

    low: float  # least value of the events
    high: float  # greatest
    result: Segmentation


def segmentation_by(
    value: Sequence[float], per_event: Sequence[Counts], parts: int = 4, *, seed: int = 0
) -> tuple[Part, ...]:
    """Motif metrics against a quantity of the events, such as their energy.

    Args:
        value: [E], finite.
        per_event: E matrices as for ``segmentation``.
        parts: at most so many ranges, each of at least two events.
        seed: of the bootstraps.

    Returns:
        Ranges in order of the quantity. Events of equal value may fall in two of them, in the order given.

    Raises:
        ValueError: lengths differ.
    """
    if len(value) != len(per_event):
        raise ValueError(f"{len(value)} values for {len(per_event)} events; expected one each")
    order = np.argsort(np.asarray(value, np.float64), kind="stable")
    cuts = np.array_split(order, max(1, min(parts, len(order) // 2)))
    return tuple(
        Part(float(value[rows[0]]), float(value[rows[-1]]), segmentation([per_event[i] for i in rows], seed=seed))
        for rows in cuts
        if len(rows)
    )


def parts_as_json(parts: Sequence[Part]) -> list[dict[str, object]]:
    """One of the ``semantic_by`` parts of metrics.json: range, events, macro F1 with its interval, F1 of each motif."""
    names = ("macro_f1", "macro_f1_low", "macro_f1_high", "f1")
    return [
        {
            "low": part.low,
            "high": part.high,
            "events": part.result.events,
            **{name: value for name, value in as_json(part.result).items() if name in names},
        }
        for part in parts
    ]


def as_json(result: Segmentation) -> dict[str, object]:
    """The ``semantic`` part of metrics.json: motifs by lower-case name, null where a number does not exist."""

    def by_motif(values: npt.NDArray[np.generic]) -> dict[str, object]:
        return {name: _json(value) for name, value in zip(_names(), values.tolist(), strict=True)}

    return {
        "macro_f1": _json(result.macro_f1),
        "macro_f1_low": _json(result.macro_f1_low),
        "macro_f1_high": _json(result.macro_f1_high),
        "f1": by_motif(result.f1),
        "f1_low": by_motif(result.f1_low),
        "f1_high": by_motif(result.f1_high),
        "precision": by_motif(result.precision),
        "recall": by_motif(result.recall),
        "mean_iou": _json(result.mean_iou),
        "support": by_motif(result.confusion.sum(1)),
        "confusion": result.confusion.tolist(),
        "absent": list(result.absent),
    }


def _scores(matrix: npt.NDArray[np.number]) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """[..., C, C] -> precision, recall, F1 and IoU, each [..., C]: NaN for an absent class."""
    matrix = matrix.astype(np.float64)  # exact below 2**53 voxels
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    true, found = matrix.sum(-1), matrix.sum(-2)
    either = true + found - hit

    def ratio(top: Numbers, bottom: Numbers) -> Numbers:
        # Where the class is present top is 0 whenever bottom is, and the answer is 0.
        return np.where(either > 0, top / np.maximum(bottom, 1), np.nan)

    return ratio(hit, found), ratio(hit, true), ratio(2 * hit, true + found), ratio(hit, either)


def _mean_present(values: Numbers) -> Numbers:
    """[..., C] -> [...]: the mean of what is not NaN; NaN if nothing is (without the warning of np.nanmean)."""
    present = ~np.isnan(values)
    count = present.sum(-1)
    total = np.where(present, values, 0.0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _bootstrap(flat: Counts, c: int, seed: int, resamples: int) -> tuple[Numbers, Numbers, float, float]:
    """68 % intervals of [E, C * C]: F1 low and high [C], macro F1 low and high."""
    events = len(flat)
    if events < 2:  # one event says nothing about the spread between events
        unknown = np.full(c, np.nan)
        return unknown, unknown, np.nan, np.nan
    rng = np.random.default_rng(seed)
    weights = flat.astype(np.float64)  # float, for the speed of its matrix product; sums below 2**53 are exact
    drawn = np.empty((resamples, c * c))
    for r in range(resamples):
        drawn[r] = np.bincount(rng.integers(events, size=events), minlength=events) @ weights
    f1 = _scores(drawn.reshape(resamples, c, c))[2]  # [R, C]
    ends = np.array([_interval(column) for column in (*f1.T, _mean_present(f1))])
    return ends[:c, 0], ends[:c, 1], float(ends[c, 0]), float(ends[c, 1])


def _interval(values: Numbers) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, (0.16, 0.84))
    return float(low), float(high)


def _names() -> list[str]:
    return [motif.name.lower() for motif in Motif]


def _json(number: float) -> float | None:
    return None if np.isnan(number) else number


def _labels(name: str, values: Tensor | npt.NDArray[np.integer], classes: int) -> Counts:
    labels = np.asarray(values)
    if labels.ndim != 1 or (len(labels) and labels.dtype.kind not in "iu"):
        raise ValueError(f"{name} has shape {labels.shape} and type {labels.dtype}; expected integers [N]")
    if len(labels) and (labels.min() < UNKNOWN or labels.max() >= classes):
        raise ValueError(
            f"{name} spans {labels.min()}..{labels.max()}; expected 0..{classes - 1}, or {UNKNOWN} for none"
        )
    return labels.astype(np.int64)
