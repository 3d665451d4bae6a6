"""What a step of pre-training costs: views, encoder, and the rest; and the memory of the loss at the paper's size.

    python benchmarks/pretrain_step.py [--threads 1] [--steps 6]      nano_pretrain, and the step of issue-size events
    python benchmarks/pretrain_step.py --memory                       batch 48, 4,096 prototypes of 256 dimensions

Events are generated (seed 150). Two shares outside encoder and head are printed. The prototypes are the last layer of
the head, but their logits, Sinkhorn and the loss go over the same chunks and cannot be timed apart: the first share
counts them as head (outside are views, matching, optimizer and teacher), the second as outside.
"""

import argparse
import resource
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from larpanda.data import open_events
from larpanda.data.views import ViewConfig, make_views
from larpanda.event import Event
from larpanda.model.backbone import EncoderConfig
from larpanda.model.distill import DistillConfig, Pairs, SelfDistillation, Side, cross_entropy, match, sinkhorn
from larpanda.train.optim import OptimConfig, make_optimizer
from larpanda.train.recipes import nano_pretrain
from larpanda.train.tasks import ViewBatches

BATCH = 8
PROTOTYPE = EncoderConfig(
    (16, 32, 64, 128, 128), (1, 1, 1, 2, 1), layer_scale=0.1, drop_path=0.0, mask_token=True
)  # the step that was timed before there was any of this: 0.58 s with 8 events of 2,000 voxels on another machine


def cut(event: Event, n: int) -> Event:
    """The n points nearest to the middle of the event."""
    rows = (event.position - event.position.mean(0)).norm(dim=1).argsort()[:n].sort().values
    names = ("position", "energy", "motif", "species", "particle", "interaction")
    return Event(*(getattr(event, name)[rows] for name in names))


def time_steps(
    name: str, encoder: EncoderConfig, distill: DistillConfig, views: ViewConfig, events: list[Event]
) -> None:
    model = SelfDistillation(encoder, distill)
    optimizer = make_optimizer(model, OptimConfig())
    make = ViewBatches(views, 0.13, model.student.encoder.n_draws)
    spent: Counter[str] = Counter()

    @contextmanager
    def clock(part: str):
        begun = time.perf_counter()
        yield
        spent[part] += time.perf_counter() - begun

    steps, points = len(events) // BATCH, 0
    for step in range(steps):
        if step == 1:  # the first is not counted
            spent.clear()
            points, begun = 0, time.perf_counter()
        rngs = [np.random.default_rng([step, i]) for i in range(BATCH)]
        with clock("views"):
            batch = make(events[step * BATCH : (step + 1) * BATCH], rngs, 1.0)
        points += batch.n_points
        with clock("teacher"), torch.no_grad():
            whole = model.teacher.encoder(batch.teacher)
            target = model.teacher.projection(whole.upcast(distill.level))
        with clock("student"):
            seen = model.student.encoder(batch.student, batch.draws, batch.masked)
            answer = model.student.projection(seen.upcast(distill.level))
            prototypes, told = model.student.projection.directions(), model.teacher.projection.directions()
        with clock("matching"):
            pairs, _ = match(batch, whole, seen, distill)
        with clock("prototypes, Sinkhorn, loss"):
            balance = sinkhorn(target, told, 0.04, distill.sinkhorn)
            sides = (Side(answer, prototypes, 0.1, torch.zeros(len(told))), Side(target, told, 0.04, balance.log_scale))
            loss = cross_entropy(*sides, pairs).loss
        with clock("backward"):
            loss.backward()
        with clock("optimizer, teacher"):
            torch.nn.utils.clip_grad_norm_(model.student.parameters(), 3.0)
            optimizer.step()
            model.update_teacher(0.99)
            optimizer.zero_grad()
    seconds = (time.perf_counter() - begun) / (steps - 1)
    outside = sum(spent[part] for part in ("views", "matching", "optimizer, teacher")) / sum(spent.values())
    more = outside + spent["prototypes, Sinkhorn, loss"] / sum(spent.values())
    parts = ", ".join(f"{part} {1000 * value / (steps - 1):.0f}" for part, value in spent.items())
    rates = f"{points // (steps - 1):,} | {seconds:.2f} | {BATCH / seconds:.1f}"
    print(f"| {name} | {rates} | {outside:.0%}, {more:.0%} | {parts} |", flush=True)


def measure_memory() -> None:
    """Sinkhorn and loss of 48 events: 64,000 cells of the teacher, 110,000 of the student."""
    rng = torch.Generator().manual_seed(0)

    def unit(n: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(n, 256, generator=rng), dim=1)

    for n_teacher, n_student, n in ((64_000, 110_000, 4096), (64_000, 110_000, 1024), (32_000, 55_000, 4096)):
        answer, target = unit(n_student).requires_grad_(), unit(n_teacher)
        prototypes = unit(n).requires_grad_()
        rows = torch.randint(0, n_teacher, (n_student,), generator=rng)
        weight = torch.full((n_student,), 1 / n_student)
        pairs = Pairs(torch.arange(n_student), rows, weight, weight, torch.zeros_like(rows))
        inputs = sum(x.numel() * 4 for x in (answer, target, prototypes)) / 1e6
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.perf_counter()
        balance = sinkhorn(target, prototypes.detach(), 0.07, 3)
        student = Side(answer, prototypes, 0.1, torch.zeros(n))
        cross_entropy(student, Side(target, prototypes.detach(), 0.07, balance.log_scale), pairs).loss.backward()
        seconds = time.perf_counter() - begun
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
        dense = n_student * n * 4 / 1e6
        print(f"| {n_student:,} | {n:,} | {inputs:.0f} | {peak:.0f} | {dense:.0f} | {seconds:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print("| pairs | prototypes | inputs, MB | grown by, MB | one array of pairs x prototypes, MB | s |")
        print("|---" * 6 + "|")
        measure_memory()
        return
    source = open_events(f"generate:pilarnet?events={BATCH * (arguments.steps + 1)}&seed=150", truth=False)
    events = [event.visible()[0] for event in source]
    begun = time.perf_counter()
    views = nano_pretrain().views
    for number, event in enumerate(events):
        make_views(event, views, 1.0, np.random.default_rng(number))
    seconds = time.perf_counter() - begun
    each = np.mean([len(event) for event in events])
    print(f"{arguments.threads} threads; events of {each:.0f} voxels on average")
    rate = len(events) * (2 + views.n_local) / seconds
    print(f"views: {rate:.0f} a second on one core, {1000 * seconds / len(events):.1f} ms an event")
    print("| step | points of views | s | events/s | outside encoder and head | ms |")
    print("|---" * 6 + "|")
    recipe = nano_pretrain()
    time_steps("nano_pretrain", recipe.encoder, recipe.distill, recipe.views, events)
    small = [cut(event, 2000) for event in events if len(event) >= 2000]
    while len(small) < BATCH * (arguments.steps + 1):
        small += small[: BATCH * (arguments.steps + 1) - len(small)]
    objective = DistillConfig(prototypes=256, width=64, hidden=256)
    time_steps("the prototype's: 8 events of 2,000", PROTOTYPE, objective, ViewConfig(n_local=4), small)
    whole = replace(recipe.views, max_points=30_000)
    time_steps("nano_pretrain, views not capped", recipe.encoder, recipe.distill, whole, events)


if __name__ == "__main__":
    main()
