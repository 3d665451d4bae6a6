"""What a training run says of itself: its state for a person, and a page of its curves. Reads its folder only."""

import json
import math
import time
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from larpanda.display.history import Curve, curves_page
from larpanda.publish import LOCK, publish_text
from larpanda.train.watch import CollapseWatch

PAGE = "curves.html"
STEPS = "step-????????"  # folders of checkpoints
SILENT_S = 600.0  # without a line for so long a run is taken to be dead; an evaluation may last minutes
TOLD = 5  # newest alarms and skipped steps that are printed


@dataclass(slots=True, eq=False)
class Log:
    """What metrics.jsonl holds."""

    columns: dict[str, tuple["array[float]", "array[float]"]] = field(default_factory=dict)  # steps, finite values
    alarms: list[tuple[int, str]] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)  # steps that were not taken, and their events
    unreadable: int = 0  # lines, a last one that was cut short not counted
    step: int = 0  # the last

    def last(self, key: str) -> float | None:
        """The last value of a key."""
        return self.columns[key][1][-1] if key in self.columns else None

    def curves(self) -> dict[str, Curve]:
        """All columns, to be drawn."""
        return {key: Curve(np.array(steps), np.array(values)) for key, (steps, values) in self.columns.items()}

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a line. A step that is there already was taken again by a run that went on: what was after it goes."""
        step = int(record["step"])
        if "loss" in record and step <= self.step:
            self._forget_from(step)
        self.step = max(self.step, step)
        if "alarm" in record:
            self.alarms.append((step, str(record["alarm"])))
        events = record.get("skipped_events", record.get("events"))
        if isinstance(events, list):
            self.skipped.append((step, ", ".join(map(str, events))))
        for key, value in record.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                steps, values = self.columns.setdefault(key, (array("d"), array("d")))
                steps.append(step)
                values.append(value)

    def _forget_from(self, step: int) -> None:
        for steps, values in self.columns.values():
            first = bisect_left(steps, step)
            del steps[first:], values[first:]
        self.columns = {key: column for key, column in self.columns.items() if column[0]}
        self.alarms = [one for one in self.alarms if one[0] < step]
        self.skipped = [one for one in self.skipped if one[0] < step]


def read_log(path: Path, watch: CollapseWatch | None = None) -> Log:
    """Read a metrics.jsonl, also of a run that goes on. Lines that are not records are counted, not believed.

    If the run wrote no alarms of its own, they are those of ``watch``.
    """
    log, judged = Log(), []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                log.add(record := json.loads(line))
                if watch is not None and (text := watch.see(record)):
                    judged.append((log.step, text))
            except (ValueError, KeyError, TypeError, OverflowError):
                log.unreadable += line.endswith("\n") and bool(line.strip())  # the last one may be cut by a kill
    log.alarms = log.alarms or judged
    return log


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run, also of one that has taken no step."""
    begun = (path / "config.json").is_file() and any((path / name).exists() for name in ("checkpoints", LOCK))
    return begun or (path / "metrics.jsonl").is_file()


def describe_run(run: Path) -> str:
    """The state of a run, for a person, and its configuration; draws its curves to ``run/curves.html``.

    Raises:
        ValueError, FileNotFoundError: config.json is not the record of a run.
    """
    record = _read_record(run / "config.json")
    metrics = run / "metrics.jsonl"
    prototypes = _find(record["config"], "prototypes")
    watch = CollapseWatch(int(prototypes), int(record["config"]["steps"])) if prototypes else None
    log = read_log(metrics, watch) if metrics.exists() else Log()
    state = _state(run, record, log)
    if log.step:
        state += f"\n{_draw(run, record, log, state)}"
    return f"{state}\n{json.dumps(record, indent=2)}"


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record["task"], str) or int(record["config"]["steps"]) < 1:
            raise TypeError
    except (KeyError, TypeError):
        raise ValueError(f"{path}: not the record of a run; expected task and config with steps") from None
    except ValueError as error:
        raise ValueError(
            f"{path}: not JSON ({error}); expected the record of a run, which the command that began it writes"
        ) from None
    return record


def _draw(run: Path, record: Mapping[str, Any], log: Log, state: str) -> str:
    """Write the page; returns the line that says where it is, or why not."""
    lines = {}
    if prototypes := _find(record["config"], "prototypes"):
        lines["entropy"] = (math.log(prototypes), f"log P, P = {prototypes:g}")
    page = curves_page(
        f"{record['task']}: {run.resolve().name}", state, log.curves(), lines, [a[0] for a in log.alarms]
    )
    try:
        publish_text(run / PAGE, page)
    except OSError as error:
        return f"curves: {run / PAGE} could not be written ({(error.strerror or str(error)).lower()})"
    return f"curves: {run / PAGE}"


