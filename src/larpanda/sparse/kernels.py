"""What the hardware decides: the one place that chooses between ways of computing the same.

On an x86 CPU, matrix products with weights that no longer change go through oneDNN with the weights laid out for it
once: 10 % faster than PyTorch's own on many rows, up to half as fast again on the few rows of a kernel cell, and with
GELU at no cost. It prepares code for each new number of rows, which takes 0.5 ms or more, and every event has other
numbers; so these products want numbers of rows rounded up.
"""

import os
import platform
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEP = 16  # rows; below 256 the growth exceeds 6 %, on products that are quick anyway
PACKED_WIDTH = 192
HEADS_AT_ONCE = 24  # in windows of 256, logits and weights of 3 MB each


def round_up(n: int) -> int:
    """The next size with few others around: multiples of 16, at most 16 between a power of two and the next."""
    step = max(STEP, 1 << n.bit_length() >> 5)
    return -(-n // step) * step


class PackedLinear(nn.Module):
    """A linear layer whose weights are laid out for this CPU, perhaps with GELU behind it. For inference only."""

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> None:
        """weight: [C', C]; bias: [C'] of the same type, float32 or bfloat16."""
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self.bias = None if bias is None else bias.detach()
        self.after: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        """[N, C] -> [N, C']."""
        n = len(x)
        rows = round_up(n)
        if rows != n:
            x = F.pad(x, (0, 0, 0, rows - n))
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, *self.after)
        return result if rows == n else result[:n]


def worth_packing(weight: Tensor) -> bool:
    """Whether products with this matrix [C', C] are faster packed: wide ones, and in bfloat16 all, if it works here.

    Narrow ones do not make up for what each call costs (`nano`: 58 ms an event with all packed, 46 with none).
    """
    return (weight.dtype == torch.bfloat16 or min(weight.shape) >= PACKED_WIDTH) and can_pack(weight.dtype)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether PackedLinear works here with weights of a type.

    It rests on operators that PyTorch's own compiler uses but does not promise; in bfloat16 they need AVX512 or newer.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.enabled:
        return False
    # Room for the code of as many sizes as events have; oneDNN's own limit of 1024 is less. Read at its first use.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
    try:
        x, weight, bias = torch.eye(STEP, 16), torch.arange(128.0).view(8, 16), torch.arange(8.0)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        expected = F.gelu(F.linear(x, weight, bias))
        return torch.allclose(PackedLinear(weight, bias, True)(x), expected, rtol=torch.finfo(dtype).eps)
    except (AttributeError, RuntimeError, TypeError):
        return False


def side_by_side(device: torch.device) -> bool:
    """Whether small products of many events are better made at once, padded to the largest, than one after the other.

    On a GPU, where a product of this size costs its launch; a CPU computes what the padding adds.
    """
    return device.type == "cuda"


def few_queries(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention of few queries over many keys.

    Args:
        query: [B, H, Q, D] float.
        key: [B, H, L, D] likewise.
        value: likewise.
        bias: [B, 1, Q, L] likewise, added to the logits.

    Returns:
        [B, H, Q, D]. PyTorch's own gradient works on blocks of queries side by side, of which there is one: 7 ms on a
        GPU where products take less than one.
    """
    if not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    logits = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3) + bias
    result: Tensor = logits.softmax(3).to(value.dtype) @ value
    return result


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention within windows.

    Args:
        query: [W, H, S, D] float.
        key: likewise.
        value: likewise.
        mask: [W, 1, 1, S] bool, True where there is a key; None: everywhere.

    Returns:
        [W, H, S, D].
    """
    if query.dtype != torch.bfloat16 or query.device.type != "cpu" or torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    if mask is not None:  # few: at most one window an event
        whole = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=mask)
        return whole.to(query.dtype)
    # PyTorch's own is slower in bfloat16 than in float32 where heads are narrow. Products in bfloat16, some heads at a
    # time into memory that is used again, are 1.5 times as fast as float32.
    q, k, v = (x.flatten(0, 1) for x in (query * query.shape[3] ** -0.5, key.transpose(2, 3), value))
    out = torch.empty_like(v)
    logits, weights = q.new_empty(2, HEADS_AT_ONCE, q.shape[1], q.shape[1])
    for first in range(0, len(q), HEADS_AT_ONCE):
        heads = slice(first, first + HEADS_AT_ONCE)
        n = len(q[heads])
        torch.bmm(q[heads], k[heads], out=logits[:n])
        torch.softmax(logits[:n], 2, out=weights[:n])
        torch.bmm(weights[:n], v[heads], out=out[heads])
    return out.view(query.shape)
