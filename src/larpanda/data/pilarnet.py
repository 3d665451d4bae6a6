"""What a row of PILArNet-M means: row -> Event in each revision, Event -> row of v3_extra (see docs/formats.md)."""

import itertools
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pyarrow import ArrowException
from torch import Tensor

from larpanda.data.rows import (
    NUMBERS,
    OWN,
    POINT,
    Array,
    Hdf5Rows,
    ParquetRows,
    Row,
    first_line,
    number_of,
    open_rows,
    write_rows,
)
from larpanda.event import UNKNOWN, VOXEL_MM, CreationProcess, Event, EventKey, Motif, ParticleTruth, Species, compact

TRUTH = ("cluster", "cluster_extra", "cluster_extra_2", "interaction_extra", OWN)
GEV = 1000.0  # MeV; the files have masses in MeV and momenta in GeV/c


@dataclass(frozen=True, slots=True)
class _Layout:
    """How many numbers describe a cluster; extra = 0: there is no cluster_extra."""

    cluster: int  # 5 (v1, without species) or 6
    extra: int  # 5 (v2), 6 (v3, with is_primary), 9 or 11 (v3 with columns of cluster_extra_2 appended)


WITHOUT_EXTRA = (_Layout(6, 0), _Layout(5, 0))
WITH_EXTRA = (_Layout(6, 6), _Layout(6, 5), _Layout(6, 9), _Layout(6, 11))
LAYOUT_VOTES = 5  # events: a faulty one must not decide for its file


