"""Particles or interactions of many events: means with intervals, values of single events, classes and their scores."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from larpanda.evaluate.clustering import (
    Ints,
    Numbers,
    Overlap,
    class_confusion,
    class_rand_index,
    efficiency,
    largest_shares,
    mean,
    one_vs_rest,
    panoptic_quality,
    purity,
    quality,
    rand_index,
    unassigned,
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 68 % interval over events; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """Instance metrics of a set of events. What each is: CONVENTIONS."""

    events: int
    means: Mapping[str, Estimate]  # ari, ari_all, ..., purity, efficiency, ..., pq, sq, rq, pq_micro, pq_stuff
    left_out: Mapping[str, int]  # events that a mean over events leaves out
    parts: Numbers  # [C, 4]: sum of IoU, TP, FP, FN of each class
    confusion: Ints  # [C, C] of matched instances, row truth
    missed: Ints  # [C] true instances without a match
    false: Ints  # [C] predicted instances without a match
    class_ari: Mapping[str, tuple[float, ...]]  # mode -> of each class
    each: "PerEvent"


@dataclass(frozen=True, slots=True, eq=False)
class PerEvent:
    """Values of each of E events, in the order given: what Figures 7 and 9 of the paper are drawn of. NaN: none."""

    true_instances: Ints  # [E]
    values: Mapping[str, Numbers]  # ari, purity, efficiency -> [E]
    of_class: Mapping[str, Numbers]  # the same -> [E, C]: ARI of one against the rest; means over the class's instances


_PER_EVENT: Mapping[str, Callable[[Overlap], float]] = {
    "ari": rand_index,
    "ari_all": lambda table: rand_index(table, "all"),
    "ari_predicted_thing": lambda table: rand_index(table, "predicted_thing"),
    "ari_both": lambda table: rand_index(table, "both"),
    "purity": purity,
    "efficiency": efficiency,
    "purity_energy": lambda table: purity(table, energy=True),
    "efficiency_energy": lambda table: efficiency(table, energy=True),
}


def clustering(
    tables: Sequence[Overlap], n_classes: int, *, min_voxels: int = 1, seed: int = 0, resamples: int = 1000
) -> Clustering:
    """Instance metrics of events, with intervals from resampling them.

    Args:
        tables: of ``overlap``, one an event, in any order.
        n_classes: C.
        min_voxels: as in ``quality``.
        seed: of the bootstrap.
        resamples: of it.
    """
    values = np.array([[metric(table) for metric in _PER_EVENT.values()] for table in tables]).reshape(
        len(tables), len(_PER_EVENT)
    )
    parts = np.array([quality(table, n_classes, min_voxels) for table in tables]).reshape(-1, n_classes, 4)
    stuff = np.array([quality(table, n_classes, min_voxels, stuff=True) for table in tables]).reshape(
        -1, n_classes + 1, 4
    )
    lost = np.array([unassigned(table) for table in tables], np.float64).reshape(-1, 2)

    def numbers(rows: Ints) -> list[float]:
        known = ~np.isnan(values[rows])
        sums, counts = np.where(known, values[rows], 0.0).sum(0), known.sum(0)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        of_class = parts[rows].sum(0)
        share = lost[rows].sum(0)
        unassigned = share[0] / share[1] if share[1] else math.nan
        micro, with_stuff = panoptic_quality(of_class, micro=True)[0], panoptic_quality(stuff[rows].sum(0))[0]
        return [*means.tolist(), unassigned, *panoptic_quality(of_class), micro, with_stuff]

    names = (*_PER_EVENT, "fraction_unassigned", "pq", "sq", "rq", "pq_micro", "pq_stuff")
    columns = np.column_stack([values, parts.reshape(len(tables), 4 * n_classes), lost])
    everything: Ints = np.lexsort(columns.T)  # so that the draws do not depend on the order of the events
    central = numbers(everything)
    low = high = [math.nan] * len(names)
    if len(tables) > 1:
        rng = np.random.default_rng(seed)
        drawn = np.array([numbers(everything[rng.integers(len(tables), size=len(tables))]) for _ in range(resamples)])
        low, high = (_quantile(drawn, share) for share in (0.16, 0.84))
    confusions = [class_confusion(table, n_classes) for table in tables]
    zero = np.zeros(n_classes, np.int64)
    modes: tuple[Literal["one_vs_rest", "mask", "pooled"], ...] = ("one_vs_rest", "mask", "pooled")
    return Clustering(
        events=len(tables),
        means={name: Estimate(*three) for name, *three in zip(names, central, low, high, strict=True)},
        left_out={name: int(np.isnan(values[:, i]).sum()) for i, name in enumerate(_PER_EVENT)},
        parts=parts.sum(0),
        confusion=sum((one[0] for one in confusions), np.zeros((n_classes, n_classes), np.int64)),
        missed=sum((one[1] for one in confusions), zero),
        false=sum((one[2] for one in confusions), zero),
        class_ari={mode: tuple(class_rand_index(tables, c, mode) for c in range(n_classes)) for mode in modes},
        each=per_event(tables, n_classes),
    )


def per_event(tables: Sequence[Overlap], n_classes: int) -> PerEvent:
    """Single events' ARI, purity and efficiency, of all instances and of those of each class."""

    def shares(table: Overlap, side: Literal["true", "found"], number: int) -> float:
        of_class = (table.true_class if side == "true" else table.found_class) == number
        return mean(largest_shares(table, side)[of_class])

    of_class: Mapping[str, Callable[[Overlap, int], float]] = {
        "ari": one_vs_rest,
        "purity": lambda table, number: shares(table, "found", number),
        "efficiency": lambda table, number: shares(table, "true", number),
    }
    return PerEvent(
        np.array([len(table.true_class) for table in tables], np.int64),
        {name: np.array([_PER_EVENT[name](table) for table in tables]) for name in of_class},
        {
            name: np.array([[metric(table, c) for c in range(n_classes)] for table in tables]).reshape(-1, n_classes)
            for name, metric in of_class.items()
        },
    )


