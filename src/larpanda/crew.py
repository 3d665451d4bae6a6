"""Work in processes that may die or hang: a task is tried again and, if it does not do, reported; none is lost."""

import multiprocessing
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Tell = Callable[[Any], None]

READY, TOLD, DONE, ERROR = "ready", "told", "done", "error"
LOOK_SECONDS = 0.5  # between looks at who hangs
START_SECONDS = 300.0  # more than patience for a process that is not ready yet: libraries may lie on a slow disk


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T, R]):
    """What became of a task."""

    task: T
    result: R | None
    error: str  # why there is no result, one line; empty if there is
    tries: int
    ending: str = ""  # what the last process did, if it died or hung


@dataclass(slots=True, eq=False)
class _Worker(Generic[T]):
    process: BaseProcess
    is_ready: bool = False
    task: T | None = None  # None: idle
    tries: int = 0
    heard: float = 0.0  # when something was last heard of it, seconds
    last: Any = None  # what it told last


def outcomes(
    tasks: Sequence[T],
    work: Callable[[T, Tell], R],
    workers: int,
    *,
    patience_s: float,
    tries: int = 3,
    told: Callable[[T, Any], None] = lambda task, what: None,
) -> Iterator[Outcome[T, R]]:
    """Do tasks in other processes; what becomes of each, as it ends.

    A task whose process dies, or from which nothing is heard for too long, is given to another process. What ``work``
    raises as ValueError, OSError or MemoryError is its outcome at once: it would raise it again.

    Args:
        tasks: can be sent to processes.
        work: a function of a module, which does one task. It calls its second argument with anything that can be sent,
            often enough to show that it is at work. When the process that waits for it is gone, that call raises.
        workers: processes at most. A script that asks for them needs ``if __name__ == "__main__":``.
        patience_s: seconds without a word after which a process is killed.
        tries: how often a task is begun at most.
        told: takes the task and what was told of it.
    """
    waiting = deque((task, 0) for task in tasks)
    crew: dict[Connection, _Worker[T]] = {}
    try:
        while waiting or any(worker.task is not None for worker in crew.values()):
            while waiting and (free := _free(crew, workers, work)) is not None:
                task, before = waiting.popleft()
                crew[free].task, crew[free].tries, crew[free].heard = task, before + 1, time.monotonic()
                crew[free].last = None
                with suppress(ConnectionError):  # it died idle: it is found dead below
                    free.send(task)
            ready = wait(list(crew), LOOK_SECONDS)
            for connection, worker in list(crew.items()):
                trouble = ""
                if connection in ready:
                    try:
                        kind, value = connection.recv()
                    except (EOFError, ConnectionError):
                        trouble = _death(worker.process)
                    else:
                        worker.heard = time.monotonic()
                        if kind == READY:
                            worker.is_ready = True
                            continue
                        assert worker.task is not None
                        if kind == TOLD:
                            worker.last = value
                            told(worker.task, value)
                            continue
                        task, worker.task = worker.task, None
                        error = value if kind == ERROR else ""
                        yield Outcome(task, None if error else value, error, worker.tries)
                elif (
                    worker.task is not None
                    and time.monotonic() > worker.heard + patience_s + (not worker.is_ready) * START_SECONDS
                ):
                    trouble = f"hung (nothing was heard of it for {patience_s:g} s)"
                if trouble:
                    del crew[connection]
                    _end(connection, worker.process)
                    if worker.task is None:
                        continue
                    if worker.tries < tries:
                        waiting.append((worker.task, worker.tries))
                    else:
                        after = "" if worker.last is None else f" after {worker.last}"
                        error = f"its process {trouble}{after} ({worker.tries} {'tries' if tries > 1 else 'try'})"
                        yield Outcome(worker.task, None, error, worker.tries, trouble)
    finally:
        for connection, worker in crew.items():
            _end(connection, worker.process)


def _free(crew: dict[Connection, _Worker[T]], workers: int, work: Callable[[T, Tell], R]) -> Connection | None:
    """An idle worker, a new one, or None."""
    for connection, worker in crew.items():
        if worker.task is None:
            return connection
    if len(crew) >= workers:
        return None
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of other libraries' threads
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, work), daemon=True)
    # Ctrl-C reaches every process of a terminal. Workers ignore it from their first instant and leave it to this one.
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main_thread else None
    try:
        process.start()
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    there.close()
    crew[here] = _Worker(process)
    return here


def _work(connection: Connection, work: Callable[[Any, Tell], Any]) -> None:
    """Do tasks as they come; ends when the other side does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, ConnectionError):
        connection.send((READY, None))
        while True:
            task = connection.recv()
            try:
                answer = (DONE, work(task, lambda what: connection.send((TOLD, what))))
            except ConnectionError:
                raise
            except (ValueError, OSError, MemoryError) as error:
                answer = (ERROR, " ".join(str(error).split()) or type(error).__name__)
            connection.send(answer)


def _death(process: BaseProcess) -> str:
    process.join(10)
    code = process.exitcode
    return f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"


def _end(connection: Connection, process: BaseProcess) -> None:
    process.kill()  # it is idle, hangs, or does what nobody waits for; what it publishes is whole or not there
    connection.close()
    process.join()
