"""Where a process computes."""

import torch


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes CUDA if there is one.

    Raises:
        ValueError: an unknown name, or a device that is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {name!r} is not known; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device here, or a CPU build of PyTorch; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
