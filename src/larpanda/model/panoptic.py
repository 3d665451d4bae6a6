"""Particles or interactions as masks over points (paper section 3.2.2): a few learned queries, each of which finds one.

Here is the network; how its masks become instances is in ``selection``, the loss in ``matching``.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from larpanda.model.backbone import EncoderConfig, Pyramid
from larpanda.model.unet import UResNetConfig
from larpanda.sparse.attend import Packed, attend_points

NO_MASK = -1e4  # mask logit of points that are in no mask: sigmoid 0, yet finite, as in the released code
SMALLEST = 1e-6  # added to the probability whose logarithm biases attention, as in the released code


@dataclass(frozen=True)
class PanopticConfig:
    """Sizes of the query decoder; the defaults are the paper's for particles (section 3.2.2)."""

    queries: int = 32
    """The most instances that one event can have (paper: 32 particles, 12 interactions)."""
    classes: int = 6
    """Logits are of these and, last, of no object (particles: the five of Species and LED; interactions: none, one)."""
    channels: int = 256
    """Width of queries and points."""
    head_dim: int = 16
    """Channels of an attention head; divides the width."""
    blocks: int = 3
    mlp_ratio: int = 4
    """Width of the feed-forward layer over that of its input."""
    deep_projections: bool = True
    """Project points, and queries to classes, by two layers (released particle model) or by one (interaction model)."""
    mask_after_update: bool = True
    """Predict a block's mask from the query that it has updated; the released models do from the query before."""
    position_in_keys: bool = True
    """Tell keys of the queries' self-attention which query they are; the released models do not."""
    fragments: bool = False
    """Look at fragments (``model.fragments``), not at points: learns from few events, on a frozen model with motifs."""
    context: int = 2
    """Blocks by which fragments look at one another first."""

    def __post_init__(self) -> None:
        if self.channels % self.head_dim:
            raise ValueError(f"width {self.channels} is not a multiple of the head dimension {self.head_dim}")


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """What each query of one event found."""

    mask_logits: Tensor  # [Q, N] float32: is the point in the query's mask? NO_MASK for low-energy deposits
    class_logits: Tensor  # [Q, classes + 1] float32, the last: no object
    led_probability: Tensor  # [N] float32: is the point a low-energy deposit?


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What a decoder says of a batch, block by block; masks are over the cells that are no low-energy deposits."""

    thing: Tensor  # [T] int64: cells of level 0 that masks are over
    start: Tensor  # [B + 1] int64: event b owns things start[b]:start[b + 1]
    masks: tuple[Tensor, ...]  # of each block, [T, Q] logits
    classes: tuple[Tensor, ...]  # of each block, [B, Q, classes + 1] logits
    led: Tensor  # [M_0] logits


class QueryBlock(nn.Module):
    """Queries look at points, at each other, and at themselves; masks say where to look."""

    def __init__(self, config: PanopticConfig) -> None:
        super().__init__()
        self.config, c = config, config.channels
        self.heads = c // config.head_dim
        self.point_norm = nn.LayerNorm(c)
        self.mask_in, self.mask_out = nn.Linear(c, c), nn.Linear(c, c)
        self.cross_norm = nn.LayerNorm(c)
        self.cross_query, self.cross_key, self.cross_value = nn.Linear(c, c), nn.Linear(c, c), nn.Linear(c, c)
        self.cross_linear = nn.Linear(c, c)
        self.self_norm = nn.LayerNorm(c)
        self.self_query, self.self_key_value = nn.Linear(c, c), nn.Linear(c, 2 * c)
        self.self_linear = nn.Linear(c, c)
        self.mlp_norm = nn.LayerNorm(c)
        self.mlp_in, self.mlp_out = nn.Linear(c, config.mlp_ratio * c), nn.Linear(config.mlp_ratio * c, c)

    def forward(
        self, query: Tensor, query_position: Tensor, point: Tensor, point_position: Tensor, packed: Packed
    ) -> tuple[Tensor, Tensor]:
        """[B, Q, C] queries, [Q, C], [N, C] points, [N, C] -> updated queries, [N, Q] mask logits."""
        point = self.point_norm(point)
        mask = self._mask(query, point, packed)
        bias = torch.log(mask.detach().sigmoid() + SMALLEST)
        attended = attend_points(
            self.cross_query(self.cross_norm(query) + query_position),
            self.cross_key(point + point_position),
            self.cross_value(point),
            bias,
            packed,
            self.heads,
        )
        query = query + self.cross_linear(attended)
        normed = self.self_norm(query)
        placed = normed + query_position
        weight, bias_kv = self.self_key_value.weight.chunk(2), self.self_key_value.bias.chunk(2)
        q = self.self_query(placed)
        k = F.linear(placed if self.config.position_in_keys else normed, weight[0], bias_kv[0])
        v = F.linear(normed, weight[1], bias_kv[1])
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        query = query + self.self_linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        query = query + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(query))))
        return query, self._mask(query, point, packed) if self.config.mask_after_update else mask

    def _mask(self, query: Tensor, point: Tensor, packed: Packed) -> Tensor:
        return packed.times(point, self.mask_out(F.gelu(self.mask_in(query))))


class QueryDecoder(nn.Module):
    """Learned queries that look at points, or at what stands for many of them."""

    def __init__(self, config: PanopticConfig) -> None:
        super().__init__()
        self.config, c = config, config.channels
        self.query, self.query_position = (nn.Parameter(torch.randn(config.queries, c)) for _ in range(2))
        self.blocks = nn.ModuleList(QueryBlock(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(c)
        self.class_in = nn.Linear(c, c) if config.deep_projections else None
        self.class_out = nn.Linear(c, config.classes + 1)

    def initialize(self) -> None:
        """Draw the weights of all linear layers."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def look(
        self, point: Tensor, point_position: Tensor, packed: Packed
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """[N, C] points, [N, C] -> of each block mask logits [N, Q], and class logits [B, Q, classes + 1]."""
        query = self.query.expand(len(packed.lengths), -1, -1)
        masks, classes = [], []
        for block in self.blocks:
            query, mask = block(query, self.query_position, point, point_position, packed)
            masks.append(mask)
            normed = self.norm(query)
            classes.append(self.class_out(normed if self.class_in is None else F.gelu(self.class_in(normed))))
        return tuple(masks), tuple(classes)


