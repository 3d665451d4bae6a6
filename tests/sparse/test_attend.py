"""Windowed attention against a loop over events and windows."""

import pytest
import torch

from larpanda.sparse.attend import Packed, attend, attend_points, windows

SIZE, HEADS, CHANNELS = 8, 2, 6


def by_loop(qkv, start, order):
    """Windows of SIZE along the curve; the last ends with the event and gives only its own output."""
    q, k, v = qkv.view(len(qkv), 3, HEADS, CHANNELS // HEADS).unbind(1)
    out = torch.zeros_like(q)
    for a, b in zip(start[:-1].tolist(), start[1:].tolist(), strict=True):
        along = order[a:b]
        for begin in range(0, b - a, SIZE):
            own = along[begin : begin + SIZE]
            seen = along[max(min(begin, b - a - SIZE), 0) : begin + SIZE]
            for h in range(HEADS):
                weight = torch.softmax(q[own, h] @ k[seen, h].T * (CHANNELS // HEADS) ** -0.5, 1)
                out[own, h] = weight @ v[seen, h]
    return out.reshape(len(qkv), CHANNELS)


def random_rows(sizes):
    """Event starts, two orders of the rows, and queries, keys and values."""
    start = torch.tensor([0, *sizes]).cumsum(0)
    generator = torch.Generator().manual_seed(0)
    spans = list(zip(start.tolist(), sizes, strict=False))
    orders = [torch.cat([a + torch.randperm(n, generator=generator) for a, n in spans]) for _ in range(2)]
    qkv = torch.randn(sum(sizes), 3 * CHANNELS, generator=generator, dtype=torch.double, requires_grad=True)
    return start, torch.stack(orders), qkv


@pytest.mark.parametrize("sizes", [[3, 8, 9, 17, 0, 24, 1], [30], [5, 2], [16, 8]])
@pytest.mark.parametrize("order", [0, 1])
def test_equals_a_loop(sizes, order):
    start, orders, qkv = random_rows(sizes)
    weight = torch.randn(sum(sizes), CHANNELS, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    results = []
    for y in (attend(qkv, HEADS, windows(start, orders, SIZE), order), by_loop(qkv, start, orders[order])):
        results.append((y, torch.autograd.grad((y * weight).sum(), qkv)[0]))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_its_gradient():
    start, orders, qkv = random_rows([3, 9, 16])
    assert torch.autograd.gradcheck(lambda x: attend(x, HEADS, windows(start, orders, SIZE), 1), qkv)


def test_no_rows():
    none = torch.zeros(2, 0, dtype=torch.long)
    assert attend(torch.zeros(0, 18), HEADS, windows(torch.tensor([0, 0]), none, SIZE), 0).shape == (0, CHANNELS)


@pytest.mark.parametrize("padded", [False, True])
def test_queries_over_the_points_of_their_event(padded, monkeypatch):
    """Against a softmax written out, one head and query after the other; events one by one, or padded as on a GPU."""
    monkeypatch.setattr("larpanda.sparse.attend.side_by_side", lambda device: padded)
    start, queries = torch.tensor([0, 5, 5, 8]), 3
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, queries, CHANNELS, generator=generator, dtype=torch.double)
    key, value = torch.randn(2, 8, CHANNELS, generator=generator, dtype=torch.double)
    bias = torch.randn(8, queries, generator=generator, dtype=torch.double)
    found = attend_points(query, key, value, bias, Packed.of(start), HEADS)
    width = CHANNELS // HEADS
    for b in range(3):
        mine = slice(start[b], start[b + 1])
        for q in range(queries):
            for h in range(HEADS):
                channels = slice(h * width, (h + 1) * width)
                logits = key[mine, channels] @ query[b, q, channels] * width**-0.5 + bias[mine, q]
                torch.testing.assert_close(found[b, q, channels], logits.softmax(0) @ value[mine, channels])


def test_products_of_events_and_their_gradients_are_the_same_padded_or_not(monkeypatch):
    start, results = torch.tensor([0, 5, 5, 8]), []
    for padded in (False, True):
        monkeypatch.setattr("larpanda.sparse.attend.side_by_side", lambda device, padded=padded: padded)
        generator = torch.Generator().manual_seed(0)
        rows, value = torch.randn(2, 8, 6, generator=generator, dtype=torch.double).requires_grad_().unbind(0)
        matrix = torch.randn(3, 4, 6, generator=generator, dtype=torch.double, requires_grad=True)
        packed = Packed.of(start)
        product = packed.times(rows, matrix)
        found = attend_points(matrix, rows, value, product.detach(), packed, HEADS)
        gradients = torch.autograd.grad((product**2).sum() + (found**3).sum(), (rows, value, matrix))
        results.append((product, found, *gradients))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(product[5:], rows[5:] @ matrix[2].t())
