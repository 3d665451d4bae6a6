"""Rows of PILArNet-M in HDF5 and Parquet: one is read without the rest, a file is written whole or not at all.

Knows the two containers and the names of the six lists and three numbers of a row; what they mean is the matter of
`pilarnet`.
"""

import itertools
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from larpanda.event import UNKNOWN
from larpanda.publish import publishing

Array = npt.NDArray[Any]

SUFFIXES = (".h5", ".hdf5", ".parquet")
POINT = ("x", "y", "z", "value", "energy", "time", "electrons", "dx")
PROVENANCE = "provenance"  # of the whole file: JSON, an attribute in HDF5, metadata of the schema in Parquet
EVENTS_A_GROUP = 50  # of Parquet: what one random read costs


@dataclass(frozen=True, slots=True)
class Row:
    """One event as it is written: flat lists of numbers, and the experiment's own numbers."""

    point: npt.NDArray[np.float32]  # 8 for each voxel
    cluster: npt.NDArray[np.int64]  # 6 for each cluster
    # float64: momenta are GeV/c there and MeV/c here, and half of all float32 MeV/c have no float32 GeV/c that gives
    # them back; codes of nuclei (1000180400) do not fit either.
    cluster_extra: npt.NDArray[np.float64]  # 6 for each cluster
    cluster_extra_2: npt.NDArray[np.float64]  # 5 for each cluster
    interaction_extra: npt.NDArray[np.float32]  # 4 for each interaction
    larpanda_truth: npt.NDArray[np.float32]  # 5 for each cluster, or none
    _: KW_ONLY
    run: int = UNKNOWN
    subrun: int = UNKNOWN
    event: int = UNKNOWN

    @property
    def n_points(self) -> int:
        """Voxels of the event."""
        return len(self.point) // len(POINT)

    @property
    def optional(self) -> tuple[str, ...]:
        """Those of OPTIONAL that the event has something in; one of its own numbers is enough for the three."""
        has_number = any(getattr(self, key) != UNKNOWN for key in NUMBERS)
        return ((OWN,) if len(self.larpanda_truth) else ()) + (NUMBERS if has_number else ())


NUMBERS = ("run", "subrun", "event")  # of the experiment, one integer for each event
LISTS = tuple(field.name for field in fields(Row) if field.name not in NUMBERS)
TYPES = dict(zip(LISTS, (np.float32, np.int64, np.float64, np.float64, np.float32, np.float32), strict=True))
OWN = "larpanda_truth"
OPTIONAL = (OWN, *NUMBERS)  # not of PILArNet-M: written only if an event of the file has something in it


