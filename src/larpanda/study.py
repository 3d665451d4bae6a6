"""What labels and pre-training are worth (paper Tables 1 to 4, Figures 6 and 10): a queue of runs, a file of each.

A cell of the table is a run: how it is trained, from how many labelled events, with which seed. Every run sees the same
number of event samples, so that few labels are seen often. Each method's learning rate is the best of one grid, found
with a quarter of the samples. A cell whose result file is there is not run again; a run that was stopped goes on.
"""

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch

from larpanda import __version__
from larpanda.data import open_events
from larpanda.data.farm import generate_file
from larpanda.data.generate import generate
from larpanda.data.stream import drawn
from larpanda.evaluate.segmentation import segmentation
from larpanda.evaluate.summary import clustering
from larpanda.event import Motif, Species
from larpanda.model.bundle import Model, load_bundle
from larpanda.model.selection import n_things
from larpanda.parallel import pick_device
from larpanda.results import (
    HEADLINE,
    PAIRED,
    ROWS,
    SUPERVISED,
    CellResult,
    Judged,
    Score,
    Task,
    Validation,
    read_result,
    write_result,
)
from larpanda.train.finetune import finetune
from larpanda.train.instances import instance_tables
from larpanda.train.motifs import motif_tables
from larpanda.train.pretrain import pretrain
from larpanda.train.recipes import FINETUNE, PRETRAIN, FinetuneConfig, PretrainConfig

ENCODER = "encoder_k"  # pre-training on K events
TASK_ROWS: dict[Task, tuple[str, ...]] = {
    "semantic": ROWS,
    "particle": ("scratch", "decoder", "full"),  # Tables 3 and 4
    "interaction": ("scratch", "decoder", "full"),
}
DATA = (("train", 10_000, 6), ("select", 200, 7), ("test", 1_000, 103))  # name, events, seed of the generator
STOPPED = "stopped by a signal and saved; the same command goes on"
SAVING_SECONDS = 60  # a worker has to save, once its study is gone
EVALUATIONS = 20  # of a run, on the selection events; a candidate of the grid has a fifth of them


@dataclass(frozen=True)
class StudyConfig:
    """Which runs, on which events."""

    train: tuple[str, ...]
    """Labelled events to draw from."""
    select: tuple[str, ...]
    """Labelled events that choose learning rates and checkpoints."""
    tests: tuple[str, ...]
    """Labelled events that judge, each source apart."""
    encoder: str = "nano_encoder"
    """Pre-trained on other events: a bundle."""
    size: str = "nano"
    """Of the models: ``nano`` or ``panda``."""
    labels: tuple[int, ...] = (100, 10_000, 1_000, 10)
    """Labelled events, in the order in which the runs are made."""
    paired: tuple[int, ...] = (100, 1_000)
    """Numbers of events for PT_K + FT_K."""
    task: Task = "semantic"
    rows: tuple[str, ...] = ()
    """Methods; none named: all of the task."""
    grid: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Peak learning rates that every method may choose from; a single one is not tried but taken."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights, order of events and choice of labels; all cells of the first come before those of the next."""
    samples: int = 20_000
    """Event samples of every run."""

    def __post_init__(self) -> None:
        if unknown := set(self.rows) - set(TASK_ROWS[self.task]):
            known = ", ".join(TASK_ROWS[self.task])
            raise ValueError(f"rows: {', '.join(sorted(unknown))} not known for {self.task}; there are {known}")
        if f"{self.size}_pretrain" not in PRETRAIN:
            raise ValueError(f"size is {self.size!r}; expected nano or panda")
        if not (self.labels and self.seeds and self.grid) or min(*self.labels, self.samples) < 1:
            raise ValueError("a study needs labels, seeds, a grid and samples, each at least 1")

    @property
    def methods(self) -> tuple[str, ...]:
        """The rows to make."""
        return self.rows or TASK_ROWS[self.task]


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    row: str
    labels: int
    seed: int
    lr: float | None = None
    """A candidate of the grid; None: the best of it."""

    @property
    def name(self) -> str:
        """Of its folder and its result file."""
        return f"grid-{self.row}-{self.lr:g}" if self.lr is not None else f"{self.row}-{self.labels}-{self.seed}"


def make_data(out: Path, workers: int, say: Callable[[str], None]) -> tuple[str, str, str]:
    """Generate the events of a study that has none of its own: 10,000 to train, 200 to select, 1,000 to test.

    Returns:
        The three files, in ``out``; those that are there are left.
    """
    paths = []
    for name, n, seed in DATA:
        path = out / f"{name}.h5"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            generate_file(path, generate(n, seed), workers, say=say)
            say(f"{path}: {n} events of seed {seed}")
        paths.append(str(path))
    train, select, test = paths
    return train, select, test


