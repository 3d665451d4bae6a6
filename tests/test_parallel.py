"""What processes of a run share; each test starts two of them."""

import multiprocessing
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from larpanda import parallel


def in_two(check):
    """Run a function of the rank in two processes that joined a run."""
    context = multiprocessing.get_context("forkserver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=_join, args=(rank, port, check)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]


def _join(rank, port, check):
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    torch.set_num_threads(1)
    with parallel.joined("cpu") as device, parallel.joined("cpu"):  # within, nothing is left to do
        assert (parallel.rank(), parallel.world(), device.type) == (rank, 2, "cpu")
        check(rank)
    assert parallel.world() == 1


def sums(rank):
    parallel.BUCKET = 7  # parameters of several sizes in several sums
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), (), (5, 2), (1,), (3,))]
    for number, parameter in enumerate(parameters):
        if number == 3 or (number == 1 and rank == 0):
            continue  # nobody used 3, and the first process not 1
        parameter.grad = torch.full_like(parameter, number + 10.0 * rank)
    parallel.sum_gradients(parameters)
    assert parameters[3].grad is None
    for number, expected in ((0, 10.0), (1, 11.0), (2, 14.0), (4, 18.0), (5, 20.0)):
        assert parameters[number].grad.shape == parameters[number].shape
        assert parameters[number].grad.unique().tolist() == [expected]
    assert parallel.total(torch.tensor([1.0, rank])).tolist() == [2.0, 1.0]


def nan_of_one(rank):
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, float("nan") if rank else 1.0])
    parallel.sum_gradients([parameter])
    assert parameter.grad.isnan().tolist() == [False, True]


def first_decides(rank):
    assert parallel.on_first(lambda: f"by {rank}") == "by 0"
    for error in (ValueError, FileNotFoundError):
        with pytest.raises(error, match="of 0"):
            parallel.on_first(lambda error=error: _fail(error(f"of {rank}")))
    tensors = [torch.full((2, 3), float(rank)).t(), torch.tensor(rank)]
    parallel.share(tensors, torch.device("cpu"))
    assert not any(tensor.any() for tensor in tensors)


def _fail(error):
    raise error


@pytest.mark.parametrize("check", [sums, nan_of_one, first_decides], ids=lambda f: f.__name__)
def test_two_processes(check):
    in_two(check)


def test_alone_all_of_it_does_nothing(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    parameter = nn.Parameter(torch.zeros(2))
    with parallel.joined("cpu"):
        parallel.sum_gradients([parameter])
        parallel.share([parameter], torch.device("cpu"))
        assert parameter.grad is None
        assert parallel.on_first(lambda: 3) == 3
        assert np.isclose(parallel.total(torch.tensor(2.0)), 2.0)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc, which Linux alone has; oneDNN is the same elsewhere"
)
def test_memory_does_not_grow_with_the_shapes_that_were_seen():
    """oneDNN keeps 1,024 kernels by itself; a process of its own, since it decides at the first product."""
    code = """
import torch
import larpanda

def memory():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024

def see(n):
    for _ in range(n):
        size = int(torch.randint(100, 900, (), generator=rng))
        voxel = torch.randint(300, 340, (size, 3), generator=rng).unique(dim=0)
        model.features(larpanda.Event.from_arrays(voxel, torch.ones(len(voxel))))

torch.set_num_threads(1)
rng = torch.Generator().manual_seed(0)
model = larpanda.load("nano")
see(40)
before = memory()
see(160)
print(memory() - before)
"""
    environment = {name: value for name, value in os.environ.items() if "ONEDNN" not in name}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 15, "MB"
