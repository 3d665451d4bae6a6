"""Files that appear whole or not at all: written under another name beside their own, synced, renamed."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def publishing(path: Path) -> Iterator[Path]:
    """Give a temporary name in the folder of ``path``; at the end of the block the file there takes its name.

    After an exception it is removed, and an older ``path`` stays as it was.

    Raises:
        OSError: the folder does not exist or cannot be written to, or the disk is full.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        sync(part)
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def publish_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with publishing(path) as part:
        part.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Have a file written to the disk; a folder too, where folders can be opened (not on Windows)."""
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