def _state(run: Path, record: Mapping[str, Any], log: Log) -> str:
    steps, last, ended = int(record["config"]["steps"]), log.last, (run / "bundle").exists()
    head = f"run of {record['task']}, {'ended' if ended else 'not ended'}"
    if not log.step:
        return f"{head}: no step of {steps} yet, metrics.jsonl is empty or missing"
    prototypes = _find(record["config"], "prototypes")
    lines = [f"{head}: step {log.step} of {steps} ({100 * log.step / steps:.3g} %)"]
    lines += [] if ended else [_still_there(run, log, steps)]
    lines += [
        _row(
            "loss",
            _number("", last("loss")),
            _number("local", last("local")),
            _number("masked", last("mask")),
            _number("swapped", last("swap") or None),  # 0: switched off
            _number("accuracy", last("accuracy")),
        ),
        _row(
            "targets",
            _number("h(q)", last("entropy"), "nats"),
            _of_flat(last("entropy"), prototypes),
            _number("KL", last("kl"), "nats"),
        ),
        _row(
            "prototypes",
            _percent("nearest to any cell", last("usage")),
            _number("perplexity", last("perplexity"), f"of {prototypes:g}" if prototypes else ""),
        ),
        _row("spread", *(_number(f"level {i}", last(key)) for i in range(16) if (key := f"spread_{i}") in log.columns)),
        _row("gradient", _number("norm", last("gradient"))),
        _row("matched", _percent("local", last("matched_local")), _percent("masked", last("matched_mask"))),
        _row(
            "speed",
            _number("", last("seconds"), "s a step"),
            _number("", last("events_per_s"), "events/s"),
            _number("", last("points_per_s"), "points/s"),
            _percent("waiting for data", last("waited")),
        ),
        _validation(log),
        *_trouble(log),
        _row("checkpoints", ", ".join(sorted(path.name for path in (run / "checkpoints").glob(STEPS))) or "none"),
    ]
    return "\n".join(line for line in lines if line)


def _trouble(log: Log) -> list[str]:
    lines = []
    if count := max(int(log.last("skipped") or 0), len(log.skipped)):
        newest = "; ".join(f"step {step}: events {events}" for step, events in log.skipped[-TOLD:])
        lines.append(_row("skipped", f"{count} steps that were not finite", newest))
    lines += [_row("alarm", f"step {step}: {text}") for step, text in log.alarms[-TOLD:]]
    if len(log.alarms) > TOLD:
        lines.append(_row("alarm", f"{len(log.alarms) - TOLD} earlier ones are in metrics.jsonl"))
    if log.unreadable:
        lines.append(_row("log", f"{log.unreadable} lines of metrics.jsonl are not records and were left out"))
    return lines


def _still_there(run: Path, log: Log, steps: int) -> str:
    """Whether a run that has not ended seems to be running, and how long it will."""
    age = max(0.0, time.time() - (run / "metrics.jsonl").stat().st_mtime)
    written, seconds = f"the last line was written {_duration(age)} ago", log.last("seconds") or 0.0
    if age > max(SILENT_S, 20 * seconds):
        return _row("stopped?", written, "the same command goes on from the newest checkpoint")
    left = log.last("eta_s")
    return _row("running", written, f"{_duration(seconds * (steps - log.step) if left is None else left)} left")


def _validation(log: Log) -> str:
    steps, values = log.columns.get("validation_macro_f1", ([], []))
    if not len(values):
        return ""
    best = max(range(len(values)), key=values.__getitem__)
    motifs = [key for key in log.columns if key.startswith("validation_f1_")]
    return _row(
        "validation",
        f"macro F1 {values[-1]:.3f} at step {steps[-1]:.0f}",
        f"best {values[best]:.3f} at step {steps[best]:.0f}",
        *(_number(key.removeprefix("validation_f1_"), log.last(key)) for key in motifs),
    )


def _of_flat(entropy: float | None, prototypes: float | None) -> str | None:
    if entropy is None or not prototypes or prototypes < 2:
        return None
    return f"{100 * entropy / math.log(prototypes):.3g} % of log P = {math.log(prototypes):.3g}"


def _find(config: Any, name: str) -> float | None:
    """A number of that name, wherever it stands in a configuration."""
    if not isinstance(config, dict):
        return None
    if isinstance(config.get(name), int | float):
        return float(config[name])
    return next((found for part in config.values() if (found := _find(part, name)) is not None), None)


def _row(name: str, *parts: str | None) -> str:
    """A line of the state; none if there is nothing to say."""
    said = [part for part in parts if part]
    return f"{name:<12} {', '.join(said)}" if said else ""


def _number(name: str, value: float | None, unit: str = "") -> str | None:
    if value is None:
        return None
    return " ".join(part for part in (name, f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}", unit) if part)


def _percent(name: str, share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.3g} % {name}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
