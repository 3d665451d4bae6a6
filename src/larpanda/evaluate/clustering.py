"""How well particles or interactions of an event are found: one table of shared voxels, and every number made of it.

Knows labels only. An instance has the class that most of its voxels have, whatever number it goes by: the released
evaluator reads the class of instance i from voxel i. Pair counts are exact integers at any number of voxels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
Domain = Literal["thing", "all", "predicted_thing", "both"]
NONE = -1  # a voxel of no instance: a low-energy deposit, or not assigned
UNKNOWN_CLASS = -1  # of a true instance: a kaon, say, or of a file that does not say
MATCH = 0.5  # of two segmentations without overlaps at most one pair an instance shares more than half of its union

# One named convention for each number; `larpanda evaluate` writes them beside the numbers.
CONVENTIONS: Mapping[str, str] = {
    "ari": "adjusted Rand index of an event, voxels whose truth is an instance, those not assigned a cluster; "
    "mean over events",
    "ari_all": "all voxels; those of no true instance are one cluster, those not assigned another",
    "ari_predicted_thing": "voxels that are assigned; those of no true instance are one cluster (released evaluator)",
    "ari_both": "voxels that are assigned and whose truth is an instance",
    "fraction_unassigned": "voxels of true instances that are in no predicted one, all events together",
    "purity": "of an event: mean over predicted instances of the largest share that one true instance has of their "
    "voxels; mean over events",
    "efficiency": "of an event: mean over true instances of the largest share of their voxels that one predicted "
    "instance has; mean over events",
    "purity_energy": "purity with energy for voxels",
    "efficiency_energy": "efficiency with energy for voxels",
    "pq": "sum of IoU of the pairs / (TP + FP / 2 + FN / 2) of a class, pairs of one class with IoU above 0.5, all "
    "events together; mean over classes that occur; voxels of no true instance are void",
    "sq": "mean IoU of the pairs of a class; mean over classes with a pair",
    "rq": "TP / (TP + FP / 2 + FN / 2) of a class; mean over classes that occur",
    "pq_micro": "pq with the pairs of all classes together",
    "pq_stuff": "pq with one more class: the voxels of no instance of an event are one segment, and not void",
    "void": "voxels of no true instance do not count in a union; a predicted instance with more than half "
    "of its voxels there, and no match, is no FP",
    "unknown_class": "a true instance of unknown class, and what matches it, counts in no number of a class: in pq, "
    "sq, rq, class_confusion and calibration; in the others like any",
    "class_confusion": "pairs with IoU above 0.5 whatever their classes: row true, column predicted class",
    "class_precision": "diagonal over sums of columns; mean over classes that are predicted",
    "ari_class_one_vs_rest": "instances of one class, all else one cluster, in truth and prediction by their own "
    "classes; events in which the class occurs; mean over events",
    "ari_class_mask": "voxels whose truth is of the class, events with two such instances or more; mean over events",
    "ari_class_pooled": "voxels whose truth is of the class, the instances of all events in one clustering",
    "calibration": "of matched instances: probabilities of the classes against how often the most probable is right; "
    "ece: the mean distance of the two in ten bins",
    "empty": "an event without a voxel in the domain, or without an instance to average over, is left out of that mean",
    "interval": "_low and _high: 16th and 84th percentile of a bootstrap over events; null for fewer than 2 of them",
}


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """How the true and the predicted instances of one event share voxels: K pairs that share any."""

    true: Ints  # [K] 0..T - 1, or NONE
    found: Ints  # [K] 0..P - 1, or NONE
    voxels: Ints  # [K] shared
    energy: Numbers  # [K] of them, MeV
    true_class: Ints  # [T] from 0 up, or UNKNOWN_CLASS
    found_class: Ints  # [P] from 0 up

    def sizes(self, side: Literal["true", "found"], energy: bool = False) -> Numbers:
        """Voxels, or energy, of each instance of a side."""
        label, n = (self.true, len(self.true_class)) if side == "true" else (self.found, len(self.found_class))
        known = label != NONE
        return np.bincount(label[known], (self.energy if energy else self.voxels)[known], n).astype(np.float64)


def overlap(
    truth: npt.NDArray[np.integer],
    predicted: npt.NDArray[np.integer],
    true_class: npt.NDArray[np.integer] | None = None,
    found_class: npt.NDArray[np.integer] | None = None,
    energy: npt.NDArray[np.floating] | None = None,
) -> Overlap:
    """The table of one event.

    Args:
        truth: [N] number of the true instance of each voxel, NONE for none; any numbers from 0 up.
        predicted: [N] likewise.
        true_class: [N] class of each voxel's true instance, from 0 up, or UNKNOWN_CLASS; not read where there is none;
            None: all one.
        found_class: [N] likewise of the predicted one, which is known.
        energy: [N] MeV; None: 1 each.

    Raises:
        ValueError: lengths differ, or a number or class is below what it may be where there is an instance.
    """
    n = len(truth)
    columns = {"predicted": predicted, "true_class": true_class, "found_class": found_class, "energy": energy}
    for name, column in columns.items():
        if column is not None and len(column) != n:
            raise ValueError(f"{name} has {len(column)} rows and truth {n}; expected one of each a voxel")
    (true, n_true), (found, n_found) = _numbered("truth", truth), _numbered("predicted", predicted)
    pair, row, voxels = np.unique((true + 1) * (n_found + 1) + found + 1, return_inverse=True, return_counts=True)
    weight = np.ones(n) if energy is None else np.asarray(energy, np.float64)
    return Overlap(
        pair // (n_found + 1) - 1,
        pair % (n_found + 1) - 1,
        voxels.astype(np.int64),
        np.bincount(row, weight, len(pair)).astype(np.float64),
        _classes("true_class", true, n_true, true_class, UNKNOWN_CLASS),
        _classes("found_class", found, n_found, found_class, 0),
    )


def _numbered(name: str, label: npt.NDArray[np.integer]) -> tuple[Ints, int]:
    """Instances numbered from 0 in the order of their numbers, NONE kept; and how many there are."""
    label = np.asarray(label).astype(np.int64)
    if len(label) and label.min() < NONE:
        raise ValueError(f"{name} has an instance {label.min()}; expected numbers from 0 up, or {NONE} for none")
    known = label != NONE
    numbers, row = np.unique(label[known], return_inverse=True)
    result = np.full(len(label), NONE, np.int64)
    result[known] = row
    return result, len(numbers)


def _classes(name: str, label: Ints, n: int, of_voxel: npt.NDArray[np.integer] | None, lowest: int) -> Ints:
    """The class that most voxels of each instance have; of equals the lowest."""
    if of_voxel is None or n == 0:
        return np.zeros(n, np.int64)
    known = label != NONE
    classes = np.asarray(of_voxel).astype(np.int64)[known] - lowest
    if classes.min() < 0:
        raise ValueError(
            f"{name} has {classes.min() + lowest} where there is an instance; expected classes from {lowest} up"
        )
    width = int(classes.max()) + 1
    votes = np.bincount(label[known] * width + classes, minlength=n * width).reshape(n, width)
    winner: Ints = votes.argmax(1) + lowest
    return winner


def rand_index(table: Overlap, domain: Domain = "thing") -> float:
    """Adjusted Rand index of an event on a domain (CONVENTIONS); NaN without a voxel there, 1 if both are one cluster.

    Source: Hubert and Arabie 1985, from the pair counts of scikit-learn's ``adjusted_rand_score``.
    """
    inside = np.ones(len(table.true), bool)
    if domain in ("thing", "both"):
        inside &= table.true != NONE
    if domain in ("predicted_thing", "both"):
        inside &= table.found != NONE
    return _rand_index(table.true[inside], table.found[inside], table.voxels[inside])


def _rand_index(true: Ints, found: Ints, voxels: Ints) -> float:
    """Of cells of a table, each pair of labels once or more; labels from NONE up."""
    n = int(voxels.sum())
    if n == 0:
        return math.nan
    width = int(found.max()) + 2
    pair = _squares(np.unique((true + 1) * width + found + 1, return_inverse=True)[1], voxels)
    true_pairs, found_pairs = _squares(true + 1, voxels), _squares(found + 1, voxels)
    # ordered pairs of different voxels, as Python integers: products of them pass 64 bits at 100,000 voxels
    both = pair - n
    only_true, only_found = true_pairs - pair, found_pairs - pair
    neither = n * n - both - only_true - only_found - n
    if only_true == 0 and only_found == 0:
        return 1.0
    top = 2 * (both * neither - only_true * only_found)
    bottom = (both + only_true) * (only_true + neither) + (both + only_found) * (only_found + neither)
    return top / bottom


def _squares(label: Ints, voxels: Ints) -> int:
    """The sum of squares of the sizes of clusters."""
    sizes = np.zeros(int(label.max()) + 1, np.int64)
    np.add.at(sizes, label, voxels)
    return int((sizes.astype(object) ** 2).sum()) if sizes.max() > 2**24 else int((sizes**2).sum())


def purity(table: Overlap, energy: bool = False) -> float:
    """Mean over predicted instances of the largest share of one true instance; NaN without a predicted one."""
    return mean(largest_shares(table, "found", energy))


def efficiency(table: Overlap, energy: bool = False) -> float:
    """Mean over true instances of their largest share in one predicted instance; NaN without a true one."""
    return mean(largest_shares(table, "true", energy))


def mean(values: Numbers) -> float:
    """The mean; NaN of nothing."""
    return float(values.mean()) if len(values) else math.nan


def largest_shares(table: Overlap, side: Literal["true", "found"], energy: bool = False) -> Numbers:
    """Of each instance of a side the largest share that one of the other side has of it."""
    size = table.sizes(side, energy)
    both = (table.true != NONE) & (table.found != NONE)
    label = (table.true if side == "true" else table.found)[both]
    largest = np.zeros(len(size))
    np.maximum.at(largest, label, (table.energy if energy else table.voxels)[both])
    shares: Numbers = largest / np.where(size > 0, size, 1.0)
    return shares


def unassigned(table: Overlap) -> tuple[int, int]:
    """Voxels of true instances that are in no predicted one, and all of them."""
    thing = table.true != NONE
    return int(table.voxels[thing & (table.found == NONE)].sum()), int(table.voxels[thing].sum())


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Pairs of instances that are each other's: IoU above 0.5."""

    true: Ints  # [M]
    found: Ints  # [M]
    iou: Numbers  # [M]


