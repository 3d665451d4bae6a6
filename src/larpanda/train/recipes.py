"""Recipes: functions that return the whole configuration of a run. panda_* are the paper's; nano_* fit two cores."""

from dataclasses import dataclass, field

from larpanda.data.views import Augmentation
from larpanda.model.backbone import DecoderConfig, EncoderConfig
from larpanda.model.bundle import ModelConfig
from larpanda.model.semantic import SemanticConfig
from larpanda.train.optim import OptimConfig


@dataclass(frozen=True)
class FinetuneConfig:
    """A run that learns from labels."""

    model: ModelConfig
    steps: int
    batch_events: int
    optim: OptimConfig = field(default_factory=OptimConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    lovasz_weight: float = 0.05
    """Weight of the Lovasz term beside cross-entropy."""
    validation_events: int = 50
    """Taken from the end of the data and not trained on."""
    save_every: int = 500
    evaluate_every: int = 500
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
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; expected 0 or more")


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
    """A model of 2 M weights, trained from scratch on two CPU cores within an hour."""
    return FinetuneConfig(
        model=ModelConfig(
            # Wide where cells are few: level 0 holds half of all cells and would take most of the time.
            # A layer scale of 1e-5 leaves attention switched off in a few thousand steps.
            EncoderConfig((16, 32, 64, 96, 128), (1, 1, 1, 2, 1), window=128, layer_scale=0.1, drop_path=0.0),
            SemanticConfig(DecoderConfig((16, 32, 48, 64), (1, 1, 1, 1))),
        ),
        steps=2200,
        batch_events=8,
        optim=OptimConfig(lr=3e-3),
        augmentation=Augmentation(charge_scale=0.05, charge_jitter=0.05),
        lovasz_weight=1.0,
    )


RECIPES = {"nano_semantic": nano_semantic, "panda_semantic": panda_semantic}
