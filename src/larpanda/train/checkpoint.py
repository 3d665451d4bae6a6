"""Checkpoints: everything a run needs to go on exactly, written whole or not at all, verified before use.

A checkpoint is a folder ``step-XXXXXXXX`` with safetensors, JSON, and a MANIFEST.json of sizes and SHA-256 sums; the
folder gets its name only when it is complete. Neither torch.save nor safetensors notices a flipped bit; the sums do.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from larpanda.publish import sync

KEEP = 3  # newest checkpoints that stay


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.AdamW) -> Path:
    """Write ``folder/step-XXXXXXXX`` and remove all but the newest few. Returns its path."""
    from safetensors.torch import save_file

    target = folder / f"step-{step:08d}"
    part = folder / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, part / "model.safetensors")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[id(parameter)]}/{key}": value.contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    save_file(moments, part / "optimizer.safetensors")
    (part / "state.json").write_text(json.dumps({"step": step}) + "\n")
    manifest = {path.name: _digest(path) for path in sorted(part.iterdir())}
    (part / "MANIFEST.json").write_text(json.dumps(manifest, indent=2) + "\n")
    for path in part.iterdir():
        sync(path)
    if target.exists():  # left by a run that was resumed from an older checkpoint
        shutil.rmtree(target)
    part.rename(target)
    sync(folder)
    for old in sorted(folder.glob("step-????????"))[:-KEEP]:
        shutil.rmtree(old)
    return target


def resume(folder: Path, model: nn.Module, optimizer: torch.optim.AdamW, log: Callable[[str], None]) -> int:
    """Load the newest checkpoint that is whole and return its step; 0 if there is none.

    A damaged one is set aside under another name, said, and the one before is taken.

    Raises:
        ValueError: there are checkpoints, but none is whole; a run never starts over silently.
    """
    found = sorted(folder.glob("step-????????"), reverse=True)
    for path in found:
        if problem := damage(path):
            aside = path.with_name(path.name + ".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            log(f"{path}: {problem}; set aside as {aside.name}")
        else:
            return _load(path, model, optimizer)
    if found:
        raise ValueError(f"{folder}: none of {len(found)} checkpoints is whole; remove the folder to start over")
    return 0


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / "MANIFEST.json").read_text())
        for name, digest in manifest.items():
            if _digest(path / name) != digest:
                return f"{name} differs from its manifest"
    except (OSError, ValueError, AttributeError) as error:
        return f"cannot be verified ({error})"
    return None


def _load(path: Path, model: nn.Module, optimizer: torch.optim.AdamW) -> int:
    from safetensors.torch import load_file

    model.load_state_dict(load_file(path / "model.safetensors"))
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path / "optimizer.safetensors").items():
        name, _, kind = key.rpartition("/")
        moments.setdefault(name, {})[kind] = value
    for name, parameter in model.named_parameters():
        if name in moments:
            optimizer.state[parameter] = dict(moments[name])
    return int(json.loads((path / "state.json").read_text())["step"])


def _digest(path: Path) -> list[int | str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return [path.stat().st_size, digest.hexdigest()]