def per_event_as_json(each: PerEvent, names: Sequence[str]) -> dict[str, object]:
    """The ``particle`` or ``interaction`` part of per_event.json, to four digits; what does not exist is null."""

    def listed(values: Numbers) -> list[float | None]:
        return [None if math.isnan(value) else round(value, 4) for value in values.tolist()]

    of_class = {
        f"{name}_class": {one: listed(values[:, c]) for c, one in enumerate(names)}
        for name, values in each.of_class.items()
        if len(names) > 1
    }
    values = {name: listed(values) for name, values in each.values.items()}
    return {"true_instances": each.true_instances.tolist(), **values, **of_class}


def clustering_as_json(result: Clustering, names: Sequence[str]) -> dict[str, object]:
    """The ``particle`` or ``interaction`` part of metrics.json; names: of the classes. What does not exist is null."""

    def known(value: float) -> float | None:
        return None if math.isnan(value) else value

    def by_class(values: Sequence[float]) -> dict[str, float | None]:
        return {name: known(float(value)) for name, value in zip(names, values, strict=True)}

    numbers: dict[str, object] = {"events": result.events}
    for name, one in result.means.items():
        numbers |= {name: known(one.value), f"{name}_low": known(one.low), f"{name}_high": known(one.high)}
    diagonal, columns = np.diag(result.confusion), result.confusion.sum(0)
    precision = [hit / n if n else math.nan for hit, n in zip(diagonal.tolist(), columns.tolist(), strict=True)]
    told = [value for value in precision if not math.isnan(value)]
    return {
        **numbers,
        "left_out": dict(result.left_out),
        "pq_class": by_class([panoptic_quality(row[None])[0] for row in result.parts]),
        **{f"ari_class_{mode}": by_class(values) for mode, values in result.class_ari.items()},
        "class_confusion": result.confusion.tolist(),
        "class_precision": known(float(np.mean(told)) if told else math.nan),
        "class_precision_each": by_class(precision),
        "unmatched_true": by_class(result.missed.tolist()),
        "unmatched_predicted": by_class(result.false.tolist()),
    }


def _quantile(drawn: Numbers, share: float) -> list[float]:
    columns = (column[~np.isnan(column)] for column in drawn.T)
    return [float(np.quantile(column, share)) if len(column) else math.nan for column in columns]
