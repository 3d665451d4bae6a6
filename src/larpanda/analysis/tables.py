"""Reconstructions as tables: one Parquet file with a row for each event, one with a row for each voxel.

Knows columns, units and how a file appears only when it is whole; not where events come from or how they were
reconstructed. docs/tables.md is the reader's side of the two schemas.
"""

import json
import os
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from larpanda.event import UNKNOWN, VOXEL_CM, Event, EventKey, Reconstruction, Status
from larpanda.publish import sync

ROW_GROUP_VOXELS = 250_000  # about 50 events of PILArNet-M and 5 MB in memory: small to hold, large enough to compress
ROW_GROUP_EVENTS = 10_000


def _column(name: str, kind: pa.DataType, unit: str, description: str, null: str = "") -> pa.Field:
    """A column with its meaning; ``null`` says when it has no value, empty: it always has one."""
    meaning = f"{description}; null {null}" if null else description
    return pa.field(name, kind, nullable=bool(null), metadata={"unit": unit, "description": meaning})


# fmt: off
EVENTS = pa.schema([
    _column("file", pa.string(), "", "name of the input file, without its folder"),
    _column("entry", pa.int64(), "", "row of the event in the input file, from 0"),
    _column("run", pa.int64(), "", "run number of the experiment", null="if the file has none"),
    _column("subrun", pa.int64(), "", "subrun number of the experiment", null="if the file has none"),
    _column("event", pa.int64(), "", "event number of the experiment", null="if the file has none"),
    _column("status", pa.string(), "", "what became of the event: " + ", ".join(map(str, Status))),
    _column("reason", pa.string(), "", "why, in one line; empty if there is nothing to say"),
    _column("n_voxels", pa.int64(), "", "rows of the event in the input", null="if it could not be read"),
    _column("n_merged", pa.int64(), "", "rows that share the voxel of an earlier row", null="if it could not be read"),
    _column("energy_mev", pa.float64(), "MeV", "sum over all rows, seen or not", null="if it could not be read"),
    _column("n_particles", pa.int64(), "", "particles found", null="without a particle head, or if not read"),
    _column("n_interactions", pa.int64(), "", "interactions found", null="without an interaction head, or if not read"),
])
VOXELS = pa.schema([
    _column("entry", pa.int64(), "", "row of the event in the input file, as in the event table"),
    _column("x", pa.float32(), "cm", "centre of the voxel from the corner of the image: (voxel + 0.5) * 0.3"),
    _column("y", pa.float32(), "cm", "likewise"),
    _column("z", pa.float32(), "cm", "likewise"),
    _column("energy_mev", pa.float32(), "MeV", "deposited energy of the row, as in the input"),
    _column("below_threshold", pa.bool_(), "", "true: the energy of the voxel was too small for the model to see it"),
    _column("motif", pa.int8(), "", "0 shower, 1 track, 2 Michel, 3 delta, 4 low-energy deposit; -1 for none"),
    _column("motif_probability", pa.float32(), "", "probability of that motif, 0 to 1", null="where motif is -1"),
    _column("particle_id", pa.int32(), "", "particle, numbered within the event; -1 for none"),
    _column("interaction_id", pa.int32(), "", "interaction, numbered within the event; -1 for none"),
])
# fmt: on


