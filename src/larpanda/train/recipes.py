"""Recipes: functions that return the whole configuration of a run. panda_* are the paper's; nano_* fit two cores."""

from dataclasses import dataclass, field, replace
from typing import Literal

from larpanda.data.views import Augmentation, ViewConfig
from larpanda.event import MIN_ENERGY_MEV, Species
from larpanda.model.backbone import DecoderConfig, EncoderConfig
from larpanda.model.bundle import ModelConfig
from larpanda.model.distill import DistillConfig
from larpanda.model.matching import SetLossConfig
from larpanda.model.panoptic import PanopticConfig
from larpanda.model.semantic import SemanticConfig, SemanticLossConfig
from larpanda.model.unet import UResNetConfig
from larpanda.train.optim import OptimConfig
from larpanda.train.probing import ProbeConfig

# Wide where cells are few: level 0 holds half of all cells and would take most of the time.
# A layer scale of 1e-5 leaves attention switched off in a few thousand steps.
NANO_ENCODER = EncoderConfig((16, 32, 64, 96, 128), (1, 1, 1, 2, 1), window=128, layer_scale=0.1, drop_path=0.0)


@dataclass(frozen=True)
class FinetuneConfig:
    """A run that learns from labels."""

    model: ModelConfig
    steps: int
    batch_events: int
    mode: Literal["full", "decoder", "linear"] = "full"
    """What trains: all; the head, its decoder included, on a frozen encoder; a linear layer on frozen features."""
    labels: int | None = None
    """So many events to train on, drawn with the seed; fewer are some of more. None: all."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Not of frozen features, which are made once."""
    semantic_loss: SemanticLossConfig = field(default_factory=SemanticLossConfig)
    """Of a head for motifs."""
    set_loss: SetLossConfig = field(default_factory=SetLossConfig)
    """Of a head for particles or interactions."""
    semantic_weight: float = 1.0
    """Of the loss for motifs beside those for particles and interactions, where several heads learn together."""
    validation_events: int = 50
    """Taken from the end of the data and not trained on."""
    save_every: int = 500
    evaluate_every: int = 500
    keep: Literal["best", "last"] = "best"
    """Whose weights the bundle has: of the best validation, or of the end."""
    seed: int = 0
    workers: int = 0
    """Processes that make batches ahead; the result does not depend on them."""
    autocast: bool = True
    """Compute in bfloat16 where it is safe, on CUDA devices that can."""
    tensorboard: bool = False
    """Write TensorBoard's files beside metrics.jsonl."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_events, self.save_every, self.evaluate_every, self.validation_events) < 1:
            raise ValueError("steps, batch_events, save_every, evaluate_every and validation_events must be at least 1")
        if self.labels is not None and self.labels < 1:
            raise ValueError(f"labels is {self.labels}; expected 1 or more events")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; expected 0 or more")


@dataclass(frozen=True)
class PretrainConfig:
    """A run that learns without labels (paper sections 3.3 to 3.5)."""

    encoder: EncoderConfig
    steps: int
    batch_events: int
    optim: OptimConfig
    views: ViewConfig = field(default_factory=ViewConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    min_energy_mev: float = MIN_ENERGY_MEV
    """The model sees voxels above this."""
    save_every: int = 500
    evaluate_every: int = 1000
    """Steps from one linear probe to the next."""
    keep: Literal["best", "last"] = "last"
    """Whose weights the bundle has: of the best probe (section 3.5, for few events), or of the end."""
    seed: int = 0
    workers: int = 0
    """Processes that make batches ahead; the result does not depend on them."""
    autocast: bool = True
    """Compute in bfloat16 where it is safe, on CUDA devices that can."""
    tensorboard: bool = False
    """Write TensorBoard's files beside metrics.jsonl."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_events, self.save_every, self.evaluate_every) < 1:
            raise ValueError("steps, batch_events, save_every and evaluate_every must be at least 1")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; expected 0 or more")
        if not self.encoder.mask_token:
            raise ValueError("pre-training masks points: encoder.mask_token must be true")
        if self.views.remove_masked and self.distill.masked_only and self.distill.mask_weight:
            raise ValueError("views.remove_masked leaves no masked points to learn from: set distill.masked_only=false")


def panda_pretrain() -> PretrainConfig:
    """Pre-training of the 91 M encoder: needs GPUs. Every number of the paper; what it leaves open is as released."""
    return PretrainConfig(
        encoder=EncoderConfig(mask_token=True),  # sections 3.1.2 and 3.5
        steps=208_333,  # 10 M event-samples at batch 48, section 3.5
        batch_events=48,
        optim=OptimConfig(
            lr=2.6e-3,  # section 3.5, as all of these
            warmup=0.05,
            final_lr=1e-3,
            weight_decay=0.04,
            final_weight_decay=0.20,
            betas=(0.9, 0.999),  # the released code lets the first cycle between 0.85 and 0.95
            layer_decay=0.9,
            clip=3.0,  # released configuration
        ),
        views=ViewConfig(),  # section 3.3.2
        distill=DistillConfig(),  # sections 3.3.1 and 3.3.3
        save_every=1000,
        evaluate_every=5000,
        workers=4,
    )


