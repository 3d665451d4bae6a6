"""A run small enough to be repeated."""

import multiprocessing

import pytest

from larpanda.data.views import Augmentation
from larpanda.model.backbone import EncoderConfig
from larpanda.model.bundle import ModelConfig
from larpanda.model.semantic import SemanticConfig, SemanticLossConfig
from larpanda.train.optim import OptimConfig
from larpanda.train.recipes import FinetuneConfig

# Processes that tests start are forks of one that has imported what takes long and done nothing else: 0.1 s, not 6.
SLOW_TO_IMPORT = ["torch._dynamo", "jsonargparse", "h5py", "safetensors.torch", "larpanda.cli"]
SLOW_TO_IMPORT += ["larpanda.train.finetune", "larpanda.data.pilarnet"]
multiprocessing.get_context("forkserver").set_forkserver_preload(SLOW_TO_IMPORT)


@pytest.fixture
def tiny_run() -> FinetuneConfig:
    return FinetuneConfig(
        model=ModelConfig(EncoderConfig((16, 16), (1, 1), window=32, layer_scale=0.5), SemanticConfig(None)),
        steps=8,
        batch_events=2,
        optim=OptimConfig(lr=3e-3),
        augmentation=Augmentation(charge_scale=0.05, charge_jitter=0.05),
        semantic_loss=SemanticLossConfig(lovasz_weight=0.5),
        validation_events=2,
        save_every=3,
        evaluate_every=4,
    )
