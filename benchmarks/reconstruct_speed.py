"""What the whole command costs beside the bare model, and whether its memory grows.

    python benchmarks/reconstruct_speed.py FILE [FILE] [--model BUNDLE] [--events N] [--memory N]

Bare: encoder and heads on events that are in memory, with what the model sees of them, one thread. Whole: reading,
encoder, heads, instances, kinematics, four tables, their hashes; one process, then one for each file. Prints Markdown.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import larpanda
from larpanda.archive import ArchiveConfig, reconstruct_files
from larpanda.data import open_events
from larpanda.data.generate import generate
from larpanda.event import PointBatch
from larpanda.reconstruct import FileConfig, Reconstructor, reconstruct_file


def rate(n: int, work: Callable[[], object]) -> float:
    """Events a second."""
    begun = time.perf_counter()
    work()
    return n / (time.perf_counter() - begun)


@torch.no_grad()
def bare(model: Reconstructor, batches: list[PointBatch]) -> None:
    """Nothing but encoder and heads."""
    for batch in batches:
        model.model.find(batch)


def memory_mb() -> float:
    """In use now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--model", default="nano", metavar="BUNDLE")
    parser.add_argument("--events", type=int, default=100, help="of each file (100)")
    parser.add_argument("--memory", type=int, default=0, help="generated events over which memory is looked at (none)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = larpanda.load(arguments.model, device="cpu")
    threshold, n = model.model.config.min_energy_mev, arguments.events
    config = FileConfig(events=f"0:{n}")
    seen = [event.visible(threshold)[0] for event in open_events(arguments.files[0])[:n]]
    batches = [PointBatch.pack([event]) for event in seen if len(event)]
    bare(model, batches[:5])
    with tempfile.TemporaryDirectory() as folder:
        rates = {"bare model": [], "whole, 1 process": []}
        for i in range(3):  # in turn, since the machine drifts
            rates["bare model"].append(rate(n, lambda: bare(model, batches)))
            out = Path(folder, str(i))
            rates["whole, 1 process"].append(
                rate(n, lambda out=out: reconstruct_file(arguments.files[0], out, model, config))
            )
        if len(arguments.files) > 1:
            archive = ArchiveConfig(
                Path(folder, "many"), arguments.model, "cpu", files=config, workers=len(arguments.files)
            )
            name = f"whole, {len(arguments.files)} processes, their start included"
            rates[name] = [rate(n * len(arguments.files), lambda: list(reconstruct_files(arguments.files, archive)))]
        limit = max(rates["bare model"])
        print("| what | events/s | share of the bare model |\n|---|---|---|")
        for name, found in rates.items():
            print(f"| {name} | {max(found):.2f} | {max(found) / limit:.2f} |")
        if arguments.memory:
            print("\n| events | memory, MB |\n|---|---|")
            source = Path(folder, "many.h5")
            larpanda.write_events(source, generate(arguments.memory, seed=150))
            steps = {arguments.memory * k // 10 for k in range(1, 10)} | {arguments.memory - 1}

            def tell(done: int, _: int) -> None:
                if done in steps:
                    print(f"| {done} | {memory_mb():.0f} |", flush=True)

            reconstruct_file(str(source), Path(folder, "memory"), model, FileConfig(), tell)


if __name__ == "__main__":
    main()
