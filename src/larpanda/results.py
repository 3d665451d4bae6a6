"""What the runs of a study came to: a small JSON file each, from which tables and figures are drawn again."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from larpanda.config import config_from_json
from larpanda.publish import publish_text

Task = Literal["semantic", "particle", "interaction"]
SUPERVISED = ("uresnet", "scratch")
PRETRAINED = ("linear", "decoder", "full")  # fine-tuning modes on the study's encoder: PT_100 + FT_K
PAIRED = ("linear_k", "full_k")  # the same on an encoder that saw the K events alone: PT_K + FT_K
ROWS = (*SUPERVISED, *PRETRAINED, *PAIRED)
HEADLINE = {"semantic": "macro_f1", "particle": "ari", "interaction": "ari"}  # what a task is judged by first


@dataclass(frozen=True)
class Score:
    """A number of a test set, by the conventions of ``evaluate`` (docs/metrics.md)."""

    name: str
    value: float | None
    """None: it does not exist, as for a class that does not occur."""
    low: float | None
    """16th percentile of a bootstrap over events; None for one event, or where none was made."""
    high: float | None


@dataclass(frozen=True)
class Judged:
    """The numbers of one test set."""

    source: str
    events: int
    scores: tuple[Score, ...]

    def score(self, name: str) -> Score:
        """The number of this name; without a value if it was not made."""
        return next((score for score in self.scores if score.name == name), Score(name, None, None, None))


@dataclass(frozen=True)
class Validation:
    """The headline number on the selection events after so many event samples."""

    samples: int
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class CellResult:
    """What a cell's file holds."""

    task: Task
    row: str
    labels: int
    seed: int
    lr: float
    samples: int
    minutes: float
    """Wall-clock, since the run was last started."""
    curve: tuple[Validation, ...]
    """The best of it was kept."""
    tests: tuple[Judged, ...]
    """None for a candidate of the grid and for pre-training."""
    larpanda: str

    @property
    def best(self) -> float:
        """The headline number of the weights that were kept, on the selection events."""
        return max((point.value for point in self.curve), default=float("nan"))


def read_results(out: Path) -> list[CellResult]:
    """All results of a study but those of its grid and its encoders, in order of row, labels and seed."""
    results = [read_result(path) for path in sorted((out / "results").glob("*.json")) if path.name[:5] != "grid-"]
    known = [result for result in results if result.row in ROWS]
    return sorted(known, key=lambda r: (ROWS.index(r.row), r.labels, r.seed))


def read_grid(out: Path) -> list[CellResult]:
    """The candidates of a study's grid, in order of row and learning rate."""
    tried = [read_result(path) for path in sorted((out / "results").glob("grid-*.json"))]
    return sorted(tried, key=lambda r: (ROWS.index(r.row), r.lr))


def read_result(path: Path) -> CellResult:
    """One result file. Raises ValueError if it is none."""
    try:
        return config_from_json(CellResult, json.loads(path.read_text()), str(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); remove it, and its run is made again") from None


def write_result(path: Path, result: CellResult) -> None:
    """Write a result file, whole or not at all; NaN, which is no JSON, becomes null."""
    publish_text(path, json.dumps(_plain(asdict(result)), indent=1) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and value != value else value
