"""Does this installation work? Versions, what it computes on, room on the disk, and the whole way of one event."""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("torch", "numpy", "scipy", "h5py", "pyarrow", "safetensors", "numba", "matplotlib")
EXTRAS = ("distributed", "pandas", "awkward", "tensorboard")
LEAST_FREE_GB = 1.0
SEED = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    what: str
    is_good: bool = True


def findings() -> Iterator[Finding]:
    """Look at one thing after another; what fails is a finding, not an error."""
    yield Finding("larpanda", f"{_version('larpanda')}, Python {platform.python_version()}, {platform.platform()}")
    for package in PACKAGES:
        version = _version(package)
        yield Finding(package, version or "not installed: pip install larpanda", bool(version))
    there = [f"{package} {version}" for package in EXTRAS if (version := _version(package))]
    yield Finding("extras", ", ".join(there) or "none (dask, analysis, tensorboard)")
    yield from _computes_on()
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    yield Finding("disk", f"{free:.1f} GB free here", free > LEAST_FREE_GB)
    temporary = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
    yield Finding("temporary files", f"{temporary:.1f} GB free", temporary > LEAST_FREE_GB / 10)
    yield _self_test()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _computes_on() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("processor", f"PyTorch cannot be loaded: {error}", False)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        "processor", f"{cores} cores, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    )
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("GPU", f"{', '.join(names)}, CUDA {torch.version.cuda}")
    else:
        built = f"a build for CUDA {torch.version.cuda}" if torch.version.cuda else "a build for CPUs"
        yield Finding("GPU", f"none that PyTorch can use ({built}); everything runs without")


def _self_test() -> Finding:
    """Generate an event, write, read, reconstruct and evaluate it."""
    begun = time.monotonic()
    try:
        from larpanda.data import open_events, write_events
        from larpanda.data.generate import generate
        from larpanda.reconstruct import load, reconstruct_file

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "event.h5")
            write_events(path, generate(1, seed=SEED))
            manifest = reconstruct_file(str(path), Path(folder, "tables"), load("nano", "cpu"))
            n_voxels = len(open_events(path)[0])
        rows = {table.file.rpartition("_")[2]: table.rows for table in manifest.tables}
        right = rows.get("events.parquet") == 1 and rows.get("voxels.parquet") == n_voxels
    except Exception as error:  # whatever it is, it is what is asked for
        return Finding("self-test", f"{type(error).__name__}: {' '.join(str(error).split())}", False)
    seconds = time.monotonic() - begun
    if not right:
        return Finding("self-test", f"an event of {n_voxels} voxels gave tables of {rows}", False)
    return Finding("self-test", f"an event generated, written, read, reconstructed: {seconds:.1f} s")


def report(lines: Iterator[Finding]) -> bool:
    """Print findings as they come; True if all are good."""
    good = True
    for one in lines:
        mark = "" if one.is_good else "  <- not good"
        print(f"{one.name:<16} {one.what}{mark}", flush=True)
        good &= one.is_good
    print("all is well" if good else "something is not well", file=sys.stdout if good else sys.stderr)
    return good
