"""How fast and how large: encoder, parts and heads on generated events, beside this machine's matrix products.

Every timed event has another size, as real ones do: a benchmark that repeats one size flatters whatever prepares code
for a size.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeVar

import torch
import torch.nn.functional as F

from larpanda.data.generate import generate
from larpanda.event import UNKNOWN, Event, PointBatch
from larpanda.model.backbone import CURVE_DEPTH, Encoder, EncoderConfig, Pyramid, for_inference
from larpanda.model.bundle import INSTANCES, Model, ModelConfig
from larpanda.model.panoptic import PanopticHead
from larpanda.model.selection import select_all
from larpanda.model.semantic import SemanticConfig
from larpanda.parallel import pick_device
from larpanda.reconstruct import DTYPES
from larpanda.sparse.attend import attend, windows
from larpanda.sparse.convolve import convolve
from larpanda.sparse.grid import coarsen, voxelize
from larpanda.sparse.neighbors import KERNEL, neighbor_map
from larpanda.sparse.segment import max_runs
from larpanda.train.recipes import FINETUNE, NANO_ENCODER

Result = TypeVar("Result")
SIZES = {"panda": EncoderConfig(), "nano": NANO_ENCODER}
SEED = 150  # of the generated events
WARM_UP = 2
SPREAD = 0.1  # events have 1 - SPREAD to 1 + SPREAD times the number of voxels asked for
PRODUCT = 1024  # side of the matrices whose product is the limit


@dataclass(frozen=True)
class Case:
    """One row of the table: what is timed on what."""

    size: str  # a name in SIZES
    what: str  # forward, backward (forward and backward), parts or heads
    voxels: int  # of an event, about
    batch: int  # events
    threads: int
    dtype: str
    device: str
    repeats: int


@dataclass(frozen=True)
class Row:
    """What was measured."""

    name: str
    voxels: int  # of a batch, median
    median_s: float
    low_s: float  # fastest
    high_s: float  # slowest
    share: float | None  # of the rate of a plain matrix product in the same run, over the operations done
    peak_mb: float  # memory of the process, or of CUDA


def measure(case: Case) -> list[Row]:
    """Time one case, in this process."""
    torch.set_num_threads(case.threads)
    device = pick_device(case.device)
    batches = [
        PointBatch.pack([crowd(case.voxels, WARM_UP * i + j) for j in range(case.batch)]).to(device)
        for i in range(WARM_UP + case.repeats)
    ]
    if case.what == "parts":
        return _parts(case, batches)
    if case.what == "heads":
        return _heads(case, batches)
    torch.manual_seed(0)
    encoder = Encoder(SIZES[case.size]).to(device)
    backward = case.what == "backward"
    if not backward:
        for_inference(encoder, DTYPES[case.dtype])
    took, shares = [], []
    with torch.set_grad_enabled(backward):
        for batch in batches:
            seconds, pyramid = _seconds(device, lambda batch=batch: _step(encoder, batch, backward))  # type: ignore[misc]
            took.append(seconds)
            work = operations(encoder.config, pyramid, merged=not backward) * (3 if backward else 1)
            shares.append(work / seconds / product_rate(device, DTYPES[case.dtype]))
    return [_row(f"encoder {case.size}, {case.what}", batches, took, shares, device)]


def run(cases: Sequence[Case], report: Callable[[Case, list[Row]], None]) -> None:
    """Measure each case in a process of its own, so that its peak of memory is its own.

    Raises:
        ChildProcessError: it died, most likely for want of memory.
    """
    for case in cases:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            try:
                rows = pool.submit(measure, case).result()
            except BrokenProcessPool:
                raise ChildProcessError(
                    f"the process that measured {case.batch} x {case.voxels} voxels died; was there memory for it?"
                ) from None
        report(case, rows)


def crowd(voxels: int, number: int) -> Event:
    """A generated event of about so many voxels above threshold: several laid over each other, and the last cut."""
    rng = torch.Generator().manual_seed(SEED + number)
    wanted = int(voxels * (1 - SPREAD + 2 * SPREAD * torch.rand((), generator=rng).item()))
    source = generate(1000, seed=SEED)
    parts: list[Event] = []
    found, i = 0, 40 * number
    while found < wanted:
        parts.append(source[i % len(source)].visible()[0])
        i += 1
        batch = PointBatch.pack(parts)
        none = torch.full((len(batch.energy),), UNKNOWN)
        whole = Event(batch.position, batch.energy, none, none, none, none).visible()[0]
        found = len(whole)
    return Event(*(getattr(whole, name)[:wanted] for name in Event.__slots__[:6]))


def operations(config: EncoderConfig, pyramid: Pyramid, merged: bool) -> float:
    """Floating-point operations of a forward pass: products over the pairs, rows and windows that there are.

    Args:
        config: of the encoder.
        pyramid: what it gave, for the geometry.
        merged: whether the linear layer behind each convolution was merged into its kernel.
    """
    total, narrower, finer = 0.0, 4, len(pyramid.levels[0].cells.cell)
    for channels, depth, level in zip(config.channels, config.depths, pyramid.levels, strict=True):
        total += 2.0 * finer * narrower * channels  # embedding or pooling
        cells, cut = len(level.cells.cell), level.windows
        convolution = 2.0 * (len(level.neighbors.pair) + cells) * channels**2
        linear = 2.0 * cells * channels**2 * (4 + 2 * config.mlp_ratio + (not merged))
        seen = cut.full * cut.size**2 + int(cut.short_mask.sum((1, 2, 3)).square().sum())
        total += depth * (convolution + linear + 4.0 * seen * channels)
        narrower, finer = channels, cells
    return total


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a plain matrix product, the best of three."""
    a, b = torch.randn(2, PRODUCT, PRODUCT, device=device, dtype=dtype)
    best = min(_seconds(device, lambda: F.linear(a, b))[0] for _ in range(3))
    return 2.0 * PRODUCT**3 / best