def matches(table: Overlap, same_class: bool = False, void: bool = True) -> Matches:
    """The pairs of an event; each instance is in one at most. void: voxels of no true instance count in no union."""
    both = (table.true != NONE) & (table.found != NONE)
    true, found, shared = table.true[both], table.found[both], table.voxels[both]
    size = table.sizes("found") - _on_void(table) if void else table.sizes("found")
    union = table.sizes("true")[true] + size[found] - shared
    iou = shared / union
    kept = iou > MATCH
    if same_class:
        kept &= table.true_class[true] == table.found_class[found]
    return Matches(true[kept], found[kept], iou[kept])


def _on_void(table: Overlap) -> Numbers:
    """[P] voxels of predicted instances that belong to no true one."""
    void = (table.true == NONE) & (table.found != NONE)
    return np.bincount(table.found[void], table.voxels[void], len(table.found_class)).astype(np.float64)


def quality(table: Overlap, n_classes: int, min_voxels: int = 1, stuff: bool = False) -> Numbers:
    """What panoptic quality is made of (Kirillov et al. 2019, arXiv:1801.00868).

    Args:
        table: of one event.
        n_classes: C.
        min_voxels: a smaller true instance that is not found is no FN.
        stuff: the voxels of no instance are one more class, C, with one segment an event, and not void.

    Returns:
        [C, 4], or [C + 1, 4] with stuff: sum of IoU, TP, FP, FN of each class. Tables of events can be added.
    """
    result = np.zeros((n_classes + stuff, 4))
    if stuff:
        result[n_classes] = _stuff(table)
    pairs = matches(table, same_class=True, void=not stuff)
    untold = _untold(table, void=not stuff)
    np.add.at(result[:, 0], table.true_class[pairs.true], pairs.iou)
    np.add.at(result[:, 1], table.true_class[pairs.true], 1)
    missed = (table.sizes("true") >= min_voxels) & (table.true_class != UNKNOWN_CLASS)
    missed[pairs.true] = False
    size = table.sizes("found")
    false = np.ones(len(size), bool) if stuff else _on_void(table) <= 0.5 * size
    false[pairs.found] = False
    false[untold] = False
    np.add.at(result[:, 2], table.found_class[false], 1)
    np.add.at(result[:, 3], table.true_class[missed], 1)
    return result


