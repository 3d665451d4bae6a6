"""The peer to beat: what the released Panda encoder computes, in the way it does, made to run correctly on a CPU.

Written from a description of that code; names of modules are those of its checkpoints. It needs spconv 2.3.8, the CPU
wheel, which larpanda does not: ``pip install spconv==2.3.8`` in an environment of its own. Four things differ from the
released code, without which it does not run, or not correctly, or not the same twice: the convolution stays on its
training path (its evaluation path refuses a CPU: spconv #719), asks for no CUDA stream, and runs on one thread (more
give wrong sums, cf. spconv #679); and orders are not shuffled. What only training or a GPU needs is left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import spconv.pytorch as spconv
import torch
from spconv.pytorch import ops
from spconv.pytorch.core import IndiceData
from torch import Tensor, nn


def _on_one_thread(function: Callable) -> Callable:
    def call(*arguments, **named):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*arguments, **named)
        finally:
            torch.set_num_threads(threads)

    return call


ops.get_current_stream = lambda: 0  # the backward pass asks for CUDA's, on a CPU too
for _name in ("get_indice_pairs", "indice_conv", "indice_conv_backward"):
    setattr(ops, _name, _on_one_thread(getattr(ops, _name)))

EVENT_BIT = 48  # where rows to be made unique carry the number of their event
SPREAD_BYTE = ((torch.arange(256)[:, None] >> torch.arange(8) & 1) << 3 * torch.arange(8)).sum(1)
MARGIN = 96  # cells that the released code adds to the extent of the sparse tensor


def hilbert_codes(cell: Tensor, depth: int) -> Tensor:
    """Skilling's algorithm, one bit of one axis after the other on unpacked bits. cell: [N, 3]. Returns [N] int64."""
    bits = (cell[..., None] >> torch.arange(depth - 1, -1, -1) & 1).bool()  # [N, 3, depth], highest first
    for level in range(depth):
        lower = bits[:, :, level + 1 :]
        for axis in range(3):
            is_set = bits[:, axis, level, None]
            lower[:, 0] ^= is_set
            swapped = ~is_set & (lower[:, 0] ^ lower[:, axis])
            lower[:, axis] ^= swapped
            lower[:, 0] ^= swapped
    gray = bits.transpose(1, 2).flatten(1)
    shift = 1
    while shift < gray.shape[1]:  # prefix sums modulo 2: Gray code to binary
        gray[:, shift:] = gray[:, shift:] ^ gray[:, :-shift]
        shift *= 2
    return (gray.long() << torch.arange(3 * depth - 1, -1, -1)).sum(1)


def z_codes(cell: Tensor, depth: int) -> Tensor:
    """Interleaved bits, x highest of three, by a table of bytes. cell: [N, 3], depth: at most 16. Returns [N] int64."""
    code = torch.zeros(len(cell), dtype=torch.long)
    for byte in range(0, depth, 8):
        x, y, z = SPREAD_BYTE[cell.t() >> byte & 255]
        code |= (x << 2 | y << 1 | z) << 3 * byte
    return code


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """The geometry of one stage, made anew at each."""

    cell: Tensor  # [M, 3] int64
    event_id: Tensor  # [M] int64
    sparse: spconv.SparseConvTensor  # the kernel map, under the key "stage"
    order: Tensor  # [4, M] int64, rows along each curve
    inverse: Tensor  # [4, M] int64
    window: int  # 256, or the smallest event
    pad: Tensor  # [windows * window] int64: the place along a curve of each slot
    unpad: Tensor  # [M] int64: the slot of each place


def serialize(cell: Tensor, event_id: Tensor) -> tuple[Tensor, Tensor]:
    """Four codes of every cell, as deep as the largest coordinate of the batch needs; their orders and inverses."""
    depth = int(cell.max() + 1).bit_length()
    curves = [curve(cell[:, axes], depth) for curve in (hilbert_codes, z_codes) for axes in ([0, 1, 2], [1, 0, 2])]
    order = (event_id << 3 * depth | torch.stack(curves)).argsort()
    return order, torch.zeros_like(order).scatter_(1, order, torch.arange(len(cell)).expand_as(order))


def pad_windows(length: list[int], window: int) -> tuple[Tensor, Tensor]:
    """Round every event up to whole windows; the last is filled with the tail of the one before."""
    pad, unpad, begin, slots = [], [], 0, 0
    for n in length:
        rest = n % window
        places = torch.arange(begin, begin + n)
        unpad.append(torch.arange(slots, slots + n))
        if n > window and rest:
            places = torch.cat([places, places[n - rest - window + rest : n - rest]])
        pad.append(places)
        begin, slots = begin + n, slots + len(places)
    return torch.cat(pad), torch.cat(unpad)


def prepare(cell: Tensor, event_id: Tensor) -> Level:
    """All that a stage needs to know of its cells: orders, windows, kernel map."""
    order, inverse = serialize(cell, event_id)
    length = event_id.bincount().tolist()
    window = min(256, *length)
    indices = torch.cat([event_id[:, None], cell], 1).int().contiguous()
    extent = (cell.max(0).values + MARGIN).tolist()
    one, three = [1, 1, 1], [3, 3, 3]
    rows, pairs, count = ops.get_indice_pairs(
        indices, len(length), extent, spconv.ConvAlgo.Native, three, one, [0] * 3, one, [0] * 3, subm=True
    )
    sparse = spconv.SparseConvTensor(torch.empty(len(cell), 0), indices, extent, len(length))
    sparse.indice_dict["stage"] = IndiceData(
        rows, indices, pairs, count, extent, extent, True, spconv.ConvAlgo.Native, three, one, one, [0] * 3
    )
    return Level(cell, event_id, sparse, order, inverse, window, *pad_windows(length, window))


