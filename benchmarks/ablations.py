"""Choices of docs/ablations.md that were never compared, each against the default at equal budget, seed by seed.

    python benchmarks/ablations.py [--out FOLDER] [--train FILE] [--seeds 0 1] [--only window tower --checkpoint STEP]
    python benchmarks/ablations.py [--out FOLDER] --redraw

Eight comparisons (``COMPARISONS``). Those of motifs start from random weights: ``nano_semantic`` at 3e-3, judged by
macro F1; they share the baseline. ``query_mask`` trains ``nano_particle`` on the frozen ``nano_encoder``;
``masked_loss`` is ``nano_pretrain``, and ``tower`` a checkpoint of a pre-training run (RUN/checkpoints/step-N), both
judged by a linear probe. Weights are those of the end: nothing is chosen on the events that judge.

OUT/results has a JSON file of each run, which is not made again; a run that was stopped goes on (OUT/runs). From these
files alone comes the table, OUT/table.md; all in a folder have the same events and budgets. What no setting of larpanda
does is made here: ``LogJitter``, ``TurnedLate`` and ``narrow``.
"""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from larpanda.config import config_from_json
from larpanda.data import open_events
from larpanda.data.stream import drawn
from larpanda.data.views import Augmentation, augment
from larpanda.evaluate.segmentation import Segmentation, segmentation
from larpanda.evaluate.summary import clustering
from larpanda.event import MIN_ENERGY_MEV, Event, Motif, PointBatch
from larpanda.model import backbone
from larpanda.model.backbone import ENERGY_RANGE_MEV, Block, Encoder, EncoderConfig, SparseConv
from larpanda.model.bundle import Model, load_bundle
from larpanda.model.distill import SelfDistillation
from larpanda.model.panoptic import PanopticHead
from larpanda.model.selection import n_things
from larpanda.publish import publish_text
from larpanda.results import Score
from larpanda.sparse.neighbors import NeighborMap
from larpanda.train.instances import Instances, instance_tables
from larpanda.train.loop import train
from larpanda.train.motifs import Motifs, motif_tables
from larpanda.train.probing import probe_motifs
from larpanda.train.recipes import FinetuneConfig, PretrainConfig, nano_particle, nano_pretrain, nano_semantic
from larpanda.train.supervised import Head, Objective, Supervised
from larpanda.train.tasks import LabelledBatch, LabelledBatches, Pretrain, Task

Network = TypeVar("Network", bound=nn.Module)
Recipe = TypeVar("Recipe", FinetuneConfig, PretrainConfig)
Side = tuple[str, str]  # of a comparison: its name (``baseline``: of several), and the variant's

FIRST_EVENTS = 10_000  # of the training events: labels are drawn from these
PARTICLE_EVENTS = 60  # that judge particles, as in the comparisons of queries
PROBE_POINTS = 60_000
SAVES = 10  # of a run: so much of it is lost at most when it is killed
HEADLINES = {"macro_f1": "macro F1", "ari": "ARI", "pq": "PQ"}  # that the table shows, and how it calls them


# What no setting of larpanda does


class LogJitter(LabelledBatches):
    """Charge jitter as a factor on the logarithm that the network sees, not on MeV.

    The released code has the logarithm before the views of pre-training, and so multiplies that (cut at one width, in
    four of five global views alone, which is not imitated). The factor does nothing at 0.44 MeV, where the scale has
    its zero, and a width of 0.05 is 6 % of the energy at 0.13 MeV and 21 % at 20 MeV.
    """

    def __call__(self, events: Sequence[Event], rngs: Sequence[np.random.Generator], progress: float) -> LabelledBatch:
        """Make the input of a step."""
        width = self.augmentation.charge_jitter
        jittered = [jitter_logarithm(event, width, rng) for event, rng in zip(events, rngs, strict=True)]
        rest = replace(self.augmentation, charge_jitter=0.0)
        return LabelledBatches(rest, self.min_energy_mev, self.n_draws)(jittered, rngs, progress)