class EventFile:
    """The events of one file. It is opened to be checked, and again in each process that reads from it."""

    def __init__(
        self, path: Path, *, truth: bool = True, energy_scale: float = 1.0, voxel_mm: float = VOXEL_MM
    ) -> None:
        """Check that the file can be read at all.

        Args:
            path: an .h5, .hdf5 or .parquet file; what messages and keys call it.
            truth: False reads `point` and the experiment's own numbers alone.
            energy_scale: MeV for a unit of the file's voxel values.
            voxel_mm: pitch of the file's voxels.

        Raises:
            FileNotFoundError, PermissionError: there is no such file, or it may not be read.
            ValueError: the file is damaged, or of another layout. A fault of one event is raised when it is read.
        """
        self.name = str(path)
        self.energy_scale, self.voxel_mm = energy_scale, voxel_mm
        self._path = path.absolute()
        self._layout: _Layout | None = None
        self._rows: Hdf5Rows | ParquetRows | None = None
        self._process = 0
        rows = self._open()
        if "point" not in rows.lengths:
            found = ", ".join(rows.found) or "nothing"
            raise ValueError(f"{self.name}: it has no 'point' (it has: {found}); expected the layout of PILArNet-M")
        self._length = rows.lengths["point"]
        labelled = truth and "cluster" in rows.lengths  # what the other tables are about
        wanted = (*(TRUTH if labelled else ()), *NUMBERS)
        self._names = ("point", *(name for name in wanted if name in rows.lengths))
        for name in self._names:
            if rows.lengths[name] != self._length:
                if name in NUMBERS:
                    raise ValueError(
                        f"{self.name}: '{name}' has {rows.lengths[name]} events and 'point' {self._length}; "
                        "expected as many"
                    )
                raise ValueError(
                    f"{self.name}: '{name}' has {rows.lengths[name]} events and 'point' {self._length}; "
                    "expected as many (truth=False reads the points alone)"
                )
        self.close()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, entry: int, /) -> Event:
        """Read one event, and nothing else of the file (of Parquet: its row group).

        Raises:
            ValueError: its lists of numbers do not fit together; names file, event and dataset.
        """
        key = self._key(entry)
        point = self._point(entry)
        n = len(point)
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is for Event.problem to find
            position = torch.from_numpy(_rebin(point[:, :3], self.voxel_mm).astype(np.float32))
            energy = torch.from_numpy((point[:, 3].astype(np.float64) * self.energy_scale).astype(np.float32))
        cluster = self._read("cluster", entry)
        if not len(cluster) and not len(self._read("cluster_extra", entry)):
            none = torch.full((n,), UNKNOWN)
            return Event(position, energy, none, none.clone(), none.clone(), none.clone(), key=key)
        layout = self._file_layout()
        clusters = _Clusters.check(key, cluster, n, layout.cluster)
        return Event(
            position,
            energy,
            motif=clusters.at_points(clusters.motif),
            species=clusters.at_points(clusters.species),
            particle=clusters.at_points(clusters.particle),
            interaction=clusters.at_points(clusters.interaction),
            particles=self._particles(key, clusters, layout),
            vertex=self._vertex(key, clusters),
            key=key,
        )

    def key(self, entry: int, /) -> EventKey:
        """Where an event comes from; without the experiment's own numbers if they cannot be read."""
        try:
            return self._key(entry)
        except (ValueError, OSError):
            return EventKey(self.name, entry)

    def close(self) -> None:
        """Give the file back to the system; the next read opens it again."""
        if self._rows is not None and self._process == os.getpid():
            self._rows.close()
        self._rows = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rows": None}

    def _open(self) -> Hdf5Rows | ParquetRows:
        if self._rows is None or self._process != os.getpid():  # an HDF5 handle does not survive a fork
            self._rows, self._process = open_rows(self._path, self.name), os.getpid()
        return self._rows

    def _key(self, entry: int) -> EventKey:
        return EventKey(self.name, entry, *(number_of(self._read(name, entry)) for name in NUMBERS))

    def _read(self, name: str, entry: int) -> Array:
        """One list of one event; empty if the file has none of that name."""
        if name not in self._names:
            return np.empty(0)
        rows = self._open()
        try:
            return rows.read(name, entry)
        except (OSError, RuntimeError, ArrowException) as error:
            key = EventKey(self.name, entry)
            raise ValueError(f"{key}: '{name}' cannot be read ({first_line(error)}); copy the file again") from error

    def _point(self, entry: int) -> Array:
        return _table(EventKey(self.name, entry), "point", self._read("point", entry), len(POINT), "voxel")

    def _file_layout(self) -> _Layout:
        """The revision of the file, which it does not name: what its first events with truth can only be.

        A length does not tell (30 numbers are 5 clusters or 6), and a faulty event must not be read in another revision
        than its neighbours: so whole events are held against each layout, and the first few that fit just one vote.
        """
        if self._layout is None:
            candidates = WITH_EXTRA if "cluster_extra" in self._names else WITHOUT_EXTRA
            votes = self._vote(candidates, with_points=True) or self._vote(candidates, with_points=False)
            self._layout = votes.most_common(1)[0][0] if votes else candidates[0]
        return self._layout

    def _vote(self, candidates: tuple[_Layout, ...], *, with_points: bool) -> Counter[_Layout]:
        votes: Counter[_Layout] = Counter()
        for entry in range(len(self)):
            try:
                cluster, extra = self._read("cluster", entry), self._read("cluster_extra", entry)
                n_points = len(self._point(entry)) if with_points and len(cluster) else None
            except ValueError:  # raised again for whoever reads that event
                continue
            fitting = [layout for layout in candidates if len(cluster) and _fits(layout, cluster, extra, n_points)]
            if len(fitting) == 1:
                votes[fitting[0]] += 1
                if sum(votes.values()) == LAYOUT_VOTES:
                    break
        return votes

    def _particles(self, key: EventKey, clusters: "_Clusters", layout: _Layout) -> ParticleTruth | None:
        m = len(clusters.size)
        extra, extra_2, own = np.full((m, 6), np.nan), np.full((m, 5), np.nan), np.full((m, 5), np.nan)
        if len(flat := self._read("cluster_extra", key.entry)):
            table = _table(key, "cluster_extra", flat, layout.extra, "cluster", m)
            if np.isnan(table).all():
                return None  # our writer's way to say so
            extra[:, : layout.extra] = table[:, :6]
            extra_2[:, : max(layout.extra - 6, 0)] = table[:, 6:]
        if len(flat := self._read("cluster_extra_2", key.entry)):
            extra_2[:] = _table(key, "cluster_extra_2", flat, 5, "cluster", m)
        if len(flat := self._read(OWN, key.entry)):
            own[:] = _table(key, OWN, flat, 5, "cluster", m)
        missing = (extra[:, :5] == -1).all(1)
        extra[missing], extra_2[missing] = np.nan, np.nan
        if layout.extra == 5:
            extra[:, 2:] = np.nan  # starts of v2 are in the frame of the detector, and where the image lies is lost
        extra[:, :2][extra[:, :2] < 0] = np.nan
        lead = clusters.lead()
        extra, extra_2, own = extra[lead], extra_2[lead], own[lead]
        return ParticleTruth(
            track_id=torch.from_numpy(clusters.group[lead]),
            species=torch.from_numpy(clusters.species[lead]),
            mass=_float32(extra[:, 0]),
            momentum=_float32(extra[:, 1] * GEV),
            momentum_vector=_float32(extra_2[:, :3] * GEV),
            start=_float32(extra[:, 2:5] * (self.voxel_mm / VOXEL_MM)),
            end=_float32(own[:, :3] * (self.voxel_mm / VOXEL_MM)),
            contained=_below_or_unknown(own[:, 3], 2),
            primary=_below_or_unknown(extra[:, 5], 2),
            process=_below_or_unknown(own[:, 4], len(CreationProcess)),
            parent_pdg=_whole_or_unknown(extra_2[:, 3]),
            parent_track_id=_whole_or_unknown(extra_2[:, 4]),
        )

    def _vertex(self, key: EventKey, clusters: "_Clusters") -> Tensor | None:
        flat = self._read("interaction_extra", key.entry)
        if not len(flat):
            return None
        table = _table(key, "interaction_extra", flat, 4, "interaction").astype(np.float64)
        position = {number: row for number, *row in reversed(table.tolist())}  # of two with one number the first stays
        rows = [position.get(number, [np.nan] * 3) for number in clusters.interaction_numbers]
        return _float32(np.array(rows).reshape(-1, 3) * (self.voxel_mm / VOXEL_MM))


