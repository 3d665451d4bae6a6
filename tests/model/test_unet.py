"""The U-ResNet: resampling against dense convolutions, size against the paper, and what it must not depend on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from larpanda.event import Event, PointBatch
from larpanda.model.backbone import CURVE_DEPTH
from larpanda.model.bundle import Model, ModelConfig, load_bundle, save_bundle
from larpanda.model.semantic import SemanticConfig
from larpanda.model.unet import CHILDREN, UResNet, UResNetConfig, child_place, double, halve
from larpanda.sparse.grid import coarsen, voxelize

SMALL = UResNetConfig((6, 8, 10), 1)


@pytest.fixture
def scene():
    """Occupied cells of one event, their coarser cells, and features."""
    torch.manual_seed(1)
    position = torch.randint(0, 12, (200, 3)).unique(dim=0).float()
    cells, _ = voxelize(position, torch.tensor([0, len(position)]), CURVE_DEPTH)
    return cells, coarsen(cells), torch.randn(len(cells.cell), 5)


def dense(x, cell, size):
    """[M, C] at cells -> [1, C, size, size, size], 0 elsewhere."""
    grid = torch.zeros(1, x.shape[1], size, size, size)
    grid[0, :, cell[:, 0], cell[:, 1], cell[:, 2]] = x.t()
    return grid


def at(grid, cell):
    return grid[0, :, cell[:, 0], cell[:, 1], cell[:, 2]].t()


def test_halving_is_a_convolution_with_stride_2(scene):
    cells, coarser, x = scene
    linear = nn.Linear(CHILDREN * 5, 7, bias=False)
    kernel = linear.weight.view(7, 2, 2, 2, 5).permute(0, 4, 1, 2, 3)
    expected = at(F.conv3d(dense(x, cells.cell, 12), kernel, stride=2), coarser.cells.cell)
    found = halve(x, child_place(cells, coarser), len(coarser.length), linear)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_doubling_is_a_transposed_convolution_with_stride_2(scene):
    cells, coarser, _ = scene
    x = torch.randn(len(coarser.length), 7)
    linear = nn.Linear(7, CHILDREN * 5, bias=False)
    kernel = linear.weight.view(2, 2, 2, 5, 7).permute(4, 3, 0, 1, 2)
    expected = at(F.conv_transpose3d(dense(x, coarser.cells.cell, 6), kernel, stride=2), cells.cell)
    torch.testing.assert_close(double(x, child_place(cells, coarser), linear), expected, atol=1e-5, rtol=1e-5)


def test_resampling_has_the_gradient_that_finite_differences_give(scene):
    cells, coarser, x = scene
    place, n = child_place(cells, coarser), len(coarser.length)
    down, up = nn.Linear(CHILDREN * 5, 3, bias=False).double(), nn.Linear(3, CHILDREN * 2, bias=False).double()

    def both(y):
        return double(halve(y, place, n, down), place, up).square().sum()

    assert torch.autograd.gradcheck(both, x.double().requires_grad_(), atol=1e-4, fast_mode=True)


def test_the_default_has_the_papers_weights():
    """Table 2: 11.0 M."""
    model = Model(ModelConfig(UResNetConfig(), SemanticConfig(None)))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(11.0e6, abs=0.05e6)


def test_an_event_does_not_depend_on_its_batch_mates_or_its_order(make_cloud):
    torch.manual_seed(0)
    model = UResNet(SMALL)
    a, b = (make_cloud(120, seed=seed) for seed in (0, 1))
    alone = [model(PointBatch.pack([event])) for event in (a, b)]
    both = model(PointBatch.pack([a, b]))
    expected = torch.cat([pyramid.at_points(pyramid.upcast()) for pyramid in alone])
    torch.testing.assert_close(both.at_points(both.upcast()), expected, atol=1e-5, rtol=1e-5)
    order = torch.randperm(len(a))
    turned = model(PointBatch.pack([Event.from_arrays(a.position[order].numpy(), a.energy[order].numpy())]))
    expected = alone[0].at_points(alone[0].upcast())[order]
    torch.testing.assert_close(turned.at_points(turned.upcast()), expected, atol=1e-5, rtol=1e-5)


def test_every_weight_has_a_gradient(make_cloud):
    model = Model(ModelConfig(SMALL, SemanticConfig(None)))
    pyramid = model.encoder(PointBatch.pack([make_cloud(150)]))
    model.semantic(pyramid).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_point_alone_and_a_wide_event():
    model = UResNet(SMALL)
    one = Event.from_arrays(np.array([[700, 3, 9]]), np.ones(1))
    assert model(PointBatch.pack([one])).upcast().shape == (1, 6)
    wide = replace(one, position=torch.tensor([[0.0, 0, 0], [3000.0, 0, 0]]), energy=torch.ones(2))
    with pytest.raises(ValueError, match=r"span 0\.\.3000"):
        model(replace(PointBatch.pack([one]), position=wide.position, energy=wide.energy, start=torch.tensor([0, 2])))


def test_a_bundle_of_it_opens_again(tmp_path, make_cloud):
    model = Model(ModelConfig(SMALL, SemanticConfig(None))).requires_grad_(False)
    save_bundle(tmp_path / "bundle", model, {}, "card")
    again = load_bundle(tmp_path / "bundle").model
    assert again.config == model.config
    batch = PointBatch.pack([make_cloud(100)])
    torch.testing.assert_close(again.semantic(again.encoder(batch)), model.semantic(model.encoder(batch)))


def test_a_decoder_on_top_is_refused():
    with pytest.raises(ValueError, match="has its own"):
        Model(ModelConfig(SMALL, SemanticConfig()))