def _untold(table: Overlap, void: bool = True) -> Ints:
    """Predicted instances that match a true one of unknown class: their class is neither right nor wrong."""
    pairs = matches(table, void=void)
    found: Ints = pairs.found[table.true_class[pairs.true] == UNKNOWN_CLASS]
    return found


def _stuff(table: Overlap) -> Numbers:
    """Sum of IoU, TP, FP, FN of the one segment of voxels without an instance."""
    true, found = table.true == NONE, table.found == NONE
    shared, either = int(table.voxels[true & found].sum()), int(table.voxels[true | found].sum())
    if either and shared / either > MATCH:
        return np.array([shared / either, 1, 0, 0])
    return np.array([0, 0, float(found.any()), float(true.any())])


def panoptic_quality(parts: Numbers, micro: bool = False) -> tuple[float, float, float]:
    """PQ, SQ, RQ of summed ``quality`` tables [C, 4]: means over classes, or of all together; NaN if nothing occurs."""
    rows = parts.sum(0, keepdims=True) if micro else parts
    total = rows[:, 1] + (rows[:, 2] + rows[:, 3]) / 2
    occurs, paired = total > 0, rows[:, 1] > 0
    if not occurs.any():
        return math.nan, math.nan, math.nan
    pq, rq = (rows[occurs, i] / total[occurs] for i in (0, 1))
    sq = rows[paired, 0] / rows[paired, 1]
    return float(pq.mean()), float(sq.mean()) if paired.any() else 0.0, float(rq.mean())


