"""Random occupied cells, shared by the tests of this folder."""

import pytest
import torch


def random_cells(sizes: list[int], side: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells [N, 3] without duplicates within an event, and the event of each [N]."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randperm(side**3, generator=generator)[:n] for n in sizes]
    flat = torch.cat(parts)
    cell = torch.stack([flat // side**2, flat // side % side, flat % side], 1)
    return cell, torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


@pytest.fixture
def make_cells():
    return random_cells