class Hdf5Rows:
    """Rows of an HDF5 file: one dataset for each name, of variable-length lists or of integers."""

    def __init__(self, path: Path, name: str) -> None:
        """Open a file. name: what messages call it. Raises ValueError if it is damaged or holds something else."""
        try:
            self._file = _open_hdf5(path)
            self.found = sorted(self._file)
            note = self._file.attrs.get(PROVENANCE)
        except (FileNotFoundError, PermissionError) as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), name) from None
        except (OSError, RuntimeError, TypeError) as error:  # the last for names that are no text
            raise ValueError(_not_readable(path, name, "HDF5", bool(h5py.is_hdf5(path)), error)) from error
        self._datasets = {key: self._file.get(key) for key in (*LISTS, *NUMBERS) if key in self.found}
        self.lengths: dict[str, int] = {}  # events, by the name of the list
        self.provenance = note if isinstance(note, str) else None
        self._types: dict[str, np.dtype[Any]] = {}
        for key, dataset in self._datasets.items():
            base, kinds = dataset.dtype if isinstance(dataset, h5py.Dataset) else None, "iu"
            if base is not None and key in LISTS:
                base, kinds = h5py.check_vlen_dtype(base), "iuf"
            if not isinstance(base, np.dtype) or base.kind not in kinds or dataset.ndim != 1:
                raise ValueError(f"{name}: '{key}' is {dataset}; expected {_expected(key)}")
            self.lengths[key], self._types[key] = len(dataset), base

    def read(self, key: str, entry: int) -> Array:
        """One list of one event; a number as a list of it."""
        if key in NUMBERS:
            return np.array([self._datasets[key][entry]])
        values = np.asarray(self._datasets[key][entry])
        # h5py (3.16) hands out big-endian lists as they lie in the file, and calls them native.
        return values if values.dtype == self._types[key] else values.view(self._types[key])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ParquetRows:
    """Rows of a Parquet file: one column for each name, of lists or of integers.

    Keeps the last row group: reading on is linear.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Open a file. name: what messages call it. Raises ValueError if it is damaged or holds something else."""
        try:
            self._file = pq.ParquetFile(path)
        except (FileNotFoundError, PermissionError) as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), name) from None
        except (OSError, pa.ArrowException) as error:
            with path.open("rb") as file:
                is_parquet = file.read(4) == b"PAR1"
            raise ValueError(_not_readable(path, name, "Parquet", is_parquet, error)) from error
        schema, metadata = self._file.schema_arrow, self._file.metadata
        self.found = list(schema.names)
        note = (schema.metadata or {}).get(PROVENANCE.encode())
        self.provenance = None if note is None else note.decode(errors="replace")
        keys = [key for key in (*LISTS, *NUMBERS) if key in self.found]
        for key in keys:
            kind = schema.field(key).type
            is_number = pa.types.is_integer(kind) or pa.types.is_null(kind)
            if not (is_number if key in NUMBERS else _is_list_of_numbers(kind)):
                raise ValueError(f"{name}: '{key}' is {kind}; expected {_expected(key)}")
        self.lengths = dict.fromkeys(keys, int(metadata.num_rows))  # events, by the name of the list
        sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._starts = list(itertools.accumulate(sizes, initial=0))
        self._last: dict[str, tuple[int, Any]] = {}  # name of a list -> row group and its column

    def read(self, key: str, entry: int) -> Array:
        """One list of one event; a number as a list of it, or of none where it is null."""
        wanted = bisect_right(self._starts, entry) - 1
        group, column = self._last.get(key, (-1, None))
        if group != wanted:
            # One thread: a pool of threads does not survive the fork of a data loader.
            column = self._file.read_row_group(wanted, columns=[key], use_threads=False)[key]
            self._last[key] = wanted, column
        value = column[entry - self._starts[wanted]]
        if key in NUMBERS:
            return np.array([value.as_py()]) if value.is_valid else np.empty(0)
        values = value.values
        return np.empty(0) if values is None else np.asarray(values.to_numpy(zero_copy_only=False))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_rows(path: Path, name: str) -> Hdf5Rows | ParquetRows:
    """Open a file by its suffix. Raises ValueError, FileNotFoundError or PermissionError, which call it ``name``."""
    return ParquetRows(path, name) if path.suffix.lower() == ".parquet" else Hdf5Rows(path, name)


def read_rows(path: Path) -> Iterator[Row]:
    """All rows of a file, in order, one in memory at a time (of Parquet: a row group). A list it lacks is empty."""
    with closing(open_rows(path, str(path))) as file:
        for entry in range(file.lengths["point"]):
            lists = (file.read(key, entry) if key in file.lengths else np.empty(0) for key in LISTS)
            typed = (values.astype(TYPES[key], copy=False) for key, values in zip(LISTS, lists, strict=True))
            numbers = (number_of(file.read(key, entry)) if key in file.lengths else UNKNOWN for key in NUMBERS)
            run, subrun, event = numbers
            yield Row(*typed, run=run, subrun=subrun, event=event)


def number_of(values: Array) -> int:
    """The number in a list of one or none. UNKNOWN: none, or more than 63 bits, as some write for none."""
    number = int(values[0]) if len(values) else UNKNOWN
    return number if number < 2**63 else UNKNOWN


