"""Gathering rows and reducing runs of them, with backward passes that fit: PyTorch's own go row by row on a CPU."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _SpreadRuns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, length: Tensor, run: Tensor) -> Tensor:
        ctx.save_for_backward(length)
        return x.index_select(0, run)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return sum_runs(grad, ctx.saved_tensors[0]), None, None


def spread_runs(x: Tensor, length: Tensor, run: Tensor) -> Tensor:
    """Give every row of a run the value of its run.

    Args:
        x: [M, C], one row per run.
        length: [M] int64, rows of each run, laid end to end; sums to N.
        run: [N] int64, the run of each row, i.e. ``repeat_interleave(length)``.

    Returns:
        [N, C].
    """
    result: Tensor = _SpreadRuns.apply(x, length, run)  # type: ignore[no-untyped-call]
    return result


def sum_runs(x: Tensor, length: Tensor) -> Tensor:
    """Sum over runs of consecutive rows. x: [N, C]; length: [M] int64, sums to N. Returns [M, C]."""
    return torch.segment_reduce(x.contiguous(), "sum", lengths=length, axis=0, unsafe=True)


class _SumGroups(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Tensor, n_groups: int) -> Tensor:
        ctx.save_for_backward(group)
        order = group.argsort(stable=True)  # so that sums are the same on every device and run
        return sum_runs(x.index_select(0, order), torch.bincount(group, minlength=n_groups))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


def sum_groups(x: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Sum over rows of equal number, in any order. x: [N, C]; group: [N] int64 in 0..M - 1. Returns [M, C]."""
    result: Tensor = _SumGroups.apply(x, group, n_groups)  # type: ignore[no-untyped-call]
    return result


class _MaxRuns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, length: Tensor, run: Tensor) -> Tensor:
        if not ctx.needs_input_grad[0]:  # 20 times faster, but does not tell which row won
            lowest = x.new_full((len(length), x.shape[1]), -torch.inf)
            return lowest.scatter_reduce_(0, run[:, None].expand_as(x), x, "amax")
        first = length.cumsum(0) - length
        step = torch.arange(int(length.max()) if len(length) else 1, device=x.device)
        row = first[:, None] + torch.minimum(step, length[:, None] - 1)  # [M, longest]: short runs repeat their last
        value, which = x.index_select(0, row.flatten()).view(*row.shape, x.shape[1]).max(1)
        ctx.save_for_backward(first[:, None] + torch.minimum(which, length[:, None] - 1))
        ctx.n = len(x)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        winner = ctx.saved_tensors[0]
        return grad.new_zeros(ctx.n, grad.shape[1]).scatter_(0, winner, grad), None, None


def max_runs(x: Tensor, length: Tensor, run: Tensor) -> Tensor:
    """Maximum over runs of consecutive rows; of equal rows one alone takes the gradient.

    Masked points all start from one learned vector and tie exactly, where ``segment_reduce`` would share the gradient.

    Args:
        x: [N, C].
        length: [M] int64, positive, sums to N; short (8 where 2 x 2 x 2 cells become one).
        run: [N] int64, the run of each row, i.e. ``repeat_interleave(length)``.

    Returns:
        [M, C].
    """
    result: Tensor = _MaxRuns.apply(x, length, run)  # type: ignore[no-untyped-call]
    return result


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, row: Tensor) -> Tensor:
        ctx.save_for_backward(row)
        ctx.n = len(x)
        return x.index_select(0, row)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return sum_groups(grad, ctx.saved_tensors[0], ctx.n), None


def take_rows(x: Tensor, row: Tensor) -> Tensor:
    """Rows of ``x`` in any order, any number of times. x: [M, C]; row: [N] int64 in 0..M - 1. Returns [N, C]."""
    result: Tensor = _TakeRows.apply(x, row)  # type: ignore[no-untyped-call]
    return result
