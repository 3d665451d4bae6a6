"""What a training run says on stderr: lines that stay, and on a terminal one below them that changes."""

import shutil
import sys
from collections.abc import Callable

CLEAR = "\r\x1b[2K"


class Progress:
    """Where ``fit`` says its lines: ``fit(..., say=progress.say, live=progress.live)``."""

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
