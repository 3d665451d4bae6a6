"""Space-filling curves: the orders in which cells of a level are laid out into attention windows."""

import torch
from torch import Tensor

ORDERS = ("hilbert", "hilbert-trans", "morton", "morton-trans")  # block b of a level uses order b % 4


def morton_code(cell: Tensor, depth: int) -> Tensor:
    """Interleave the bits of a cell's coordinates, x highest within a triple.

    Args:
        cell: [N, 3] int64, in 0..2**depth - 1.
        depth: bits per axis, at most 16.

    Returns:
        [N] int64, in 0..8**depth - 1. The code of the cell twice as wide is ``code >> 3``.
    """
    code = torch.zeros(len(cell), dtype=torch.long, device=cell.device)
    for bit in range(depth):
        for axis in range(3):
            code |= (cell[:, axis] >> bit & 1) << (3 * bit + 2 - axis)
    return code


def hilbert_code(cell: Tensor, depth: int) -> Tensor:
    """Distance along the Hilbert curve of 2**depth cells per axis.

    Args:
        cell: [N, 3] int64, in 0..2**depth - 1.
        depth: bits per axis, at most 16. The curve turns with it: depths 10 and 11 give different orders.

    Returns:
        [N] int64, in 0..8**depth - 1. ``code >> 3`` is the code, at depth - 1, of the cell twice as wide.

    Source: J. Skilling, AIP Conf. Proc. 707 (2004) 381, the form used by Point Transformer V3.
    """
    axes = [cell[:, axis].clone() for axis in range(3)]
    for bit in range(depth - 1, -1, -1):
        lower = (1 << bit) - 1
        for axis in range(3):
            is_set = axes[axis] >> bit & 1 == 1
            swap = torch.where(is_set, 0, (axes[0] ^ axes[axis]) & lower)
            axes[0] = torch.where(is_set, axes[0] ^ lower, axes[0] ^ swap)
            if axis:
                axes[axis] = axes[axis] ^ swap
    code = morton_code(torch.stack(axes, 1), depth)
    shift = 1
    while shift < 3 * depth:  # Gray code to binary: each bit becomes the parity of itself and all above
        code = code ^ (code >> shift)
        shift *= 2
    return code


def curve_codes(cell: Tensor, event_id: Tensor, depth: int, orders: int = len(ORDERS)) -> Tensor:
    """Codes of the first ``orders`` curves of ORDERS, event by event; a trans curve has x and y exchanged.

    Args:
        cell: [N, 3] int64, in 0..2**depth - 1.
        event_id: [N] int64, below 2**(63 - 3 * depth).
        depth: bits per axis, at most 16.
        orders: how many curves, 1 to 4.

    Returns:
        [orders, N] int64: ``event_id << 3 * depth | code``.

    Raises:
        ValueError: a cell lies outside the curve.
    """
    if len(cell) and (cell.min() < 0 or cell.max() >= 1 << depth):
        raise ValueError(
            f"cells span {int(cell.min())}..{int(cell.max())}; a curve of depth {depth} covers 0..{(1 << depth) - 1}"
        )
    curves = {"hilbert": hilbert_code, "morton": morton_code}
    codes = []
    for order in ORDERS[:orders]:
        name, _, trans = order.partition("-")
        codes.append(curves[name](cell[:, [1, 0, 2]] if trans else cell, depth))
    return torch.stack(codes) | event_id << 3 * depth
