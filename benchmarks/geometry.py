"""How fast are the parts of the backbone, against a named peer in the same run?

    python benchmarks/geometry.py [--events 20] [--threads 1]

Each part is timed on the same generated events, one event at a time, all of different size, in turns with its peer;
the ratio is of the medians. For the whole encoder there are ``larpanda bench`` and ``compare_released.py``.
"""

import argparse
import platform
import statistics
import time

import torch

import larpanda
from larpanda.event import PointBatch
from larpanda.model.backbone import CURVE_DEPTH
from larpanda.sparse.attend import attend, windows
from larpanda.sparse.convolve import convolve
from larpanda.sparse.grid import voxelize
from larpanda.sparse.neighbors import KERNEL, neighbor_map

SEED = 150


def convolve_by_offset(x, kernel, neighbors):
    """The peer: gather, multiply and scatter-add for one kernel cell after the other."""
    y = x @ kernel[KERNEL // 2]
    begin = 0
    for slot, count in enumerate(neighbors.count):
        rows = slice(begin, begin + count)
        y.index_add_(0, neighbors.target[rows], x[neighbors.source[rows]] @ kernel[slot + (slot >= KERNEL // 2)])
        begin += count
    return y


def attend_by_softmax(qkv, heads, cut):
    """The peer: explicit softmax on the same windows, as the released code does without flash attention."""
    q, k, v = qkv[cut.row[0]].view(cut.full, cut.size, 3, heads, -1).permute(2, 0, 3, 1, 4)
    weight = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), -1)
    return (weight @ v).transpose(1, 2).reshape(cut.full * cut.size, -1)[cut.own[0]]


def neighbors_by_search(cell, event_id):
    """The peer: 26 binary searches, one for each offset."""
    key = (event_id << 48) + (cell * torch.tensor([1 << 32, 1 << 16, 1])).sum(1)
    sorted_key, row = key.sort()
    step = torch.tensor([-1, 0, 1])
    wanted = key + (torch.cartesian_prod(step, step, step) * torch.tensor([1 << 32, 1 << 16, 1])).sum(1)[:, None]
    found = torch.searchsorted(sorted_key, wanted).clamp(max=len(key) - 1)
    return torch.where(sorted_key[found] == wanted, row[found], -1)


def seconds(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    events = [event.visible()[0] for event in larpanda.generate(arguments.events, seed=SEED)]
    sizes = [len(event) for event in events]
    print(f"{platform.machine()}, {arguments.threads} thread(s), PyTorch {torch.__version__}, {len(events)} events")
    print(f"generate:pilarnet, seed {SEED}: {min(sizes)} to {max(sizes)} voxels above 0.13 MeV")
    rows = {}
    channels = 48
    kernel = torch.randn(KERNEL, channels, channels)
    for event in events:
        batch = PointBatch.pack([event])
        cells, _ = voxelize(batch.position, batch.start, CURVE_DEPTH)
        neighbors = neighbor_map(cells.cell, cells.event_id)
        cut = windows(cells.start, cells.order, 256)
        x, qkv = torch.randn(len(cells.cell), channels), torch.randn(len(cells.cell), 3 * channels)
        dense = convolve_by_offset(x, kernel, neighbors)
        torch.testing.assert_close(convolve(x, kernel, neighbors), dense, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(attend(qkv, 3, cut, 0), attend_by_softmax(qkv, 3, cut), rtol=1e-3, atol=1e-3)
        for name, *call in (
            ("convolution 48 -> 48", convolve, x, kernel, neighbors),
            ("one offset after the other", convolve_by_offset, x, kernel, neighbors),
            ("attention, windows of 256, 3 heads", attend, qkv, 3, cut, 0),
            ("explicit softmax", attend_by_softmax, qkv, 3, cut),
            ("kernel map", neighbor_map, cells.cell, cells.event_id),
            ("one search for each offset", neighbors_by_search, cells.cell, cells.event_id),
        ):
            rows.setdefault(name, []).append(min(seconds(*call) for _ in range(3)))
    names = list(rows)
    print("\n| part | ms, median of events | peer | ms | peer / ours |\n|---|---|---|---|---|")
    for ours, peer in zip(names[::2], names[1::2], strict=True):
        a, b = (1e3 * statistics.median(rows[name]) for name in (ours, peer))
        print(f"| {ours} | {a:.2f} | {peer} | {b:.2f} | {b / a:.2f} |")


if __name__ == "__main__":
    main()
