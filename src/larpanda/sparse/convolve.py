"""Submanifold sparse convolution: a 3 x 3 x 3 kernel over occupied cells, output at the same cells."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from larpanda.sparse.neighbors import KERNEL, NeighborMap

_CENTRE = KERNEL // 2


def _spread(x: Tensor, kernel: Tensor, neighbors: NeighborMap) -> Tensor:
    """[N, C']: sum of x[neighbour k] @ kernel[k] over all k but the centre; one gather, 26 products, one sum."""
    gathered = x.index_select(0, neighbors.source)
    product = gathered.new_empty(len(gathered), kernel.shape[2])
    begin = 0
    for slot, count in enumerate(neighbors.count):
        end = begin + count
        torch.mm(gathered[begin:end], kernel[slot + (slot >= _CENTRE)], out=product[begin:end])
        begin = end
    return F.embedding_bag(neighbors.pair, product, neighbors.pair_start, mode="sum")


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, neighbors: NeighborMap) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.neighbors = neighbors
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
            grad_x = torch.addmm(_spread(grad, mirrored, neighbors), grad, mirrored[_CENTRE])
        if ctx.needs_input_grad[1]:
            source, target = x.index_select(0, neighbors.source), grad.index_select(0, neighbors.target)
            grad_kernel = torch.empty_like(kernel)
            torch.mm(x.t(), grad, out=grad_kernel[_CENTRE])
            begin = 0
            for slot, count in enumerate(neighbors.count):
                end = begin + count
                torch.mm(source[begin:end].t(), target[begin:end], out=grad_kernel[slot + (slot >= _CENTRE)])
                begin = end
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
    result: Tensor = _Convolve.apply(x, kernel, neighbors)  # type: ignore[no-untyped-call]
    return result
