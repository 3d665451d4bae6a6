"""Tables for those who analyse them: in pandas, in awkward arrays with particles within events, in one HDF5 file."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as pq

if TYPE_CHECKING:
    import awkward
    import pandas

INDEX = ("file", "entry", "particle_id", "interaction_id")
UNKNOWN_INTEGER = -1


def to_pandas(path: Path | str) -> "pandas.DataFrame":
    """A table as a data frame, indexed by event and, where a row is one of its particles or interactions, by that.

    Args:
        path: of one of the tables, merged or not.

    Returns:
        The frame; ``frame.attrs["units"]`` has the unit of each column that has one. Null integers and booleans are
        pandas' own NA. Needs pandas.

    Raises:
        ValueError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise ValueError("to_pandas needs pandas: pip install pandas") from None
    table = pq.read_table(path)
    kinds = {
        pa.int64(): pandas.Int64Dtype(),
        pa.int32(): pandas.Int32Dtype(),
        pa.int8(): pandas.Int8Dtype(),
        pa.bool_(): pandas.BooleanDtype(),
    }
    nullable = {field.type for field in table.schema if table[field.name].null_count}
    frame = table.to_pandas(types_mapper={kind: kinds[kind] for kind in kinds if kind in nullable}.get)
    own = {"events": INDEX[:2], "particles": INDEX[:3], "interactions": (*INDEX[:2], INDEX[3]), "voxels": INDEX[:2]}
    kind = Path(path).stem.rpartition("_")[2]
    found = frame.set_index([name for name in own.get(kind, INDEX[:2]) if name in frame.columns])
    found.attrs["units"] = {field.name: unit for field in table.schema if (unit := _unit(field))}
    return found


def to_awkward(folder: Path | str, stem: str | None = None) -> "awkward.Array":
    """The events of a file, or of merged tables, each with its particles, interactions and voxels as lists of records.

    Args:
        folder: of the tables.
        stem: of the input file; None: the folder has merged tables (``larpanda reconstruct --merge``).

    Returns:
        An array of one record an event: ``events.particles.energy_mev[0]`` are those of the first. Needs awkward.

    Raises:
        ValueError: awkward is not installed, or the tables are of different runs.
        FileNotFoundError: there is no such table of events.
    """
    try:
        import awkward as ak
    except ImportError:
        raise ValueError("to_awkward needs awkward: pip install awkward") from None
    tables = _tables(Path(folder), stem)
    events = tables.pop("events")
    result = ak.from_arrow(events)
    for name, table in tables.items():
        rows = ak.from_arrow(table.drop_columns([key for key in INDEX[:2] if key in table.column_names]))
        result[name] = ak.unflatten(rows, _counts(events, table))
    return result


def to_hdf5(folder: Path | str, stem: str | None = None) -> bytes:
    """The tables of a file, or merged ones, as the content of one HDF5 file: a group each, a dataset for each column.

    Units and meanings are attributes of the datasets, the provenance one of the file. What is null is NaN, or -1 of
    integers and booleans (which are 0 and 1), or an empty text.

    Args:
        folder: of the tables.
        stem: as in ``to_awkward``.

    Raises:
        FileNotFoundError: there is no such table of events.
    """
    import h5py

    content = io.BytesIO()  # a full disk makes h5py crash: the file is made in memory, and written by who asked for it
    with h5py.File(content, "w", libver="latest", track_order=False) as file:
        for name, table in _tables(Path(folder), stem).items():
            group = file.create_group(name)
            for field in table.schema:
                values = _filled(table[field.name].combine_chunks(), field.type)
                packed = {"compression": "gzip", "shuffle": True} if len(values) and values.dtype.kind != "O" else {}
                kind = h5py.string_dtype() if values.dtype.kind == "O" else values.dtype
                data = group.create_dataset(field.name, data=values, dtype=kind, track_times=False, **packed)
                data.attrs["unit"] = _unit(field)
                data.attrs["description"] = (field.metadata or {}).get(b"description", b"").decode()
            metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
            for key in (b"provenance", b"voxel_size_cm", b"origin_cm", b"coordinates"):
                file.attrs[key.decode()] = metadata.get(key, b"").decode()
    return content.getvalue()


def _filled(column: pa.Array, kind: pa.DataType) -> npt.NDArray[Any]:
    if pa.types.is_floating(kind):
        return np.asarray(column.fill_null(float("nan")).to_numpy(zero_copy_only=False))
    if pa.types.is_boolean(kind):
        return np.asarray(column.cast(pa.int8()).fill_null(UNKNOWN_INTEGER).to_numpy(zero_copy_only=False))
    if pa.types.is_integer(kind):
        return np.asarray(column.fill_null(UNKNOWN_INTEGER).to_numpy(zero_copy_only=False))
    return np.array(column.fill_null("").to_pylist(), dtype=object)


def _tables(folder: Path, stem: str | None) -> dict[str, pa.Table]:
    """Those that are there, events first."""
    prefix = f"{stem}_" if stem else ""
    paths = {name: folder / f"{prefix}{name}.parquet" for name in ("events", "particles", "interactions", "voxels")}
    if not paths["events"].exists():
        raise FileNotFoundError(f"{paths['events']}: no such table")
    return {name: pq.read_table(path) for name, path in paths.items() if path.exists()}


def _counts(events: pa.Table, table: pa.Table) -> npt.NDArray[np.int64]:
    """How many rows of a table each event has; they are in the order of the events.

    Raises:
        ValueError: the table has rows of events that are not there.
    """
    files = events["file"].unique()

    def keys(one: pa.Table) -> npt.NDArray[np.int64]:
        entry = one["entry"].to_numpy()
        if "file" not in table.column_names:
            return np.asarray(entry)
        return np.asarray(compute.index_in(one["file"], files).to_numpy().astype(np.int64) << 40 | entry)

    known, wanted = keys(events), keys(table)
    order = np.argsort(known)
    place = order[np.searchsorted(known[order], wanted).clip(max=len(order) - 1)] if len(order) else order
    if len(wanted) and not (len(order) and (known[place] == wanted).all()):
        raise ValueError("the tables are not of one another: one has rows of events that the table of events has not")
    return np.bincount(place, minlength=len(known)).astype(np.int64)


def _unit(field: pa.Field) -> str:
    return str((field.metadata or {}).get(b"unit", b"").decode())
