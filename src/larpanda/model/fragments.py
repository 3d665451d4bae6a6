"""Particles and interactions put together from fragments: voxels that touch and have one predicted motif.

Tracks are divided where they branch or kink, since at a vertex those of several particles touch.

Where the paper's queries look at every point (section 3.2.2), these look at some 40 fragments an event, which is what
is left to decide once motifs are known. That takes a hundredth of the computing, so that a head sees as many events in
an hour on a CPU as it would of points in days; what two particles share of one fragment cannot be told apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from larpanda.event import IMAGE_VOXELS, UNKNOWN, Motif, PointBatch
from larpanda.model.backbone import EncoderConfig, LinearGelu, Pyramid
from larpanda.model.panoptic import NO_MASK, Instances, PanopticConfig, QueryDecoder
from larpanda.model.unet import UResNetConfig
from larpanda.sparse.attend import Packed
from larpanda.sparse.pieces import segments, touching
from larpanda.sparse.segment import sum_groups

Ints = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
SHAPE = 11  # numbers of a fragment's shape
OCTAVES = 6  # of the sines and cosines of a place: the finest has a period of 14 cm
RELATIONS = 11  # numbers that say how two fragments lie
RELATION_CHANNELS = 16
END_RADIUS = 10.02 * 2.0 / IMAGE_VOXELS  # what is near an end of a fragment: 10 voxels, 3 cm; the rest is for rounding
END_SIZES = 2  # numbers of how much is near an end


def parts(voxel: Numbers, motif: Ints, event_id: Ints | None = None) -> Ints:
    """Number the fragments of points.

    Args:
        voxel: [N, 3] indices, each once in an event.
        motif: [N] predicted.
        event_id: [N] from 0; None: all are of one.

    Returns:
        [N] from 0, in any order; UNKNOWN for low-energy deposits.
    """
    event_id = np.zeros(len(voxel), np.int64) if event_id is None else event_id
    piece = touching(voxel, np.where(motif == Motif.LED, UNKNOWN, event_id * len(Motif) + motif))
    track = motif == Motif.TRACK
    for event in np.unique(event_id[track]):  # each alone: which of two nearest lines a voxel goes to is its event's
        rows = np.flatnonzero(track & (event_id == event))
        piece[rows] = piece.max(initial=-1) + 1 + segments(voxel[rows])
    piece[piece >= 0] = np.unique(piece[piece >= 0], return_inverse=True)[1]
    return piece


@dataclass(frozen=True, slots=True, eq=False)
class Fragments:
    """The F fragments of B events, event by event."""

    feature: Tensor  # [F, W + 5]: means over their points of up-cast features and of motif probabilities
    ends: Tensor  # [F, 2 (W + 7)]: of either end the same means over points within 3 cm, log of points, of energy (MeV)
    shape: Tensor  # [F, 11] float32: centre, two ends (-1..1 within the image), log of points, log of energy (MeV)
    start: Tensor  # [B + 1] int64: event b owns fragments start[b]:start[b + 1]

    @classmethod
    def of(cls, points: PointBatch, pyramid: Pyramid, logits: Tensor) -> tuple["Fragments", Tensor]:
        """Find the fragments of events.

        Args:
            points: N points of B events.
            pyramid: of an encoder.
            logits: [N, 5] of motifs.

        Returns:
            The fragments in the order of their first points by place, and the fragment of each point, [N] int64,
            UNKNOWN for low-energy deposits.
        """
        event_id = torch.repeat_interleave(points.start.diff())
        motif = logits.argmax(1)
        voxel = points.position.double().cpu().numpy()
        piece = parts(voxel, motif.cpu().numpy(), event_id.cpu().numpy())
        # by place, so that nothing depends on the order of an event's points
        rows = np.lexsort([*voxel.T, event_id.cpu().numpy()])
        rows = rows[piece[rows] >= 0]
        first = np.unique(piece[rows], return_index=True)[1]  # of each piece the first of rows
        number = np.full(len(first) + 1, UNKNOWN)  # the last: of no piece
        number[np.argsort(first)] = np.arange(len(first))
        fragment = torch.from_numpy(number[piece]).to(event_id.device)
        count = torch.bincount(
            event_id[torch.from_numpy(rows[first]).to(event_id.device)], minlength=len(points.start) - 1
        )
        start = torch.cat([count.new_zeros(1), count.cumsum(0)])
        return cls._measured(points, pyramid, logits, fragment, torch.from_numpy(rows), start), fragment

    @classmethod
    def _measured(
        cls, points: PointBatch, pyramid: Pyramid, logits: Tensor, fragment: Tensor, rows: Tensor, start: Tensor
    ) -> "Fragments":
        """rows: those of points in fragments, by event and place."""
        rows, n = rows.to(fragment.device), int(start[-1])
        own, energy = fragment[rows], points.energy[rows]
        size = torch.bincount(own, minlength=n)[:, None].float()
        known = torch.cat([pyramid.at_points(pyramid.upcast()).float(), logits.float().softmax(1)], 1)[rows]
        position = (points.position[rows] + 0.5) * (2.0 / IMAGE_VOXELS) - 1.0
        sums = sum_groups(torch.cat([known, position, energy[:, None]], 1), own, n)
        feature, centre, total = torch.split(sums, [known.shape[1], 3, 1], 1)
        centre = centre / size
        first = _farthest(position, own, centre)
        second = _farthest(position, own, first)
        ends = [_near(end, known, position, energy, own) for end in (first, second)]
        shape = torch.cat([centre, first, second, size.log(), total.log()], 1)
        return cls(feature / size, torch.cat(ends, 1), shape, start)

    def to(self, device: torch.device) -> "Fragments":
        """The same on a device."""
        return Fragments(*(x.to(device) for x in (self.feature, self.ends, self.shape, self.start)))

    def half(self) -> "Fragments":
        """The same with features in float16, to be kept."""
        return Fragments(self.feature.half(), self.ends.half(), self.shape, self.start)

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return self.feature.nbytes + self.ends.nbytes + self.shape.nbytes

    @classmethod
    def pack(cls, parts: Sequence["Fragments"]) -> "Fragments":
        """Lay events end to end."""
        counts = torch.cat([part.start.diff() for part in parts])
        start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        feature, ends, shape = (torch.cat([getattr(x, name) for x in parts]) for name in ("feature", "ends", "shape"))
        return cls(feature, ends, shape, start)


def _farthest(position: Tensor, own: Tensor, origin: Tensor) -> Tensor:
    """[N, 3] points, [N] fragments, [F, 3] origins -> [F, 3] the point farthest from it, the first of equals."""
    squared = ((position - origin[own]) ** 2).sum(1)
    farthest = squared.new_zeros(len(origin)).scatter_reduce(0, own, squared, "amax")
    some = (squared == farthest[own]).nonzero()[:, 0]
    row = torch.full((len(origin),), len(own), device=own.device).scatter_reduce(0, own[some], some, "amin")
    return position[row]


def _near(end: Tensor, known: Tensor, position: Tensor, energy: Tensor, own: Tensor) -> Tensor:
    """Of each fragment what is near an end of it: a shower's start and a track's stop say what it is.

    [F, 3] ends; [N, W] known, [N, 3], [N], [N] fragments -> [F, W + 2] means, log of points, log of energy.
    """
    near = ((position - end[own]) ** 2).sum(1) <= END_RADIUS**2
    own, n = own[near], len(end)
    count = torch.bincount(own, minlength=n)[:, None].float()  # at least the end itself
    sums = sum_groups(torch.cat([known[near], energy[near, None]], 1), own, n)
    return torch.cat([sums[:, :-1] / count, count.log(), sums[:, -1:].log()], 1)


class ContextBlock(nn.Module):
    """Fragments of an event look at one another; where they lie biases how much."""

    def __init__(self, config: PanopticConfig) -> None:
        super().__init__()
        c = config.channels
        self.heads = c // config.head_dim
        self.relation_in = LinearGelu(RELATIONS, RELATION_CHANNELS)
        self.relation_out = nn.Linear(RELATION_CHANNELS, self.heads)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(c), nn.LayerNorm(c)
        self.qkv, self.attention_linear = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.mlp_in, self.mlp_out = LinearGelu(c, config.mlp_ratio * c), nn.Linear(config.mlp_ratio * c, c)

    def forward(self, x: Tensor, relation: Tensor, hidden: Tensor, packed: Packed) -> Tensor:
        """[F, C], [B, L, L, 11], [B, L] bool (no fragment there) -> [F, C]."""
        bias = self.relation_out(self.relation_in(relation)).masked_fill(hidden[:, None, :, None], NO_MASK)
        qkv = packed.pad(self.qkv(self.attention_norm(x)))
        q, k, v = qkv.view(*qkv.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.permute(0, 3, 1, 2).to(q.dtype))
        assert packed.place is not None
        out = out.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, packed.place)
        x = x + self.attention_linear(out)
        fed: Tensor = self.mlp_out(self.mlp_in(self.mlp_norm(x)))
        return x + fed


class FragmentHead(QueryDecoder):
    """Fragments to masks and classes of the queries."""

    def __init__(self, config: PanopticConfig, encoder: EncoderConfig | UResNetConfig) -> None:
        super().__init__(config)
        c, width = config.channels, encoder.out_channels + len(Motif)
        n_ends = 2 * (width + END_SIZES)
        n_shape = (SHAPE - 2) * (1 + 2 * OCTAVES) + 2
        self.feature_norm = nn.LayerNorm(width)
        self.feature_in, self.feature_out = LinearGelu(width, 2 * c), nn.Linear(2 * c, c)
        self.ends_norm = nn.LayerNorm(n_ends)
        self.ends_in, self.ends_out = LinearGelu(n_ends, 2 * c), nn.Linear(2 * c, c)
        self.shape_in, self.shape_out = LinearGelu(n_shape, 2 * c), nn.Linear(2 * c, c)
        self.context = nn.ModuleList(ContextBlock(config) for _ in range(config.context))
        self.initialize()

    def decode(self, fragments: Fragments) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Of each block mask logits of the fragments [F, Q], and class logits [B, Q, classes + 1]."""
        dtype = self.feature_norm.weight.dtype
        place, sizes = torch.split(fragments.shape, [SHAPE - 2, 2], 1)
        octave = place[:, :, None] * (math.pi / 2 * 2.0 ** torch.arange(OCTAVES, device=place.device))
        shape = torch.cat([place, octave.sin().flatten(1), octave.cos().flatten(1), sizes], 1)
        position = self.shape_out(self.shape_in(shape.to(dtype)))
        x = self.feature_out(self.feature_in(self.feature_norm(fragments.feature.to(dtype)))) + position
        x = x + self.ends_out(self.ends_in(self.ends_norm(fragments.ends.to(dtype))))
        packed = Packed.of(fragments.start, few=True)
        relation = _relations(packed.pad(place))
        hidden = packed.pad(torch.ones_like(place[:, :1]))[:, :, 0] == 0
        for block in self.context:
            x = block(x, relation.to(dtype), hidden, packed)
        return self.look(x, position, packed)

    def forward(self, fragments: Fragments, of_point: Tensor, start: Tensor) -> list[Instances]:
        """One result an event over its points.

        Args:
            fragments: of B events.
            of_point: [N] int64, the fragment of each point, UNKNOWN for low-energy deposits.
            start: [B + 1] int64: event b owns points start[b]:start[b + 1].
        """
        masks, classes = self.decode(fragments)
        none = masks[-1].new_full((1, self.config.queries), NO_MASK)
        lengths = start.diff().tolist()
        of_events = torch.split(torch.cat([masks[-1], none])[of_point], lengths)  # UNKNOWN is the last row
        led = torch.split((of_point < 0).float(), lengths)
        return [Instances(m.t(), c, p) for m, c, p in zip(of_events, classes[-1], led, strict=True)]


