"""The motif of every point (paper section 3.2.1): a linear layer on up-cast or decoded features, and its loss."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from larpanda.event import UNKNOWN, Motif
from larpanda.model.backbone import Decoder, DecoderConfig, EncoderConfig, Pyramid
from larpanda.model.unet import UResNetConfig


@dataclass(frozen=True)
class SemanticConfig:
    """What stands between the encoder and the motifs."""

    decoder: DecoderConfig | None = field(default_factory=DecoderConfig)
    """None: a linear layer on the up-cast features of all levels."""


@dataclass(frozen=True)
class SemanticLossConfig:
    """What a semantic head minimises; the defaults are the released recipe."""

    lovasz_weight: float = 0.05
    """Weight of the Lovasz term beside cross-entropy."""
    class_weights: tuple[float, ...] = ()
    """Weight of each motif in the cross-entropy, in the order of Motif; none: all alike."""

    def __post_init__(self) -> None:
        if self.class_weights and (len(self.class_weights) != len(Motif) or min(self.class_weights) < 0):
            raise ValueError(f"class_weights has {self.class_weights}; expected {len(Motif)} numbers, not negative")


class SemanticHead(nn.Module):
    """A pyramid to motif logits of the points."""

    def __init__(self, config: SemanticConfig, encoder: EncoderConfig | UResNetConfig) -> None:
        super().__init__()
        self.decoder, width = None, encoder.out_channels
        if config.decoder:
            if isinstance(encoder, UResNetConfig):
                raise ValueError("semantic.decoder: a U-ResNet has its own; expected null")
            self.decoder, width = Decoder(config.decoder, encoder), config.decoder.channels[0]
        self.linear = nn.Linear(width, len(Motif))
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

        self.n_draws = self.decoder.n_draws if self.decoder else 0

    def forward(self, pyramid: Pyramid, draws: Tensor | None = None) -> Tensor:
        """Returns [N, 5] logits, in the order of Motif; draws: [B, n_draws] for the decoder's stochastic depth."""
        cells = self.linear(self.decoder(pyramid, draws)) if self.decoder else pyramid.linear(self.linear)
        return pyramid.at_points(cells)


def semantic_loss(logits: Tensor, motif: Tensor, lovasz_weight: float, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy plus weighted Lovasz softmax, over the points that have a motif.

    Args:
        logits: [N, 5].
        motif: [N] int64, UNKNOWN for points without truth.
        lovasz_weight: the released recipe has 0.05.
        class_weights: [5] of the points of each motif in the mean of the cross-entropy; None: all alike, as released.

    Returns:
        A scalar; 0 if no point has a motif.
    """
    known = motif != UNKNOWN
    logits, motif = logits[known].float(), motif[known]  # float32 also under autocast
    if not len(motif):
        return logits.sum()
    loss = F.cross_entropy(logits, motif, class_weights)
    return loss + lovasz_weight * lovasz_softmax(logits.softmax(1), motif) if lovasz_weight else loss


def lovasz_softmax(probability: Tensor, label: Tensor) -> Tensor:
    """One minus a smooth mean IoU of the classes that occur in ``label``.

    Args:
        probability: [N, C].
        label: [N] int64.

    Source: Berman, Triki, Blaschko, CVPR 2018 (arXiv:1705.08790), equations 8 and 9, over all points of the batch.
    """
    probability = probability.t()  # a class a row: running sums across rows take a GPU 15 ms
    present = torch.bincount(label, minlength=len(probability)).nonzero()  # [C', 1]
    is_class = (label == present).to(probability.dtype)  # [C', N]
    error, order = (is_class - probability[present[:, 0]]).abs().sort(1, descending=True)
    is_class = is_class.gather(1, order)
    size = is_class.sum(1, keepdim=True)
    jaccard = 1.0 - (size - is_class.cumsum(1)) / (size + (1.0 - is_class).cumsum(1))
    step = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], 1)
    return (error * step).sum(1).mean()