class PanopticHead(QueryDecoder):
    """A pyramid to masks and classes of the queries."""

    def __init__(self, config: PanopticConfig, encoder: EncoderConfig | UResNetConfig) -> None:
        super().__init__(config)
        c, width, deep = config.channels, encoder.out_channels, config.deep_projections
        self.position_in, self.position_out = nn.Linear(3, c), nn.Linear(c, c)
        self.led_in, self.led_out = nn.Linear(width, c), nn.Linear(c, 1)
        self.point_in = nn.Linear(width, c) if deep else None
        self.point_out = nn.Linear(c if deep else width, c)
        self.initialize()

    def decode(self, pyramid: Pyramid, also: Tensor | None = None) -> Decoded:
        """Run the queries over a batch.

        Args:
            pyramid: of the encoder.
            also: [M_0] bool, cells that masks are over whatever the head takes them for (in training: those of true
                instances, so that a deposit taken for one and an instance taken for a deposit both teach something).
        """
        cells = pyramid.levels[0].cells
        led = self.led_out(F.relu(pyramid.linear(self.led_in)))[:, 0]
        wanted = led.detach().sigmoid() < 0.5
        thing = (wanted if also is None else wanted | also).nonzero()[:, 0]
        n_things = torch.bincount(cells.event_id[thing], minlength=len(cells.start) - 1)
        start = torch.cat([n_things.new_zeros(1), n_things.cumsum(0)])
        point = pyramid.linear(self.point_out if self.point_in is None else self.point_in).index_select(0, thing)
        if self.point_in is not None:
            point = self.point_out(F.gelu(point))
        point_position = self.position_out(F.gelu(self.position_in(pyramid.position[thing].to(point.dtype))))
        return Decoded(thing, start, *self.look(point, point_position, Packed.of(start)), led)

    def forward(self, pyramid: Pyramid) -> list[Instances]:
        """One result an event, over the points that were given to the encoder."""
        done = self.decode(pyramid)
        mask = done.masks[-1]
        everywhere = mask.new_full((len(done.led), self.config.queries), NO_MASK).index_copy(0, done.thing, mask)
        n_points = pyramid.start.diff().tolist()
        masks = torch.split(pyramid.at_points(everywhere), n_points)
        probabilities = torch.split(pyramid.at_points(done.led.sigmoid()[:, None])[:, 0], n_points)
        return [Instances(m.t(), c, p) for m, c, p in zip(masks, done.classes[-1], probabilities, strict=True)]
