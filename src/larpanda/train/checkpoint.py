"""Checkpoints: everything a run needs to go on exactly, written whole or not at all, verified before use.

A checkpoint is a folder ``step-XXXXXXXX`` with safetensors, JSON, and a MANIFEST.json of sizes and SHA-256 sums; the
folder gets its name only when it is complete. Neither torch.save nor safetensors notices a flipped bit; the sums do.
All of this is for the first process of a run alone; ``share_state`` gives the others what it loaded.
"""

import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from larpanda.parallel import on_first, rank, share, world
from larpanda.publish import digest, sync
from larpanda.train.fault import fault_point

FORMAT = 2  # 1 had neither format nor configuration in its manifest
KEEP = 3  # newest checkpoints that stay, and the best beside them
MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"
FILES = (MODEL, OPTIMIZER, STATE)
MANIFEST_BYTES = 1 << 20  # far more than three names need
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoCheckpointError(ValueError):
    """There are checkpoints, but none is whole: a run never starts over silently. The command line exits with 3."""

    exit_code = 3


@dataclass(frozen=True)
class State:
    """Where a run is; the weights and the optimizer's moments are the rest."""

    step: int = 0
    skipped: int = 0
    """Steps not taken because loss or gradient was not finite."""
    in_a_row: int = 0
    """How many of them just now."""
    score: float | None = None
    """Of the validation after this very step, if there was one; higher is better."""
    best: float | None = None
    """The highest score of the run."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run. config: hash of its configuration (``run.config_hash``)."""

    folder: Path
    config: str
    say: Callable[[str], None]

    def save(self, state: State, model: nn.Module, optimizer: torch.optim.Optimizer, last: bool) -> None:
        """Write a checkpoint; remove those that are neither new nor best.

        A failure is said, and on a full disk the oldest one that is not best is removed. Then the run goes on and the
        next checkpoint is the next attempt; only for the last one of a run there is a second attempt at once.

        Raises:
            OSError: the last one cannot be written.
        """
        try:
            self._write(state, model, optimizer)
        except OSError as error:
            room = error.errno in FULL and self._make_room()
            goes_on = "a second attempt" if last else "training goes on, the next checkpoint is the next attempt"
            self.say(
                f"{self.folder}: step {state.step} was not saved ({error.strerror or error}){room or ''}; {goes_on}"
            )
            if not last:
                return
            self._write(state, model, optimizer)
        found = self._found()
        best = self._best(found)
        for old in found[:-KEEP]:
            if old != best:
                _remove(old)

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
        """Load the newest checkpoint that is whole; the state of a new run if there is none.

        A damaged one is set aside under another name, said, and the one before is taken.

        Raises:
            NoCheckpointError: there are checkpoints, but none is whole.
            ValueError: a checkpoint of another format, configuration or model.
        """
        for left in self.folder.glob(".step-*.part"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        found = self._found()
        for path in reversed(found):
            if problem := damage(path):
                aside = _set_aside(path)
                self.say(f"{path}: {problem}; set aside as {aside.name}")
            elif (config := _manifest(path).get("config")) != self.config:
                raise ValueError(f"{path}: of a run of another configuration ({config}); expected {self.config}")
            else:
                return _load(path, model, optimizer)
        damaged = len(list(self.folder.glob("step-*.damaged*")))
        if damaged:
            raise NoCheckpointError(
                f"{self.folder}: none of {damaged} checkpoints is whole; remove the folder to start over"
            )
        return State()

    def load_best(self, model: nn.Module) -> int | None:
        """Give a model the weights of the best checkpoint. Returns its step, None if no validation had a score."""
        from safetensors.torch import load_file

        best = self._best([path for path in self._found() if not damage(path)])
        if best is None:
            return None
        weights = load_file(best / MODEL)
        _must_fit(best / MODEL, weights, model.state_dict())
        model.load_state_dict(weights)
        return int(best.name.removeprefix("step-"))

    def _write(self, state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        step = state.step
        target = self.folder / f"step-{step:08d}"
        if target.exists():
            if not damage(target) and _manifest(target)["config"] == self.config:
                return  # a run is the same each time it is made
            _set_aside(target)
        part = self.folder / f".{target.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        fault_point("checkpoint.mkdir", step)
        weights, moments = dict(model.state_dict()), _moments(model, optimizer)
        needed = sum(t.numel() * t.element_size() for t in [*weights.values(), *moments.values()])
        if shutil.disk_usage(part).free < needed:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {needed / 1e6:.1f} MB needed", str(part))
        _write_tensors(part / MODEL, weights)
        fault_point("checkpoint.model", step)
        _write_tensors(part / OPTIMIZER, moments)
        fault_point("checkpoint.optimizer", step)
        _write_json(part / STATE, asdict(state))
        fault_point("checkpoint.state", step)
        files = {name: list(digest(part / name)) for name in FILES}
        fault_point("checkpoint.manifest", step)
        _write_json(part / MANIFEST, {"format": FORMAT, "step": step, "config": self.config, "files": files})
        fault_point("checkpoint.written", step)
        sync(part)
        fault_point("checkpoint.rename", step)
        part.rename(target)
        fault_point("checkpoint.renamed", step)
        sync(self.folder)

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("step-????????"))

    def _best(self, found: list[Path]) -> Path | None:
        """Found in the checkpoints themselves: what is not stored elsewhere cannot be stale."""
        scored = [(score, path) for path in found if (score := _score(path)) is not None]
        return max(scored, key=lambda one: one[0])[1] if scored else None  # of equals the oldest

    def _make_room(self) -> str:
        """Remove the oldest checkpoint that is neither the best nor the only one to go on from."""
        found = self._found()
        for old in found[:-1]:
            if old != self._best(found):
                _remove(old)
                return f", {old.name} was removed to make room"
        return ""


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None.

    Raises:
        ValueError: it is of another format, which is no damage.
    """
    try:
        manifest = _manifest(path)
        if manifest.get("format", 1) != FORMAT:
            raise ValueError(
                f"{path}: a checkpoint of format {manifest.get('format', 1)}; this larpanda reads {FORMAT}. Use the "
                "larpanda that wrote it, or begin a new run from its bundle"
            )
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, _NotAManifestError) as error:
        return f"cannot be verified ({error})"
    files = manifest.get("files")
    if not isinstance(files, dict) or set(files) != set(FILES):  # so no name leads out of the folder
        return f"its manifest does not name {', '.join(FILES)}, and nothing else"
    if path.name != f"step-{manifest.get('step', -1):08d}":
        return f"its manifest is of step {manifest.get('step')}"
    try:
        for name, expected in files.items():
            status = (path / name).lstat()
            if not stat.S_ISREG(status.st_mode):
                return f"{name} is not a plain file"
            if not isinstance(expected, list) or [status.st_size] != expected[:1]:
                return f"{name} differs from its manifest"
            if list(digest(path / name)) != expected:
                return f"{name} differs from its manifest"
    except OSError as error:
        return f"cannot be verified ({error})"
    return None


def share_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give all processes of a run the weights and moments of the first: they begin equal, and read no files."""
    if world() == 1:
        return
    device = next(model.parameters()).device
    share(model.state_dict().values(), device)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    known = on_first(lambda: [p in optimizer.state for p in parameters])
    for parameter, there in zip(parameters, known, strict=True):
        if not there:
            continue
        if rank() > 0:
            kinds = {kind: torch.zeros_like(parameter) for kind in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros(()), **kinds}
        share([optimizer.state[parameter][kind] for kind in ("step", "exp_avg", "exp_avg_sq")], device)


class _NotAManifestError(Exception):
    pass


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    status = file.lstat()
    if path.is_symlink() or not stat.S_ISREG(status.st_mode) or status.st_size > MANIFEST_BYTES:
        raise _NotAManifestError(f"{MANIFEST} is a link, or {status.st_size} bytes long")
    manifest = json.loads(file.read_text())
    if not isinstance(manifest, dict) or not isinstance(manifest.get("step", 0), int):
        raise _NotAManifestError(f"{MANIFEST} is not one")
    return manifest


def _load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    from safetensors.torch import load_file

    weights = load_file(path / MODEL)
    _must_fit(path / MODEL, weights, model.state_dict())
    model.load_state_dict(weights)
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(path / OPTIMIZER).items():
        name, _, kind = key.rpartition("/")
        moments.setdefault(name, {})[kind] = value
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = {name: p for name, p in model.named_parameters() if id(p) in trained}
    for name, values in moments.items():
        if name not in named:
            raise ValueError(f"{path / OPTIMIZER}: {name} is not trained by this run; was it another?")
        like = {"step": torch.zeros(()), "exp_avg": named[name], "exp_avg_sq": named[name]}
        _must_fit(path / OPTIMIZER, values, like)
        optimizer.state[named[name]] = {kind: value.to(like[kind].device) for kind, value in values.items()}
    return State(**json.loads((path / STATE).read_text()))


def _must_fit(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not of this model" for name in found.keys() - expected.keys()]
    for name in found.keys() & expected.keys():
        there, here = ((list(t.shape), str(t.dtype)) for t in (found[name], expected[name]))
        if there != here:
            problems.append(f"{name} is {there}, expected {here}")
    if problems:
        raise ValueError(f"{path}: does not fit: {'; '.join(sorted(problems)[:5])} ({len(problems)} in all)")


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{kind}": value
        for parameter, state in optimizer.state.items()
        for kind, value in state.items()
    }


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # its way to say that the disk is full, or what else the system said
        full = "os error 28" in str(error) or "os error 122" in str(error) or "os error 27" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path)) from None
    path.chmod(0o644)  # safetensors makes files that nobody else may read
    sync(path)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
    sync(path)


def _score(path: Path) -> float | None:
    try:
        score = json.loads((path / STATE).read_text()).get("score")
    except (OSError, ValueError, AttributeError):
        return None
    return score if isinstance(score, float) and math.isfinite(score) else None


def _remove(path: Path) -> None:
    """Under another name first: killed half-way, it must not look like a checkpoint."""
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    path.rename(part)
    shutil.rmtree(part, ignore_errors=True)


def _set_aside(path: Path) -> Path:
    aside, number = path.with_name(f"{path.name}.damaged"), 1
    while aside.exists() or aside.is_symlink():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(aside)
    return aside
