"""Curve codes against published vectors, and what makes a curve a curve."""

import pytest
import torch

from larpanda.sparse.curves import curve_codes, hilbert_code, morton_code

POINTS = torch.tensor(
    [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [5, 3, 7], [100, 200, 300], [383, 12, 511], [767, 767, 767]]
)
# Computed with the released Panda code.
EXPECTED = {
    ("morton", 10): [0, 4, 2, 1, 7, 351, 22710080, 87482349, 956301311],
    ("morton-trans", 10): [0, 2, 4, 1, 7, 239, 26839744, 53329883, 956301311],
    ("hilbert", 10): [0, 7, 3, 1, 5, 305, 124266514, 71000694, 683072365],
    ("hilbert-trans", 10): [0, 3, 7, 1, 5, 391, 128460818, 115345270, 683072365],
    ("morton", 11): [0, 4, 2, 1, 7, 351, 22710080, 87482349, 956301311],
    ("hilbert", 11): [0, 3, 1, 7, 5, 165, 66193826, 40445778, 683072365],
    ("hilbert-trans", 11): [0, 1, 3, 7, 5, 293, 52519296, 74000210, 683072365],
}


def random_cells(depth, n):
    return torch.randint(0, 2**depth, (n, 3), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("order", "depth"), EXPECTED)
def test_codes_are_those_of_the_released_code(order, depth):
    row = ("hilbert", "hilbert-trans", "morton", "morton-trans").index(order)
    codes = curve_codes(POINTS, torch.zeros(len(POINTS), dtype=torch.long), depth)
    assert codes[row].tolist() == EXPECTED[order, depth]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_hilbert_visits_every_cell_once_and_steps_to_a_neighbour(depth):
    side = 2**depth
    cell = torch.cartesian_prod(*[torch.arange(side)] * 3)
    order = hilbert_code(cell, depth).argsort()
    assert sorted(hilbert_code(cell, depth).tolist()) == list(range(side**3))
    assert (cell[order].diff(dim=0).abs().sum(1) == 1).all()


def skilling(x, y, z, depth):
    """The algorithm as published, on one cell, bit by bit."""
    axes = [x, y, z]
    for bit in range(depth - 1, -1, -1):
        lower = (1 << bit) - 1
        for k in range(3):
            if axes[k] >> bit & 1:
                axes[0] ^= lower
            else:
                exchanged = (axes[0] ^ axes[k]) & lower
                axes[0] ^= exchanged
                axes[k] ^= exchanged
    gray = [axis >> bit & 1 for bit in range(depth - 1, -1, -1) for axis in axes]
    code = parity = 0
    for digit in gray:
        parity ^= digit
        code = code << 1 | parity
    return code


@pytest.mark.parametrize("depth", range(1, 17))
def test_hilbert_codes_are_those_of_the_published_algorithm(depth):
    cell = random_cells(depth, 100)
    assert hilbert_code(cell, depth).tolist() == [skilling(*c, depth) for c in cell.tolist()]


@pytest.mark.parametrize("depth", [2, 7, 11])
def test_three_bits_less_is_the_code_of_the_wider_cell(depth):
    cell = random_cells(depth, 500)
    assert torch.equal(hilbert_code(cell, depth) >> 3, hilbert_code(cell >> 1, depth - 1))
    assert torch.equal(morton_code(cell) >> 3, morton_code(cell >> 1))


def test_each_cell_can_have_a_curve_of_its_own_depth():
    depths = torch.tensor([1, 2, 5, 9, 10, 11, 16])
    cell = torch.cat([random_cells(int(depth), 50) for depth in depths])
    turn = depths.repeat_interleave(50)
    expected = [skilling(*c, d) for c, d in zip(cell.tolist(), turn.tolist(), strict=True)]
    assert hilbert_code(cell, 16, turn).tolist() == expected


def test_events_do_not_mix():
    cell = POINTS[[8, 0]]
    codes = curve_codes(cell, torch.tensor([0, 1]), 11)
    assert (codes[:, 0] < codes[:, 1]).all()


def test_a_cell_outside_the_curve_is_refused():
    with pytest.raises(ValueError, match=r"span 0\.\.1024; a curve of depth 10 covers 0\.\.1023"):
        curve_codes(torch.tensor([[0, 0, 1024]]), torch.tensor([0]), 10)