def class_confusion(table: Overlap, n_classes: int) -> tuple[Ints, Ints, Ints]:
    """Classes of matched instances [C, C], row truth; and of those that are not matched: true [C], predicted [C]."""
    pairs = matches(table)
    counts = np.zeros((n_classes, n_classes), np.int64)
    true, found = table.true_class[pairs.true], table.found_class[pairs.found]
    np.add.at(counts, (true[true != UNKNOWN_CLASS], found[true != UNKNOWN_CLASS]), 1)
    alone = np.delete(table.true_class, pairs.true)
    missed = np.bincount(alone[alone != UNKNOWN_CLASS], minlength=n_classes)
    false = np.bincount(np.delete(table.found_class, pairs.found), minlength=n_classes)
    return counts, missed.astype(np.int64), false.astype(np.int64)


def class_rand_index(tables: Sequence[Overlap], number: int, mode: Literal["one_vs_rest", "mask", "pooled"]) -> float:
    """Adjusted Rand index of one class (CONVENTIONS, ari_class_*); NaN if no event has one.

    The paper's Table 4 does not say which of these it has.
    """
    if mode == "pooled":
        return _pooled_rand_index(tables, number)
    if mode == "one_vs_rest":
        values = np.array([one_vs_rest(table, number) for table in tables])
        return mean(values[~np.isnan(values)])
    several = [table for table in tables if (table.true_class == number).sum() >= 2]
    return mean(np.array([_within_class(table, number) for table in several]))


def one_vs_rest(table: Overlap, number: int) -> float:
    """Adjusted Rand index of an event with all but the instances of a class as one cluster; NaN if it has none."""
    of_class = table.true_class == number
    if not of_class.any():
        return math.nan
    true = np.where(_is(table.true, of_class), table.true, NONE)
    found = np.where(_is(table.found, table.found_class == number), table.found, NONE)
    return _rand_index(true, found, table.voxels)


def _within_class(table: Overlap, number: int) -> float:
    inside = _is(table.true, table.true_class == number)
    return _rand_index(table.true[inside], table.found[inside], table.voxels[inside])


def _pooled_rand_index(tables: Sequence[Overlap], number: int) -> float:
    parts: list[tuple[Ints, Ints, Ints]] = []
    n_true = n_found = 0
    for table in tables:
        inside = _is(table.true, table.true_class == number)
        # what is not assigned is a cluster of its own in each event
        found = np.where(table.found == NONE, len(table.found_class), table.found)
        parts.append((table.true[inside] + n_true, found[inside] + n_found, table.voxels[inside]))
        n_true, n_found = n_true + len(table.true_class), n_found + len(table.found_class) + 1
    true, found, voxels = (
        (np.concatenate([part[i] for part in parts]) for i in range(3)) if parts else [np.empty(0, np.int64)] * 3
    )
    return _rand_index(true, found, voxels)


def _is(label: Ints, flag: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[K] whether each label is of an instance that has a flag; NONE has none."""
    return np.append(flag, False)[label]
