"""Particles or interactions as masks over points (paper section 3.2.2): a few learned queries, each of which finds one.

Here are the network, and how its masks become instances; the loss is in ``matching``.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from larpanda.event import UNKNOWN
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


class PanopticHead(nn.Module):
    """A pyramid to masks and classes of the queries."""

    def __init__(self, config: PanopticConfig, encoder: EncoderConfig | UResNetConfig) -> None:
        super().__init__()
        self.config, c, width = config, config.channels, encoder.out_channels
        self.query, self.query_position = (nn.Parameter(torch.randn(config.queries, c)) for _ in range(2))
        self.position_in, self.position_out = nn.Linear(3, c), nn.Linear(c, c)
        self.led_in, self.led_out = nn.Linear(width, c), nn.Linear(c, 1)
        deep = config.deep_projections
        self.point_in = nn.Linear(width, c) if deep else None
        self.point_out = nn.Linear(c if deep else width, c)
        self.blocks = nn.ModuleList(QueryBlock(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(c)
        self.class_in = nn.Linear(c, c) if deep else None
        self.class_out = nn.Linear(c, config.classes + 1)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

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
        query, packed = self.query.expand(len(n_things), -1, -1), Packed.of(start)
        masks, classes = [], []
        for block in self.blocks:
            query, mask = block(query, self.query_position, point, point_position, packed)
            masks.append(mask)
            normed = self.norm(query)
            classes.append(self.class_out(normed if self.class_in is None else F.gelu(self.class_in(normed))))
        return Decoded(thing, start, tuple(masks), tuple(classes), led)

    def forward(self, pyramid: Pyramid) -> list[Instances]:
        """One result an event, over the points that were given to the encoder."""
        done = self.decode(pyramid)
        mask = done.masks[-1]
        everywhere = mask.new_full((len(done.led), self.config.queries), NO_MASK).index_copy(0, done.thing, mask)
        n_points = pyramid.start.diff().tolist()
        masks = torch.split(pyramid.at_points(everywhere), n_points)
        probabilities = torch.split(pyramid.at_points(done.led.sigmoid()[:, None])[:, 0], n_points)
        return [Instances(m.t(), c, p) for m, c, p in zip(masks, done.classes[-1], probabilities, strict=True)]


@dataclass(frozen=True)
class SelectConfig:
    """How masks become instances; the defaults are the paper's (section 3.2.2, inference)."""

    mask_threshold: float = 0.5
    """A point is in a mask from this probability on."""
    min_points: int = 2
    """Of an instance."""
    score_threshold: float = 0.0
    """Of the score after suppression; the released code has 0.5, also on the class alone."""
    sigma: float = 2.0
    """Of matrix NMS: how strongly overlap with a better mask of the class lowers the score."""
    cover_all: bool = False
    """Give every point that is no low-energy deposit and in no mask to the instance whose mask is least unlikely."""


@dataclass(frozen=True, slots=True, eq=False)
class Selected:
    """The K instances of an event, best first."""

    owner: Tensor  # [N] int64: the instance of each point, UNKNOWN for none
    query: Tensor  # [K] int64
    kind: Tensor  # [K] int64, class
    score: Tensor  # [K] float32: class probability times mean mask probability, after suppression
    class_probability: Tensor  # [K, things] float32, of the real classes
    all_used: bool  # every query became an instance: there may be more of them than the event had queries for

    def cpu(self) -> "Selected":
        """The same on the CPU."""
        of = (self.owner.cpu(), self.query.cpu(), self.kind.cpu(), self.score.cpu(), self.class_probability.cpu())
        return Selected(*of, self.all_used)


@torch.no_grad()
def select(found: Instances, things: int, config: SelectConfig) -> Selected:
    """Turn the masks of one event into instances that share no points.

    Args:
        found: of the head.
        things: classes below this are instances; those above (LED) and no object are not.
        config: thresholds.

    Class by argmax, masks by threshold, suppression within a class by matrix NMS (Wang et al. 2020, arXiv:2003.10152,
    Gaussian), and each point to the best instance whose mask has it; an instance that is left with too few points gives
    them to the next. Depends on the order of points in rounding only.
    """
    probability = found.class_logits.float().softmax(1)
    kind = probability.argmax(1)
    p = found.mask_logits.float().sigmoid()
    inside = p >= config.mask_threshold
    size = inside.sum(1)
    some = kind < things
    kept = (some & (size >= config.min_points)).nonzero()[:, 0]
    confidence = (p * inside).sum(1) / size.clamp(min=1)
    score = probability.gather(1, kind[:, None])[:, 0] * confidence
    kept = kept[score[kept].argsort(descending=True, stable=True)]
    score = score[kept] * _suppression(inside[kept], kind[kept], config.sigma)
    order = score.argsort(descending=True, stable=True)
    order = order[score[order] >= config.score_threshold]
    kept, score = kept[order], score[order]
    owner = _exclusive(inside[kept], config.min_points)
    alive = torch.bincount(owner[owner >= 0], minlength=len(kept)) > 0
    number = torch.where(alive, alive.cumsum(0) - 1, UNKNOWN)
    owner = torch.where(owner >= 0, number[owner.clamp(min=0)] if len(number) else owner, UNKNOWN)
    kept, score = kept[alive], score[alive]
    if config.cover_all and len(kept):
        open_ = (owner < 0) & (found.led_probability < 0.5)
        owner[open_] = p[kept][:, open_].argmax(0)
    return Selected(owner, kept, kind[kept], score, probability[kept, :things], 0 < len(kept) == len(kind))


def _suppression(inside: Tensor, kind: Tensor, sigma: float) -> Tensor:
    """[K, N] masks and [K] classes, best first -> [K] factors of the scores: matrix NMS."""
    x = inside.float()
    shared, size = x @ x.t(), x.sum(1)
    iou = (shared / (size[:, None] + size - shared).clamp(min=1.0)).triu(1)  # [i, j]: of j with the better i
    iou = iou * (kind[:, None] == kind)
    worst = iou.amax(0) if len(iou) else size  # of each with those better than itself
    return torch.exp(-sigma * (iou**2 - worst[:, None] ** 2)).where(iou > 0, 1.0).amin(0) if len(iou) else size


def _exclusive(inside: Tensor, min_points: int) -> Tensor:
    """[K, N] masks, best first -> [N] the first that has the point, UNKNOWN if none; none with too few points."""
    owner = inside.new_full((inside.shape[1],), UNKNOWN, dtype=torch.long)
    for number, mask in enumerate(inside):
        mine = mask & (owner < 0)
        owner = owner.masked_fill(mine & (mine.sum() >= min_points), number)
    return owner