def jitter_logarithm(event: Event, width: float, rng: np.random.Generator) -> Event:
    """Multiply the log-scaled energy of each voxel (``backbone.input_features``) by a normal deviate around 1."""
    low, high = ENERGY_RANGE_MEV
    base = (high + low) / low
    scaled = 2.0 * torch.log((event.energy.double() + low) / low) / math.log(base) - 1.0
    scaled = scaled * torch.from_numpy(rng.normal(1.0, width, len(event)))
    energy = low * base ** ((scaled + 1.0) / 2.0) - low
    return replace(event, energy=energy.clamp(min=0.0).float())


@dataclass(frozen=True, slots=True, eq=False)
class LateBatch(PointBatch):
    """Events of which the network is told other places than those that its geometry is made of."""

    told: Tensor  # [N, 3] float32, voxels

    def to(self, device: torch.device | str) -> "LateBatch":
        """The same batch on another device."""
        columns = {name: column.to(device) for name, column in _columns(self).items()}
        return LateBatch(**columns, told=self.told.to(device))


def _columns(batch: PointBatch) -> dict[str, Tensor]:
    return {name: getattr(batch, name) for name in PointBatch.__slots__}


class TurnedLate(LabelledBatches):
    """Turns and charge after the threshold and the voxels.

    In fine-tuning the released code makes the grid first (``GridSample(return_grid_coord)``) and turns afterwards: the
    places among the features turn, while convolutions, curves and windows are of the unturned event.
    """

    def __call__(self, events: Sequence[Event], rngs: Sequence[np.random.Generator], progress: float) -> LabelledBatch:
        """Make the input of a step."""
        seen = [event.visible(self.min_energy_mev)[0] for event in events]
        turned = [augment(event, self.augmentation, rng) for event, rng in zip(seen, rngs, strict=True)]
        told, still = PointBatch.pack(turned), PointBatch.pack(seen)
        columns = {**_columns(told), "position": still.position}
        draws = [torch.from_numpy(rng.random(self.n_draws, np.float32)) for rng in rngs]
        return LabelledBatch(LateBatch(**columns, told=told.position), torch.stack(draws))


_input_features = backbone.input_features


def told_features(batch: PointBatch, point_cell: Tensor, n_cells: int) -> Tensor:
    """``backbone.input_features``, of the places that the network is told. [M, 4]."""
    if isinstance(batch, LateBatch):
        batch = replace(batch, position=batch.told)
    return _input_features(batch, point_cell, n_cells)


