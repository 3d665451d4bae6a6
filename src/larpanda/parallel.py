"""Where a process computes, with how many threads, and what it shares with the others of its run."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

SMALL_MODEL = 10_000_000  # weights
PATIENCE = timedelta(minutes=30)  # for the others; the first process writes checkpoints meanwhile, and a disk may hang
BUCKET = 1 << 23  # numbers in one sum of gradients, 32 MB: few calls, and little memory beside the gradients

T = TypeVar("T")


def pick_device(name: str) -> torch.device:
    """The device of that name, made ready; ``auto`` takes CUDA if there is one.

    Raises:
        ValueError: an unknown name, or a device that is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {name!r} is not known; expected auto, cpu or cuda")
    keep_few_kernels()
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device here, or a CPU build of PyTorch; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # cuDNN's attention, which PyTorch prefers on some GPUs, compiles for each new shape, and every batch has new ones.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device("cuda")


def keep_few_kernels() -> None:
    """Let oneDNN keep 16 compiled kernels instead of 1,024, unless ONEDNN_PRIMITIVE_CACHE_CAPACITY says otherwise.

    PyTorch's matrix products on CPUs make one for each shape, each batch has new shapes, and none comes again: `nano`
    would grow by 0.5 MB an event in inference and by 4 MB a step in training, and is no faster for it. To be called
    before the first product of a process.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")


def limit_threads(n_weights: int) -> None:
    """Let a program that runs a small model use one thread, unless OMP_NUM_THREADS says otherwise.

    The many small operations of an event gain little from a second thread (`nano`: 75 against 93 ms an event on two
    idle cores) and lose much when a process keeps one core busy (390 against 108 ms): threads wait for each other.
    """
    if n_weights < SMALL_MODEL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


@contextmanager
def joined(device: str = "auto") -> Iterator[torch.device]:
    """Be one of the processes that torchrun started, to the end of the block; without torchrun, or within, be alone.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; each process of a machine takes a GPU of its own.

    Yields:
        The device to compute on.

    Raises:
        ValueError: a device that is not there, or more processes than GPUs.
    """
    where = pick_device(device)
    if where.type == "cuda" and "LOCAL_RANK" in os.environ:
        local, n = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= n:
            raise ValueError(f"process {local + 1} of this machine finds {n} GPUs; run torchrun --nproc-per-node={n}")
        where = torch.device("cuda", local)
        torch.cuda.set_device(where)
    started = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    if dist.is_initialized() or not started or os.environ["WORLD_SIZE"] == "1":
        yield where
        return
    if where.type == "cuda":
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=where)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    yield where
    dist.destroy_process_group()  # not after an exception: it would wait for those that wait for this process


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


def on_first(work: Callable[[], T]) -> T:
    """Have the first process do something; all wait, and return or raise (ValueError, OSError) what it does."""
    if world() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = work()
        except (ValueError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def gathered(value: T) -> list[T]:
    """What each process of the run has, in their order; all get it."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def share(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Overwrite tensors, on any device, with those of the first process. device: the one of the run's collectives."""
    if world() == 1:
        return
    with torch.no_grad():
        for tensor in tensors:
            there = tensor.detach().to(device).contiguous()
            dist.broadcast(there, 0)
            tensor.copy_(there)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its sum over the processes of the run.

    A parameter that no process used keeps no gradient, as on one process; one that some did not use counts as zero
    there. Not DistributedDataParallel: it takes means where losses are shares that sum, its buckets follow the order
    of the first backward pass, and parameters that a step does not use need care. What it would gain, sums during the
    backward pass, is a few ms of a step of 0.5 s for 107 M weights over NVLink.
    """
    if world() == 1:
        return
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        bucket.append(parameter)
        size += parameter.numel()
        if size >= BUCKET:
            _sum_bucket(bucket)
            bucket, size = [], 0
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(parameters: Sequence[nn.Parameter]) -> None:
    used = [float(p.grad is not None) for p in parameters]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([*(grad.flatten() for grad in grads), grads[0].new_tensor(used)])
    dist.all_reduce(flat)
    *sums, users = flat.split([*(p.numel() for p in parameters), len(parameters)])  # type: ignore[no-untyped-call]
    for parameter, grad, summed, n in zip(parameters, grads, sums, users.tolist(), strict=True):
        parameter.grad = grad.copy_(summed.view_as(grad)) if n else None
