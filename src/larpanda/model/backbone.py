"""Point Transformer V3 as Panda uses it (paper section 3.1.2): encoder, decoder, and the pyramid of features between.

Nothing here knows about training or evaluation: stochastic depth acts where random numbers are passed in, and
nowhere else. Orders and curve depth are fixed, so that an event's result depends on the event alone.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from larpanda.event import IMAGE_VOXELS, PointBatch
from larpanda.sparse.attend import Windows, attend, windows
from larpanda.sparse.convolve import PackedConvolution, convolve
from larpanda.sparse.curves import ORDERS
from larpanda.sparse.grid import Cells, coarsen, voxelize
from larpanda.sparse.kernels import PackedLinear, worth_packing
from larpanda.sparse.neighbors import KERNEL, NeighborMap, neighbor_map
from larpanda.sparse.segment import max_runs, spread_runs, sum_groups, take_rows

CURVE_DEPTH = 11  # bits per axis at level 0: the image has 10, and a rotated one still fits 2048 cells
ENERGY_RANGE_MEV = (0.01, 20.0)  # mapped to -1..1 by the log scale of PoLAr-MAE, which Panda keeps (paper section 3.4)
MLP_ROWS = 8192  # that go through a feed-forward layer at a time where no gradient is needed
IN_CHANNELS = 4  # x, y, z, energy


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder; the defaults are the paper's 91 M (section 3.1.2)."""

    channels: tuple[int, ...] = (48, 96, 192, 384, 512)
    """Width of each level, finest first."""
    depths: tuple[int, ...] = (3, 3, 3, 9, 3)
    """Blocks of each level."""
    head_dim: int = 16
    """Channels of an attention head; divides every width."""
    window: int = 256
    """Cells that attend to each other."""
    mlp_ratio: int = 4
    """Width of the feed-forward layer over that of its input."""
    layer_scale: float = 1e-5
    """First value of the factor on each residual branch (section 3.5)."""
    drop_path: float = 0.3
    """Stochastic depth of the last block; grows linearly from 0 at the first (section 3.5)."""
    mask_token: bool = False
    """Learn a vector that stands for masked points (pre-training only)."""
    cell_size: float | None = None
    """Edge of the finest cells in units of half the image's diagonal; None: one voxel (section 3.1.1). The released
    models were trained with 0.001, which is 0.665 voxel."""
    fitted_curves: bool = False
    """Give each event's curves the depth that its own width needs, as the released code does with single events."""

    def __post_init__(self) -> None:
        _check_sizes("encoder", self.channels, self.depths, self.head_dim)

    @property
    def out_channels(self) -> int:
        """Width of the up-cast features of a point."""
        return sum(self.channels)


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder; the defaults are the paper's 16 M (section 3.2). Attention is as in the encoder."""

    channels: tuple[int, ...] = (64, 96, 192, 384)
    """Width of each level but the coarsest, finest first."""
    depths: tuple[int, ...] = (2, 2, 2, 2)
    """Blocks of each level."""


