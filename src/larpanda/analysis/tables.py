"""Reconstructions as tables: Parquet files with a row for each event, particle, interaction and voxel.

Knows columns, units and how a file appears only when it is whole; not where events come from or how they were
reconstructed. docs/tables.md is the reader's side of the schemas.
"""

import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from larpanda.analysis.kinematics import InteractionMeasure, ParticleMeasure
from larpanda.event import PDG, UNKNOWN, VOXEL_CM, Event, EventKey, Particle, Reconstruction, Species, Status
from larpanda.publish import sync

ROW_GROUP_VOXELS = 250_000  # about 50 events of PILArNet-M and 5 MB in memory: small to hold, large enough to compress
ROW_GROUP_EVENTS = 10_000
JOINED = 64  # batches that wait, before they become one: a batch of one event weighs twenty times what is in it


def column(name: str, kind: pa.DataType, unit: str, description: str, null: str = "") -> pa.Field:
    """A column with its meaning; ``null`` says when it has no value, empty: it always has one."""
    meaning = f"{description}; null {null}" if null else description
    return pa.field(name, kind, nullable=bool(null), metadata={"unit": unit, "description": meaning})


# fmt: off
EVENTS = pa.schema([
    column("file", pa.string(), "", "name of the input file, without its folder"),
    column("entry", pa.int64(), "", "row of the event in the input file, from 0"),
    column("run", pa.int64(), "", "run number of the experiment", null="if the file has none"),
    column("subrun", pa.int64(), "", "subrun number of the experiment", null="if the file has none"),
    column("event", pa.int64(), "", "event number of the experiment", null="if the file has none"),
    column("status", pa.string(), "", "what became of the event: " + ", ".join(map(str, Status))),
    column("reason", pa.string(), "", "why, in one line; empty if there is nothing to say"),
    column("n_voxels", pa.int64(), "", "rows of the event in the input", null="if it could not be read"),
    column("n_merged", pa.int64(), "", "rows that share the voxel of an earlier row", null="if it could not be used"),
    column("energy_mev", pa.float64(), "MeV", "sum over all rows, seen or not", null="if it could not be read"),
    column("n_particles", pa.int64(), "", "particles found", null="without a particle head, or if not read"),
    column("n_interactions", pa.int64(), "", "interactions found", null="without an interaction head, or if not read"),
])
PARTICLES = pa.schema([
    column("entry", pa.int64(), "", "row of the event in the input file, as in the event table"),
    column("particle_id", pa.int32(), "", "particle, numbered within the event, as in the voxel table"),
    column("interaction_id", pa.int32(), "", "interaction that holds most of its energy; -1 for none"),
    column("pdg", pa.int32(), "", "species, without sign of charge: 22, 11, 13, 211 or 2212"),
    column("score", pa.float32(), "", "how sure the model is that it is one particle of this species, 0 to 1"),
    *(column(f"score_{one.name.lower()}", pa.float32(), "", "probability of this species") for one in Species),
    column("n_voxels", pa.int64(), "", "voxels of it above threshold"),
    column("deposited_mev", pa.float64(), "MeV", "sum over its rows"),
    column("calo_energy_mev", pa.float64(), "MeV", "kinetic energy from that sum and the scale of its species"),
    column("range_energy_mev", pa.float64(), "MeV", "kinetic energy from its length",
            null="unless a contained muon, or a pion or proton that came to rest"),
    column("energy_mev", pa.float64(), "MeV", "kinetic energy: by range if there is one, else calorimetric, or what "
            "the length of a contained track needs if that is more"),
    column("momentum_mev", pa.float64(), "MeV/c", "from energy_mev"),
    *(column(f"start_{axis}", pa.float32(), "cm", "where it begins, from the corner of the image") for axis in "xyz"),
    *(column(f"end_{axis}", pa.float32(), "cm", "where it ends; of a shower the voxel farthest from the start")
      for axis in "xyz"),
    *(column(f"direction_{axis}", pa.float32(), "", "at the start, of length 1", null="for a single voxel")
      for axis in "xyz"),
    column("length", pa.float32(), "cm", "along a track; of a shower from start to end"),
    column("start_dedx", pa.float32(), "MeV/cm", "energy a cm in the first 3 cm", null="without length"),
    column("end_dedx", pa.float32(), "MeV/cm", "energy a cm in the last 3 cm", null="of showers, or without length"),
    column("contained", pa.bool_(), "", "none of it is within the margin (5 cm) of a wall"),
    column("primary", pa.bool_(), "", "it begins within 2 cm of the vertex, or is a photon that points to it"),
    column("vertex_distance", pa.float32(), "cm", "from the vertex of its interaction to its start"),
])
INTERACTIONS = pa.schema([
    column("entry", pa.int64(), "", "row of the event in the input file, as in the event table"),
    column("interaction_id", pa.int32(), "", "interaction, numbered within the event, as in the voxel table"),
    column("score", pa.float32(), "", "how sure the model is, 0 to 1"),
    column("n_voxels", pa.int64(), "", "voxels of it above threshold"),
    column("deposited_mev", pa.float64(), "MeV", "sum over its rows"),
    column("n_particles", pa.int64(), "", "particles of it", null="without a particle head"),
    column("n_primaries", pa.int64(), "", "those that are primary", null="without particles"),
    column("energy_mev", pa.float64(), "MeV", "kinetic energy of its primary particles", null="without particles"),
    *(column(f"vertex_{axis}", pa.float32(), "cm", "where it began, from the corner of the image",
              null="without particles") for axis in "xyz"),
    column("contained", pa.bool_(), "", "all of its particles are", null="without particles"),
    column("fiducial", pa.bool_(), "", "its vertex is not within the margin (5 cm) of a wall",
            null="without particles"),
    column("topology", pa.string(), "", "primary particles of 25 MeV or more (protons 50), such as 1mu2p",
            null="without particles"),
])
VOXELS = pa.schema([
    column("entry", pa.int64(), "", "row of the event in the input file, as in the event table"),
    column("x", pa.float32(), "cm", "centre of the voxel from the corner of the image: (voxel + 0.5) * 0.3"),
    column("y", pa.float32(), "cm", "likewise"),
    column("z", pa.float32(), "cm", "likewise"),
    column("energy_mev", pa.float32(), "MeV", "deposited energy of the row, as in the input"),
    column("below_threshold", pa.bool_(), "", "true: no model saw it; too little energy, or its event was not used"),
    column("motif", pa.int8(), "", "0 shower, 1 track, 2 Michel, 3 delta, 4 low-energy deposit; -1 for none"),
    column("motif_probability", pa.float32(), "", "probability of that motif, 0 to 1", null="where motif is -1"),
    column("particle_id", pa.int32(), "", "particle, numbered within the event; -1 for none"),
    column("interaction_id", pa.int32(), "", "interaction, numbered within the event; -1 for none"),
])
# fmt: on


