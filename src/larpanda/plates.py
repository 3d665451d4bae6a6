"""What the paper's Figures 2, 5 and 11 to 15 show, made on generated events: one result file a figure.

A figure whose file is there is not made again. Drawing them is of ``atlas``.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from larpanda import __version__
from larpanda.atlas import FIGURES, plate_path, write_plate
from larpanda.data import open_events
from larpanda.data.views import EventViews, View, make_views
from larpanda.display.plates import (
    BatchSpeed,
    Crop,
    Embedding,
    EventScore,
    Example,
    Examples,
    Made,
    Plate,
    Projection,
    RecipeViews,
    Throughput,
    Views,
)
from larpanda.display.scene import matched_colors
from larpanda.evaluate.clustering import efficiency, overlap, purity, rand_index
from larpanda.evaluate.segmentation import confusion, segmentation
from larpanda.event import UNKNOWN, Event, PointBatch, rows_of_points
from larpanda.model.bundle import INSTANCES, Model, load_bundle
from larpanda.model.selection import select_all
from larpanda.parallel import limit_threads
from larpanda.reconstruct import Reconstructor, load
from larpanda.results import Task
from larpanda.train.recipes import PRETRAIN

Ints = npt.NDArray[np.int64]
Heads = Literal["semantic", "panoptic"]
How = Literal["random", "worst"]
TASKS: Mapping[int, Task] = {11: "semantic", 12: "particle", 13: "interaction"}
HEADS: Mapping[int, Heads] = {14: "semantic", 15: "panoptic"}
PERPLEXITY = 30
LOCAL_VIEWS = 4  # that are shown
CHOSEN = 2  # events by chance, and as many of the worst
CELL_VOXELS = 3  # edge of a drawn cell: a panel has 440 dots for 256 cells
AXES: Mapping[Literal["zy", "zx"], tuple[int, int, tuple[int, int, int]]] = {  # across, up, towards who looks
    "zy": (2, 1, (-1, 0, 0)),
    "zx": (2, 0, (0, 1, 0)),
}


@dataclass(frozen=True)
class FiguresConfig:
    """Which figures, and of how much. Events are generated."""

    figures: tuple[int, ...] = ()
    """By the paper's numbers; none named: all."""
    encoder: str = "nano_encoder"
    """Of Figure 2: a bundle."""
    model: str = "nano"
    """Of Figures 11 to 15: a bundle with all heads."""
    events: int = 1000
    """Whose points Figure 2 shows."""
    points: int = 3
    """Of each of them, at most: one of a motif."""
    view_event: int = 5
    """Which event Figure 5 shows: one of all motifs, and of more voxels than views of ``nano_pretrain`` may have."""
    judged: int = 200
    """Events among which the worst are."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Sizes of Figures 14 and 15; each divides the largest."""
    passes: int = 5
    """That are timed; a pass is as many events as the largest batch."""
    threads: int = 1
    """While timing: what suits a small model (``parallel.limit_threads``)."""
    event_seed: int = 103
    """Of the generator; from 100 up nothing was trained on."""
    seed: int = 0
    """Of points, random weights, views and random examples."""

    def __post_init__(self) -> None:
        if unknown := set(self.figures) - set(FIGURES):
            known = ", ".join(map(str, FIGURES))
            raise ValueError(f"figures: {', '.join(map(str, sorted(unknown)))} not known; there are {known}")
        if min(self.events, self.points, self.passes, self.threads, *self.batches) < 1 or not self.batches:
            raise ValueError("events, points, passes, threads and batches must be at least 1")
        if any(max(self.batches) % batch for batch in self.batches):
            raise ValueError(f"batches are {self.batches}; expected sizes that divide {max(self.batches)}")
        if self.judged < 2 * CHOSEN or min(self.view_event, self.event_seed, self.seed) < 0:
            raise ValueError(f"needs judged >= {2 * CHOSEN}, and view_event, event_seed and seed from 0 up")

    def source(self, events: int) -> str:
        """Of so many generated events."""
        return f"generate:pilarnet?events={events}&seed={self.event_seed}"


def make_figures(config: FiguresConfig, out: Path, say: Callable[[str], None]) -> None:
    """Make the result file of every figure that has none.

    Args:
        config: which.
        out: folder of the files.
        say: takes a line for each figure.

    Raises:
        ValueError: a bundle lacks what a figure needs, or scikit-learn is not there for Figure 2.
        ChildProcessError: a process that was timed died.
    """
    wanted = config.figures or tuple(FIGURES)
    left = [number for number in wanted if not plate_path(out, number).exists()]
    for number in wanted:
        if number not in left:
            say(f"figure {number}: {plate_path(out, number)} is there already")
    for number, plate in _made(config, left):
        write_plate(plate_path(out, number), plate)
        say(f"figure {number}: {plate_path(out, number)}")