def _check_sizes(name: str, channels: tuple[int, ...], depths: tuple[int, ...], head_dim: int) -> None:
    if len(channels) != len(depths) or not channels:
        raise ValueError(f"{name}: {len(channels)} widths and {len(depths)} depths; expected one of each per level")
    if wrong := [c for c in channels if c % head_dim]:
        raise ValueError(f"{name}: width {wrong[0]} is not a multiple of the head dimension {head_dim}")


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One scale: its occupied cells and the geometry that all of its blocks share, made once per batch."""

    cells: Cells
    neighbors: NeighborMap
    windows: Windows
    rows: int  # of the features while blocks work on them: those of the cells, and perhaps some that nothing reads

    @classmethod
    def of(cls, cells: Cells, window: int, rounded: bool = False) -> "Level":
        """Make the geometry of a level.

        Args:
            cells: M of them.
            window: the number of cells that attend to each other.
            rounded: round up numbers of rows for products that like few sizes (see ``sparse.kernels``).
        """
        neighbors = neighbor_map(cells.cell, cells.event_id, rounded)
        cut = windows(cells.start, cells.order, window, rounded)
        return cls(cells, neighbors, cut, cut.own.shape[1])

    def run(self, blocks: nn.ModuleList, x: Tensor, draws: Tensor | None) -> Tensor:
        """Features of the cells through blocks. [M, C] -> [M, C]; ``draws`` as in ``Encoder.forward``."""
        n = len(x)
        if n != self.rows:
            x = F.pad(x, (0, 0, 0, self.rows - n))
        for block in cast(Iterable[Block], blocks):
            x = block(x, self, draws)
        return x[:n] if n != self.rows else x


@dataclass(frozen=True, slots=True, eq=False)
class Pyramid:
    """The encoder's output: features of every level, finest first, and the way back to the points."""

    levels: tuple[Level, ...]
    features: tuple[Tensor, ...]  # [M_l, C_l] each
    lengths: tuple[Tensor, ...]  # [M_l+1] int64: rows of level l in each cell of level l + 1
    runs: tuple[Tensor, ...]  # [M_l] int64: the cell of level l + 1 of each row of level l
    point_cell: Tensor  # [N] int64: the cell of level 0 of each point
    position: Tensor  # [M_0, 3] float32: mean place of the points of each cell of level 0, in the unit ball
    start: Tensor  # [B + 1] int64: event b owns points start[b]:start[b + 1]

    def upcast(self, level: int = 0) -> Tensor:
        """Features of every cell of a level beside those of the coarser cells that it lies in (section 3.1.2).

        Returns:
            [M, sum of C_l for l >= level], finest level first.
        """
        if torch.is_grad_enabled():
            result = self.features[-1]
            for finer in range(len(self.features) - 2, level - 1, -1):
                spread = spread_runs(result, self.lengths[finer], self.runs[finer])
                result = torch.cat([self.features[finer], spread], 1)
            return result
        # the same without gradients, in half the memory: every level at once into its columns
        finest, row = self.features[level], None
        result = finest.new_empty(len(finest), sum(x.shape[1] for x in self.features[level:]))
        columns = result.split([x.shape[1] for x in self.features[level:]], 1)  # type: ignore[no-untyped-call]
        for number, (x, part) in enumerate(zip(self.features[level:], columns, strict=True), level):
            part.copy_(x if row is None else x.index_select(0, row))
            if number < len(self.runs):
                row = self.runs[number] if row is None else self.runs[number][row]
        return result

    def linear(self, layer: nn.Linear) -> Tensor:
        """A linear layer of the up-cast features, without making them: every level by its own columns, coarsest first.

        Returns:
            [M_0, C'], ``layer(self.upcast())`` up to rounding.
        """
        columns = torch.split(layer.weight, [x.shape[1] for x in self.features], 1)
        result = F.linear(self.features[-1], columns[-1], layer.bias)
        for level in range(len(self.features) - 2, -1, -1):
            spread = spread_runs(result, self.lengths[level], self.runs[level])
            result = torch.addmm(spread, self.features[level], columns[level].t())
        return result

    def cell_of_points(self, level: int) -> Tensor:
        """[N] int64: the cell of a level that each point lies in."""
        cell = self.point_cell
        for run in self.runs[:level]:
            cell = run[cell]
        return cell

    def at_points(self, x: Tensor) -> Tensor:
        """Values of level-0 cells [M, C] -> values of the points that were given to the encoder [N, C]."""
        return take_rows(x, self.point_cell)