def run_study(config: StudyConfig, out: Path, workers: int, say: Callable[[str], None]) -> list[str]:
    """Make every run whose result is not there yet, stage by stage: the grid, then seed by seed.

    Args:
        config: which runs.
        out: folder for runs/ (weights, logs) and results/ (small JSON files).
        workers: processes, each a run with one thread; 1: this process.
        say: takes a line for each run that ends.

    Returns:
        A line for each run that failed; the others are made all the same.

    Raises:
        ChildProcessError: a worker died.
    """
    failed: list[str] = []
    for stage in stages(config):
        left = [cell for cell in stage if not _is_made(out, cell)]
        for cell, error in _made(config, left, out, workers):
            if error is None:
                result = read_result(_result_file(out, cell))
                headline = HEADLINE[config.task]
                scores = "  ".join(f"{Path(s.source).name} {s.score(headline).value:.3f}" for s in result.tests)
                say(f"{cell.name}: selection {result.best:.3f}  {scores}  {result.minutes:.1f} minutes".rstrip())
            else:
                failed.append(f"{cell.name}: {error}")
                say(failed[-1])
                if error == STOPPED and workers == 1:  # the signal was for this process, so for the whole study
                    return failed
    return failed


def stages(config: StudyConfig) -> Iterator[list[Cell]]:
    """The queue: what is in one stage needs nothing of the same stage."""
    bases = dict.fromkeys(_base(row) for row in config.methods)
    middle = sorted(config.labels)[len(config.labels) // 2]
    if len(config.grid) > 1:
        yield [Cell(base, middle, config.seeds[0], lr) for base in bases for lr in config.grid]
    paired = [row for row in config.methods if row in PAIRED]
    for seed in config.seeds:
        rows = [row for row in config.methods if row not in PAIRED]
        yield [Cell(row, k, seed) for k in config.labels for row in rows]
        if paired:  # last, since their encoders take longest
            yield [Cell(ENCODER, k, seed) for k in config.paired]
            yield [Cell(row, k, seed) for k in config.paired for row in paired]


def _made(config: StudyConfig, cells: Sequence[Cell], out: Path, workers: int) -> Iterator[tuple[Cell, str | None]]:
    """Run cells; each with what went wrong, or None, as it ends."""
    if workers == 1 or len(cells) < 2:
        for cell in cells:
            yield cell, _run(config, cell, out)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin_worker) as pool:
        futures: dict[Future[str | None], Cell] = {pool.submit(_run, config, cell, out): cell for cell in cells}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise ChildProcessError(
                f"a worker died; was there memory for {workers} of them (--workers)? The same command goes on"
            ) from None
        except BaseException:  # ctrl-C: what runs saves itself, what waits is for the next time
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_idle = threading.Event()  # of this process: no run is under way


def _begin_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker whose study was killed saves its run and ends: a study that goes on there must not find it at work."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)  # the run, if there is one, takes it as a wish to stop
    _idle.wait(SAVING_SECONDS)
    os._exit(1)


def _run(config: StudyConfig, cell: Cell, out: Path) -> str | None:
    """Make one run and its result file."""
    _idle.clear()
    try:
        return _pretrain(config, cell, out) if cell.row == ENCODER else _finetune(config, cell, out)
    except (ValueError, OSError, FloatingPointError) as error:
        return " ".join(str(error).split())
    finally:
        _idle.set()


def _finetune(config: StudyConfig, cell: Cell, out: Path) -> str | None:
    started = time.monotonic()
    select = open_events(config.select)
    events = open_events([*config.train, *config.select])
    lr = _learning_rate(config, out, cell) if cell.lr is None else cell.lr
    settings = recipe(config, cell, lr, len(select))
    start = _start(config, cell, out)
    bundle = _logged(
        out,
        cell,
        lambda say: finetune(
            [config.task],
            events,
            settings,
            out / "runs" / cell.name,
            sources=[*config.train, *config.select],
            start=start,
            device="auto",
            say=say,
        ),
    )
    if bundle is None:
        return STOPPED
    tests: list[Judged] = []
    if cell.lr is None:
        model = load_bundle(bundle).model.to(pick_device("auto"))
        tests = [judge(config.task, model, source) for source in config.tests]
    _write(config, cell, out, settings, started, tests)
    return None


def judge(task: Task, model: Model, source: str) -> Judged:
    """A model's numbers on the events of a test set: the headline, and those of each class."""
    events = open_events(source)
    if task == "semantic":
        motifs = segmentation(motif_tables(model, events))
        scores = [Score("macro_f1", motifs.macro_f1, motifs.macro_f1_low, motifs.macro_f1_high)]
        scores += [
            Score(f"f1_{motif.name.lower()}", *map(float, ends))
            for motif, *ends in zip(Motif, motifs.f1, motifs.f1_low, motifs.f1_high, strict=True)
        ]
        return Judged(source, len(events), tuple(scores))
    tables = instance_tables(model, task, events)
    found = clustering(tables, n_things(task))
    scores = [Score(name, one.value, one.low, one.high) for name, one in found.means.items()]
    if task == "particle":
        by_class = zip(Species, found.class_ari["one_vs_rest"], strict=True)
        scores += [Score(f"ari_{species.name.lower()}", value, None, None) for species, value in by_class]
    return Judged(source, len(events), tuple(scores))


