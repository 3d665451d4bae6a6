"""Run reductions against loops, values and gradients."""

import torch

from larpanda.sparse.segment import max_runs, spread_runs, sum_runs, take_rows

LENGTH = torch.tensor([1, 4, 8, 2])
RUN = torch.repeat_interleave(LENGTH)


def rows(n):
    return torch.randn(n, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0), requires_grad=True)


def test_max_and_its_gradient():
    assert torch.autograd.gradcheck(lambda x: max_runs(x, LENGTH, RUN), rows(15))
    x = rows(15)
    expected = torch.stack([part.max(0).values for part in x.split(LENGTH.tolist())])
    assert torch.equal(max_runs(x, LENGTH, RUN), expected)
    assert torch.equal(max_runs(x.detach(), LENGTH, RUN), expected)


def test_of_equal_rows_one_takes_the_gradient():
    x = torch.ones(15, 3, requires_grad=True)
    max_runs(x, LENGTH, RUN).sum().backward()
    assert sum_runs(x.grad, LENGTH).tolist() == [[1.0] * 3] * 4
    assert set(x.grad.flatten().tolist()) == {0.0, 1.0}


def test_spread_is_repeat_interleave():
    assert torch.autograd.gradcheck(lambda x: spread_runs(x, LENGTH, RUN), rows(4))
    x = rows(4)
    assert torch.equal(spread_runs(x, LENGTH, RUN), x.repeat_interleave(LENGTH, 0))


def test_take_rows_is_indexing():
    row = torch.tensor([3, 0, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda x: take_rows(x, row), rows(5))
    assert torch.equal(take_rows(rows(5), row), rows(5)[row])


def test_nothing():
    none = torch.zeros(0, dtype=torch.long)
    assert max_runs(torch.zeros(0, 3), none, none).shape == (0, 3)
    assert take_rows(torch.zeros(0, 3), none).shape == (0, 3)
