"""Whether a score is a probability: expected calibration error, and the one temperature that makes it better."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
BINS = 10
COLDEST, HOTTEST = 0.05, 20.0  # temperatures that are tried


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """How often the most probable class is right, against how probable it was said to be."""

    n: int
    error: float  # expected calibration error: mean of |said - right| over the cases; NaN without any
    count: tuple[int, ...]  # [bins] cases, by the probability of the most probable class
    said: tuple[float, ...]  # [bins] mean of that probability; NaN where there is no case
    right: tuple[float, ...]  # [bins] share of cases in which that class is the true one


def calibration(probability: npt.ArrayLike, label: npt.ArrayLike, bins: int = BINS) -> Calibration:
    """Reliability of class probabilities.

    Args:
        probability: [K, C], rows sum to 1.
        label: [K] true classes.
        bins: equal parts of 0 to 1.

    Source: Naeini et al. 2015; Guo et al. 2017 (arXiv:1706.04599), equation 3.
    """
    p, true = np.asarray(probability, np.float64), np.asarray(label, np.int64)
    if not len(p):
        return Calibration(0, math.nan, (0,) * bins, (math.nan,) * bins, (math.nan,) * bins)
    top, hit = p.max(1), p.argmax(1) == true
    which = np.minimum((top * bins).astype(np.int64), bins - 1)
    count, said, right = (np.bincount(which, weight, bins) for weight in (np.ones(len(p)), top, hit))
    error = float(np.abs(said - right).sum() / len(p))
    some = np.maximum(count, 1)
    means = (tuple(np.where(count > 0, total / some, np.nan).tolist()) for total in (said, right))
    return Calibration(len(p), error, tuple(count.astype(int).tolist()), *means)


def fit_temperature(logits: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """The number to divide logits by so that the true classes are most probable; 1 where there is nothing to fit.

    Args:
        logits: [K, C].
        label: [K] true classes.

    Source: Guo et al. 2017 (arXiv:1706.04599), section 4.2. The order of the classes does not change.
    """
    from scipy.optimize import minimize_scalar

    z, true = np.asarray(logits, np.float64), np.asarray(label, np.int64)
    if not len(z) or (z.argmax(1) == true).all():  # nothing contradicts the most certain scores
        return 1.0

    def cost(log_temperature: float) -> float:
        scaled = z / math.exp(log_temperature)
        scaled = scaled - scaled.max(1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(z)), true]).mean())

    found = minimize_scalar(cost, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded")
    return math.exp(float(found.x))


def calibration_as_json(result: Calibration) -> dict[str, object]:
    """For metrics.json; what does not exist is null."""

    def known(values: Sequence[float]) -> list[float | None]:
        return [None if math.isnan(value) else value for value in values]

    return {
        "n": result.n,
        "ece": None if math.isnan(result.error) else result.error,
        "count": list(result.count),
        "said": known(result.said),
        "right": known(result.right),
    }