def _made(config: FiguresConfig, numbers: Sequence[int]) -> Iterator[tuple[int, Plate]]:
    """Figures one by one; examples of several tasks from one look at the events."""
    if 2 in numbers:
        yield 2, _embedding(config)
    if 5 in numbers:
        yield 5, _views(config)
    if tasks := {number: task for number, task in TASKS.items() if number in numbers}:
        yield from _examples(config, tasks)
    for number, heads in HEADS.items():
        if number in numbers:
            yield number, _throughput(config, number, heads)


def _origin(config: FiguresConfig, number: int, events: int, model: Reconstructor | None = None) -> Made:
    default, words = FiguresConfig(), ["larpanda study figures --out figures", f"--set figures={number}"]
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name != "figures" and value != getattr(default, field.name):
            words.append(f"--set {field.name}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
    name, weights = (None, None) if model is None else (model.name, model.weights_sha256)
    return Made(config.source(events), config.seed, name, weights, " ".join(words), machine(), __version__)


def machine() -> str:
    """What computes here: processor, cores, PyTorch."""
    name = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    for line in cpus.read_text(errors="replace").splitlines() if cpus.exists() else ():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {torch.backends.cpu.get_cpu_capability()}, PyTorch {torch.__version__}"


def _embedding(config: FiguresConfig) -> Embedding:
    """Figure 2: features of some points of many events, put in the plane."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        rest = ",".join(str(number) for number in FIGURES if number != 2)
        raise ValueError(
            f"figure 2 needs scikit-learn: pip install scikit-learn, or leave it out (--set figures={rest})"
        ) from None
    bundle = load_bundle(config.encoder)
    limit_threads(sum(parameter.numel() for parameter in bundle.model.parameters()))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        untrained = Model(bundle.model.config).requires_grad_(False)
    models = [Reconstructor(one, "cpu") for one in (bundle, replace(bundle, model=untrained))]
    columns: list[Ints] = []
    features: list[list[npt.NDArray[np.float32]]] = [[], []]
    for number, event in enumerate(open_events(config.source(config.events))):
        visible = event.visible(bundle.model.config.min_energy_mev)[0]
        motif = visible.motif.numpy()
        rows = drawn_points(motif, config.points, np.random.default_rng((config.seed, number)))
        columns.append(np.column_stack([np.full(len(rows), number), rows, motif[rows], visible.species.numpy()[rows]]))
        for part, model in zip(features, models, strict=True):
            part.append(model.features(visible).numpy()[rows])
    places = []
    for part in features:
        x = np.concatenate(part).astype(np.float64)
        x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)  # levels have widths of their own
        tsne = TSNE(perplexity=min(PERPLEXITY, (len(x) - 1) / 3), init="pca", random_state=config.seed)
        places.append([tuple(column) for column in tsne.fit_transform(x).astype(np.float64).round(2).T.tolist()])
    drawn = (tuple(column) for column in np.concatenate(columns).T.tolist())
    return Embedding(_origin(config, 2, config.events, models[0]), config.events, *drawn, *places[0], *places[1])


def drawn_points(motif: Ints, n: int, rng: np.random.Generator) -> Ints:
    """Choose a point each of at most n motifs that an event has: so rare motifs are drawn as often as common ones.

    Args:
        motif: [N] of the event.
        n: how many.

    Returns:
        Rows of different points, ascending.
    """
    there = rng.permutation(np.unique(motif))[:n]
    return np.sort(np.array([rng.choice(np.flatnonzero(motif == one)) for one in there], np.int64))


def _views(config: FiguresConfig) -> Views:
    """Figure 5: the views of an event by both recipes, masks as at the end of training."""
    event = open_events(config.source(config.view_event + 1), truth=False)[config.view_event].visible()[0]
    recipes = []
    for name, recipe in PRETRAIN.items():
        views = make_views(event, recipe().views, 1.0, np.random.default_rng(config.seed))
        recipes.append(RecipeViews(name, recipe().views.remove_masked, tuple(_crops(event, views))))
    z, y = (tuple(event.position[:, axis].long().tolist()) for axis in (2, 1))
    return Views(_origin(config, 5, config.view_event + 1), config.view_event, z, y, tuple(recipes))


def _crops(event: Event, views: EventViews) -> Iterator[Crop]:
    """Both global views, the first as the student sees it, and some local ones."""
    from scipy.spatial import cKDTree

    nearest = cKDTree(event.position.numpy())

    def crop(kind: Literal["global", "masked", "local"], view: View, masked: Sequence[int] = ()) -> Crop:
        point = nearest.query(view.origin)[1].tolist()
        z, y = (tuple(view.position[:, axis].astype(np.int64).tolist()) for axis in (2, 1))
        return Crop(kind, tuple(point), z, y, tuple(masked))

    first, hidden = views.whole[0], views.hidden[0]
    yield from (crop("global", view) for view in views.whole)
    if len(hidden.energy) < len(first.energy):  # taken away; those that are left have their places
        left = {tuple(place) for place in hidden.position.tolist()}
        gone = [row for row, place in enumerate(first.position.tolist()) if tuple(place) not in left]
        yield crop("masked", first, gone)
    else:
        yield crop("masked", hidden, np.flatnonzero(views.masked[0]).tolist())
    yield from (crop("local", view) for view in views.local[:LOCAL_VIEWS])


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """An event with its labels, and how well one task is done in it."""

    entry: int
    position: Ints  # [N, 3] voxels above threshold
    true: Ints  # [N]
    found: Ints  # [N]
    scores: tuple[EventScore, ...]  # the first: what the worst are chosen by; NaN where it cannot be said


def _examples(config: FiguresConfig, tasks: Mapping[int, Task]) -> Iterator[tuple[int, Examples]]:
    """Figures 11 to 13: some events by chance, and the worst."""
    model = load(config.model, "cpu")
    limit_threads(model.n_weights)
    for number, task in tasks.items():
        if getattr(model.model, task) is None:
            raise ValueError(f"bundle {model.name} has no {task} head, which figure {number} needs")
    events = open_events(config.source(config.judged))
    judged = [_judge(model, entry, event, list(tasks.values())) for entry, event in enumerate(events)]
    for (number, task), column in zip(tasks.items(), zip(*judged, strict=True), strict=True):
        known = [one for one in column if not np.isnan(one.scores[0].value)]
        chosen = chosen_rows([one.scores[0].value for one in known], np.random.default_rng((config.seed, number)))
        examples = tuple(_example(known[row], how, task) for row, how in chosen)
        yield number, Examples(_origin(config, number, config.judged, model), task, len(known), CELL_VOXELS, examples)


def _judge(model: Reconstructor, entry: int, event: Event, tasks: Sequence[Task]) -> list[_Judged]:
    """One for each task."""
    found = model.reconstruct(event)
    visible, row_point = event.visible(model.model.config.min_energy_mev)
    row = rows_of_points(row_point, len(visible))
    position = visible.position.long().numpy()
    result = []
    for task in tasks:
        name = "motif" if task == "semantic" else task
        true, mine = getattr(visible, name).numpy(), getattr(found, name)[row].numpy()
        scores = _motif_scores(true, mine) if task == "semantic" else _instance_scores(true, mine)
        result.append(_Judged(entry, position, true, mine, scores))
    return result


def _motif_scores(true: Ints, found: Ints) -> tuple[EventScore, ...]:
    table = confusion(true, found)
    right = float(np.trace(table) / max(table.sum(), 1))
    return EventScore("macro F1", segmentation([table]).macro_f1), EventScore("accuracy", right)


def _instance_scores(true: Ints, found: Ints) -> tuple[EventScore, ...]:
    table = overlap(true, found)
    return (
        EventScore("ARI", rand_index(table)),
        EventScore("purity", purity(table)),
        EventScore("efficiency", efficiency(table)),
    )


def chosen_rows(score: Sequence[float], rng: np.random.Generator) -> list[tuple[int, How]]:
    """Rows of events to show: two by chance, in their order, and the two with the least score, the worst last.

    Args:
        score: [E] finite.
        rng: draws from those that are not the worst.
    """
    worst = np.argsort(score, kind="stable")[:CHOSEN]
    others = np.setdiff1d(np.arange(len(score)), worst)
    random = np.sort(rng.choice(others, min(CHOSEN, len(others)), replace=False))
    return [*((int(row), "random") for row in random), *((int(row), "worst") for row in worst[::-1])]


def _example(one: _Judged, how: How, task: Task) -> Example:
    found = one.found
    if task != "semantic":
        color = dict(matched_colors(one.true, found))
        found = np.array([color.get(number, UNKNOWN) for number in found.tolist()], np.int64)
    scores = tuple(EventScore(s.name, round(s.value, 4)) for s in one.scores if not np.isnan(s.value))
    seen = [_projection(one.position, one.true, found, axes) for axes in AXES]
    return Example(one.entry, how, len(one.true), scores, tuple(seen))


def _projection(position: Ints, true: Ints, found: Ints, axes: Literal["zy", "zx"]) -> Projection:
    across, up, towards = AXES[axes]
    cell = position[:, [across, up]] // CELL_VOXELS
    front = np.argsort(-position @ towards, kind="stable")  # the nearest first
    front = front[np.unique(cell[front], axis=0, return_index=True)[1]]
    columns = (cell[front, 0], cell[front, 1], true[front], found[front])
    return Projection(axes, *(tuple(column.tolist()) for column in columns))


@dataclass(frozen=True, slots=True, eq=False)
class Timing:
    """What one process times: passes over events, in batches. Points as arrays, which travel easily."""

    model: str
    heads: Heads
    batch: int
    of_pass: int  # events; the first pass warms up
    threads: int
    position: npt.NDArray[np.float32]  # [N, 3] voxels, of all events end to end
    energy: npt.NDArray[np.float32]  # [N] MeV
    start: Ints  # [E + 1]

    def batches(self) -> list[PointBatch]:
        """The events in order."""
        result = []
        for first in range(0, len(self.start) - 1, self.batch):
            ends = self.start[first : first + self.batch + 1]
            rows = slice(ends[0], ends[-1])
            position, energy = torch.from_numpy(self.position[rows]), torch.from_numpy(self.energy[rows])
            none = torch.full((len(energy),), UNKNOWN)
            result.append(PointBatch(position, energy, none, none, none, none, torch.from_numpy(ends - ends[0])))
        return result


def _throughput(config: FiguresConfig, number: int, heads: Heads) -> Throughput:
    """Figures 14 and 15: every batch size sees the same events."""
    of_pass = max(config.batches)
    model = load(config.model, "cpu")
    n = of_pass * (1 + config.passes)
    events = open_events(config.source(n), truth=False)
    seen = [event.visible(model.model.config.min_energy_mev)[0] for event in events]
    start = np.cumsum([0, *map(len, seen)])
    position, energy = (np.concatenate([getattr(one, name).numpy() for one in seen]) for name in ("position", "energy"))
    speeds = [
        _alone(Timing(config.model, heads, batch, of_pass, config.threads, position, energy, start))
        for batch in config.batches
    ]
    voxels = int(statistics.median(map(len, seen[of_pass:])))
    made = _origin(config, number, n, model)
    return Throughput(made, heads, of_pass, voxels, config.threads, tuple(speeds))


def _alone(timing: Timing) -> BatchSpeed:
    """Time in a new process: its peak of memory is then that of this batch size."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(timed, timing).result()
        except BrokenProcessPool:
            raise ChildProcessError(
                f"the process that timed batches of {timing.batch} died; was there memory for it?"
            ) from None


@torch.no_grad()
def timed(timing: Timing) -> BatchSpeed:
    """Time in this process."""
    torch.set_num_threads(timing.threads)
    model = load(timing.model, "cpu").model
    base = _peak_mb()
    answer = _motifs if timing.heads == "semantic" else _instances
    rates = []
    batches = timing.batches()
    per_pass = timing.of_pass // timing.batch
    for first in range(0, len(batches), per_pass):
        begun = time.perf_counter()
        for batch in batches[first : first + per_pass]:
            answer(model, batch)
        rates.append(timing.of_pass / (time.perf_counter() - begun))
    speeds = tuple(round(rate, 3) for rate in rates[1:])
    return BatchSpeed(timing.batch, speeds, round(base, 1), round(_peak_mb(), 1))


def _motifs(model: Model, batch: PointBatch) -> torch.Tensor:
    logits = model.find(batch, ()).logits
    if logits is None:
        raise ValueError("the bundle has no semantic head, which figures 14 and 15 need")
    return logits.argmax(1)


def _instances(model: Model, batch: PointBatch) -> None:
    """All heads, and the instances that their masks become."""
    found = model.find(batch)
    if found.logits is None or found.particle is None or found.interaction is None:
        raise ValueError("the bundle lacks a head; figure 15 needs semantic, particle and interaction")
    for what in INSTANCES:
        select_all(found, what, batch)


def _peak_mb() -> float:
    """Most memory that this process ever had, MB.

    Not getrusage on Linux: there a new process begins with the peak of the one that started it (800 MB of 15).
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024 / 1e6
    if sys.platform == "win32":
        raise ValueError("figures 14 and 15 measure memory as Linux and macOS tell it; make them there")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
