"""A run folder: who owns it, and which run it is. Training of every kind begins here."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

from larpanda.parallel import on_first
from larpanda.publish import locked, publish_text
from larpanda.train.optim import OptimConfig

FREE = ("workers", "tensorboard")  # top-level settings that change nothing in the result: a run may go on with others


class RunConfig(Protocol):
    """What the configuration of every kind of training has at its top level (a frozen dataclass)."""

    @property
    def steps(self) -> int:
        """Of the whole run."""

    @property
    def batch_events(self) -> int:
        """Events of a step, over all processes."""

    @property
    def save_every(self) -> int:
        """Steps from checkpoint to checkpoint."""

    @property
    def evaluate_every(self) -> int:
        """Steps from validation to validation; a multiple of ``save_every`` lets the best checkpoint be kept."""

    @property
    def seed(self) -> int:
        """Of the weights, the order of events and the views."""

    @property
    def workers(self) -> int:
        """Processes that make batches ahead; 0: none. The result does not depend on them."""

    @property
    def autocast(self) -> bool:
        """Compute in bfloat16 where it is safe, on CUDA devices that can."""

    @property
    def tensorboard(self) -> bool:
        """Write TensorBoard's files beside metrics.jsonl."""

    @property
    def keep(self) -> Literal["best", "last"]:
        """Whose weights the bundle has: of the best validation that a checkpoint was saved after, or of the end."""

    @property
    def optim(self) -> OptimConfig:
        """How weights move."""


@contextmanager
def claimed(run: Path, record: Mapping[str, Any]) -> Iterator[None]:
    """Have a run folder for this run alone, to the end of the block; over several processes, for all of them.

    Args:
        run: made if it does not exist.
        record: what the run is, JSON values, with the configuration as ``config``; kept as config.json. A later run
            there must have the same, but for settings that do not change the result.

    Raises:
        ValueError: the folder's run is another, or another process is at work in it.
    """
    with ExitStack() as stack:
        on_first(lambda: _claim(stack, run, record))
        yield


def config_hash(config: RunConfig) -> str:
    """SHA-256 of a configuration, without the settings that do not change the result."""
    values = _binding(asdict(config))  # type: ignore[call-overload]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _claim(stack: ExitStack, run: Path, record: Mapping[str, Any]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    stack.enter_context(locked(run))
    path = run / "config.json"
    if not path.exists():
        publish_text(path, json.dumps(record, indent=2) + "\n")
        return
    try:
        there = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); expected the record of a run") from None
    here = json.loads(json.dumps(record))  # tuples are lists there
    if difference := ", ".join(_differences(there, here)):
        raise ValueError(
            f"{path}: a run of another configuration or data ({difference}); choose another --out or remove it"
        )


def _differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    """Where two records differ, but for what is free."""
    if isinstance(there, dict) and isinstance(here, dict):
        if path == "config":
            there, here = _binding(there), _binding(here)
        for name in sorted(there.keys() | here.keys()):
            yield from _differences(there.get(name), here.get(name), f"{path}.{name}" if path else name)
    elif there != here:
        yield f"{path or 'the whole'} {json.dumps(there)} there, {json.dumps(here)} here"


def _binding(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in FREE}