def nano_pretrain() -> PretrainConfig:
    """The encoder of `nano_semantic`, pre-trained on two CPU cores. Settings found by trial: docs/lab-notes.md."""
    return PretrainConfig(
        encoder=replace(NANO_ENCODER, mask_token=True),
        steps=8_000,
        batch_events=8,
        optim=OptimConfig(lr=5e-3, weight_decay=0.04, clip=3.0),
        # Smaller crops, and masked points taken away: four times the steps in the same time. Voxels stay whole, as they
        # are in what is reconstructed.
        views=ViewConfig(n_local=4, max_points=1500, quarter_turns=True, position_jitter=0.0, remove_masked=True),
        distill=DistillConfig(
            prototypes=1024,
            width=128,
            hidden=256,
            level=1,  # deltas and Michels are thin: 6 mm tells more of them than 12
            radius=1.0,
            teacher_temperature=(0.03, 0.03),  # 0.07 belongs to 4,096 x 256; here targets drift to uniform
            momentum=(0.98, 1.0),
            masked_only=False,
        ),
        save_every=400,
        evaluate_every=800,
    )


def panda_semantic() -> FinetuneConfig:
    """Semantic fine-tuning of the 91 M encoder with its decoder (paper sections 3.2, 3.5): needs GPUs."""
    return FinetuneConfig(
        model=ModelConfig(EncoderConfig(), SemanticConfig(DecoderConfig())),
        steps=416_666,  # 20 M event-samples at batch 48, section 3.5
        batch_events=48,
        optim=OptimConfig(layer_decay=0.97),  # section 3.5; the released configuration has 0.9
        save_every=1000,
        evaluate_every=1000,
    )


def nano_semantic() -> FinetuneConfig:
    """A model of 2 M weights, trained on two CPU cores within an hour."""
    return FinetuneConfig(
        model=ModelConfig(
            NANO_ENCODER,
            SemanticConfig(DecoderConfig((16, 32, 48, 64), (1, 1, 1, 1))),
        ),
        steps=2200,
        batch_events=8,
        optim=OptimConfig(lr=3e-3, layer_decay=0.9),
        augmentation=Augmentation(charge_scale=0.05, charge_jitter=0.05),
        semantic_loss=SemanticLossConfig(lovasz_weight=1.0),
    )


def panda_uresnet() -> FinetuneConfig:
    """The paper's baseline at its size (Table 2), with the budget of ``panda_semantic``."""
    return replace(panda_semantic(), model=ModelConfig(UResNetConfig(), SemanticConfig(None)))


def nano_uresnet() -> FinetuneConfig:
    """The same in `nano`'s size, 2.1 M weights, all else as in ``nano_semantic``."""
    return replace(nano_semantic(), model=ModelConfig(UResNetConfig((14, 28, 42, 56, 70)), SemanticConfig(None)))


def panda_particle() -> FinetuneConfig:
    """Particles on the 91 M encoder (paper sections 3.2.2, 3.5): needs GPUs."""
    return FinetuneConfig(
        model=ModelConfig(EncoderConfig(), particle=PanopticConfig()),
        steps=416_666,  # 20 M event-samples at batch 48, section 3.5
        batch_events=48,
        optim=OptimConfig(lr=2e-4, layer_decay=0.9),  # rate: released configuration; decay: section 3.5
        save_every=1000,
        evaluate_every=5000,
    )


def panda_interaction() -> FinetuneConfig:
    """The same for interactions: 12 queries, one class, one layer of projection."""
    head = PanopticConfig(queries=12, classes=1, deep_projections=False)
    return replace(panda_particle(), model=ModelConfig(EncoderConfig(), interaction=head))


def nano_particle() -> FinetuneConfig:
    """Particles on `nano`'s encoder, on two CPU cores."""
    head = PanopticConfig(classes=len(Species), channels=96)
    return FinetuneConfig(
        model=ModelConfig(NANO_ENCODER, particle=head),
        steps=2500,
        batch_events=8,
        optim=OptimConfig(lr=1e-3, layer_decay=0.9),
        augmentation=Augmentation(charge_scale=0.05, charge_jitter=0.05),
    )


def nano_interaction() -> FinetuneConfig:
    """The same for interactions."""
    head = PanopticConfig(queries=12, classes=1, channels=96)
    return replace(nano_particle(), model=ModelConfig(NANO_ENCODER, interaction=head))


def nano_fragments() -> FinetuneConfig:
    """Particles and interactions put together from fragments, on a frozen model with motifs: what is shipped."""
    head = PanopticConfig(classes=len(Species), channels=96, fragments=True)
    return FinetuneConfig(
        model=ModelConfig(
            NANO_ENCODER,
            nano_semantic().model.semantic,
            head,
            replace(head, queries=12, classes=1),
        ),
        steps=4200,
        batch_events=32,
        mode="decoder",
        optim=OptimConfig(lr=1e-3),
        save_every=200,
    )


def nano() -> FinetuneConfig:
    """All three heads and the encoder at once; the encoder and the motifs of it are shipped.

    Large batches: with 8 events a step the losses of the heads do not fall. Ten minutes of a GPU, five hours of two CPU
    cores.
    """
    made = nano_semantic()
    model = replace(
        made.model, particle=nano_particle().model.particle, interaction=nano_interaction().model.interaction
    )
    # set losses are sums over blocks, 5 to 10 times as large
    optim = replace(made.optim, lr=2e-3)
    return replace(made, model=model, steps=2000, batch_events=48, optim=optim, semantic_weight=8.0)


FINETUNE = {
    "nano": nano,
    "nano_fragments": nano_fragments,
    "nano_semantic": nano_semantic,
    "nano_particle": nano_particle,
    "nano_interaction": nano_interaction,
    "nano_uresnet": nano_uresnet,
    "panda_semantic": panda_semantic,
    "panda_particle": panda_particle,
    "panda_interaction": panda_interaction,
    "panda_uresnet": panda_uresnet,
}
PRETRAIN = {"nano_pretrain": nano_pretrain, "panda_pretrain": panda_pretrain}