class NarrowConvolution(nn.Module):
    """A linear layer to fewer channels and a 3 x 3 x 3 convolution at that width."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.inward = nn.Linear(channels, width)
        self.conv = SparseConv(width, width)

    def forward(self, x: Tensor, neighbors: NeighborMap) -> Tensor:
        """[M, C] -> [M, width]."""
        result: Tensor = self.conv(self.inward(x), neighbors)
        return result


def narrow(model: nn.Module, share: int) -> None:
    """Have every block convolve a share of its channels; the block's own linear layer then leads back to all of them.

    Newer code of the authors has such a block (PT-v3m8: 96 channels at every level), the released models a full one.
    Weights are drawn so that the branch begins as large as the full one: much smaller, and the epsilon of its norm
    would hold it down.
    """
    for block in [part for part in model.modules() if isinstance(part, Block)]:
        channels = block.conv_norm.normalized_shape[0]
        conv, back = NarrowConvolution(channels, channels // share), nn.Linear(channels // share, channels)
        nn.init.trunc_normal_(conv.inward.weight, std=channels**-0.5)
        nn.init.trunc_normal_(conv.conv.weight, std=0.02 * share**0.5)
        nn.init.trunc_normal_(back.weight, std=0.02 * share**0.5)
        for layer in (conv.inward, back):
            nn.init.zeros_(layer.bias)
        block.conv, block.conv_linear = conv, back


class Labelled(Supervised):
    """One head; how events become batches is given, and it is judged when the run is over."""

    def __init__(
        self,
        model: Model,
        head: Head,
        objective: Objective,
        augmentation: Augmentation,
        batches: type[LabelledBatches] = LabelledBatches,
    ) -> None:
        super().__init__(model, {head: objective}, augmentation, ())
        self.batch = batches(augmentation, model.config.min_energy_mev, sum(self.n_draws))

    def evaluate(self) -> Mapping[str, float]:
        """Nothing."""
        return {}


# Runs


@dataclass(frozen=True)
class Settings:
    """Events and budgets: the same for all results of a folder."""

    train: str
    test: str
    probe: str
    """Two thirds of these events train a linear probe, the rest choose its penalty."""
    labels: int
    samples: int
    """Of motifs."""
    particle_samples: int
    pretrain_steps: int


@dataclass(frozen=True)
class Made:
    """What a run came to."""

    scores: tuple[Score, ...]
    events: int
    """That judged it."""
    weights: int
    """That were trained, or that the judged encoder has."""
    steps: int
    seconds: float
    """Of all steps, or of the probe."""


@dataclass(frozen=True)
class Result:
    """What the file of a run holds."""

    name: str
    variant: str
    seed: int
    settings: Settings
    checkpoint: str | None
    """That a probe is of."""
    made: Made


@dataclass(frozen=True)
class Job:
    """A run to make."""

    settings: Settings
    checkpoint: Path
    seed: int
    folder: Path

    @property
    def labelled(self) -> list[Event]:
        """Events to train on."""
        return _drawn(self.settings.train, self.settings.labels, self.seed)

    @property
    def test(self) -> list[Event]:
        """Events that judge."""
        return _read(self.settings.test)

    def for_steps(self, recipe: Recipe, steps: int) -> Recipe:
        """A recipe for so many steps, whose last weights are judged."""
        if steps < 1:
            raise ValueError(f"{self.folder.name}: fewer samples than a step takes; give more")
        every = max(1, steps // SAVES)
        return replace(recipe, steps=steps, save_every=every, evaluate_every=steps, keep="last", seed=self.seed)

    def seeded(self, make: Callable[[], Network]) -> Network:
        """Random weights of the job's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return make()

    def train(
        self,
        config: FinetuneConfig | PretrainConfig,
        begin: Callable[[torch.device], Task[Any]],
        judge: Callable[[Any], tuple[Score, ...]],
        events: int,
    ) -> Made | None:
        """Train, and judge the end by so many events. None: a signal stopped it."""
        made: list[Made] = []

        def end(task: Task[Any], _: Path) -> None:
            lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
            seconds = sum(line.get("seconds", 0.0) for line in lines)
            weights = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
            made.append(Made(judge(task), events, weights, config.steps, round(seconds, 1)))

        record = {"what": self.folder.name, "config": asdict(config), "settings": asdict(self.settings)}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("a") as log:

            def say(line: str) -> None:
                print(line, file=log, flush=True)

            with mock.patch.object(backbone, "input_features", told_features):
                train(self.labelled, config, self.folder, record, begin, end, device="auto", say=say, live=None)
        return made[0] if made else None


