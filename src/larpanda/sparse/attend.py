"""Attention over packed events: cells within windows along a curve, and queries over the points of their event."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from larpanda.sparse.kernels import attention, few_queries, round_up, side_by_side


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Which rows attend to which, for all orders of a level. Slots are numbered through: full windows, then short.

    An event of more than ``size`` cells has windows of exactly ``size``; where its length is no multiple, the last
    window starts early and borrows cells of the one before, as keys and values only. An event of fewer cells is one
    short window, padded to the longest of the batch.
    """

    row: Tensor  # [orders, slots] int64: the row in each slot
    own: Tensor  # [orders, N] int64: the slot whose output a row takes
    borrowed_row: Tensor  # [orders, R] int64: rows that stand in a second slot, each once
    borrowed_slot: Tensor  # [R] int64: that slot
    full: int  # number of full windows
    size: int
    short: int  # number of short windows
    short_size: int
    short_mask: Tensor  # [short, 1, 1, short_size] bool: True where a slot holds a key
    padding: Tensor  # int64: slots that hold none, which take no gradient


def windows(start: Tensor, order: Tensor, size: int, rounded: bool = False) -> Windows:
    """Cut each event into windows along curves.

    Args:
        start: [B + 1] int64, event b owns rows start[b]:start[b + 1].
        order: [orders, N] int64, the rows along each curve, event by event.
        size: cells per window (paper section 3.1.2: 256).
        rounded: round up N (see ``kernels.round_up``); the added rows take what the first takes.

    Returns:
        The windows; those of an event do not depend on its batch-mates. Source: Point Transformer V3
        (arXiv:2312.10035), in the variable-length form of its released code.
    """
    device = order.device
    length = start.diff()
    is_full = length > size
    n_windows = torch.where(is_full, (length + size - 1) // size, 0)
    event = torch.repeat_interleave(n_windows)  # [full]
    number = torch.arange(len(event), device=device) - (n_windows.cumsum(0) - n_windows)[event]
    first_own = number * size + start[event]
    begin = torch.minimum(first_own, start[event + 1] - size)  # the last window ends with the event
    step = torch.arange(size, device=device)
    full_place = begin[:, None] + step  # [full, size], position along the curve of each slot
    full_owns = full_place >= first_own[:, None]

    short_event = (~is_full & (length > 0)).nonzero()[:, 0]
    short_length = length[short_event]
    short_size = int(short_length.max()) if len(short_event) else 0
    mask = step[:short_size] < short_length[:, None]  # [short, short_size]
    short_place = start[short_event][:, None] + torch.where(mask, step[:short_size], 0)

    place = torch.cat([full_place.flatten(), short_place.flatten()])
    owner = torch.cat([full_owns.flatten(), mask.flatten()]).nonzero()[:, 0]
    slot_of_place = torch.empty_like(order[0])
    slot_of_place[place[owner]] = owner
    borrowed = (~full_owns).flatten().nonzero()[:, 0]
    n = order.shape[1]
    own = order.new_zeros(len(order), round_up(n) if rounded else n)
    return Windows(
        row=order[:, place],
        own=own.scatter_(1, order, slot_of_place.expand_as(order)),
        borrowed_row=order[:, place[borrowed]],
        borrowed_slot=borrowed,
        full=len(event),
        size=size,
        short=len(short_event),
        short_size=short_size,
        short_mask=mask[:, None, None, :],
        padding=len(event) * size + (~mask).flatten().nonzero()[:, 0],
    )


class _ToSlots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, windows: Windows, order: int) -> Tensor:
        ctx.windows, ctx.order = windows, order
        return x.index_select(0, windows.row[order])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        windows: Windows = ctx.windows
        result = grad.index_select(0, windows.own[ctx.order])
        result[windows.borrowed_row[ctx.order]] += grad.index_select(0, windows.borrowed_slot)  # each row once
        return result, None, None


class _FromSlots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, windows: Windows, order: int) -> Tensor:
        ctx.windows, ctx.order = windows, order
        return x.index_select(0, windows.own[order])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        windows: Windows = ctx.windows
        result = grad.index_select(0, windows.row[ctx.order])
        result.index_fill_(0, windows.borrowed_slot, 0.0).index_fill_(0, windows.padding, 0.0)
        return result, None, None


