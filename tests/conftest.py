"""Small events and models that many tests share. The events are not physics: blobs and lines with random labels."""

import hypothesis
import numpy as np
import pytest

from larpanda.event import Event, Motif
from larpanda.model.backbone import DecoderConfig, EncoderConfig
from larpanda.model.bundle import Model, ModelConfig
from larpanda.model.semantic import SemanticConfig

hypothesis.settings.register_profile("no test asserts a time", deadline=None)
hypothesis.settings.load_profile("no test asserts a time")

TINY_ENCODER = EncoderConfig((16, 16, 32), (2, 1, 1), window=32, layer_scale=0.5, drop_path=0.3)
TINY_DECODER = DecoderConfig((16, 16), (1, 1))


def cloud(n: int, seed: int = 0, side: int = 24, origin: int = 300) -> Event:
    """n distinct voxels in a cube, energies of 0.2 to 2 MeV, all labels."""
    rng = np.random.default_rng(seed)
    flat = rng.choice(side**3, n, replace=False)
    voxel = np.stack([flat // side**2, flat // side % side, flat % side], 1) + origin
    motif = rng.integers(0, 5, n)
    particle = np.where(motif == Motif.LED, -1, rng.integers(0, 4, n))
    species = np.where(particle >= 0, particle % 5, -1)
    return Event.from_arrays(voxel, rng.uniform(0.2, 2.0, n), motif, species, particle, np.minimum(particle, 1))


@pytest.fixture(scope="session")
def make_cloud():
    return cloud


@pytest.fixture
def tiny_model() -> Model:
    """A model with a decoder, its weights large enough for every branch to matter."""
    return random_model(SemanticConfig(TINY_DECODER))


@pytest.fixture
def tiny_linear_model() -> Model:
    return random_model(SemanticConfig(None))


def random_model(semantic: SemanticConfig) -> Model:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(ModelConfig(TINY_ENCODER, semantic))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            elif not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return model
