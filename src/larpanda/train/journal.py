"""metrics.jsonl: one line a step, the truth about a run; and TensorBoard beside it for those who ask for it."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from larpanda.parallel import on_first, rank
from larpanda.publish import publish_text, sync

Value = float | int | str | Sequence[int] | None


class Journal:
    """The log of a run, which its first process writes; in the others nothing happens.

    A full disk does not stop the run: lines wait in memory until they can be written.
    """

    def __init__(self, run: Path, step: int, say: Callable[[str], None], tensorboard: bool = False) -> None:
        """Open the log of a run that goes on after a step; what was logged of later ones, to be taken again, goes.

        Raises:
            ValueError: TensorBoard is not installed.
            OSError: the file cannot be written.
        """
        self._path, self._say = run / "metrics.jsonl", say
        self._waiting: list[str] = []
        self._writes = rank() == 0
        self._board = _board(run / "tensorboard", step) if tensorboard and self._writes else None
        on_first(lambda: _forget_after(self._path, step))

    def write(self, record: Mapping[str, Value]) -> None:
        """Add a line. What is not finite becomes null: NaN is not JSON."""
        if not self._writes:
            return
        known = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in record.items()}
        self._waiting.append(json.dumps(known) + "\n")
        first_trouble = len(self._waiting) == 1
        try:
            self._append()
        except OSError as error:
            if first_trouble:
                self._say(f"{self._path}: cannot be written ({error.strerror}); lines wait in memory")
        if self._board is not None:
            for name, value in known.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, known["step"])

    def sync(self) -> None:
        """Have all that could be written on the disk: a checkpoint must not outlive the log of its steps."""
        if self._writes and self._path.exists():
            sync(self._path)

    def close(self) -> None:
        """Write what waits. Raises OSError if it still cannot be written."""
        if self._board is not None:
            self._board.close()
        if self._waiting:
            self._append()

    def _append(self) -> None:
        with self._path.open("ab", buffering=0) as file:  # a buffer would try once more when it is closed
            end, rest = file.tell(), "".join(self._waiting).encode()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(end)  # no line is kept in part
                raise
        self._waiting.clear()


def logged_steps(run: Path) -> int:
    """The last step that a run has logged; 0 without a log."""
    path = run / "metrics.jsonl"
    steps = [_step_of(line) for line in path.read_text().splitlines()] if path.exists() else []
    return int(max((step for step in steps if math.isfinite(step)), default=0))


def _forget_after(path: Path, step: int) -> None:
    """Drop the log of steps that will be taken again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if _step_of(line) <= step]
        publish_text(path, "".join(lines))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:  # a last line cut short by a kill
        return float("inf")


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "tensorboard=true, but TensorBoard is not installed; pip install tensorboard, or leave it out"
        ) from None
    return SummaryWriter(str(folder), purge_step=step + 1)
