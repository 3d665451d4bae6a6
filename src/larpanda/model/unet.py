"""The sparse U-ResNet: what liquid-argon experiments segment with today, here as the baseline to compare with.

After Domine and Terao, Phys. Rev. D 102, 012005 (arXiv:1903.05663): residual blocks of two submanifold convolutions,
halved and doubled resolution by convolutions of 2 x 2 x 2, skips by concatenation. The default is the paper's UResNet
of 11.0 M weights (Table 2). One thing differs: cells are normalised one by one (LayerNorm), not over the batch, so that
an event's result depends on nothing else, in training as well, on any number of processes.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from larpanda.event import PointBatch
from larpanda.model.backbone import CURVE_DEPTH, IN_CHANNELS, Level, Pyramid, SparseConv, input_features
from larpanda.sparse.grid import Cells, Coarser, coarsen, voxelize
from larpanda.sparse.neighbors import NeighborMap, neighbor_map
from larpanda.sparse.segment import take_rows

SLOPE = 0.33  # of the leaky ReLU, as in lartpc_mlreco3d
CHILDREN = 8  # places of a finer cell in a coarser one


@dataclass(frozen=True)
class UResNetConfig:
    """Sizes of the U-ResNet; the defaults are the paper's 11 M (Table 2)."""

    channels: tuple[int, ...] = (32, 64, 96, 128, 160)
    """Width of each level, finest first."""
    blocks: int = 2
    """Residual blocks of each level, on the way down and on the way up."""

    def __post_init__(self) -> None:
        if not self.channels or min(*self.channels, self.blocks) < 1:
            raise ValueError("uresnet: needs levels, each with channels and blocks")

    @property
    def out_channels(self) -> int:
        """Width of the features of a point."""
        return self.channels[0]


class ResidualBlock(nn.Module):
    """Two convolutions, each after a norm and an activation, added to the input."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.ModuleList([nn.LayerNorm(before), nn.LayerNorm(channels)])
        self.conv = nn.ModuleList([SparseConv(before, channels), SparseConv(channels, channels)])
        self.skip = nn.Identity() if before == channels else nn.Linear(before, channels, bias=False)

    def forward(self, x: Tensor, neighbors: NeighborMap) -> Tensor:
        """[M, C] -> [M, C']."""
        y = x
        for norm, conv in zip(self.norm, self.conv, strict=True):
            y = conv(F.leaky_relu(norm(y), SLOPE), neighbors)
        kept: Tensor = self.skip(x)
        return kept + y


class UResNet(nn.Module):
    """Points to a pyramid of one level: the decoded features of the finest cells. Stands where an encoder stands."""

    def __init__(self, config: UResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.n_draws = 0  # it has no stochastic depth
        width = config.channels
        self.stem = SparseConv(IN_CHANNELS, width[0])
        self.encoder = nn.ModuleList(_blocks(c, c, config.blocks) for c in width)
        self.down_norm = nn.ModuleList(nn.LayerNorm(c) for c in width[:-1])
        self.down = nn.ModuleList(nn.Linear(CHILDREN * a, b, bias=False) for a, b in pairwise(width))
        self.up_norm = nn.ModuleList(nn.LayerNorm(c) for c in width[1:])
        self.up = nn.ModuleList(nn.Linear(b, CHILDREN * a, bias=False) for a, b in pairwise(width))
        self.decoder = nn.ModuleList(_blocks(2 * c, c, config.blocks) for c in width[:-1])
        self.last_norm = nn.LayerNorm(width[0])
        for part in self.modules():
            if isinstance(part, nn.Linear | SparseConv):
                fan_in = part.weight[..., 0].numel() if isinstance(part, SparseConv) else part.weight.shape[1]
                nn.init.normal_(part.weight, std=(2.0 / (1.0 + SLOPE**2) / fan_in) ** 0.5)

    def forward(self, batch: PointBatch, draws: Tensor | None = None) -> Pyramid:
        """Encode and decode a batch. draws: not used.

        Raises:
            ValueError: an event is wider than 2**11 voxels.
        """
        cells, point_cell = voxelize(batch.position, batch.start, CURVE_DEPTH)
        seen = input_features(batch, point_cell, len(cells.cell))
        finest = Level.of(cells, 1)
        neighbors, places, skips = [finest.neighbors], [], []
        x = self.stem(seen.to(self.stem.weight.dtype), finest.neighbors)
        for s, blocks in enumerate(self.encoder):
            if s:
                skips.append(x)
                coarser = coarsen(cells)
                places.append(child_place(cells, coarser))
                x = halve(
                    F.leaky_relu(self.down_norm[s - 1](x), SLOPE), places[-1], len(coarser.length), self.down[s - 1]
                )
                cells = coarser.cells
                neighbors.append(neighbor_map(cells.cell, cells.event_id))
            x = _run(blocks, x, neighbors[s])
        for s in range(len(self.decoder) - 1, -1, -1):
            x = double(F.leaky_relu(self.up_norm[s](x), SLOPE), places[s], self.up[s])
            x = _run(self.decoder[s], torch.cat([skips[s], x], 1), neighbors[s])
        x = F.leaky_relu(self.last_norm(x), SLOPE)
        return Pyramid((finest,), (x,), (), (), point_cell, seen[:, :3], batch.start)


def child_place(cells: Cells, coarser: Coarser) -> Tensor:
    """[M] int64: 8 times the coarser cell of each cell, plus which of its 8 places (x y z, x highest) the cell has."""
    x, y, z = (cells.cell & 1).unbind(1)
    return coarser.run * CHILDREN + (x << 2 | y << 1 | z)


def halve(x: Tensor, place: Tensor, n_coarser: int, linear: nn.Module) -> Tensor:
    """A 2 x 2 x 2 convolution with stride 2 over occupied cells. [M, C] -> [M', C'].

    Args:
        x: features of the finer cells.
        place: of ``child_place``.
        n_coarser: M'.
        linear: of [M', 8 C], the children end to end, empty ones 0.
    """
    children = x.new_zeros(n_coarser * CHILDREN, x.shape[1]).index_copy(0, place, x)
    result: Tensor = linear(children.view(n_coarser, -1))
    return result


def double(x: Tensor, place: Tensor, linear: nn.Module) -> Tensor:
    """Its transpose: what a coarser cell gives to each of its 8 places, at the occupied ones. [M', C'] -> [M, C]."""
    children: Tensor = linear(x)
    return take_rows(children.reshape(len(x) * CHILDREN, -1), place)


def _blocks(before: int, channels: int, n: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock(before if i == 0 else channels, channels) for i in range(n))


def _run(blocks: nn.Module, x: Tensor, neighbors: NeighborMap) -> Tensor:
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        x = block(x, neighbors)
    return x
