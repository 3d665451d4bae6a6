"""train() and fit(): the one training loop. Step, log, evaluate, save; started again, it goes on, bit for bit.

What a step does is a function of its number and the weights: learning rate, weight decay, the order of events, views,
and what the model skips. So the state of a run is its weights, the optimizer's moments, and a few numbers. The same
code runs in one process or in the several of a torchrun (``parallel.joined``): each takes its share of the batch,
losses and gradients are sums over them, and only the first writes and speaks.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from larpanda.data.stream import Stream
from larpanda.parallel import joined, on_first, rank, sum_gradients, total, world
from larpanda.train.checkpoint import Checkpoints, NoCheckpointError, State, share_state
from larpanda.train.fault import fault_point
from larpanda.train.journal import Journal, logged_steps
from larpanda.train.loader import Share, inputs
from larpanda.train.optim import learning_rate, make_optimizer, set_learning_rate, set_weight_decay, weight_decay
from larpanda.train.run import RunConfig, claimed, config_hash
from larpanda.train.stop import stop_signals
from larpanda.train.tasks import B, Losses, Task

T = TypeVar("T", bound=Task[Any])

SAY_EVERY = 50
MOST_SKIPPED = 3  # steps in a row that are not finite, before the run gives up


def train(
    events: Sequence[Any],
    config: RunConfig,
    run: Path,
    record: Mapping[str, Any],
    begin: Callable[[torch.device], T],
    end: Callable[[T, Path], None],
    *,
    device: str,
    say: Callable[[str], None],
    live: Callable[[str], None] | None,
) -> Path | None:
    """A whole run, of any task: own its folder, ``fit``, and write its bundle. Started by torchrun, processes share it.

    Args:
        events: to train on, or what stands for them.
        config: steps, sizes, seed.
        run: folder for config.json, metrics.jsonl, checkpoints/ and bundle/.
        record: what the run is (``run.claimed``).
        begin: makes the task, its model on the device.
        end: writes the bundle of the trained task, in the first process.
        device: ``auto``, ``cpu`` or ``cuda``.
        say: takes one line of progress.
        live: as in ``fit``.

    Returns:
        The folder of the bundle, also if the run has ended before; None if a signal asked it to stop: it can go on.

    Raises:
        ValueError: a run folder of another configuration, and as ``fit``.
    """
    with joined(device) as where, claimed(run, record):
        if rank() > 0:
            say, live = _silent, None
        bundle = run / "bundle"
        if on_first(bundle.exists):
            say(f"{run}: this run has ended already")
            return bundle
        task, started = begin(where), time.monotonic()
        if not fit(task, events, config, run, say, live):
            return None
        say(f"{(time.monotonic() - started) / 60:.1f} minutes")
        if config.keep == "best":
            checkpoints = Checkpoints(run / "checkpoints", config_hash(config), say)
            best = on_first(lambda: checkpoints.load_best(task.model))
            say("no validation had a score: the last weights are kept" if best is None else f"kept: step {best}")
        on_first(lambda: end(task, bundle))
    return bundle


def fit(
    task: Task[B],
    events: Sequence[Any],
    config: RunConfig,
    run: Path,
    say: Callable[[str], None],
    live: Callable[[str], None] | None = None,
) -> bool:
    """Train until ``config.steps``, from the newest checkpoint of the run if there is one.

    Checkpoints are the newest few and the best: the one after which the first number that ``task.evaluate`` names was
    highest. ``task.evaluate`` is called in the first process; if it fails that is said, and the run goes on.

    Args:
        task: what to learn; its model is changed in place.
        events: to train on.
        config: steps, sizes, seed.
        run: folder for metrics.jsonl and checkpoints/, which exists and is claimed (``run.claimed``).
        say: takes one line of progress.
        live: takes one line after each step, to show until the next; without it a line is said every 50 steps.

    Returns:
        True at the end; False if SIGTERM or SIGUSR1 asked to stop: the run is saved and can go on.

    Raises:
        FloatingPointError: loss or gradient was not finite in 3 steps in a row; none of them was taken.
        NoCheckpointError: all checkpoints of the run are damaged, or gone although it had some.
        ValueError: fewer events in a batch than processes, or a checkpoint that does not fit.
        OSError: the last checkpoint cannot be written, or an event cannot be read.
    """
    if config.batch_events < world():
        raise ValueError(
            f"batch_events is {config.batch_events} and {world()} processes train; expected an event for each at least"
        )
    optimizer = make_optimizer(task.model, config.optim)
    checkpoints = Checkpoints(run / "checkpoints", config_hash(config), say)
    state = on_first(lambda: checkpoints.resume(task.model, optimizer))
    share_state(task.model, optimizer)
    begin = state.step
    if begin:
        say(f"going on from step {begin}")
    on_first(lambda: _check_not_lost(run, begin, config))
    journal = Journal(run, begin, say, config.tensorboard)
    stream = Stream(len(events), config.batch_events, config.seed)
    share = Share(events, stream, task.batch, config.steps, rank(), world())
    started = time.monotonic()
    with stop_signals() as stop, closing(inputs(share, begin, config.workers)) as batches:
        fault_point("begin", begin)
        for step in range(begin, config.steps):
            progress, done, clock = step / config.steps, step + 1, time.monotonic()
            batch = next(batches)
            mine = {"waited": (time.monotonic() - clock) / world(), "points": batch.n_points, "stop": stop.asked}
            rate, decay = learning_rate(config.optim, progress), weight_decay(config.optim, progress)
            set_learning_rate(optimizer, rate)
            set_weight_decay(optimizer, decay)
            losses, norm = _backward(task, batch, progress, optimizer, config)
            summed = _summed(losses, {**mine, "gradient": norm / world()})
            finite = math.isfinite(summed["loss"]) and math.isfinite(summed["gradient"])  # the same in all processes
            if finite:  # a branch: NaN times zero is NaN
                optimizer.step()
                task.after_step(progress)
            state = replace(
                state,
                step=done,
                skipped=state.skipped + (not finite),
                in_a_row=0 if finite else state.in_a_row + 1,
                score=None,
            )
            fault_point("step", done)
            seconds = time.monotonic() - clock
            to_go = (time.monotonic() - started) / (done - begin) * (config.steps - done)
            record: dict[str, float | int] = {
                "step": done,
                "loss": summed["loss"],
                **{name: summed[name] for name in losses.parts},
                "lr": rate,
                "weight_decay": decay,
                "gradient": summed["gradient"],
                "skipped": state.skipped,
                "seconds": round(seconds, 4),
                "waited": round(summed["waited"] / seconds, 4),
                "events_per_s": round(config.batch_events / seconds, 2),
                "points_per_s": round(summed["points"] / seconds, 1),
                "eta_s": round(to_go, 1),
            }
            if finite:
                journal.write(record)
                if alarm := task.alarm(record):
                    journal.write({"step": done, "alarm": alarm})
                    say(f"step {done}: {alarm}")
            else:
                ordinals = stream.ordinals(step).tolist()
                journal.write({**record, "events": ordinals})
                trouble = f"step {step}: loss {summed['loss']:g}, gradient {summed['gradient']:g}, events {ordinals}"
                if state.in_a_row == MOST_SKIPPED:
                    raise FloatingPointError(
                        f"{trouble}; {MOST_SKIPPED} steps in a row are not finite and none was taken, "
                        f"{checkpoints.folder} has the last good state"
                    )
                say(f"{trouble}; not taken ({state.skipped} so far)")
            line = f"step {done}/{config.steps}  loss {summed['loss']:.4f}  {seconds:.2f} s a step"
            if live is not None:
                live(f"{line}  {timedelta(seconds=round(to_go))} to go")
            elif done % SAY_EVERY == 0:
                say(f"{line}  {timedelta(seconds=round(to_go))} to go")
            if done % config.evaluate_every == 0 or done == config.steps:
                result = on_first(lambda: _evaluated(task, done, say))  # noqa: B023, it is called here
                state = _scored(state, result)
                if result:
                    journal.write({"step": done, **{f"validation_{key}": value for key, value in result.items()}})
                    numbers = "  ".join(f"{key} {value:.4f}" for key, value in result.items())
                    say(f"step {done}/{config.steps}  {numbers}")
            stopping = summed["stop"] > 0 and done < config.steps
            last = stopping or done == config.steps
            if last or done % config.save_every == 0:
                journal.sync()
                now = state
                on_first(lambda: checkpoints.save(now, task.model, optimizer, last))  # noqa: B023, it is called here
            if stopping:
                say(f"step {done}/{config.steps}: stopped by a signal and saved; the same command goes on from there")
                break
    journal.close()
    return state.step == config.steps


def _check_not_lost(run: Path, begin: int, config: RunConfig) -> None:
    """A run that has logged the steps of a checkpoint, and has none, was not killed before its first."""
    if begin == 0 and (logged := logged_steps(run)) > config.save_every:
        raise NoCheckpointError(
            f"{run}: {logged} steps are logged, but there is no checkpoint: they were removed or could not be written; "
            "remove the folder to start over"
        )


def _backward(
    task: Task[B], batch: B, progress: float, optimizer: torch.optim.Optimizer, config: RunConfig
) -> tuple[Losses, Tensor]:
    """The losses of this process's share, and the norm of the whole batch's gradient, which is left clipped."""
    device = next(task.model.parameters()).device
    autocast = config.autocast and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    optimizer.zero_grad()
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):  # bfloat16 needs no scaling of the loss
        losses = task.loss(batch.to(device), progress)
    losses.total.backward()  # type: ignore[no-untyped-call]
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    sum_gradients(trained)
    return losses, torch.nn.utils.clip_grad_norm_(trained, config.optim.clip)


def _summed(losses: Losses, others: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Everything that is logged or decided on, summed over the processes: one exchange, one wait for the device."""
    values = {"loss": losses.total, **losses.parts, **others}
    device = losses.total.device
    tensors = [torch.as_tensor(value, dtype=torch.float64, device=device).detach() for value in values.values()]
    return dict(zip(values, total(torch.stack(tensors)).tolist(), strict=True))


def _evaluated(task: Task[B], step: int, say: Callable[[str], None]) -> Mapping[str, float]:
    try:
        return task.evaluate()
    except (ValueError, OSError) as error:  # weeks of training are not to be lost to a file of validation events
        say(f"step {step}: no validation: {error}")
        return {}


def _scored(state: State, result: Mapping[str, float]) -> State:
    """The state after a validation. Its first number tells which weights are best; NaN is never best."""
    score = next(iter(result.values()), math.nan)
    if not math.isfinite(score):
        return state
    return replace(state, score=float(score), best=max(float(score), -math.inf if state.best is None else state.best))


def _silent(_: str) -> None:
    pass
