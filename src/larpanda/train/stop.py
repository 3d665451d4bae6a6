"""A polite end: a signal asks the run to save and stop, which the loop does after the step it is in."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ONE_REQUEST_SECONDS = 1.0
"""Signals this close are one request: Slurm signals every process of a job, and torchrun passes on what it gets."""


class Stop:
    """Whether the run was asked to stop: by SIGUSR1 (the job's time is nearly over) or SIGTERM."""

    def __init__(self) -> None:
        self.asked = False
        self._first_term: float | None = None

    def hear(self, number: int, _: FrameType | None) -> None:
        """Handle a signal; a second SIGTERM ends the process at once."""
        now = time.monotonic()
        if number == signal.SIGTERM:
            if self._first_term is not None and now > self._first_term + ONE_REQUEST_SECONDS:
                os._exit(128 + signal.SIGTERM)  # not sys.exit: the main thread may wait for another process
            self._first_term = self._first_term or now
        self.asked = True


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Listen until the end of the block. In a thread that is not the main one nothing can be heard."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]  # none on Windows
    before = [signal.signal(number, stop.hear) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
