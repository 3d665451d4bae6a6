"""Where a process computes, with how many threads, and what it shares with the others of its run."""

import os

import torch
import torch.distributed as dist
from torch import Tensor

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


def rank() -> int:
    """This process's number among those of the run, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(x: Tensor) -> Tensor:
    """Sum of a tensor over the processes of the run, without gradient; the tensor itself where there is one."""
    if world() == 1:
        return x.detach()
    result = x.detach().clone()
    dist.all_reduce(result)
    return result