def motifs(
    job: Job,
    encoder: Mapping[str, Any] = MappingProxyType({}),
    batches: type[LabelledBatches] = LabelledBatches,
    share: int = 1,
) -> Made | None:
    """``nano_semantic`` from random weights, with other settings of the encoder, batches or convolutions."""
    recipe = nano_semantic()
    config = replace(
        job.for_steps(recipe, job.settings.samples // recipe.batch_events),
        model=replace(recipe.model, encoder=replace(recipe.model.encoder, **encoder)),
        labels=job.settings.labels,
        optim=replace(recipe.optim, layer_decay=1.0),  # as ``finetune`` has it from random weights
    )

    def network() -> Model:
        model = Model(config.model)
        if share > 1:
            narrow(model, share)
        return model

    def begin(where: torch.device) -> Labelled:
        model = job.seeded(network).to(where)
        assert model.semantic is not None
        objective = Motifs(model.semantic, config.semantic_loss)
        return Labelled(model, "semantic", objective, config.augmentation, batches)

    def judge(task: Labelled) -> tuple[Score, ...]:
        return _of_motifs(segmentation(motif_tables(task.model, job.test)))

    return job.train(config, begin, judge, len(job.test))


def particles(job: Job, after: bool) -> Made | None:
    """``nano_particle`` on the frozen ``nano_encoder``; after: the update of a query comes before its mask."""
    recipe, there = nano_particle(), load_bundle("nano_encoder").model
    assert recipe.model.particle is not None
    head = replace(recipe.model.particle, mask_after_update=after)
    config = replace(
        job.for_steps(recipe, job.settings.particle_samples // recipe.batch_events),
        model=replace(recipe.model, encoder=there.config.encoder, particle=head),
        mode="decoder",
        labels=job.settings.labels,
    )
    test = job.test[:PARTICLE_EVENTS]

    def begin(where: torch.device) -> Labelled:
        model = job.seeded(lambda: Model(config.model)).to(where)
        model.encoder.load_state_dict(there.encoder.state_dict())
        model.encoder.requires_grad_(False)
        assert isinstance(model.particle, PanopticHead)
        return Labelled(model, "particle", Instances(model.particle, "particle", config.set_loss), config.augmentation)

    def judge(task: Labelled) -> tuple[Score, ...]:
        means = clustering(instance_tables(task.model, "particle", test), n_things("particle")).means
        return tuple(_score(name, means[name].value, means[name].low, means[name].high) for name in ("ari", "pq"))

    return job.train(config, begin, judge, len(test))


def pretraining(job: Job, masked_only: bool) -> Made | None:
    """``nano_pretrain`` with a learned vector for masked points, as in the paper: ``nano`` itself takes them away."""
    recipe = nano_pretrain()
    config = replace(
        job.for_steps(recipe, job.settings.pretrain_steps),
        views=replace(recipe.views, remove_masked=False),
        distill=replace(recipe.distill, masked_only=masked_only),
    )

    def begin(where: torch.device) -> Pretrain:
        model = job.seeded(lambda: SelfDistillation(config.encoder, config.distill)).to(where)
        return Pretrain(model, config.steps, config.views, config.min_energy_mev, config.probe)

    return job.train(config, begin, lambda task: _probed(job, task.model.teacher.encoder), len(job.test))


def tower(job: Job, which: str) -> Made:
    """The encoder of the ``teacher`` or the ``student`` of a checkpoint, as it is."""
    from safetensors.torch import load_file

    record = json.loads((job.checkpoint.parents[1] / "config.json").read_text())
    if record["task"] != "pretrain":
        raise ValueError(f"{job.checkpoint}: of a run of {record['task']}; expected one of pre-training")
    encoder = Encoder(config_from_json(EncoderConfig, record["config"]["encoder"], str(job.checkpoint)))
    prefix, weights = f"{which}.encoder.", load_file(job.checkpoint / "model.safetensors")
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    started = time.monotonic()
    scores = _probed(job, encoder.requires_grad_(False))
    seconds = round(time.monotonic() - started, 1)
    return Made(scores, len(job.test), sum(p.numel() for p in encoder.parameters()), 0, seconds)


def _probed(job: Job, encoder: Encoder) -> tuple[Score, ...]:
    events = _read(job.settings.probe)
    n = len(events) * 2 // 3
    found, _ = probe_motifs(encoder, events[:n], events[n:], job.test, MIN_ENERGY_MEV, PROBE_POINTS, seed=job.seed)
    return _of_motifs(found)


def _of_motifs(found: Segmentation) -> tuple[Score, ...]:
    each = zip(Motif, found.f1, found.f1_low, found.f1_high, strict=True)
    of_each = (_score(f"f1_{motif.name.lower()}", *numbers) for motif, *numbers in each)
    return (_score("macro_f1", found.macro_f1, found.macro_f1_low, found.macro_f1_high), *of_each)


def _score(name: str, *numbers: float) -> Score:
    return Score(name, *(None if math.isnan(number) else float(number) for number in numbers))


@lru_cache(maxsize=1)  # a generated event takes 16 ms, and every run of a seed sees the same ones
def _drawn(source: str, n: int, seed: int) -> list[Event]:
    return list(drawn(open_events(source)[:FIRST_EVENTS], n, seed))


@lru_cache
def _read(source: str) -> list[Event]:
    return list(open_events(source))


# Comparisons


MAKE: Mapping[Side, Callable[[Job], Made | None]] = {
    ("baseline", "nano_semantic"): motifs,
    ("cells", "0.665"): partial(motifs, encoder={"cell_size": 0.001}),
    ("charge", "logarithm"): partial(motifs, batches=LogJitter),
    ("augmentation", "late"): partial(motifs, batches=TurnedLate),
    ("window", "64"): partial(motifs, encoder={"window": 64}),
    ("window", "256"): partial(motifs, encoder={"window": 256}),
    ("convolution", "half"): partial(motifs, share=2),
    ("convolution", "quarter"): partial(motifs, share=4),
    ("query_mask", "after"): partial(particles, after=True),
    ("query_mask", "before"): partial(particles, after=False),
    ("masked_loss", "masked"): partial(pretraining, masked_only=True),
    ("masked_loss", "all"): partial(pretraining, masked_only=False),
    ("tower", "teacher"): partial(tower, which="teacher"),
    ("tower", "student"): partial(tower, which="student"),
}
BASELINE = ("baseline", "nano_semantic")
COMPARISONS: Mapping[str, Mapping[Side, str]] = {  # each side in words, the default first
    "cells": {BASELINE: "cells of one voxel", ("cells", "0.665"): "0.665 voxel (released)"},
    "charge": {BASELINE: "charge jitter as a factor on MeV", ("charge", "logarithm"): "on the logarithm (released)"},
    "augmentation": {BASELINE: "turns and charge before voxels are made", ("augmentation", "late"): "after (released)"},
    "window": {BASELINE: "attention windows of 128", ("window", "64"): "64", ("window", "256"): "256 (paper)"},
    "convolution": {
        BASELINE: "full 3 x 3 x 3 convolution",
        ("convolution", "half"): "through half the channels",
        ("convolution", "quarter"): "through a quarter",
    },
    "query_mask": {
        ("query_mask", "after"): "mask of a query predicted after its update",
        ("query_mask", "before"): "before it (released)",
    },
    "masked_loss": {
        ("masked_loss", "masked"): "loss over masked points alone (paper)",
        ("masked_loss", "all"): "over all of a masked view (released)",
    },
    "tower": {("tower", "teacher"): "features of the teacher", ("tower", "student"): "of the student"},
}


def make(settings: Settings, checkpoint: Path, names: Sequence[str], seeds: Sequence[int], out: Path) -> bool:
    """Make every run whose result is not there, seed by seed; whether all could be made.

    Raises:
        ValueError: a result of other events or budgets is there.
    """
    good = True
    shown = replace(settings, train=_named(settings.train), test=_named(settings.test), probe=_named(settings.probe))
    for seed in seeds:
        for name, variant in dict.fromkeys(side for one in names for side in COMPARISONS[one]):
            path = result_file(out, name, variant, seed)
            told = f"{checkpoint.parents[1].name}/{checkpoint.name}" if name == "tower" else None
            if path.exists():
                there = read_result(path)
                if (there.settings, there.checkpoint) != (shown, told):
                    raise ValueError(
                        f"{path} is of {there.checkpoint or there.settings}, expected {told or shown}: remove it, or "
                        "choose another --out"
                    )
                continue
            try:
                made = MAKE[name, variant](Job(settings, checkpoint, seed, out / "runs" / path.stem))
            except (ValueError, OSError, FloatingPointError) as error:
                print(f"{path.stem}: {error}", flush=True)
                good = False
                continue
            if made is None:
                sys.exit(f"{path.stem}: stopped by a signal and saved; the same command goes on")
            write_result(out, Result(name, variant, seed, shown, told, made))
            shutil.rmtree(out / "runs" / path.stem, ignore_errors=True)
            numbers = ", ".join(
                f"{HEADLINES[score.name]} {_numbers(score)}" for score in made.scores if score.name in HEADLINES
            )
            print(f"{path.stem}: {numbers}; {made.seconds:.0f} s", flush=True)
    return good


def _named(source: str) -> str:
    """A source without the folders of this machine."""
    return source if source.startswith("generate:") else Path(source).name


def result_file(out: Path, name: str, variant: str, seed: int) -> Path:
    return out / "results" / f"{name}-{variant}-{seed}.json"


def write_result(out: Path, result: Result) -> None:
    path = result_file(out, result.name, result.variant, result.seed)
    publish_text(path, json.dumps(asdict(result), indent=1) + "\n")


def read_result(path: Path) -> Result:
    """The result in a file. Raises ValueError if there is none."""
    try:
        return config_from_json(Result, json.loads(path.read_text()), str(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); remove it, and its run is made again") from None


def table(out: Path) -> str:
    """All results of a folder in Markdown, a row for each number of a comparison that was made.

    Raises:
        ValueError: none is there, or not all have the same events and budgets.
    """
    results = [read_result(path) for path in sorted((out / "results").glob("*.json"))]
    there = {(one.name, one.variant, one.seed): one for one in results}
    if len({one.settings for one in results}) != 1:
        raise ValueError(f"{out / 'results'}: {len(results)} results; expected some, of the same events and budgets")
    budget = results[0].settings
    lines = [
        f"{budget.labels:,} events of `{budget.train}` to train on: {budget.samples:,} samples for motifs, "
        f"{budget.particle_samples:,} for particles, {budget.pretrain_steps:,} steps of pre-training. Probes: "
        f"`{budget.probe}`. Judged by events of `{budget.test}`. Means over the seeds that both sides have; of several "
        "the standard error of the mean difference, and each difference.",
        "",
        "| what | against | seeds | events | | what | against | difference | weights |",
        "|---" * 9 + "|",
    ]
    for sides in COMPARISONS.values():
        (first, what), *others = sides.items()
        for second, against in others:
            seeds = sorted({one.seed for one in results if {first + (one.seed,), second + (one.seed,)} <= there.keys()})
            pairs = [(there[first + (seed,)], there[second + (seed,)]) for seed in seeds]
            lines += [f"| {' | '.join([what, against, *cells])} |" for cells in _rows(pairs)]
    return "\n".join(lines) + "\n"


def _rows(pairs: Sequence[tuple[Result, Result]]) -> Iterator[list[str]]:
    """Seeds, events, number, both sides' means, their difference and weights; nothing where nothing was compared."""
    if len(checkpoints := {one.checkpoint for pair in pairs for one in pair}) > 1:
        raise ValueError(f"probes of several checkpoints, {checkpoints}: remove the results of all but one")
    for name, shown in HEADLINES.items():
        values = [tuple(s.value for one in pair for s in one.made.scores if s.name == name) for pair in pairs]
        both = np.array([pair for pair in values if len(pair) == 2 and None not in pair], float)
        if not len(both):
            continue
        first, second = pairs[0][0].made, pairs[0][1].made
        each = both[:, 0] - both[:, 1]
        difference = f"{each.mean():+.3f}"
        if len(each) > 1:
            error = each.std(ddof=1) / math.sqrt(len(each))
            difference += f" ± {error:.3f} ({', '.join(f'{one:+.3f}' for one in each)})"
        yield [
            ", ".join(str(one.seed) for one, _ in pairs),
            str(first.events),
            shown,
            *(f"{mean:.3f}" for mean in both.mean(0)),
            difference,
            f"{first.weights:,}" if first.weights == second.weights else f"{first.weights:,}; {second.weights:,}",
        ]


def _numbers(score: Score) -> str:
    if score.value is None:
        return "none"
    ends = "" if score.low is None or score.high is None else f" [{score.low:.3f}, {score.high:.3f}]"
    return f"{score.value:.3f}{ends}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/ablations"))
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, metavar="NAME", help=", ".join(COMPARISONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--train", default="generate:pilarnet?events=10000&seed=6")
    parser.add_argument("--test", default="generate:pilarnet?events=200&seed=7")
    parser.add_argument("--probe", default="generate:pilarnet?events=300&seed=101")
    parser.add_argument("--checkpoint", type=Path, help="RUN/checkpoints/step-N of a pre-training run; else no tower")
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--particle-samples", type=int, default=2000)
    parser.add_argument("--pretrain-steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--redraw", action="store_true", help="only the table, from the files of results")
    given = vars(parser.parse_args(arguments))
    out, only, seeds, threads, redraw, checkpoint = (
        given.pop(name) for name in ("out", "only", "seeds", "threads", "redraw", "checkpoint")
    )
    good = True
    if not redraw:
        torch.set_num_threads(threads)
        if only and "tower" in only and not checkpoint:
            parser.error("tower needs --checkpoint")
        names = only or [name for name in COMPARISONS if name != "tower" or checkpoint]
        good = make(Settings(**given), Path(checkpoint or "").resolve(), names, seeds, out)
    made = table(out)
    publish_text(out / "table.md", made)
    print(made, end="")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