def check_target(path: Path) -> None:
    """Raises ValueError or OSError if no file of that name can be written: another suffix, a folder, no folder."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: the name does not tell the format; expected one that ends in {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: this is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")


def write_rows(path: Path, rows: Iterable[Row], provenance: str | None = None) -> None:
    """Write a file, whole or not at all. The same rows give the same bytes.

    HDF5 gets ``<name>_points.npy`` beside it, the number of points of each event, which other loaders use as an index.

    Args:
        path: ends in one of SUFFIXES.
        rows: the events; one is in memory at a time (of Parquet: a row group).
        provenance: JSON, how the events were made.

    Raises:
        ValueError: the suffix is none of SUFFIXES.
        OSError: the file cannot be written; nothing of it is left, and an old file of that name stays.
    """
    check_target(path)
    n_points = []
    with publishing(path) as part:
        try:
            part.touch()  # a folder that cannot be written to says so here, in the system's words
        except OSError as error:
            raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from None
        is_parquet = path.suffix.lower() == ".parquet"
        with closing(_ParquetWriter(part, provenance) if is_parquet else _Hdf5Writer(part, provenance)) as writer:
            for row in rows:
                writer.write(row)
                n_points.append(row.n_points)
        index = path.with_name(f"{path.stem}_points.npy")
        if not is_parquet:
            index.unlink(missing_ok=True)  # should we stop between the two files: no index, rather than another file's
    if not is_parquet:
        with publishing(index) as part, part.open("wb") as file:
            np.save(file, np.array(n_points, np.int64))


class _Hdf5Writer:
    def __init__(self, path: Path, provenance: str | None) -> None:
        self._file = h5py.File(path, "w", locking=False)
        if provenance is not None:
            self._file.attrs[PROVENANCE] = provenance
        self._written = 0
        self._datasets = {key: self._create(key) for key in LISTS if key not in OPTIONAL}

    def write(self, row: Row) -> None:
        self._datasets |= {key: self._create(key) for key in row.optional if key not in self._datasets}
        for key, dataset in self._datasets.items():
            dataset.resize((self._written + 1,))
            dataset[self._written] = getattr(row, key)
        self._written += 1

    def close(self) -> None:
        self._file.close()

    def _create(self, key: str) -> h5py.Dataset:
        dtype, fill = (np.int64, UNKNOWN) if key in NUMBERS else (h5py.vlen_dtype(TYPES[key]), None)
        return self._file.create_dataset(
            key, (self._written,), dtype, maxshape=(None,), chunks=(64,), fillvalue=fill, track_times=False
        )


class _ParquetWriter:
    """Adds `n_points` and `event_id`, the place in the file."""

    def __init__(self, path: Path, provenance: str | None) -> None:
        self._path = path
        lists = [_field(key) for key in LISTS if key not in OPTIONAL]
        note = None if provenance is None else {PROVENANCE: provenance}
        self._schema = pa.schema([*lists, ("n_points", pa.int64()), ("event_id", pa.int64())], note)
        self._file = self._open()
        self._waiting: list[Row] = []
        self._written = 0

    def write(self, row: Row) -> None:
        self._waiting.append(row)
        if len(self._waiting) == EVENTS_A_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._waiting:
            if missing := {key for row in self._waiting for key in row.optional} - set(self._schema.names):
                self._widen(missing)
            columns: dict[str, Any] = {key: [getattr(row, key) for row in self._waiting] for key in LISTS}
            for key in NUMBERS:
                numbers = (getattr(row, key) for row in self._waiting)
                columns[key] = [None if number == UNKNOWN else number for number in numbers]
            columns["n_points"] = [row.n_points for row in self._waiting]
            columns["event_id"] = range(self._written, self._written + len(self._waiting))
            self._file.write_table(pa.table(columns, schema=self._schema))
            self._written += len(self._waiting)
            self._waiting = []

    def _widen(self, missing: set[str]) -> None:
        """Give the file columns of OPTIONAL: they are settled at its beginning, so what is written is written again."""
        self._file.close()
        earlier = self._path.replace(self._path.with_name(f"{self._path.name}.earlier"))
        try:
            there = missing | set(self._schema.names)
            always = [field for field in self._schema if field.name not in OPTIONAL]
            optional = [_field(key) for key in OPTIONAL if key in there]  # in this order, whichever event comes first
            self._schema = pa.schema([*always, *optional], self._schema.metadata)
            self._file = self._open()
            with pq.ParquetFile(earlier) as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group)
                    for key in missing:
                        nothing = pa.array([[] if key == OWN else None] * len(table), _field(key).type)
                        table = table.append_column(_field(key), nothing)
                    self._file.write_table(table.select(self._schema.names))
        finally:
            earlier.unlink()

    def _open(self) -> pq.ParquetWriter:
        return pq.ParquetWriter(self._path, self._schema, compression="zstd", use_dictionary=False)


def _field(key: str) -> pa.Field:
    return pa.field(key, pa.int64() if key in NUMBERS else pa.list_(pa.from_numpy_dtype(TYPES[key])))


def _expected(key: str) -> str:
    return f"one {'integer' if key in NUMBERS else 'list of numbers'} for each event"


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)))


def _open_hdf5(path: Path) -> h5py.File:
    """Open for reading. Without a lock only where there is none to be had, as on many shared file systems: a process
    cannot have a file open both with and without, and the user's own h5py.File(path) should work beside ours."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "lock" not in str(error):
            raise
    return h5py.File(path, "r", locking=False)


def _not_readable(path: Path, name: str, kind: str, has_signature: bool, error: BaseException) -> str:
    if has_signature:
        return f"{name}: this {kind} file is truncated or damaged ({first_line(error)}); copy or make it again"
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        return f"{name}: the file is empty (0 bytes); expected {kind}; copy or make it again"
    return f"{name}: not {kind}, whatever its name says: it begins with {start!r}; expected events in {kind}"


def first_line(error: BaseException) -> str:
    """What an exception says, without the rest."""
    return str(error).strip().partition("\n")[0]