def pool_cells(level: Level) -> tuple[Level, Tensor, Tensor, Tensor]:
    """The level with cells twice as wide; the wider cell of each row; rows by wider cell; rows in each."""
    rows = level.cell >> 1 | level.event_id[:, None] << EVENT_BIT
    rows, cluster, count = torch.unique(rows, sorted=True, return_inverse=True, return_counts=True, dim=0)
    by_cluster = cluster.sort().indices
    event_id = level.event_id[by_cluster[count.cumsum(0) - count]]
    return prepare(rows & (1 << EVENT_BIT) - 1, event_id), cluster, by_cluster, count


class Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int, order: int) -> None:
        super().__init__()
        self.heads, self.order = heads, order
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, level: Level) -> Tensor:
        slot_row = level.order[self.order][level.pad]
        row_slot = level.unpad[level.inverse[self.order]]
        qkv = self.qkv(x)[slot_row].reshape(-1, level.window, 3, self.heads, x.shape[1] // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weight = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1), -1)
        return self.proj((weight @ v).transpose(1, 2).reshape(-1, x.shape[1])[row_slot])


class Block(nn.Module):
    def __init__(self, channels: int, heads: int, order: int) -> None:
        super().__init__()
        convolution = spconv.SubMConv3d(channels, channels, 3, bias=True, indice_key="stage")
        self.cpe = nn.ModuleList([convolution, nn.Linear(channels, channels), nn.LayerNorm(channels)])
        self.norm1, self.norm2 = (nn.Sequential(nn.LayerNorm(channels)) for _ in range(2))
        self.ls1, self.ls2 = (nn.Sequential(Scale(channels)) for _ in range(2))
        self.attn = Attention(channels, heads, order)
        mlp = nn.Sequential()
        mlp.add_module("fc1", nn.Linear(channels, 4 * channels))
        mlp.add_module("act", nn.GELU())
        mlp.add_module("fc2", nn.Linear(4 * channels, channels))
        self.mlp = nn.Sequential(mlp)

    def forward(self, x: Tensor, level: Level) -> Tensor:
        convolution, linear, norm = self.cpe
        x = x + norm(linear(convolution(level.sparse.replace_feature(x)).features))
        x = x + self.ls1(self.attn(self.norm1(x), level))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Pool(nn.Module):
    def __init__(self, channels: int, wider: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, wider)
        self.norm = nn.Sequential(nn.LayerNorm(wider))

    def forward(self, x: Tensor, by_cluster: Tensor, count: Tensor) -> Tensor:
        highest = torch.segment_reduce(self.proj(x)[by_cluster], "max", lengths=count, axis=0)
        return nn.functional.gelu(self.norm(highest))


class Encoder(nn.Module):
    """The released encoder; stays in training mode, where nothing in it is random.

    Args:
        in_channels, channels, depths, heads: as ``in_channels``, ``enc_channels``, ``enc_depths`` and ``enc_num_head``
            of a released checkpoint's config; the defaults are those of the full size.
    """

    def __init__(
        self,
        in_channels: int = 4,
        channels: tuple[int, ...] = (48, 96, 192, 384, 512),
        depths: tuple[int, ...] = (3, 3, 3, 9, 3),
        heads: tuple[int, ...] = (3, 6, 12, 24, 32),
        mask_token: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Module()
        self.embedding.stem = nn.Sequential()
        self.embedding.stem.add_module("linear", nn.Linear(in_channels, channels[0]))
        self.embedding.stem.add_module("norm", nn.LayerNorm(channels[0]))
        self.embedding.stem.add_module("act", nn.GELU())
        if mask_token:
            self.embedding.mask_token = nn.Parameter(torch.zeros(1, channels[0]))
        self.enc = nn.ModuleDict()
        for s, (width, depth, n_heads) in enumerate(zip(channels, depths, heads, strict=True)):
            stage = nn.ModuleDict({f"block{b}": Block(width, n_heads, b % 4) for b in range(depth)})
            if s:
                stage["down"] = Pool(channels[s - 1], width)
            self.enc[f"enc{s}"] = stage

    def forward(
        self, cell: Tensor, feat: Tensor, event_id: Tensor, shuffles: Sequence[Sequence[int]] | None = None
    ) -> Tensor:
        """Encode cells of a batch.

        Args:
            cell: [N, 3] int64, from 0, each once per event.
            feat: [N, in_channels].
            event_id: [N] int64, ascending.
            shuffles: for each level a permutation of the four curves, which the released code draws by chance at
                every pooling, also in evaluation; None: none.

        Returns:
            [N, sum of channels]: up-cast features, finest first, in the order of the rows.
        """
        x = self.embedding.stem(feat)
        level, features, clusters = prepare(cell, event_id), [], []
        for s, stage in enumerate(self.enc.values()):
            if s:
                level, cluster, by_cluster, count = pool_cells(level)
                x = stage["down"](x, by_cluster, count)
                clusters.append(cluster)
            if shuffles:
                level = replace(level, order=level.order[shuffles[s]], inverse=level.inverse[shuffles[s]])
            for b in range(len(stage) - bool(s)):
                x = stage[f"block{b}"](x, level)
            features.append(x)
        for finer, cluster in zip(features[-2::-1], clusters[::-1], strict=True):
            x = torch.cat([finer, x[cluster]], 1)
        return x
