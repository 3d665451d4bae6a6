"""Where a process computes, and with how many threads."""

import os

import torch

SMALL_MODEL = 10_000_000  # weights


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


def limit_threads(n_weights: int) -> None:
    """Let a program that runs a small model use one thread, unless OMP_NUM_THREADS says otherwise.

    The many small operations of an event gain little from a second thread (`nano`: 75 against 93 ms an event on two
    idle cores) and lose much when a process keeps one core busy (390 against 108 ms): threads wait for each other.
    """
    if n_weights < SMALL_MODEL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
