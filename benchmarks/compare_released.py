"""The encoder against the released one made to run on a CPU (``released_peer.py``): same cells, same weights, in turns.

    python benchmarks/compare_released.py [--events 40] [--threads 1] [--size panda] [--backward]
    python benchmarks/compare_released.py --check FOLDER   # of tiny_base.pth and tiny_base_expected.npz

Each event of the stream has another size. Whole voxels are the cells of both. The peer gets its cells and features
ready-made, as its data loader would; finding and merging ours is within our time. Needs spconv (see released_peer.py).
"""

import argparse
import platform
import statistics
import time
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import released_peer as released
import torch

import larpanda
from larpanda.bench import operations, product_rate
from larpanda.event import PointBatch
from larpanda.model.backbone import CURVE_DEPTH, Encoder, EncoderConfig, Level, for_inference, input_features
from larpanda.model.released import released_name
from larpanda.sparse.grid import coarsen, voxelize

SEED = 150
WARM_UP = 2
LIMIT = 1e-4  # of the relative error against the released code
SIZES = {
    "panda": EncoderConfig(),
    "tiny": EncoderConfig(channels=(16, 32, 64, 128, 128), depths=(1, 1, 1, 2, 1)),
}


def peer_of(encoder):
    """The peer with our weights."""
    config = encoder.config
    heads = tuple(c // config.head_dim for c in config.channels)
    peer = released.Encoder(channels=config.channels, depths=config.depths, heads=heads)
    weights = {released_name(f"encoder.{name}"): value for name, value in encoder.state_dict().items()}
    for name, value in weights.items():
        if name.endswith("cpe.0.weight"):
            weights[name] = value.permute(2, 0, 1).unflatten(1, (3, 3, 3))
    peer.load_state_dict(weights)
    return peer


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def check(folder):
    """Does the peer compute what the released code computed?

    The released code shuffles its curves at every pooling whatever its config says, so the expected features hold four
    draws for each event. They are found again level by level: the first permutation that gives a level's features.
    """
    file = torch.load(folder / "tiny_base.pth", weights_only=True)
    config, expected = file["config"], np.load(folder / "tiny_base_expected.npz")
    widths = config["enc_channels"]
    peer = released.Encoder(
        config["in_channels"], widths, config["enc_depths"], config["enc_num_head"], config["mask_token"]
    )
    peer.load_state_dict(file["state_dict"])
    for j in range(2):
        voxel = torch.from_numpy(expected[f"voxel_{j}"]).float()
        cell = ((voxel - 384) / torch.tensor(665.1075101064489) / torch.tensor(0.001)).floor().long()
        cell -= cell.min(0).values
        assert np.array_equal(cell, expected[f"grid_coord_{j}"])
        inputs = cell, torch.from_numpy(expected[f"feat_{j}"]), torch.zeros(len(cell), dtype=torch.long)
        wanted = torch.from_numpy(expected[f"features_{j}"])
        plain = relative_error(peer(*inputs), wanted)
        shuffles = [[0, 1, 2, 3]] * len(widths)
        for level in range(1, len(widths)):
            columns = slice(sum(widths[:level]), sum(widths[: level + 1]))
            for permutation in permutations(range(4)):
                shuffles[level] = list(permutation)
                if relative_error(peer(*inputs, shuffles)[:, columns], wanted[:, columns]) < LIMIT:
                    break
        error = relative_error(peer(*inputs, shuffles), wanted)
        print(
            f"event {j}, {len(cell)} points: relative error {error:.1e} with curves {shuffles}; unshuffled {plain:.1e}"
        )
        assert error < LIMIT


def seconds(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def our_geometry(batch, config):
    """All levels of our encoder, as its forward pass makes them."""
    cells, _ = voxelize(batch.position, batch.start, CURVE_DEPTH)
    Level.of(cells, config.window)
    for _ in config.channels[1:]:
        cells = coarsen(cells).cells
        Level.of(cells, config.window)


def peer_geometry(config, cell, event_id):
    level = released.prepare(cell, event_id)
    for _ in config.channels[1:]:
        level, *_ = released.pool_cells(level)


def peer_input(batch):
    """Cells, features and event of each point, as the released data loader gives them."""
    cell = (batch.position - batch.position.amin(0)).long()
    return cell, input_features(batch, torch.arange(len(cell)), len(cell)), batch.event_id


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", choices=SIZES, default="panda")
    parser.add_argument("--backward", action="store_true", help="time forward and backward")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="of the released model's expected features")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.check:
        check(arguments.check)
        return
    torch.manual_seed(0)
    config = SIZES[arguments.size]
    encoder = Encoder(config)
    for name, value in encoder.named_parameters():
        if name.endswith("_scale"):
            torch.nn.init.ones_(value)  # at 1e-5 attention would not show in the features
    peer = peer_of(encoder)
    released_way = Encoder(replace(config, fitted_curves=True))  # curve depth as the peer chooses it
    released_way.load_state_dict(encoder.state_dict())
    if not arguments.backward:  # as `larpanda reconstruct` has them
        for_inference(encoder)
        for_inference(released_way)
    torch.set_grad_enabled(arguments.backward)

    def ours(batch):
        pyramid = encoder(batch)
        return pyramid.at_points(pyramid.upcast())

    def step(model, module, *inputs):
        features = model(*inputs)
        if arguments.backward:
            features.sum().backward()
            module.zero_grad()

    events = [event.visible()[0] for event in larpanda.generate(WARM_UP + arguments.events, seed=SEED)]
    rows = []
    for number, event in enumerate(events):
        batch = PointBatch.pack([event])
        inputs = peer_input(batch)
        took = {}
        turns = (
            ("ours", step, ours, encoder, batch),
            ("peer", step, peer, peer, *inputs),
            ("our geometry", our_geometry, batch, config),
            ("peer geometry", peer_geometry, config, *inputs[::2]),
        )
        for name, *call in turns[:: 1 - 2 * (number % 2)]:
            took[name] = seconds(*call)
        took["rate"] = product_rate(torch.device("cpu"), torch.float32)
        with torch.no_grad():
            pyramid = encoder(batch)
        passes = 3 if arguments.backward else 1
        took["our work"] = passes * operations(config, pyramid, merged=not arguments.backward)
        took["peer work"] = passes * operations(config, pyramid, merged=False)
        took["voxels"] = len(event)
        rows.append(took)
    rows = rows[WARM_UP:]

    print(f"{platform.machine()}, {arguments.threads} thread(s), PyTorch {torch.__version__}, {len(rows)} events")
    voxels = [row["voxels"] for row in rows]
    print(f"generate:pilarnet, seed {SEED}: {min(voxels)} to {max(voxels)} voxels above 0.13 MeV")
    torch.set_grad_enabled(False)
    pyramid = released_way(batch)
    error = relative_error(pyramid.at_points(pyramid.upcast()), peer(*inputs))
    print(f"same weights, same curve depth: relative difference of the features {error:.1e}")
    what = "forward + backward" if arguments.backward else "forward"
    print(
        "\n| part | ours, ms | released peer, ms | peer / ours, of medians | median of ratios |\n|---|---|---|---|---|"
    )
    for name, a, b in (
        (f"{arguments.size} encoder, {what}", "ours", "peer"),
        ("geometry", "our geometry", "peer geometry"),
    ):
        x, y = (1e3 * statistics.median(row[key] for row in rows) for key in (a, b))
        ratio = statistics.median(row[b] / row[a] for row in rows)
        print(f"| {name} | {x:.1f} | {y:.1f} | {y / x:.2f} | {ratio:.2f} |")
    rate = statistics.median(row["rate"] for row in rows)
    x = statistics.median(row["our work"] / row["ours"] for row in rows) / rate
    y = statistics.median(row["peer work"] / row["peer"] for row in rows) / rate
    print(f"| share of a 1024^3 matrix product ({rate / 1e9:.0f} GFLOP/s) | {x:.2f} | {y:.2f} | | |")


if __name__ == "__main__":
    main()
