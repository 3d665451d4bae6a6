"""Manifests: what became of one input file, written last. Where one is there and verifies, the file is done.

``FOLDER/STEM_manifest.json`` names the input with its hash, all that decides the result, what became of the events, and
the tables with their hashes. It holds no time, host or path: who made it does not show.
"""

import glob
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from larpanda.event import Status
from larpanda.publish import digest, locked, publish_text

FORMAT = 1
TABLES = ("events", "particles", "interactions", "voxels")


@dataclass(frozen=True, slots=True)
class InputFile:
    """An input file as it was read."""

    name: str  # without its folder
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "InputFile":
        """Raises OSError if it cannot be read."""
        return cls(path.name, *digest(path))


@dataclass(frozen=True, slots=True)
class Table:
    """A table that was written."""

    file: str
    rows: int  # of HDF5: events
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What became of one input file."""

    input: InputFile
    provenance: Mapping[str, Any]  # all but the input that decides the result: model, settings, versions
    events: int  # rows of the table of events
    statuses: Mapping[str, int]  # how many of them have each Status that occurs
    tables: tuple[Table, ...]

    @classmethod
    def of(
        cls,
        out: Path,
        stem: str,
        source: InputFile,
        provenance: Mapping[str, Any],
        events: int,
        statuses: Mapping[str, int],
    ) -> "Manifest":
        """Take stock of the tables of an input file in a folder."""
        paths = [path for name in TABLES if (path := _table(out, stem, name)).exists()]
        tables = [Table(path.name, pq.read_metadata(path).num_rows, *digest(path)) for path in paths]
        if (path := hdf5_path(out, stem)).exists():
            tables.append(Table(path.name, events, *digest(path)))
        return cls(source, provenance, events, dict(sorted(statuses.items())), tuple(tables))

    @property
    def stem(self) -> str:
        """First part of the names of its files."""
        return Path(self.input.name).stem

    @property
    def failed(self) -> int:
        """Events without a result for which the event is not to blame."""
        return self.statuses.get(Status.FAILED.value, 0)

    def publish(self, out: Path) -> None:
        """Write it, whole or not at all."""
        publish_text(path_of(out, self.stem), json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")

    def damage(self, out: Path) -> str:
        """What is wrong with its tables, empty if nothing: each byte of them is read."""
        for table in self.tables:
            path = out / table.file
            if not path.is_file():
                return f"{table.file} is missing"
            if digest(path) != (table.bytes, table.sha256):
                return f"{table.file} differs from what was written"
        return ""


def path_of(out: Path, stem: str) -> Path:
    """Where the manifest of an input file is."""
    return out / f"{stem}_manifest.json"


def hdf5_path(out: Path, stem: str) -> Path:
    """Where the same tables are as one HDF5 file, if they are; not STEM.h5, which the input may be."""
    return out / f"{stem}_tables.h5"


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        ValueError: it is none, or of another format.
        FileNotFoundError: there is none.
    """
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        if there.pop("format") != FORMAT:
            raise ValueError(f"{path}: a manifest of another format; this larpanda reads {FORMAT}")
        source = InputFile(**there.pop("input"))
        tables = tuple(Table(**one) for one in there.pop("tables"))
        return Manifest(source, tables=tables, **there)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError(f"{path}: not a manifest; remove it, and the file is reconstructed again") from None


@contextmanager
def undone(out: Path, stem: str) -> Iterator[None]:
    """Work on an input file: alone, its old manifest taken away, and what a killed process left half written.

    Raises:
        ValueError: another process is at work on it.
    """
    name = f".{stem}.lock"
    with locked(out, name):
        path_of(out, stem).unlink(missing_ok=True)
        hdf5_path(out, stem).unlink(missing_ok=True)
        for path in (path_of(out, stem), hdf5_path(out, stem), *(_table(out, stem, name) for name in TABLES)):
            for left in out.glob(f"*{glob.escape(path.name)}.*.part"):
                if left.name.startswith((path.name, f".{path.name}")):
                    left.unlink(missing_ok=True)
        try:
            yield
        finally:
            (out / name).unlink(missing_ok=True)


def _table(out: Path, stem: str, name: str) -> Path:
    return out / f"{stem}_{name}.parquet"