def _relations(place: Tensor) -> Tensor:
    """[B, L, 9] centre and ends -> [B, L, L, 11]: how fragment i lies to j.

    Least distance of their three places, that of their centres, by how much the axis of i misses the centre of j and
    that of j the centre of i (a shower points back to where it is from); each also as a logarithm from a voxel on; then
    cosines of the angles between the axes, and of i's and of j's with the line from centre to centre, without sign,
    since which end is which means nothing.
    """
    b, n = place.shape[:2]
    points = place.reshape(b, 3 * n, 3)
    # not by a product of matrices, which PyTorch takes for many points: it is off by a fifth of a voxel
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(points, points, compute_mode=exact).view(b, n, 3, n, 3)
    nearest, centres = distance.amin((2, 4)), distance[:, :, 0, :, 0]
    axis = F.normalize(place[..., 6:] - place[..., 3:6], dim=2)
    between = place[:, None, :, :3] - place[:, :, None, :3]
    along = (axis[:, :, None] * between).sum(3)
    miss = (between - along[..., None] * axis[:, :, None]).norm(dim=3)
    lengths = torch.stack([nearest, centres, miss, miss.transpose(1, 2)], 3)
    pointing = along.abs() / (centres + 2.0 / IMAGE_VOXELS)
    cosines = torch.stack([(axis @ axis.transpose(1, 2)).abs(), pointing, pointing.transpose(1, 2)], 3)
    return torch.cat([lengths, (lengths + 2.0 / IMAGE_VOXELS).log(), cosines], 3)