def _step(encoder: Encoder, batch: PointBatch, backward: bool) -> Pyramid:
    pyramid: Pyramid = encoder(batch)
    features = pyramid.upcast()
    if backward:
        features.sum().backward()  # type: ignore[no-untyped-call]
        encoder.zero_grad()
    return pyramid


@torch.no_grad()
def _parts(case: Case, batches: Sequence[PointBatch]) -> list[Row]:
    """The parts of the finest level, at its width."""
    config = SIZES[case.size]
    channels, heads = config.channels[0], config.channels[0] // config.head_dim
    device, dtype = batches[0].energy.device, DTYPES[case.dtype]
    took: dict[str, list[float]] = {}
    for batch in batches:
        cells, _ = voxelize(batch.position, batch.start, CURVE_DEPTH)
        near, cut, coarser = (
            neighbor_map(cells.cell, cells.event_id),
            windows(cells.start, cells.order, config.window),
            coarsen(cells),
        )
        n = len(cells.cell)
        x, qkv = (torch.randn(n, c * channels, device=device, dtype=dtype) for c in (1, 3))
        kernel = torch.randn(KERNEL, channels, channels, device=device, dtype=dtype)
        parts: dict[str, Callable[[], object]] = {
            "cells and orders": lambda b=batch: voxelize(b.position, b.start, CURVE_DEPTH),  # type: ignore[misc]
            "neighbour map": lambda c=cells: neighbor_map(c.cell, c.event_id),  # type: ignore[misc]
            "windows": lambda c=cells: windows(c.start, c.order, config.window),  # type: ignore[misc]
            "coarser cells": lambda c=cells: coarsen(c),  # type: ignore[misc]
            f"convolution {channels} -> {channels}": lambda x=x, k=kernel, m=near: convolve(x, k, m),  # type: ignore[misc]
            f"attention, {heads} heads": lambda q=qkv, w=cut: attend(q, heads, w, 0),  # type: ignore[misc]
            f"pooling {channels}": lambda x=x, c=coarser: max_runs(x, c.length, c.run),  # type: ignore[misc]
        }
        for name, part in parts.items():
            took.setdefault(name, []).append(min(_seconds(device, part)[0] for _ in range(3)))
    return [_row(name, batches, seconds, None, device) for name, seconds in took.items()]


@torch.no_grad()
def _heads(case: Case, batches: Sequence[PointBatch]) -> list[Row]:
    """From points to motifs by a linear layer, and with particles and interactions as well, selected masks included."""
    torch.manual_seed(0)
    particle, interaction = (FINETUNE[f"{case.size}_{what}"]().model for what in ("particle", "interaction"))
    config = ModelConfig(
        SIZES[case.size], SemanticConfig(None), particle=particle.particle, interaction=interaction.interaction
    )
    model = Model(config).to(batches[0].energy.device)
    for_inference(model, DTYPES[case.dtype])
    for head in (model.particle, model.interaction):
        assert isinstance(head, PanopticHead)
        head.led_out.bias.fill_(-10.0)  # no point is taken for a low-energy deposit: the most work

    def motifs(batch: PointBatch) -> None:
        logits = model.find(batch, ()).logits
        assert logits is not None
        logits.softmax(1)

    def instances(batch: PointBatch) -> None:
        found = model.find(batch)
        for what in INSTANCES:
            select_all(found, what, batch)

    ways: dict[str, Callable[[PointBatch], object]] = {
        f"{case.size}: encoder and linear layer": motifs,
        f"{case.size}: particles and interactions as well": instances,
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for batch in batches:
        for name, way in ways.items():
            took[name].append(_seconds(batch.energy.device, lambda w=way, b=batch: w(b))[0])  # type: ignore[misc]
    return [_row(name, batches, seconds, None, batches[0].energy.device) for name, seconds in took.items()]


def _row(
    name: str,
    batches: Sequence[PointBatch],
    took: Sequence[float],
    shares: Sequence[float] | None,
    device: torch.device,
) -> Row:
    timed = took[WARM_UP:]
    voxels = int(statistics.median(len(batch.energy) for batch in batches[WARM_UP:]))
    share = statistics.median(shares[WARM_UP:]) if shares else None
    return Row(name, voxels, statistics.median(timed), min(timed), max(timed), share, _peak_mb(device))


def _seconds(device: torch.device, function: Callable[[], Result]) -> tuple[float, Result]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def header(case: Case) -> str:
    """The machine, in a line, and the head of the table."""
    device = pick_device(case.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    return (
        f"{where}, {case.threads} thread(s), {case.dtype}, PyTorch {torch.__version__}; generated events, seed {SEED}; "
        f"limit: product of {PRODUCT} x {PRODUCT}, {product_rate(device, DTYPES[case.dtype]) / 1e9:,.0f} GFLOP/s\n\n"
        "| what | voxels | batch | ms, median | fastest to slowest | events/s | share of limit | peak memory, MB |\n"
        "|---|---|---|---|---|---|---|---|"
    )


def line(case: Case, row: Row) -> str:
    """A row of the table."""
    share = "" if row.share is None else f"{row.share:.2f}"
    return (
        f"| {row.name} | {row.voxels:,} | {case.batch} | {1e3 * row.median_s:,.2f} "
        f"| {1e3 * row.low_s:,.2f} to {1e3 * row.high_s:,.2f} | {case.batch / row.median_s:,.1f} | {share} "
        f"| {row.peak_mb:,.0f} |"
    )