class SparseConv(nn.Module):
    """Submanifold 3 x 3 x 3 convolution with a bias."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(KERNEL, before, channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, neighbors: NeighborMap) -> Tensor:
        """[M, C] -> [M, C']."""
        return convolve(x, self.weight, neighbors) + self.bias


class LinearGelu(nn.Linear):
    """A linear layer and GELU."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., C] -> [..., C']."""
        return F.gelu(super().forward(input))


class Block(nn.Module):
    """Convolution, attention, feed-forward, each added to its input (Point Transformer V3 with layer scale)."""

    def __init__(self, channels: int, order: int, number: int, drop_path: float, config: EncoderConfig) -> None:
        """Make a block. order: of the windows; number: of the block in its tower, which says whose draws it takes."""
        super().__init__()
        self.heads = channels // config.head_dim
        self.order, self.number, self.drop_path = order, number, drop_path
        self.conv: nn.Module = SparseConv(channels, channels)
        self.conv_linear: nn.Module = nn.Linear(channels, channels)
        self.conv_norm = nn.LayerNorm(channels)
        self.attention_norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.attention_linear = nn.Linear(channels, channels)
        self.attention_scale = nn.Parameter(torch.full((channels,), config.layer_scale))
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp_in = LinearGelu(channels, config.mlp_ratio * channels)
        self.mlp_out = nn.Linear(config.mlp_ratio * channels, channels)
        self.mlp_scale = nn.Parameter(torch.full((channels,), config.layer_scale))

    def forward(self, x: Tensor, level: Level, draws: Tensor | None) -> Tensor:
        """[M, C] -> [M, C]."""
        x = x + self.conv_norm(self.conv_linear(self.conv(x, level.neighbors)))
        attended = attend(self.qkv(self.attention_norm(x)), self.heads, level.windows, self.order)
        x = x + self._drop(self.attention_linear(attended) * self.attention_scale, level, draws, 0)
        if torch.is_grad_enabled() or len(x) <= MLP_ROWS:
            fed = self.mlp_out(self.mlp_in(self.mlp_norm(x)))
        else:  # the wide rows within stay in the cache
            fed = torch.cat([self.mlp_out(self.mlp_in(self.mlp_norm(rows))) for rows in torch.split(x, MLP_ROWS)])
        return x + self._drop(fed * self.mlp_scale, level, draws, 1)

    def _drop(self, branch: Tensor, level: Level, draws: Tensor | None, which: int) -> Tensor:
        """Stochastic depth (Huang et al. 2016): whole events skip it; in the released code, points do."""
        if draws is None or self.drop_path == 0.0:
            return branch
        keep = (draws[:, 2 * self.number + which] >= self.drop_path).to(branch.dtype) / (1.0 - self.drop_path)
        return branch * keep[level.cells.event_id, None]


class Encoder(nn.Module):
    """Points to a pyramid of features (paper sections 3.1.1 and 3.1.2)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, last = config.channels, sum(config.depths) - 1
        drop = [config.drop_path * b / max(last, 1) for b in range(last + 1)]
        self.embed = nn.Linear(IN_CHANNELS, width[0])
        self.embed_norm = nn.LayerNorm(width[0])
        if config.mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, width[0]))
        self.pool = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(width))
        self.pool_norm = nn.ModuleList(nn.LayerNorm(c) for c in width[1:])
        self.blocks = nn.ModuleList(
            nn.ModuleList(Block(c, b % len(ORDERS), first + b, drop[first + b], config) for b in range(depth))
            for c, depth, first in zip(width, config.depths, accumulate(config.depths, initial=0), strict=False)
        )
        initialize(self)
        self.n_draws = 2 * (last + 1)  # numbers for the stochastic depth of an event: one for each residual branch
        self.dtype, self.rounded = torch.float32, False  # of features; whether levels round up rows (for_inference)

    def forward(self, batch: PointBatch, draws: Tensor | None = None, masked: Tensor | None = None) -> Pyramid:
        """Encode a batch.

        Args:
            batch: N points; several in one voxel share its features (energies summed).
            draws: [B, n_draws] float in [0, 1), which decide what events skip (stochastic depth); None: nothing.
            masked: [N] bool, points whose voxels get the learned mask vector instead of place and energy. A voxel
                that holds any masked point is masked. Needs ``EncoderConfig.mask_token``.

        Raises:
            ValueError: an event is wider than 2**11 voxels.
        """
        size = self.config.cell_size
        # a tensor, since CUDA multiplies by the reciprocal of a plain number, and cells hang on the last bit
        position = batch.position if size is None else centred(batch.position) / batch.position.new_tensor(size)
        depth = None if self.config.fitted_curves else CURVE_DEPTH
        cells, point_cell = voxelize(position, batch.start, depth)
        # all geometry first: it waits for the device at every size, and would wait for the blocks between
        levels, lengths, runs = [Level.of(cells, self.config.window, self.rounded)], [], []
        for _ in self.pool:
            coarser = coarsen(levels[-1].cells)
            levels.append(Level.of(coarser.cells, self.config.window, self.rounded))
            lengths.append(coarser.length)
            runs.append(coarser.run)
        seen = input_features(batch, point_cell, len(cells.cell))
        x = F.gelu(self.embed_norm(self.embed(seen.to(self.dtype))))
        if masked is not None:
            hidden = torch.zeros(len(x), dtype=torch.bool, device=x.device).index_fill_(0, point_cell[masked], True)
            x = torch.where(hidden[:, None], self.mask_token.to(x.dtype), x)
        features: list[Tensor] = []
        for s, (level, blocks) in enumerate(zip(levels, self.blocks, strict=True)):
            if s:
                x = F.gelu(self.pool_norm[s - 1](max_runs(self.pool[s - 1](x), lengths[s - 1], runs[s - 1])))
            x = level.run(cast(nn.ModuleList, blocks), x, draws)
            features.append(x)
        return Pyramid(
            tuple(levels), tuple(features), tuple(lengths), tuple(runs), point_cell, seen[:, :3], batch.start
        )


class Decoder(nn.Module):
    """A pyramid to features of its finest cells, with skip connections (paper section 3.2)."""

    def __init__(self, config: DecoderConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        _check_sizes("decoder", config.channels, config.depths, encoder.head_dim)
        if len(config.channels) != len(encoder.channels) - 1:
            raise ValueError(
                f"decoder: {len(config.channels)} levels; an encoder of {len(encoder.channels)} levels "
                f"needs {len(encoder.channels) - 1}"
            )
        below = (*config.channels[1:], encoder.channels[-1])
        last = sum(config.depths) - 1
        self.up = nn.ModuleList(nn.Linear(a, b) for a, b in zip(below, config.channels, strict=True))
        self.up_norm = nn.ModuleList(nn.LayerNorm(c) for c in config.channels)
        self.skip = nn.ModuleList(nn.Linear(a, b) for a, b in zip(encoder.channels, config.channels, strict=False))
        self.skip_norm = nn.ModuleList(nn.LayerNorm(c) for c in config.channels)
        self.blocks = nn.ModuleList(  # stochastic depth grows from the output towards the encoder
            nn.ModuleList(
                Block(c, b % len(ORDERS), first + b, encoder.drop_path * (first + b) / max(last, 1), encoder)
                for b in range(depth)
            )
            for c, depth, first in zip(
                config.channels, config.depths, accumulate(config.depths, initial=0), strict=False
            )
        )
        self.n_draws = 2 * sum(config.depths)
        initialize(self)

    def forward(self, pyramid: Pyramid, draws: Tensor | None = None) -> Tensor:
        """Returns [M, D]: features of the cells of level 0. draws: [B, n_draws], as in ``Encoder.forward``."""
        x = pyramid.features[-1]
        for s in range(len(self.blocks) - 1, -1, -1):
            from_below = F.gelu(self.up_norm[s](self.up[s](x)))
            x = F.gelu(self.skip_norm[s](self.skip[s](pyramid.features[s])))
            x = x + spread_runs(from_below, pyramid.lengths[s], pyramid.runs[s])
            x = pyramid.levels[s].run(cast(nn.ModuleList, self.blocks[s]), x, draws)
        return x


def centred(position: Tensor) -> Tensor:
    """Places in the image (voxels) -> places in the unit ball around its centre. [N, 3] float32 both."""
    half = IMAGE_VOXELS / 2
    return (position - half) / position.new_tensor(half * math.sqrt(3.0))


def input_features(batch: PointBatch, point_cell: Tensor, n_cells: int) -> Tensor:
    """What the network is told of each cell: where it is and how much energy it holds.

    Args:
        batch: N points.
        point_cell: [N] int64, the cell of each point.
        n_cells: M.

    Returns:
        [M, 4] float32: mean position in the image, centred, scaled to the unit ball; log-scaled energy in -1..1.
    """
    columns = torch.cat([batch.position, batch.energy[:, None], torch.ones_like(batch.energy[:, None])], 1)
    total = sum_groups(columns, point_cell, n_cells)
    low, high = ENERGY_RANGE_MEV
    scaled = 2.0 * torch.log10((total[:, 3] + low) / low) / math.log10((high + low) / low) - 1.0
    return torch.cat([centred(total[:, :3] / total[:, 4:]), scaled[:, None]], 1)


def for_inference(module: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Make every encoder and decoder within faster where it stands, for inference only: weights change their form.

    Each linear layer behind a convolution is merged into its kernel (5 % less work, the same function up to rounding);
    on CPUs that like it, weights are packed (see ``sparse.kernels``).

    Args:
        module: on its device.
        dtype: of weights and features, float32 or bfloat16.
    """
    module.requires_grad_(False)
    blocks = [part for part in module.modules() if isinstance(part, Block)]
    for block in blocks:
        conv, linear = cast(SparseConv, block.conv), cast(nn.Linear, block.conv_linear)
        conv.weight.data, conv.bias.data = conv.weight @ linear.weight.t(), linear(conv.bias)
        block.conv_linear = nn.Identity()
    module.to(dtype)
    towers = [part for part in module.modules() if isinstance(part, Encoder | Decoder)]
    if next(module.parameters()).device.type == "cpu":
        for block in blocks:
            conv = cast(SparseConv, block.conv)
            if worth_packing(conv.weight[0]):
                block.conv = PackedConvolution(conv.weight, conv.bias)
        for tower in towers:
            _pack_linear(tower)
    for tower in towers:
        if isinstance(tower, Encoder):
            tower.dtype = dtype
            tower.rounded = any(isinstance(part, PackedConvolution) for part in tower.modules())


def _pack_linear(module: nn.Module) -> None:
    for name, part in module.named_children():
        if isinstance(part, nn.Linear) and worth_packing(part.weight):
            setattr(module, name, PackedLinear(part.weight, part.bias, isinstance(part, LinearGelu)))
        else:
            _pack_linear(part)


def initialize(module: nn.Module) -> None:
    """Weights from a normal distribution of width 0.02 cut at 2, biases 0, as in Point Transformer V3."""
    for part in module.modules():
        if isinstance(part, nn.Linear | SparseConv):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
