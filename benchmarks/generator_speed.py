"""How fast the generator is: events a second on one core, with workers, memory, and how long the first event takes.

    python benchmarks/generator_speed.py --events 1000

A cold start compiles everything into an empty folder, a warm one finds it there; both are whole commands that make one
event. Rates of workers are of whole commands too: starting, writing and joining the file included.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from larpanda.data.generate import generate

SEED = 150


def seconds(out: Path, events: int, workers: int, cache: Path | None = None) -> float:
    """Wall-clock time of `larpanda generate`."""
    command = [sys.executable, "-m", "larpanda", "generate", str(out), "--events", str(events), "--seed", str(SEED)]
    environment = os.environ | ({"NUMBA_CACHE_DIR": str(cache)} if cache else {})
    start = time.perf_counter()
    subprocess.run(
        [*command, "--workers", str(workers), "--quiet"], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    n = options.events
    print("| what | |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        out, cache = Path(folder) / "events.h5", Path(folder) / "cache"
        cache.mkdir()
        for name in ("first event, cold start, s", "first event, warm start, s"):
            print(f"| {name} | {seconds(out, 1, 1, cache):.1f} |", flush=True)
        events = generate(n + 1, seed=SEED)
        events[n]
        start, cpu = time.perf_counter(), time.process_time()
        for i in range(n):
            events[i]
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(
            f"| events a second, one process, no file | {n / wall:.1f} (of processor time {n / cpu:.1f}) |", flush=True
        )
        one = seconds(out, n, 1)
        print(f"| the same, to a file | {n / one:.1f} |")
        two = seconds(out, n, 2)
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
        print(f"| two workers, to a file | {n / two:.1f}, {one / two:.2f} times one |")
        print(f"| peak memory of a process, MB | {memory:.0f} |")


if __name__ == "__main__":
    main()
