"""Files that appear whole or not at all (written under another name beside their own, synced, renamed), and folders
that one process at a time works in."""

import hashlib
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "lock"


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


def digest(path: Path) -> tuple[int, str]:
    """Bytes of a file, and their SHA-256."""
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            size += len(chunk)
    return size, sha256.hexdigest()


@contextmanager
def locked(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Refuse if another process is at work in a folder, or on what has a lock of that name there.

    The system forgets the lock when a process ends, however.

    Raises:
        ValueError: says which process it is.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / name).open("a+") as file:  # not "w": it would empty what the other process wrote
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip()
            where = folder if name == LOCK else folder / name
            raise ValueError(
                f"{where}: another process is at work here{f' ({who})' if who else ''}; wait for it, or end it"
            ) from None
        except OSError:  # a file system without locks: then nobody is protected from the user's own second command
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
