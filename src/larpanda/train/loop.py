"""fit(): the one training loop. Step, log, evaluate, save; started again, it goes on where it was, bit for bit."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from larpanda.data.stream import Stream
from larpanda.event import Event
from larpanda.publish import publish_text
from larpanda.train.checkpoint import resume, save_checkpoint
from larpanda.train.optim import learning_rate, make_optimizer, set_learning_rate
from larpanda.train.recipes import FinetuneConfig
from larpanda.train.tasks import B, Task

SAY_EVERY = 50


def fit(task: Task[B], events: Sequence[Event], config: FinetuneConfig, run: Path, say: Callable[[str], None]) -> None:
    """Train until ``config.steps``, from the newest checkpoint of the run if there is one.

    Args:
        task: what to learn; its model is changed in place.
        events: to train on.
        config: steps, sizes, seed.
        run: folder for metrics.jsonl and checkpoints/.
        say: takes one line of progress.

    Raises:
        FloatingPointError: loss or gradient is not finite; the step is not taken, the last checkpoint is good.
        ValueError: the checkpoints of the run are damaged.
    """
    stream = Stream(len(events), config.batch_events, config.seed)
    optimizer = make_optimizer(task.model, config.optim)
    device = next(task.model.parameters()).device
    checkpoints = run / "checkpoints"
    begin = resume(checkpoints, task.model, optimizer, say)
    if begin:
        say(f"going on from step {begin}")
    metrics = run / "metrics.jsonl"
    _forget_after(metrics, begin)
    started = time.monotonic()
    for step in range(begin, config.steps):
        progress = step / config.steps
        ordinals = stream.ordinals(step)
        rngs = [stream.generator(step, place) for place in range(len(ordinals))]
        batch = task.batch([events[int(i)] for i in ordinals], rngs, progress).to(device)
        rate = learning_rate(config.optim, progress)
        set_learning_rate(optimizer, rate)
        optimizer.zero_grad()
        losses = task.loss(batch, progress)
        losses.total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(task.model.parameters(), config.optim.clip)
        if not torch.isfinite(losses.total) or not torch.isfinite(norm):
            raise FloatingPointError(
                f"step {step}: loss {losses.total.item():g}, gradient {norm.item():g}, "
                f"events {ordinals.tolist()}; not stepped, {checkpoints} has the last good state"
            )
        optimizer.step()
        task.after_step(progress)
        done = step + 1
        record: dict[str, Any] = {"step": done, "loss": losses.total.item(), "lr": rate}
        record |= {name: value.item() for name, value in losses.parts.items()}
        record["seconds"] = round((time.monotonic() - started) / (done - begin), 4)  # per step, since the start
        _append(metrics, record)
        if done % SAY_EVERY == 0:
            say(f"step {done}/{config.steps}  loss {record['loss']:.4f}  {record['seconds']:.2f} s a step")
        if done % config.evaluate_every == 0 or done == config.steps:
            result = task.evaluate()
            _append(metrics, {"step": done, **{f"validation_{key}": value for key, value in result.items()}})
            say(f"step {done}/{config.steps}  " + "  ".join(f"{key} {value:.4f}" for key, value in result.items()))
        if done % config.save_every == 0 or done == config.steps:
            save_checkpoint(checkpoints, done, task.model, optimizer)


def _append(path: Path, record: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _forget_after(path: Path, step: int) -> None:
    """Drop the log of steps that will be taken again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if _step_of(line) <= step]
        publish_text(path, "".join(lines))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:  # a last line cut short by a kill
        return float("inf")