_SCHEMAS = {"voxels": VOXELS, "particles": PARTICLES, "interactions": INTERACTIONS, "events": EVENTS}
Measured = tuple[Mapping[int, InteractionMeasure], Mapping[int, ParticleMeasure]]


class TableWriter:
    """Writes FOLDER/STEM_events.parquet and, beside it, _particles, _interactions and _voxels, in the order given.

    A context manager. The files are written under other names (ending in ``.part``) and get their own when the block
    ends well; after an exception none is left. Whenever an events file is there, those beside it are whole and of the
    same run. The same events and provenance give the same bytes; no time, host or path is in them.
    """

    def __init__(
        self,
        folder: Path | str,
        stem: str,
        provenance: Mapping[str, object],
        *,
        particles: bool = False,
        interactions: bool = False,
        voxels: bool = True,
    ) -> None:
        """Nothing is written before the block begins.

        Args:
            folder: made if it is not there.
            stem: first part of the names.
            provenance: what produced the tables (model, configuration, versions): written as JSON into all files.
            particles: write a table of them; so the next two.
            interactions: that model has such a head.
            voxels: the largest of the tables.

        Raises:
            ValueError: the provenance is not JSON, or holds NaN.
        """
        self._folder = Path(folder)
        self._stem = stem
        wanted = {"voxels": voxels, "particles": particles, "interactions": interactions, "events": True}
        self._schemas = {name: schema for name, schema in _SCHEMAS.items() if wanted[name]}
        self._files: dict[str, _PartFile] = {}
        try:
            self._provenance = json.dumps(provenance, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"provenance of the tables cannot be written as JSON: {error}") from error

    def __enter__(self) -> "TableWriter":
        """Open the files under temporary names. Raises ValueError or OSError if the folder cannot be written to."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as undo:
                for name, schema in self._schemas.items():
                    self._files[name] = _PartFile(self._path(name), schema, self._provenance)
                    undo.callback(self._files[name].discard)
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
        """Publish the files, or remove them if the block raised."""
        with ExitStack() as undo:
            for file in self._files.values():
                undo.callback(file.discard)
            if kind is None:
                for file in self._files.values():
                    file.finish()
                self._path("events").unlink(missing_ok=True)  # an old one must never stand beside new voxels
                for name in _SCHEMAS:
                    if name not in self._files:  # of a run that wrote more
                        self._path(name).unlink(missing_ok=True)
                for file in self._files.values():  # events last
                    file.publish()
                sync(self._folder)

    def _path(self, name: str) -> Path:
        return self._folder / f"{self._stem}_{name}.parquet"

    def write(self, event: Event, reconstruction: Reconstruction, measured: Measured | None = None) -> None:
        """Add one event row, and the rows of its particles, interactions and N voxels, in the order of ``event``.

        Args:
            event: as it was read.
            reconstruction: of it.
            measured: of what was found (``kinematics.measure_event``); needed where there are particles.

        Raises:
            ValueError: the event has no key, so that nobody could tell which one it was.
        """
        if event.key is None or event.key.entry == UNKNOWN:
            raise ValueError("an event without key cannot be written; set its key to EventKey(file, entry)")
        n = len(event)
        assert len(reconstruction.motif) == n, f"{event.key}: {len(reconstruction.motif)} motifs for {n} voxels"
        energy = event.energy.cpu().numpy()
        with np.errstate(invalid="ignore"):  # infinities of bad input may cancel to NaN
            energy_mev = float(energy.sum(dtype=np.float64))
        self._files["events"].add(
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
        interactions, particles = measured or ({}, {})
        if "particles" in self._files and reconstruction.particles:
            columns = _particle_columns(event.key.entry, reconstruction.particles, particles)
            self._files["particles"].add(columns, ROW_GROUP_EVENTS)
        if "interactions" in self._files and reconstruction.interactions:
            columns = _interaction_columns(event.key.entry, reconstruction, interactions, particles)
            self._files["interactions"].add(columns, ROW_GROUP_EVENTS)
        if "voxels" in self._files:
            self._add_voxels(event, reconstruction)

    def _add_voxels(self, event: Event, reconstruction: Reconstruction) -> None:
        assert event.key is not None
        n, energy = len(event), event.energy.cpu().numpy()
        centre_cm = (event.position.cpu().numpy().astype(np.float64) + 0.5) * VOXEL_CM
        motif = reconstruction.motif.cpu().numpy()
        chosen = np.maximum(motif, 0)[:, None]  # any column does where there is no motif: it becomes null
        probability = np.take_along_axis(reconstruction.motif_probability.cpu().numpy(), chosen, axis=1)[:, 0]
        self._files["voxels"].add(
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
        self._files["events"].add(columns, ROW_GROUP_EVENTS)


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
        if len(self._waiting) == JOINED:
            self._waiting = pa.Table.from_batches(self._waiting).combine_chunks().to_batches()
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


def _particle_columns(
    entry: int, found: Sequence[Particle], measured: Mapping[int, ParticleMeasure]
) -> dict[str, list[Any]]:
    rows = []
    for one in found:
        kinematics = measured[one.id]
        scores = zip(Species, one.species_probability, strict=True)
        rows.append(
            {
                "entry": entry,
                "particle_id": one.id,
                "interaction_id": one.interaction,
                "pdg": PDG[one.species],
                "score": one.score,
                **{f"score_{species.name.lower()}": value for species, value in scores},
                "n_voxels": one.n_voxels,
                "deposited_mev": one.energy_mev,
                "calo_energy_mev": kinematics.calo_energy_mev,
                "range_energy_mev": kinematics.range_energy_mev,
                "energy_mev": kinematics.energy_mev,
                "momentum_mev": kinematics.momentum_mev,
                **_axes("start", kinematics.start_cm),
                **_axes("end", kinematics.end_cm),
                **_axes("direction", kinematics.direction),
                "length": kinematics.length_cm,
                "start_dedx": kinematics.start_dedx,
                "end_dedx": kinematics.end_dedx,
                "contained": kinematics.contained,
                "primary": kinematics.primary,
                "vertex_distance": kinematics.vertex_distance_cm,
            }
        )
    return _columns(rows)


def _interaction_columns(
    entry: int,
    reconstruction: Reconstruction,
    measured: Mapping[int, InteractionMeasure],
    particles: Mapping[int, ParticleMeasure],
) -> dict[str, list[Any]]:
    rows = []
    for one in reconstruction.interactions or ():
        members = [p.id for p in reconstruction.particles or () if p.interaction == one.id]
        whole = measured.get(one.id)
        rows.append(
            {
                "entry": entry,
                "interaction_id": one.id,
                "score": one.score,
                "n_voxels": one.n_voxels,
                "deposited_mev": one.energy_mev,
                "n_particles": None if reconstruction.particles is None else len(members),
                "n_primaries": sum(particles[i].primary for i in members) if whole else None,
                "energy_mev": whole.energy_mev if whole else None,
                **_axes("vertex", whole.vertex_cm if whole else (math.nan,) * 3),
                "contained": whole.contained if whole else None,
                "fiducial": whole.fiducial if whole else None,
                "topology": whole.topology if whole else None,
            }
        )
    return _columns(rows)


def _axes(name: str, values: tuple[float, float, float]) -> dict[str, float]:
    return {f"{name}_{axis}": value for axis, value in zip("xyz", values, strict=True)}


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns; NaN becomes null."""

    def known(value: Any) -> Any:
        return None if isinstance(value, float) and math.isnan(value) else value

    return {name: [known(row[name]) for row in rows] for name in rows[0]}


def _who_and_why(key: EventKey, status: Status, reason: str) -> dict[str, list[Any]]:
    name = os.path.basename(key.file)
    columns: dict[str, list[Any]] = {"file": [name], "entry": [key.entry]}
    for column, number in {"run": key.run, "subrun": key.subrun, "event": key.event}.items():
        columns[column] = [None if number == UNKNOWN else number]
    # Errors of readers begin with the path; a table must not depend on where its input lay.
    short = reason.replace(key.file, name) if key.file else reason
    return columns | {"status": [str(status)], "reason": [short]}
