"""Submanifold sparse convolution: a 3 x 3 x 3 kernel over occupied cells, output at the same cells."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from larpanda.sparse.kernels import PackedLinear
from larpanda.sparse.neighbors import KERNEL, NeighborMap

_CENTRE = KERNEL // 2
COLUMNS = 1 << 27  # numbers that are gathered at a time where neighbours stand side by side


def _around(kernel: Tensor) -> tuple[Tensor, ...]:
    """The 26 matrices of a kernel but that of the centre."""
    cells = kernel.unbind(0)
    return cells[:_CENTRE] + cells[_CENTRE + 1 :]


def _spread(x: Tensor, kernel: Tensor, neighbors: NeighborMap) -> Tensor:
    """[N, C']: sum of x[neighbour k] @ kernel[k] over all k but the centre; one gather, 26 products, one sum."""
    gathered = x.index_select(0, neighbors.source)
    product = gathered.new_empty(len(gathered), kernel.shape[2])
    rows_of, out_of = torch.split(gathered, neighbors.count), torch.split(product, neighbors.count)
    for rows, matrix, out in zip(rows_of, _around(kernel), out_of, strict=True):
        torch.mm(rows, matrix, out=out)
    return F.embedding_bag(neighbors.pair, product, neighbors.pair_start, mode="sum")


def _columns(x: Tensor, around: Tensor) -> Tensor:
    """[M, 27 * C]: for each of M cells the features of those around it side by side, zero where there is none."""
    return F.pad(x, (0, 0, 0, 1)).index_select(0, around.flatten()).view(len(around), KERNEL * x.shape[1])


def _side_by_side(x: Tensor, kernel: Tensor, around: Tensor) -> Tensor:
    """[N, C']: the whole sum as one product."""
    matrix = kernel.reshape(-1, kernel.shape[2])
    rows = max(1, COLUMNS // len(matrix))
    return torch.cat([_columns(x, part) @ matrix for part in torch.split(around, rows)])


def _side_by_side_gradient(x: Tensor, grad: Tensor, around: Tensor) -> Tensor:
    """[27, C, C']: of the kernel."""
    channels, rows = x.shape[1], max(1, COLUMNS // (KERNEL * x.shape[1]))
    pairs = zip(torch.split(around, rows), torch.split(grad, rows), strict=True)
    parts = [_columns(x, part).t() @ grads for part, grads in pairs]
    return torch.stack(parts).sum(0).view(KERNEL, channels, grad.shape[1])


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, neighbors: NeighborMap) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.neighbors = neighbors
        if neighbors.around is not None:
            return _side_by_side(x, kernel, neighbors.around)
        return torch.addmm(_spread(x, kernel, neighbors), x, kernel[_CENTRE])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, kernel = ctx.saved_tensors
        neighbors: NeighborMap = ctx.neighbors
        grad = grad.contiguous()
        grad_x = grad_kernel = None
        if ctx.needs_input_grad[0]:  # the same convolution with the kernel mirrored and transposed
            mirrored = kernel.flip(0).transpose(1, 2)
            if neighbors.around is not None:
                grad_x = _side_by_side(grad, mirrored, neighbors.around)
            else:
                grad_x = torch.addmm(_spread(grad, mirrored, neighbors), grad, mirrored[_CENTRE])
        if ctx.needs_input_grad[1] and neighbors.around is not None:
            grad_kernel = _side_by_side_gradient(x, grad, neighbors.around)
        elif ctx.needs_input_grad[1]:
            source, target = x.index_select(0, neighbors.source), grad.index_select(0, neighbors.target)
            grad_kernel = torch.empty_like(kernel)
            torch.mm(x.t(), grad, out=grad_kernel[_CENTRE])
            sources, targets = torch.split(source, neighbors.count), torch.split(target, neighbors.count)
            for rows, grads, out in zip(sources, targets, _around(grad_kernel), strict=True):
                torch.mm(rows.t(), grads, out=out)
        return grad_x, grad_kernel, None


def convolve(x: Tensor, kernel: Tensor, neighbors: NeighborMap) -> Tensor:
    """Convolve features of occupied cells with a 3 x 3 x 3 kernel; empty cells count as zero.

    Args:
        x: [N, C] float, features of the cells that ``neighbors`` was made of.
        kernel: [27, C, C'] float; kernel[k] meets the neighbour at offset (k // 9 - 1, k // 3 % 3 - 1, k % 3 - 1).
        neighbors: the level's map, shared by all convolutions of the level.

    Returns:
        [N, C'], equal at the occupied cells to a dense ``conv3d`` with zero padding (a cross-correlation).

    Source: submanifold sparse convolution, Graham et al. 2018 (arXiv:1711.10275).
    """
    if torch.is_autocast_enabled(x.device.type):
        # The products of _Convolve write into memory that is there, which autocast leaves alone, or half of them.
        dtype = torch.get_autocast_dtype(x.device.type)
        x, kernel = x.to(dtype), kernel.to(dtype)
    result: Tensor = _Convolve.apply(x, kernel, neighbors)  # type: ignore[no-untyped-call]
    return result


class PackedConvolution(nn.Module):
    """``convolve`` and a bias with weights that no longer change, laid out for this CPU (see ``kernels``)."""

    def __init__(self, kernel: Tensor, bias: Tensor) -> None:
        """kernel: [27, C, C']; bias: [C'] of the same type."""
        super().__init__()
        self.centre = PackedLinear(kernel[_CENTRE].t(), bias)
        self.around = nn.ModuleList(PackedLinear(matrix.t(), None) for matrix in _around(kernel))
        self.channels = len(bias)

    def forward(self, x: Tensor, neighbors: NeighborMap) -> Tensor:
        """[N, C] -> [N, C']."""
        gathered = torch.split(x.index_select(0, neighbors.source), neighbors.count)
        products = [linear(rows) for rows, linear in zip(gathered, self.around, strict=True) if len(rows)]
        product = torch.cat(products) if products else x.new_empty(0, self.channels)
        result: Tensor = self.centre(x)
        return result.add_(F.embedding_bag(neighbors.pair, product, neighbors.pair_start, mode="sum"))