@dataclass(frozen=True, slots=True)
class _Clusters:
    """The M clusters of an event, checked; all columns [M] int64. LED clusters belong to nothing."""

    size: Array  # points
    fragment: Array
    group: Array  # the file's number of the particle, UNKNOWN for none
    particle: Array  # 0..P-1, UNKNOWN for none
    interaction: Array  # 0..K-1, UNKNOWN for none
    motif: Array
    species: Array
    interaction_numbers: list[int]  # [K], the file's

    @classmethod
    def check(cls, key: EventKey, flat: Array, n_points: int, width: int) -> "_Clusters":
        """Bring `cluster` into columns. Raises ValueError for what cannot be."""
        table = _table(key, "cluster", flat, width, "cluster")
        if not (whole := _is_whole(table).all(1)).all():
            row = int(np.flatnonzero(~whole)[0])
            found = ", ".join(f"{x:g}" for x in table[row])
            raise ValueError(f"{key}: 'cluster' has {found} for cluster {row}; expected whole numbers")
        table = table.astype(np.int64)
        size, fragment, group, interaction, motif = table[:, :5].T
        if (size < 0).any() or size.sum() != n_points:
            raise ValueError(
                f"{key}: the sizes in 'cluster' (the smallest is {min(size, default=0)}) sum to {size.sum()}; "
                f"expected {n_points}, the number of voxels in 'point'"
            )
        if (bad := (motif < UNKNOWN) | (motif >= len(Motif))).any():
            row = int(np.flatnonzero(bad)[0])
            found = f"motif {motif[row]} for cluster {row}"
            raise ValueError(f"{key}: 'cluster' has {found}; expected 0..{len(Motif) - 1}, or {UNKNOWN} for none")
        # A particle that is none of our species (5, a kaon, in some files) stays a particle. Loaders that turn the -1
        # of LED into 5 make the two one class; here the motif alone says what is LED.
        species = table[:, 5] if width == 6 else np.full(len(table), UNKNOWN)
        led = motif == Motif.LED
        species = np.where(led | (species < 0) | (species >= len(Species)), UNKNOWN, species)
        group, interaction = np.where(led | (group < 0), UNKNOWN, group), np.where(led, UNKNOWN, interaction)
        return cls(
            size,
            fragment,
            group,
            compact(torch.from_numpy(group)).numpy(),
            compact(torch.from_numpy(interaction)).numpy(),
            motif,
            species,
            np.unique(interaction[interaction >= 0]).tolist(),
        )

    def at_points(self, column: Array) -> Tensor:
        """[M] -> [N]: points lie cluster by cluster."""
        return torch.from_numpy(np.repeat(column, self.size))

    def lead(self) -> Array:
        """[P]: the cluster that speaks for each particle: the one whose fragment is the group, else the largest."""
        order = np.lexsort([-self.size, self.fragment != self.group, self.particle])
        ids, first = np.unique(self.particle[order], return_index=True)
        return np.asarray(order[first[ids >= 0]])


def _fits(layout: _Layout, cluster: Array, extra: Array, n_points: int | None) -> bool:
    """Whether an event can be of this layout. n_points: None if the sizes need not add up to it."""
    if len(cluster) % layout.cluster:
        return False
    table = cluster.reshape(-1, layout.cluster).astype(np.float64)
    size, motif = table[:, 0], table[:, 4]
    return bool(
        len(extra) == len(table) * layout.extra
        and (size >= 0).all()
        and (n_points is None or size.sum() == n_points)
        and ((motif >= UNKNOWN) & (motif < len(Motif))).all()
    )