def attend(qkv: Tensor, heads: int, windows: Windows, order: int) -> Tensor:
    """Multi-head softmax attention of each row over the rows of its window.

    Args:
        qkv: [N, 3 * C] float: queries, keys and values side by side, each of ``heads`` heads.
        heads: divides C.
        windows: of the level that the rows belong to.
        order: which of its orders.

    Returns:
        [N, C].
    """
    channels = qkv.shape[1] // 3
    slots: Tensor = _ToSlots.apply(qkv, windows, order)  # type: ignore[no-untyped-call]
    split = windows.full * windows.size
    parts = []
    for part, count, size, mask in (
        (slots[:split], windows.full, windows.size, None),
        (slots[split:], windows.short, windows.short_size, windows.short_mask),
    ):
        if count:
            q, k, v = part.view(count, size, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
            parts.append(attention(q, k, v, mask).transpose(1, 2).reshape(count * size, channels))
    if not parts:
        return qkv[:, :channels]
    out = torch.cat(parts) if len(parts) > 1 else parts[0]
    result: Tensor = _FromSlots.apply(out, windows, order)  # type: ignore[no-untyped-call]
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """N rows of B events laid end to end, as products of each event's rows with its own matrix want them."""

    start: Tensor  # [B + 1] int64, event b owns rows start[b]:start[b + 1]
    lengths: list[int]  # of the events
    place: Tensor | None  # [N] int64: of each row where events stand side by side; None: events are taken one by one
    longest: int  # rows of an event that stands side by side with others

    @classmethod
    def of(cls, start: Tensor, few: bool = False) -> "Packed":
        """Decide how the events of a batch are taken: by what the device likes (``kernels.side_by_side``).

        few: events have few rows, so that they stand side by side on any device.
        """
        lengths = start.diff().tolist()
        if not few and not side_by_side(start.device):
            return cls(start, lengths, None, 0)
        longest = -(-max(lengths + [1]) // 8) * 8
        event = torch.repeat_interleave(start.diff())
        number = torch.arange(len(event), device=start.device) - start[event]
        return cls(start, lengths, event * longest + number, longest)

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """[N, C] -> [B, longest, C]."""
        assert self.place is not None
        padded = x.new_full((len(self.lengths) * self.longest, x.shape[1]), value)
        return padded.index_copy(0, self.place, x).view(len(self.lengths), self.longest, x.shape[1])

    def times(self, x: Tensor, matrix: Tensor) -> Tensor:
        """The rows of each event times the transpose of its matrix. [N, C], [B, Q, C] -> [N, Q]."""
        if self.place is not None:
            return (self.pad(x) @ matrix.transpose(1, 2)).flatten(0, 1).index_select(0, self.place)
        # split, since the gradient of each slice would be a whole array of zeros
        return torch.cat([part @ one.t() for part, one in zip(torch.split(x, self.lengths), matrix, strict=True)])


def attend_points(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, packed: Packed, heads: int) -> Tensor:
    """Multi-head softmax attention of each event's queries over its points.

    Args:
        query: [B, Q, C] float.
        key: [N, C] float.
        value: [N, C] float.
        bias: [N, Q] float without gradient, added to the logits of all heads.
        packed: of the points.
        heads: divides C.

    Returns:
        [B, Q, C]; zero for an event without points.
    """
    if packed.place is not None:
        mask = packed.pad(bias, -torch.inf)
        mask[(packed.start.diff() == 0).nonzero()[:, 0], :1] = 0.0  # an event without points: one, of value zero
        rows = (query, packed.pad(key), packed.pad(value))
        q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in rows)
        mask = mask.transpose(1, 2).contiguous()[:, None].to(q.dtype)
        return few_queries(q, k, v, mask).transpose(1, 2).reshape(query.shape)
    of_points = (torch.split(x, packed.lengths) for x in (key, value, bias))
    parts = []
    for one, one_key, one_value, one_bias in zip(query, *of_points, strict=True):
        if not len(one_key):
            parts.append(torch.zeros_like(one))
            continue
        q, k, v = (x.reshape(1, len(x), heads, -1).transpose(1, 2) for x in (one, one_key, one_value))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=one_bias.t()[None, None])
        parts.append(out.transpose(1, 2).reshape(one.shape))
    return torch.stack(parts)
