"""On a GPU: training computes what it computes on a CPU. `benchmarks/gpu.sh` runs these; they need one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import larpanda
from larpanda.data.views import Augmentation, ViewConfig
from larpanda.model.backbone import DecoderConfig, EncoderConfig
from larpanda.model.bundle import Model, ModelConfig, load_bundle
from larpanda.model.distill import DistillConfig, SelfDistillation
from larpanda.model.matching import SetLossConfig
from larpanda.model.panoptic import PanopticConfig
from larpanda.model.semantic import SemanticConfig, SemanticLossConfig
from larpanda.train.grouping import LabelledFragments
from larpanda.train.instances import Instances, instance_tables
from larpanda.train.motifs import Motifs, motif_tables
from larpanda.train.probing import ProbeConfig
from larpanda.train.supervised import Supervised
from larpanda.train.tasks import Pretrain

pytestmark = pytest.mark.gpu

ENCODER = EncoderConfig((16, 32), (1, 1), window=64, layer_scale=0.5, drop_path=0.2, mask_token=True)
HEAD = PanopticConfig(queries=8, classes=5, channels=32, blocks=2)


@pytest.fixture(scope="module")
def events():
    return [*larpanda.generate(4, seed=21)]


def learning():
    torch.manual_seed(0)
    decoder = SemanticConfig(DecoderConfig((16,), (1,)))
    model = Model(ModelConfig(ENCODER, decoder, HEAD, replace(HEAD, classes=1)))
    assert model.semantic
    assert model.particle
    assert model.interaction
    return Supervised(
        model,
        {
            "semantic": Motifs(model.semantic, SemanticLossConfig()),
            "particle": Instances(model.particle, "particle", SetLossConfig()),
            "interaction": Instances(model.interaction, "interaction", SetLossConfig()),
        },
        Augmentation(),
        [],
    )


def distilling():
    torch.manual_seed(0)
    views = ViewConfig(n_local=2, mask_voxels=(5.0, 8.0), max_points=1000)
    config = DistillConfig(prototypes=16, width=8, hidden=16, level=1)
    return Pretrain(SelfDistillation(ENCODER, config), 10, views, 0.13, ProbeConfig())


@pytest.mark.parametrize("make", [learning, distilling])
def test_a_step_is_that_of_the_cpu(events, make):
    found = []
    for device, bfloat16 in (("cpu", False), ("cuda", False), ("cuda", True)):
        task = make()
        task.model.to(device)
        batch = task.batch(events, [np.random.default_rng(i) for i in range(len(events))], 0.0)
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            losses = task.loss(batch.to(torch.device(device)), 0.0)
        losses.total.backward()
        gradients = [p.grad.flatten().cpu() for p in task.model.parameters() if p.grad is not None]
        found.append((losses.total.item(), torch.cat(gradients).double()))
    (loss, gradient), same, rounded = found
    assert same[0] == pytest.approx(loss, rel=1e-4)
    assert (same[1] - gradient).norm() < 1e-2 * gradient.norm()
    assert rounded[0] == pytest.approx(loss, rel=0.03)
    assert torch.cosine_similarity(rounded[1], gradient, dim=0) > 0.95


def test_fragments_are_those_of_the_cpu(events):
    model = load_bundle("nano").model
    here, there = ([LabelledFragments.of(model.to(device), one) for one in events] for device in ("cpu", "cuda"))
    for a, b in zip(here, there, strict=True):
        assert abs(len(a) - len(b)) <= 2  # where a motif is a matter of rounding
        assert a.n_points == pytest.approx(b.n_points, rel=1e-2)


def test_a_model_is_judged_as_on_the_cpu(events):
    model = load_bundle("nano").model
    here = motif_tables(model, events)
    there = motif_tables(model.to("cuda"), events)
    moved = sum(np.abs(a - b).sum() for a, b in zip(here, there, strict=True)) / 2
    assert moved < 1e-3 * sum(table.sum() for table in here)
    heads = learning().model
    for what in ("particle", "interaction"):
        here, there = (instance_tables(heads.to(device), what, events) for device in ("cpu", "cuda"))
        assert [table.voxels.sum() for table in here] == [table.voxels.sum() for table in there]
