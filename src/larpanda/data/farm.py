"""Generated events into a file: made in chunks by several processes, kept while a run lasts, joined in order.

Knows processes and what is left of a run that was stopped; what an event is, `generate` knows.
"""

import glob
import json
import math
import multiprocessing
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from larpanda.data.generate import GeneratedEvents
from larpanda.data.pilarnet import encode
from larpanda.data.rows import Row, check_target, read_rows, write_rows
from larpanda.publish import LOCK, locked, publish_text

Progress = Callable[[str, int, int], None]  # what is going on, events done, of how many

RECORD = "run.json"
FEWEST, MOST = 16, 256  # events to a chunk: some 5 s of work, which is what a stopped run loses
EVENT, CHUNK = "event", "chunk"  # what workers tell when it is made
CHUNKS = 64  # of a smaller run, so that many workers have something to do


def generate_file(
    path: Path,
    events: GeneratedEvents,
    workers: int = 1,
    *,
    chunk_events: int | None = None,
    progress: Progress = lambda stage, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Make events and write them, in order, with how they were made as `provenance`.

    What is made is kept in the folder ``<path>.partial`` until the file is complete: after a stop, however hard, the
    same call goes on there. The bytes of the file depend on `events` alone.

    Args:
        path: ends in .h5, .hdf5 or .parquet; an old file of that name is replaced at the end.
        events: what `generate` returns.
        workers: processes, 1: this one. A script that asks for more needs ``if __name__ == "__main__":``.
        chunk_events: events to a file in the folder; by itself a function of the number of events.
        progress: called after each event.
        say: gets a line if the run goes on from an earlier one.

    Raises:
        ValueError: another suffix; the folder belongs to another run, or a run is writing there now; or an event
            cannot be made.
        OSError: the file cannot be written, or a worker died (ChildProcessError).
    """
    check_target(path)
    n = len(events)
    # The number of workers must not matter: a run may go on with more of them.
    size = chunk_events or min(max(math.ceil(n / CHUNKS), FEWEST), MOST)
    provenance = events.provenance()
    folder = path.with_name(f"{path.name}.partial")
    with _claimed(folder, {**provenance, "chunk_events": size}):
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):  # of a run killed while it joined
            left.unlink(missing_ok=True)
        chunks = [_Chunk(events[i : i + size], folder / f"from-{i:09d}.parquet") for i in range(0, n, size)]
        todo = [chunk for chunk in chunks if not chunk.path.exists()]
        done = n - sum(len(chunk.events) for chunk in todo)
        if done:
            say(f"{folder}: going on with an earlier run, {done} of {n} events are there")
        _make_all(todo, workers, lambda made: progress("making", done + made, n))
        write_rows(path, _joined(chunks, lambda read: progress("joining", read, n)), json.dumps(provenance))


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Some of the events, and the file that they are kept in. The file is whole or not there."""

    events: GeneratedEvents
    path: Path

    def make(self, made: Callable[[], None]) -> None:
        """Write the file; tells of each event."""

        def rows() -> Iterator[Row]:
            for ordinal, event in enumerate(self.events):
                yield encode(event, ordinal)
                made()

        write_rows(self.path, rows())


def _joined(chunks: Sequence[_Chunk], tell: Callable[[int], None]) -> Iterator[Row]:
    read = 0
    for chunk in chunks:
        for row in read_rows(chunk.path):
            yield row
            read += 1
            tell(read)


@contextmanager
def _claimed(folder: Path, record: Mapping[str, Any]) -> Iterator[None]:
    """Have a folder for this run alone; it is removed at the end, and after a failure if nothing was made."""
    folder.mkdir(exist_ok=True)
    with locked(folder):
        made = {path.name for path in folder.iterdir()} - {RECORD, LOCK}
        made = {name for name in made if not (name.startswith(".") and name.endswith(".part"))}
        if made and (difference := _difference(folder / RECORD, record)):
            raise ValueError(
                f"{folder}: holds events of another run ({difference}); give the command of that run to go on with it, "
                "or delete this folder to start over"
            )
        for left in folder.glob(".*.part"):  # of a process that was killed
            left.unlink(missing_ok=True)
        publish_text(folder / RECORD, json.dumps(record, indent=2))
        try:
            yield
        except BaseException:
            if not any(folder.glob("*.parquet")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
    shutil.rmtree(folder)


def _difference(path: Path, record: Mapping[str, Any]) -> str:
    """What a folder's record says that this run does not, or nothing."""
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"it has no {RECORD}"
    here = json.loads(json.dumps(record))  # tuples are lists there
    if not isinstance(there, dict):
        return f"{RECORD} is damaged"
    different = [name for name in here if there.get(name) != here[name] and name != "settings"]
    if not different:
        return "" if there == here else "other settings"
    return ", ".join(f"{name} {json.dumps(there.get(name))} there, {json.dumps(here[name])} here" for name in different)


def _make_all(chunks: Sequence[_Chunk], workers: int, tell: Callable[[int], None]) -> None:
    """Make chunks, in this process or in others. tell: called with the number of events made, after each."""
    made = 0

    def one_more() -> None:
        nonlocal made
        made += 1
        tell(made)

    if min(workers, len(chunks)) <= 1:
        for chunk in chunks:
            chunk.make(one_more)
        return
    waiting = deque(chunks)
    crew = _start_workers(min(workers, len(chunks)))
    try:
        for connection, process in crew.items():
            _send(connection, process, waiting.popleft())
        busy = len(crew)
        while busy:
            for connection in wait(list(crew)):
                message = _receive(connection, crew[connection])
                if isinstance(message, Exception):
                    raise message
                if message == EVENT:
                    one_more()
                elif waiting:
                    _send(connection, crew[connection], waiting.popleft())
                else:
                    busy -= 1
    finally:
        for connection, process in crew.items():
            process.terminate()  # idle, or it makes what nobody waits for
            connection.close()
        for process in crew.values():
            process.join()


def _start_workers(n: int) -> dict[Any, BaseProcess]:
    """Processes, by the connection to them."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of other libraries' threads
    crew: dict[Any, BaseProcess] = {}
    main_thread = threading.current_thread() is threading.main_thread()
    # Ctrl-C reaches every process of a terminal. Workers ignore it from their first instant and leave it to this one.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main_thread else None
    try:
        for _ in range(n):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there,), daemon=True)
            process.start()
            there.close()
            crew[here] = process
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    return crew


def _work(connection: Any) -> None:
    """Make chunks as they come. Ends when the other side does: what is sent after each event would not arrive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        while True:
            connection.recv().make(lambda: connection.send(EVENT))
            connection.send(CHUNK)
    except (EOFError, ConnectionError):
        pass
    except (ValueError, OSError) as error:  # the caller's mistakes, full disks; others are ours, and show their trace
        with suppress(ConnectionError):
            connection.send(error)


def _send(connection: Any, process: BaseProcess, chunk: _Chunk) -> None:
    try:
        connection.send(chunk)
    except ConnectionError:
        raise _death(process) from None


def _receive(connection: Any, process: BaseProcess) -> Any:
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        raise _death(process) from None


def _death(process: BaseProcess) -> ChildProcessError:
    process.join(10)
    code = process.exitcode
    how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    why = "; was there memory for all of them (--workers)?" if code == -9 else ""
    return ChildProcessError(f"a worker {how}{why}; what was made is kept: the same command goes on there")
