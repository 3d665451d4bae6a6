"""Space-filling curves: the orders in which cells of a level are laid out into attention windows."""

from functools import cache

import torch
from torch import Tensor

ORDERS = ("hilbert", "hilbert-trans", "morton", "morton-trans")  # block b of a level uses order b % 4
MAX_DEPTH = 16  # bits per axis
_CHUNK = 9  # bits of a code that one look-up turns: three levels of the curve


@cache
def _spread(device: torch.device) -> Tensor:
    """[2**16] int64: each number with two zero bits between its bits."""
    number = torch.arange(1 << MAX_DEPTH, device=device)
    spread = torch.zeros_like(number)
    for bit in range(MAX_DEPTH):
        spread |= (number >> bit & 1) << 3 * bit
    return spread


@cache
def _hilbert_table(device: torch.device) -> tuple[Tensor, Tensor]:
    """The Hilbert curve as a machine with 24 states, which reads a Morton code three levels at a time.

    What one level of Skilling's algorithm does to the levels below it is a series of exchanges and reflections of axes;
    so a state is: which axis stands in each place, whether it is reflected, and the parity of the Gray code so far.

    Returns:
        [24 * 512] int64: at state * 512 + 9 bits of the Morton code, the next state * 512, shifted by 9, and 9 bits of
        the Hilbert code; and [3] int64: state * 512 with which a curve of depth d begins, at d % 3. Where the levels
        read are more than the depth, those above it turn the axes; after three levels they are back where they were.
    """
    states: list[tuple[tuple[int, ...], tuple[int, ...], int]] = [((0, 1, 2), (0, 0, 0), 0)]
    following: list[list[int]] = []  # [states][8]
    code: list[list[int]] = []  # [states][8]
    for axis, reflected, parity in states:  # grows as new states are met
        following.append([])
        code.append([])
        for octant in range(8):
            places, digit, below = list(zip(axis, reflected, strict=True)), 0, parity
            for k, (a, flip) in enumerate(places.copy()):
                is_set = octant >> 2 - a & 1 ^ flip
                if is_set:
                    places[0] = places[0][0], places[0][1] ^ 1
                else:
                    places[0], places[k] = places[k], places[0]
                below ^= is_set
                digit = digit << 1 | below
            state = tuple(a for a, _ in places), tuple(flip for _, flip in places), below
            if state not in states:
                states.append(state)
            following[-1].append(states.index(state))
            code[-1].append(digit)
    after, digits = torch.tensor(following), torch.tensor(code)
    one, two, three = (torch.arange(1 << _CHUNK) >> shift & 7 for shift in (6, 3, 0))
    second = after[:, one]
    third = after[second, two]
    entry = digits[:, one] << 6 | digits[second, two] << 3 | digits[third, three]
    table = after[third, three] << 2 * _CHUNK | entry
    begin = torch.tensor([0, following[0][0], following[following[0][0]][0]])
    return table.flatten().to(device), (begin << _CHUNK).to(device)


def morton_code(cell: Tensor) -> Tensor:
    """Interleave the bits of a cell's coordinates, x highest within a triple.

    Args:
        cell: [N, 3] int64, in 0..2**16 - 1.

    Returns:
        [N] int64. The code of the cell twice as wide is ``code >> 3``.
    """
    x, y, z = _spread(cell.device)[cell.t()].unbind()
    return x << 2 | y << 1 | z


def hilbert_code(cell: Tensor, depth: int, turn: Tensor | None = None) -> Tensor:
    """Distance along the Hilbert curve of 2**depth cells per axis.

    Args:
        cell: [N, 3] int64, in 0..2**depth - 1.
        depth: bits per axis, at most 16. The curve turns with it, with a period of 3.
        turn: [N] int64: follow the curve of this depth for a cell that fits it, not of ``depth``.

    Returns:
        [N] int64, in 0..8**depth - 1. ``code >> 3`` is the code, at depth - 1, of the cell twice as wide.

    Source: J. Skilling, AIP Conf. Proc. 707 (2004) 381, the form used by Point Transformer V3.
    """
    return _hilbert_from_morton(morton_code(cell), depth, turn)


def _hilbert_from_morton(morton: Tensor, depth: int, turn: Tensor | None) -> Tensor:
    table, starts = _hilbert_table(morton.device)
    state = starts[depth % 3] if turn is None else starts[turn % 3]
    code = torch.zeros_like(morton)
    for shift in range(_CHUNK * ((depth - 1) // 3), -1, -_CHUNK):
        entry = table[state + (morton >> shift & 511)]
        code = code << _CHUNK | entry & 511
        state = entry >> _CHUNK
    return code


def curve_codes(cell: Tensor, event_id: Tensor, depth: int, turn: Tensor | None = None) -> Tensor:
    """Codes of the curves of ORDERS, event by event; a trans curve has x and y exchanged.

    Args:
        cell: [N, 3] int64, in 0..2**depth - 1.
        event_id: [N] int64, below 2**(63 - 3 * depth).
        depth: bits per axis, at most 16.
        turn: see ``hilbert_code``.

    Returns:
        [4, N] int64: ``event_id << 3 * depth | code``.

    Raises:
        ValueError: a cell lies outside the curve.
    """
    if len(cell) and (cell.min() < 0 or cell.max() >= 1 << depth):
        raise ValueError(
            f"cells span {int(cell.min())}..{int(cell.max())}; a curve of depth {depth} covers 0..{(1 << depth) - 1}"
        )
    morton = [morton_code(cell), morton_code(cell[:, [1, 0, 2]])]
    hilbert = [_hilbert_from_morton(code, depth, turn) for code in morton]
    return torch.stack(hilbert + morton) | event_id << 3 * depth