def _pretrain(config: StudyConfig, cell: Cell, out: Path) -> str | None:
    started = time.monotonic()
    settings = PRETRAIN[f"{config.size}_pretrain"]()
    steps = max(1, config.samples // settings.batch_events)
    every = max(1, steps // EVALUATIONS)
    settings = replace(settings, steps=steps, save_every=every, evaluate_every=every, keep="best", seed=cell.seed)
    events = drawn(open_events(config.train, truth=False), cell.labels, cell.seed)
    bundle = _logged(
        out,
        cell,
        lambda say: pretrain(
            events,
            settings,
            out / "runs" / cell.name,
            sources=[*config.train, f"{cell.labels} events drawn with seed {cell.seed}"],
            probe_events=open_events(config.select),
            probe_sources=config.select,
            device="auto",
            say=say,
        ),
    )
    if bundle is None:
        return STOPPED
    _write(config, cell, out, settings, started, [])
    return None


def recipe(config: StudyConfig, cell: Cell, lr: float, n_select: int) -> FinetuneConfig:
    """The configuration of a fine-tuning cell."""
    base = _base(cell.row)
    made = FINETUNE[f"{config.size}_{'uresnet' if base == 'uresnet' else config.task}"]()
    samples, n = (config.samples, EVALUATIONS) if cell.lr is None else (config.samples // 4, EVALUATIONS // 5)
    steps = max(1, samples // made.batch_events)
    every = max(1, steps // n)
    return replace(
        made,
        mode="linear" if base == "linear" else "decoder" if base == "decoder" else "full",
        labels=cell.labels,
        steps=steps,
        save_every=every,
        evaluate_every=every,
        validation_events=n_select,
        keep="best",
        seed=cell.seed,
        optim=replace(made.optim, lr=lr),
    )


def _base(row: str) -> str:
    """How a row is trained, whatever its encoder was trained on."""
    return row.removesuffix("_k")


def _start(config: StudyConfig, cell: Cell, out: Path) -> str | None:
    if cell.row in SUPERVISED:
        return None
    if cell.row in PAIRED:
        return str(out / "runs" / Cell(ENCODER, cell.labels, cell.seed).name)
    return config.encoder


def _learning_rate(config: StudyConfig, out: Path, cell: Cell) -> float:
    """The candidate of the grid with the best selection score; of equals the smaller."""
    if len(config.grid) == 1:
        return config.grid[0]
    paths = [_result_file(out, Cell(_base(cell.row), 0, 0, lr)) for lr in config.grid]
    found = [result for path in paths if path.exists() and not math.isnan((result := read_result(path)).best)]
    if not found:
        raise ValueError(f"{cell.name}: no result of the learning rates of {_base(cell.row)}; they come first")
    return max(found, key=lambda result: (result.best, -result.lr)).lr


def _logged(out: Path, cell: Cell, run: Callable[[Callable[[str], None]], Path | None]) -> Path | None:
    log = out / "runs" / f"{cell.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:

        def say(line: str) -> None:
            print(line, file=file, flush=True)

        return run(say)


def _write(
    config: StudyConfig,
    cell: Cell,
    out: Path,
    settings: FinetuneConfig | PretrainConfig,
    started: float,
    tests: Sequence[Judged],
) -> None:
    """The result, when all is done; then the checkpoints, which are large, are not needed any more."""
    run = out / "runs" / cell.name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # the probe of pre-training is one of motifs, whatever is studied
    prefix = f"validation_{'macro_f1' if cell.row == ENCODER else HEADLINE[config.task]}"
    curve = tuple(
        Validation(
            line["step"] * settings.batch_events, line[prefix], line.get(f"{prefix}_low"), line.get(f"{prefix}_high")
        )
        for line in lines
        if line.get(prefix) is not None  # null: no number, as of events without a single particle
    )
    result = CellResult(
        task=config.task,
        row=cell.row,
        labels=cell.labels,
        seed=cell.seed,
        lr=settings.optim.lr,
        samples=settings.steps * settings.batch_events,
        minutes=round((time.monotonic() - started) / 60, 1),
        curve=curve,
        tests=tuple(tests),
        larpanda=__version__,
    )
    write_result(_result_file(out, cell), result)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)


def _is_made(out: Path, cell: Cell) -> bool:
    """Whether the result is there, and of an encoder also what others begin with: results travel without weights."""
    bundle = out / "runs" / cell.name / "bundle"
    return _result_file(out, cell).exists() and (cell.row != ENCODER or bundle.is_dir())


def _result_file(out: Path, cell: Cell) -> Path:
    return out / "results" / f"{cell.name}.json"