def _table(key: EventKey, name: str, flat: Array, width: int, what: str, rows: int | None = None) -> Array:
    """[rows, width] of a flat list; as many rows as there are if rows is None."""
    if len(flat) % width or rows not in (None, len(flat) // width):
        count = "" if rows is None else f", {width * rows} for {rows}"
        raise ValueError(f"{key}: '{name}' has {len(flat)} numbers; expected {width} for each {what}{count}")
    return flat.reshape(-1, width)


def _rebin(voxel: Array, pitch_mm: float) -> Array:
    """[N, 3] indices at some pitch -> of our voxel that holds the centre. What is no index stays as it is."""
    if pitch_mm == VOXEL_MM:
        return voxel
    index = voxel.astype(np.float64)
    return np.where(_is_whole(index), np.floor((index + 0.5) * pitch_mm / VOXEL_MM), index)


def _is_whole(values: Array) -> npt.NDArray[np.bool_]:
    return np.asarray((np.abs(values) < 2.0**53) & (values == np.floor(values)))  # beyond, a float64 cannot tell


def _whole_or_unknown(values: Array) -> Tensor:
    return torch.from_numpy(np.where(_is_whole(values), values, UNKNOWN).astype(np.int64))


def _below_or_unknown(values: Array, count: int) -> Tensor:
    whole = _whole_or_unknown(values)
    return torch.where((whole >= 0) & (whole < count), whole, UNKNOWN)


def _float32(values: Array) -> Tensor:
    with np.errstate(over="ignore"):
        return torch.from_numpy(values.astype(np.float32))


def write(path: Path, events: Iterable[Event]) -> None:
    """Write events in the layout v3_extra: `larpanda.write_events`."""
    write_rows(path, (encode(event, ordinal) for ordinal, event in enumerate(events)))


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive points of the same labels: a cluster to be written."""

    size: int
    motif: int
    species: int
    particle: int
    interaction: int


def encode(event: Event, ordinal: int) -> Row:
    """The row of an event. Raises ValueError, which calls it ``ordinal``, for one that has a problem."""
    if fault := event.problem() or contradiction(event):
        origin = f" ({event.key})" if event.key else ""
        raise ValueError(f"event {ordinal}{origin} cannot be written, and no file was: {fault}")
    key = event.key or EventKey("", UNKNOWN)
    return replace(_lists(event), run=key.run, subrun=key.subrun, event=key.event)


def _lists(event: Event) -> Row:
    """The row of an event, without the experiment's own numbers."""
    point = np.full((len(event), len(POINT)), np.nan, np.float32)  # time, electrons and dx are not known
    point[:, :3], point[:, 3], point[:, 4] = event.position, event.energy, event.energy
    labels = np.stack([event.motif, event.species, event.particle, event.interaction], 1)  # [N, 4]
    if not (labels != UNKNOWN).any() and event.particles is None and event.vertex is None:
        none = np.empty(0)
        return Row(point.ravel(), none.astype(np.int64), none, none, none.astype(np.float32), none.astype(np.float32))
    led = labels[:, 0] == Motif.LED
    n_led = int(led.sum())
    if not led[:n_led].all():  # LED points come first in a file; then the other points may as well be in order
        order = np.lexsort([*labels.T, ~led])
        point, labels = point[order], labels[order]
    runs = _runs(labels[n_led:])
    lead = _add_what_no_point_shows(event, runs)
    cluster, particle = _cluster(event, n_led, runs, lead), np.array([UNKNOWN] + [run.particle for run in runs])
    extra, extra_2 = _extras(event.particles, particle)
    return Row(point.ravel(), cluster, extra, extra_2, _interaction_extra(event), _own(event.particles, particle))


def _runs(labels: Array) -> list[_Run]:
    if not len(labels):
        return []
    start = np.flatnonzero(np.r_[True, (labels[1:] != labels[:-1]).any(1)])
    size = np.diff(np.r_[start, len(labels)])
    return [_Run(n, *row) for n, row in zip(size.tolist(), labels[start].tolist(), strict=True)]


def _add_what_no_point_shows(event: Event, runs: list[_Run]) -> dict[int, int]:
    """Add clusters of no points, so that every particle and interaction that there is truth about has one.

    Returns:
        particle -> its largest run, which speaks for it.
    """
    lead: dict[int, int] = {}
    for i, run in enumerate(runs):
        if run.particle != UNKNOWN and (run.particle not in lead or run.size > runs[lead[run.particle]].size):
            lead[run.particle] = i
    if event.particles is not None:
        for particle, species in enumerate(event.particles.species.tolist()):
            if particle not in lead or runs[lead[particle]].species != species:
                lead[particle] = len(runs)
                runs.append(_Run(0, UNKNOWN, species, particle, UNKNOWN))
    if event.vertex is not None:
        shown = {run.interaction for run in runs}
        runs += [_Run(0, UNKNOWN, UNKNOWN, UNKNOWN, k) for k in range(len(event.vertex)) if k not in shown]
    return lead


def _cluster(event: Event, n_led: int, runs: list[_Run], lead: dict[int, int]) -> Array:
    group = {p: p if event.particles is None else int(event.particles.track_id[p]) for p in lead} | {UNKNOWN: UNKNOWN}
    fresh = itertools.count(max(group.values()) + 1)
    rows = [[n_led, UNKNOWN, UNKNOWN, UNKNOWN, int(Motif.LED), UNKNOWN]]
    for i, run in enumerate(runs):
        fragment = group[run.particle] if lead.get(run.particle) == i else next(fresh)
        rows.append([run.size, fragment, group[run.particle], run.interaction, run.motif, run.species])
    return np.array(rows, np.int64).ravel()


def _extras(truth: ParticleTruth | None, particle: Array) -> tuple[Array, Array]:
    m = len(particle)
    if truth is None:
        return np.full(m * 6, np.nan), np.full(m * 5, np.nan)
    extra, extra_2 = np.full((m, 6), -1.0), np.full((m, 5), -1.0)
    of = particle[particle != UNKNOWN]
    gev, gev_vector = truth.momentum.double() / GEV, truth.momentum_vector.double() / GEV
    extra[particle != UNKNOWN] = np.column_stack([truth.mass, gev, truth.start, truth.primary])[of]
    extra_2[particle != UNKNOWN] = np.column_stack([gev_vector, truth.parent_pdg, truth.parent_track_id])[of]
    return extra.ravel(), extra_2.ravel()


def _own(truth: ParticleTruth | None, particle: Array) -> Array:
    if truth is None:
        return np.empty(0, np.float32)
    table = np.column_stack([truth.end, truth.contained, truth.process]).astype(np.float32)
    unknown = np.array([np.nan, np.nan, np.nan, UNKNOWN, UNKNOWN], np.float32)
    if np.array_equal(table, np.broadcast_to(unknown, table.shape), equal_nan=True):
        return np.empty(0, np.float32)
    return np.vstack([table, unknown])[particle].ravel()  # the last row is what an id of -1 picks


def _interaction_extra(event: Event) -> Array:
    if event.vertex is None:
        return np.empty(0, np.float32)
    k = len(event.vertex)
    table = np.column_stack([np.arange(k), event.vertex]) if k else np.full(4, -1.0)  # -1: none, and that is known
    return table.astype(np.float32).ravel()


def contradiction(event: Event) -> str | None:
    """Why the truth of an event cannot be, and would not come back from a file, or None."""
    led = event.motif == Motif.LED
    for name, table, count in (
        ("motif", None, len(Motif)),
        ("species", None, len(Species)),
        ("particle", event.particles, None),
        ("interaction", event.vertex, None),
    ):
        values = getattr(event, name)
        count = len(table) if table is not None else count
        if len(values) and (values.min() < UNKNOWN or (count is not None and values.max() >= count)):
            top = f"{count - 1}" if count is not None else ""
            return f"{name} spans {values.min()}..{values.max()}; expected 0..{top}, or {UNKNOWN} for none"
        if name != "motif" and (values[led] != UNKNOWN).any():
            return f"{int((values[led] != UNKNOWN).sum())} LED points have a {name}; expected {UNKNOWN} (none)"
    if event.particles is None:
        return None
    for name, count in (("primary", 2), ("contained", 2), ("process", len(CreationProcess))):
        values = getattr(event.particles, name)
        if len(values) and (values.min() < UNKNOWN or values.max() >= count):
            return f"{name} spans {values.min()}..{values.max()}; expected 0..{count - 1}, or {UNKNOWN} for unknown"
    track_id = event.particles.track_id
    if (track_id < 0).any() or (track_id.diff() <= 0).any():
        return f"track_id is {track_id.tolist()}; expected numbers from 0 up, each larger than the one before"
    return None