class TableWriter:
    """Writes FOLDER/STEM_events.parquet and FOLDER/STEM_voxels.parquet, event by event, in the order given.

    A context manager. The files are written under other names (ending in ``.part``) and get their own when the block
    ends well; after an exception none is left. Whenever an events file is there, the voxels file beside it is whole and
    of the same run. The same events and provenance give the same bytes; no time, host or path is in them.
    """

    def __init__(self, folder: Path | str, stem: str, provenance: Mapping[str, object]) -> None:
        """Nothing is written before the block begins.

        Args:
            folder: made if it is not there.
            stem: first part of both names.
            provenance: what produced the tables (model, configuration, versions): written as JSON into both files.

        Raises:
            ValueError: the provenance is not JSON, or holds NaN.
        """
        self._folder = Path(folder)
        self._stem = stem
        try:
            self._provenance = json.dumps(provenance, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"provenance of the tables cannot be written as JSON: {error}") from error

    def __enter__(self) -> "TableWriter":
        """Open both files under temporary names. Raises ValueError or OSError if the folder cannot be written to."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as undo:
                self._voxels = _PartFile(self._folder / f"{self._stem}_voxels.parquet", VOXELS, self._provenance)
                undo.callback(self._voxels.discard)
                self._events = _PartFile(self._folder / f"{self._stem}_events.parquet", EVENTS, self._provenance)
                undo.pop_all()
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"{self._folder}: found a file, expected a folder to write tables into") from error
        except OSError as error:  # the same error without the name of the temporary file
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise type(error)(f"{self._folder}: cannot write tables here ({reason}); choose another folder") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Publish both files, or remove both if the block raised."""
        with ExitStack() as undo:
            undo.callback(self._voxels.discard)
            undo.callback(self._events.discard)
            if kind is None:
                self._voxels.finish()
                self._events.finish()
                self._events.final.unlink(missing_ok=True)  # an old one must never stand beside new voxels
                self._voxels.publish()
                self._events.publish()
                sync(self._folder)

    def write(self, event: Event, reconstruction: Reconstruction) -> None:
        """Add one event row and its N voxel rows, in the order of ``event``.

        Raises:
            ValueError: the event has no key, so that nobody could tell which one it was.
        """
        if event.key is None:
            raise ValueError("an event without key cannot be written; set its key to EventKey(file, entry)")
        n = len(event)
        assert len(reconstruction.motif) == n, f"{event.key}: {len(reconstruction.motif)} motifs for {n} voxels"
        energy = event.energy.cpu().numpy()
        with np.errstate(invalid="ignore"):  # infinities of bad input may cancel to NaN
            energy_mev = float(energy.sum(dtype=np.float64))
        self._events.add(
            _who_and_why(event.key, reconstruction.status, reconstruction.reason)
            | {
                "n_voxels": [n],
                "n_merged": [reconstruction.n_merged],
                "energy_mev": [energy_mev],
                "n_particles": [None if reconstruction.particles is None else len(reconstruction.particles)],
                "n_interactions": [None if reconstruction.interactions is None else len(reconstruction.interactions)],
            },
            ROW_GROUP_EVENTS,
        )
        centre_cm = (event.position.cpu().numpy().astype(np.float64) + 0.5) * VOXEL_CM
        motif = reconstruction.motif.cpu().numpy()
        chosen = np.maximum(motif, 0)[:, None]  # any column does where there is no motif: it becomes null
        probability = np.take_along_axis(reconstruction.motif_probability.cpu().numpy(), chosen, axis=1)[:, 0]
        self._voxels.add(
            {
                "entry": np.full(n, event.key.entry),
                **{axis: centre_cm[:, k].astype(np.float32) for k, axis in enumerate("xyz")},
                "energy_mev": energy,
                "below_threshold": reconstruction.below_threshold.cpu().numpy(),
                "motif": motif.astype(np.int8),
                "motif_probability": pa.array(probability, mask=motif == UNKNOWN),
                "particle_id": reconstruction.particle.cpu().numpy().astype(np.int32),
                "interaction_id": reconstruction.interaction.cpu().numpy().astype(np.int32),
            },
            ROW_GROUP_VOXELS,
        )

    def write_failed(self, key: EventKey, status: Status, reason: str) -> None:
        """Add the row of an event that could not be read: all its numbers are null, and it has no voxel rows.

        Args:
            key: its file with the path that ``reason`` names, if it does: only the file's own name is written.
            status: what became of it.
            reason: the error, one line.
        """
        missing = ("n_voxels", "n_merged", "energy_mev", "n_particles", "n_interactions")
        columns = _who_and_why(key, status, reason) | {name: [None] for name in missing}
        self._events.add(columns, ROW_GROUP_EVENTS)


class _PartFile:
    """A Parquet file on its way: under a name of its own until it is whole."""

    def __init__(self, final: Path, schema: pa.Schema, provenance: str) -> None:
        self.final = final
        self._schema = schema.with_metadata(
            {
                "provenance": provenance,
                "voxel_size_cm": json.dumps(VOXEL_CM),
                "origin_cm": json.dumps([0.0, 0.0, 0.0]),
                "coordinates": f"x = (voxel + 0.5) * {VOXEL_CM} cm; the origin is the corner of the image",
            }
        )
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0
        # A random name, so that two processes at the same file cannot write into one another; not mkstemp, whose
        # files nobody else may read.
        self._part = final.with_name(f"{final.name}.{uuid.uuid4().hex[:8]}.part")
        self._file = pa.OSFile(str(self._part), "wb")
        self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")

    def add(self, columns: Mapping[str, Any], row_group: int) -> None:
        """Add rows; they go to the file once ``row_group`` of them have come together. Events are never split."""
        batch = pa.RecordBatch.from_pydict(dict(columns), schema=self._schema)
        self._waiting.append(batch)
        self._rows += batch.num_rows
        if self._rows >= row_group:
            self._flush()

    def finish(self) -> None:
        """Write what is left, and wait until it is on the disk."""
        self._flush()
        self._writer.close()
        self._file.close()
        sync(self._part)

    def publish(self) -> None:
        """Give the file its name."""
        os.replace(self._part, self.final)

    def discard(self) -> None:
        """Remove what is not published; nothing happens to what is."""
        try:
            if self._writer.is_open:
                self._writer.close()
        except OSError:  # it writes its footer, which a full disk refuses once more
            self._writer.is_open = False  # else its __del__ would try again
        finally:
            self._file.close()
            self._part.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._rows:
            table = pa.Table.from_batches(self._waiting, self._schema)
            self._writer.write_table(table, row_group_size=self._rows)
        self._waiting, self._rows = [], 0


def _who_and_why(key: EventKey, status: Status, reason: str) -> dict[str, list[Any]]:
    name = os.path.basename(key.file)
    columns: dict[str, list[Any]] = {"file": [name], "entry": [key.entry]}
    for column, number in {"run": key.run, "subrun": key.subrun, "event": key.event}.items():
        columns[column] = [None if number == UNKNOWN else number]
    # Errors of readers begin with the path; a table must not depend on where its input lay.
    short = reason.replace(key.file, name) if key.file else reason
    return columns | {"status": [str(status)], "reason": [short]}
