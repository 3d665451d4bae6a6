"""The sparse convolution against a dense one, values and gradients."""

import pytest
import torch

from larpanda.sparse.convolve import convolve
from larpanda.sparse.neighbors import neighbor_map


def dense(x, kernel, cell, event, side):
    """The same by conv3d on a full grid: [K, C, C'] -> [C', C, 3, 3, 3], zero where no cell is."""
    grid = x.new_zeros(int(event.max()) + 1, x.shape[1], side, side, side)
    grid[(event, slice(None), *cell.t())] = x
    weight = kernel.permute(2, 1, 0).reshape(kernel.shape[2], kernel.shape[1], 3, 3, 3)
    return torch.nn.functional.conv3d(grid, weight, padding=1)[(event, slice(None), *cell.t())]


@pytest.fixture(params=["one by one", "side by side"])
def as_on_a_gpu(request, monkeypatch):
    """Both ways of computing it; the second in pieces of a few rows."""
    if request.param == "side by side":
        monkeypatch.setattr("larpanda.sparse.neighbors.side_by_side", lambda device: True)
        monkeypatch.setattr("larpanda.sparse.convolve.COLUMNS", 2000)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(("sizes", "channels"), [([200, 90], (4, 6)), ([1], (3, 3)), ([343], (5, 2))])
def test_equals_a_dense_convolution(make_cells, sizes, channels):
    side = 7
    cell, event = make_cells(sizes, side)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(cell), channels[0], generator=generator, dtype=torch.double, requires_grad=True)
    kernel = torch.randn(27, *channels, generator=generator, dtype=torch.double, requires_grad=True)
    weight = torch.randn(len(cell), channels[1], generator=generator, dtype=torch.double)
    results = []
    for y in (convolve(x, kernel, neighbor_map(cell, event)), dense(x, kernel, cell, event, side)):
        results.append((y, *torch.autograd.grad((y * weight).sum(), (x, kernel))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_its_gradient(make_cells):
    cell, event = make_cells([12, 5], side=3)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(cell), 3, generator=generator, dtype=torch.double, requires_grad=True)
    kernel = torch.randn(27, 3, 2, generator=generator, dtype=torch.double, requires_grad=True)
    neighbors = neighbor_map(cell, event)
    assert torch.autograd.gradcheck(lambda x, kernel: convolve(x, kernel, neighbors), (x, kernel))


@pytest.mark.usefixtures("as_on_a_gpu")
def test_no_cells():
    empty = torch.zeros(0, 3, dtype=torch.long)
    x, kernel = torch.zeros(0, 4, requires_grad=True), torch.ones(27, 4, 4, requires_grad=True)
    y = convolve(x, kernel, neighbor_map(empty, empty[:, 0]))
    y.sum().backward()
    assert y.shape == (0, 4)
    assert (kernel.grad == 0).all()
