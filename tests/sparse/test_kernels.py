"""Faster ways against the plain ones: the same values."""

import pytest
import torch
import torch.nn.functional as F

from larpanda.sparse import kernels
from larpanda.sparse.attend import attend, windows
from larpanda.sparse.convolve import PackedConvolution, convolve
from larpanda.sparse.kernels import STEP, PackedLinear, attention, can_pack, round_up
from larpanda.sparse.neighbors import UNUSED, neighbor_map

LIMIT = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
PACKED = [
    pytest.param(dtype, marks=pytest.mark.skipif(not can_pack(dtype), reason=f"this CPU packs no {dtype}"))
    for dtype in LIMIT
]


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(found, expected):
    assert found.dtype == expected.dtype
    error = (found.float() - expected.float()).norm() / expected.float().norm()
    assert error < LIMIT[expected.dtype]


def test_few_sizes_and_little_growth():
    sizes = [round_up(n) for n in range(200_000)]
    assert all(n <= size for n, size in enumerate(sizes))
    assert all(size <= max(1.0626 * n, n + STEP - 1) for n, size in enumerate(sizes))
    assert all(size % STEP == 0 for size in sizes)
    assert sum(2**12 <= size < 2**13 for size in set(sizes)) == 16
    assert [round_up(size) for size in set(sizes)] == list(set(sizes))


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("n", [1, 16, 77])
def test_a_packed_linear_layer(dtype, gelu, n):
    x, weight, bias = random(n, 24, dtype=dtype), random(40, 24, dtype=dtype, seed=1), random(40, dtype=dtype, seed=2)
    expected = F.linear(x, weight, bias)
    assert_near(PackedLinear(weight, bias, gelu)(x), F.gelu(expected) if gelu else expected)


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("sizes", [[150, 40], [1], [343]])
def test_a_packed_convolution(make_cells, dtype, sizes):
    cell, event = make_cells(sizes, side=7)
    n, rows = len(cell), round_up(len(cell))
    x, kernel, bias = random(n, 8, dtype=dtype), random(27, 8, 16, dtype=dtype, seed=1), random(16, dtype=dtype, seed=2)
    expected = convolve(x, kernel, neighbor_map(cell, event)) + bias
    packed = PackedConvolution(kernel, bias)
    assert_near(packed(x, neighbor_map(cell, event)), expected)
    padded = packed(F.pad(x, (0, 0, 0, rows - n)), neighbor_map(cell, event, rounded=True))
    assert len(padded) == rows
    assert_near(padded[:n], expected)


def test_rounding_a_neighbor_map_adds_places_that_nothing_reads(make_cells):
    cell, event = make_cells([200, 30], side=7)
    plain, rounded = neighbor_map(cell, event), neighbor_map(cell, event, rounded=True)
    used = rounded.target != UNUSED
    assert torch.equal(rounded.source[used], plain.source)
    assert torch.equal(rounded.target[used], plain.target)
    assert rounded.count == [round_up(n) for n in plain.count]
    assert torch.equal(rounded.target[rounded.pair.long()], plain.target[plain.pair.long()])
    assert len(rounded.pair_start) == round_up(230)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[70, 5, 33], [300]])
def test_attention_in_bfloat16_with_rounded_rows(sizes):
    start = torch.tensor([0, *sizes]).cumsum(0)
    n = sum(sizes)
    order = torch.arange(n)[None]
    qkv = random(n, 3 * 48, dtype=torch.bfloat16)
    expected = attend(qkv.float(), 3, windows(start, order, 32), 0)
    found = attend(F.pad(qkv, (0, 0, 0, round_up(n) - n)), 3, windows(start, order, 32, rounded=True), 0)
    assert found.shape == (round_up(n), 48)
    assert_near(found[:n], expected.bfloat16())


def test_bfloat16_attention_has_a_gradient():
    q, k, v = (random(2, 3, 8, 4, dtype=torch.bfloat16, seed=s).requires_grad_() for s in range(3))
    attention(q, k, v, None).sum().backward()
    assert q.grad.isfinite().all()
    assert v.grad.isfinite().all()


def test_a_type_that_this_cpu_cannot_pack_is_left_as_it_is(monkeypatch):
    def refuse(*_):
        raise RuntimeError("bf16 path needs the cpu support avx_ne_convert or avx512bw, avx512vl and avx512dq")

    monkeypatch.setattr(kernels, "PackedLinear", refuse)
    assert not can_pack.__wrapped__(torch.bfloat16)
