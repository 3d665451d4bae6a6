"""Alarms, in words, when self-distillation collapses (paper section 3.3.3). Knows the log of a run, not its model."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

WINDOW = 50  # steps whose median is judged: one odd batch moves no median
QUIET = 0.05  # share of a run; see CollapseWatch

Record = Mapping[str, "float | None"]  # a line of the log; None where a number was not finite


@dataclass(frozen=True)
class Sign:
    """A number of the log that leaves its range when a run collapses."""

    name: str
    value: Callable[[Record], float | None]
    """Of a step; None if its record does not have it."""
    limit: float
    """On the wrong side of it there is an alarm."""
    well: float
    """The alarm is over on this side of it; the gap to the limit keeps a value that wavers from talking."""
    text: Callable[[float, Record], str]
    """What is seen, from the median and the last record."""
    advice: str
    windows: int = 1

    def wrong(self, value: float) -> bool:
        """Whether a value is beyond the limit."""
        return value >= self.limit if self.limit > self.well else value <= self.limit

    def fine(self, value: float) -> bool:
        """Whether a value ends an alarm."""
        return value < self.well if self.limit > self.well else value > self.well


@dataclass
class _State:
    seen: deque[float]
    alarmed: bool = field(default=False)


class CollapseWatch:
    """Looks at a short window of steps and says once what is wrong, and when it is over.

    In the first steps nothing is told apart from a collapse, so no alarm speaks in the first ``quiet`` of the run. With
    random weights the targets are nearly flat: unit vectors of D numbers have cosines of width 1 / sqrt(D), which at a
    temperature T leaves h(q) about 1 / (2 D T^2) nats below log P, 0.4 of 8.3 at the paper's D = 256 and T = 0.07. Then
    features of all cells become more alike before they part: in the first 90 of 3,600 steps of a small encoder h(q)
    rose from 63 to 82 % of log P and the perplexity of 1,024 prototypes fell from 250 to 50; then they turned.
    After 5 % of a run, the default, temperature, learning rate and masks have ended their warm-up.
    A run that goes on from a checkpoint is past that, and is judged after one window.
    """

    def __init__(self, prototypes: int, steps: int, window: int = WINDOW, quiet: float = QUIET) -> None:
        """Watch a run.

        Args:
            prototypes: P.
            steps: of the whole run.
            window: steps that are looked at together.
            quiet: share of the run in which no alarm speaks.
        """
        self._signs = _signs(prototypes)
        self._states = [_State(deque(maxlen=window * sign.windows)) for sign in self._signs]
        self._quiet = quiet * steps

    def see(self, record: Record) -> str | None:
        """Take the record of a step; returns what there is to say, one line, or None.

        Records without the numbers of a step (validations, skipped steps), and numbers that are not finite, are
        passed over.
        """
        said = []
        for sign, state in zip(self._signs, self._states, strict=True):
            value = sign.value(record)
            if value is None or not math.isfinite(value):
                continue
            state.seen.append(value)
            if len(state.seen) < (state.seen.maxlen or 1) or (record.get("step") or 0) <= self._quiet:
                continue
            middle = median(state.seen)
            span = f"(median of {len(state.seen)} steps)"
            if not state.alarmed and sign.wrong(middle):
                state.alarmed = True
                said.append(f"{sign.name}: {sign.text(middle, record)} {span}. {sign.advice}")
            elif state.alarmed and sign.fine(middle):
                state.alarmed = False
                said.append(f"{sign.name} is over: {sign.text(middle, record)} {span}.")
        return " ".join(said) or None


def _signs(prototypes: int) -> list[Sign]:
    flat = math.log(prototypes)
    # Measured on random weights and in healthy first steps: perplexity 250 to 460 of 4096 prototypes, 45 to 100 of 256.
    few = max(1.5, 0.005 * prototypes)

    def entropy(value: float, record: Record) -> str:
        temperature = record.get("temperature")
        now = "" if temperature is None else f", teacher's temperature {temperature:.3g}"
        return f"h(q) {value:.3g} nats, {100 * value / flat:.3g} % of log P = {flat:.3g}{now}"

    def use(value: float, record: Record) -> str:
        usage = record.get("usage")
        nearest = "" if usage is None else f", {100 * usage:.2g} % are nearest to any cell"
        return f"prototypes in use, perplexity {value:.3g} of {prototypes}{nearest}"

    return [
        Sign(
            "uniform collapse",
            lambda record: record.get("entropy"),
            0.99 * flat,  # healthy first steps with 4096 prototypes reach 0.97
            0.98 * flat,
            entropy,
            "Limit 99 %: the targets say nothing. Try a lower distill.teacher_temperature; if the perplexity of "
            "prototypes fell too, all cells look alike: try a lower optim.lr.",
        ),
        Sign(
            "single-prototype collapse, targets",
            lambda record: record.get("entropy"),
            0.02 * flat,
            0.04 * flat,
            entropy,
            "Limit 2 %: every target is one prototype. If the perplexity of prototypes is high, targets are merely "
            "hard: try a higher distill.teacher_temperature. If it is low, try more iterations of distill.sinkhorn, "
            "or a lower optim.lr.",
        ),
        Sign(
            "single-prototype collapse, usage",
            lambda record: record.get("perplexity"),
            few,
            1.5 * few,
            use,
            f"Limit {few:.3g}: cells crowd at a few prototypes. Try more iterations of distill.sinkhorn, a higher "
            "distill.teacher_temperature, or a lower optim.lr.",
        ),
        Sign(
            "nothing to learn",
            lambda record: record.get("kl"),
            0.01,
            0.02,
            lambda value, record: f"KL of student from teacher {value:.2g} nats",
            "Limit 0.01: the student says what the teacher says, so the gradient vanishes. Look at h(q): near log P or "
            "0 it is a collapse; else try harder views (views.mask_ratio) or a lower distill.teacher_temperature.",
            windows=4,  # a student may catch up for a while, above all at the end of a run
        ),
        Sign(
            "features all the same",
            _least_spread,
            0.05,  # features are normalised: about 1 at the start
            0.1,
            lambda value, record: f"least standard deviation of the teacher's features over cells {value:.2g}",
            "Limit 0.05: at one level at least, all cells look alike. Try a lower optim.lr or less weight decay.",
        ),
    ]


def _least_spread(record: Record) -> float | None:
    levels = [value for key, value in record.items() if key.startswith("spread_") and value is not None]
    return min(levels, default=None)
