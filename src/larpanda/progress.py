"""What long work says on stderr: lines that stay, and on a terminal one below them that changes."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

CLEAR = "\r\x1b[2K"
LINE_SECONDS = 60  # between lines of a Meter where there is no terminal


class Progress:
    """Where a training run says its lines: ``fit(..., say=progress.say, live=progress.live)``."""

    def __init__(self, quiet: bool) -> None:
        """Say nothing at all if quiet."""
        self._quiet = quiet
        self._shown = ""
        self.live: Callable[[str], None] | None = None
        """Shows a line until the next; None where there is no terminal or nothing is to be said."""
        if not quiet and sys.stderr.isatty():
            self.live = self._show

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._quiet:
            return
        if self._shown:
            line = f"{CLEAR}{line}\n{self._shown}"
        print(line, end="" if self._shown else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Keep the live line as it is, and begin a new one."""
        if self._shown:
            print(file=sys.stderr, flush=True)
            self._shown = ""

    def _show(self, line: str) -> None:
        self._shown = line[: shutil.get_terminal_size().columns - 1]  # a longer one would break, and not be cleared
        print(CLEAR + self._shown, end="", file=sys.stderr, flush=True)


class Meter:
    """How far a long run is: a bar on a terminal, elsewhere a line a minute; at the end events a second."""

    def __init__(self, name: str, quiet: bool) -> None:
        """Begin to count. name: what its lines begin with; quiet: say nothing."""
        self._name, self._quiet, self._terminal = name, quiet, sys.stderr.isatty()
        self._bar: Any = None
        self._stage, self._first = "", 0
        self._begun = self._told = self._last = time.monotonic()

    def say(self, line: str) -> None:
        """A line for a person."""
        if not self._quiet:
            print(f"{self._name}: {line}", file=sys.stderr, flush=True)

    def tell(self, stage: str, done: int, total: int) -> None:
        """One more is done. Rates are those of this run: a resumed one begins with what is there."""
        from tqdm import tqdm

        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._first, self._begun = stage, done - 1, self._last
            if self._terminal and not self._quiet:
                self._bar = tqdm(desc=stage, total=total, initial=done - 1, unit=" events", leave=False)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            if done == total:
                self._bar.close()
        self._last = now
        if done == total or (self._bar is None and now > self._told + LINE_SECONDS):
            self._told = now
            rate = (done - self._first) / max(now - self._begun, 1e-9)
            self.say(f"{stage}: {done} of {total} events, {rate:.1f} events/s")


class FilesMeter:
    """How far work on many files is: a bar of events on a terminal, elsewhere a line a minute."""

    def __init__(self, name: str, files: int, quiet: bool) -> None:
        """Begin to count. name: what its lines begin with; files: of them; quiet: say nothing."""
        self._name, self._files, self._quiet = name, files, quiet
        self._terminal = sys.stderr.isatty()
        self._done: dict[str, int] = {}  # events of the files under way
        self._ended = self._events = 0
        self._begun = self._told = time.monotonic()

    def tell(self, file: str, done: int, n: int) -> None:
        """Of a file's n events so many are done."""
        self._done[file] = done
        now, wait = time.monotonic(), 0.2 if self._terminal else LINE_SECONDS
        if self._quiet or now < self._told + wait:
            return
        self._told = now
        events = self._events + sum(self._done.values())
        rate = events / max(now - self._begun, 1e-9)
        line = f"{self._name}: {self._ended} of {self._files} files, {events} events, {rate:.1f} events/s"
        print(
            f"{CLEAR}{line}" if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def ended(self, file: str) -> None:
        """A file is done with."""
        self._ended += 1
        self._events += self._done.pop(file, 0)
        self.close()

    def close(self) -> None:
        """Take the live line away."""
        if self._terminal and not self._quiet:
            print(CLEAR, end="", file=sys.stderr, flush=True)
