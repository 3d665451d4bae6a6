"""Where events come from: files, folders, globs and the generator, as one sequence; and how they are written."""

import glob
import math
import os
import statistics
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Protocol, overload
from urllib.parse import parse_qsl

import torch

from larpanda.event import UNKNOWN, VOXEL_MM, Event, EventKey

GENERATE = "generate:"  # generate:PRESET?events=N&seed=S; PRESET may be the path of a YAML file
OPEN_FILES = 64  # at most; systems allow a process some 256 to 1,024
MEDIAN_ENERGY_MEV = (0.1, 2.0)  # of the voxels of an event: 0.36 with Geant4 and a threshold of 0.01 MeV

Source = str | os.PathLike[str]


class Part(Protocol):
    """Some of the events: a file, or what a generator gives."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, entry: int, /) -> Event: ...

    def key(self, entry: int, /) -> EventKey:
        """Where an event comes from; also of one that cannot be read."""

    def close(self) -> None:
        """Give back what the system lent; what is asked for later opens it again."""


class Events(Sequence[Event]):
    """The events of several sources, one after the other, each read when it is asked for. Can be sent to processes."""

    def __init__(
        self, parts: Sequence[Part], rows: range | None = None, recent: "OrderedDict[int, None] | None" = None
    ) -> None:
        """Lay parts end to end. rows: those that this sequence shows (all); recent: parts that may be open."""
        self._parts = parts
        self._starts = list(accumulate((len(part) for part in parts), initial=0))
        self._rows = range(self._starts[-1]) if rows is None else rows
        self._recent = OrderedDict() if recent is None else recent  # shared by slices, as the open files are

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> "Events": ...
    def __getitem__(self, index: int | slice) -> "Event | Events":
        if isinstance(index, slice):
            return Events(self._parts, self._rows[index], self._recent)
        part, entry = self._find(index)
        return part[entry]

    def __iter__(self) -> Iterator[Event]:
        return (self[index] for index in range(len(self)))

    def key(self, index: int) -> EventKey:
        """Where an event comes from, without reading its points: also of one that cannot be read."""
        part, entry = self._find(index)
        return part.key(entry)

    def _find(self, index: int) -> tuple[Part, int]:
        """The part that has an event, which may now be open, and the event's place in it."""
        try:
            row = self._rows[index]
        except IndexError:
            raise IndexError(f"event {index} was asked for; there are {len(self)}") from None
        part = bisect_right(self._starts, row) - 1
        self._recent[part] = None
        self._recent.move_to_end(part)
        if len(self._recent) > OPEN_FILES:
            self._parts[self._recent.popitem(last=False)[0]].close()
        return self._parts[part], row - self._starts[part]


class _Generated:
    """Events of the generator, as a part."""

    def __init__(self, source: str, truth: bool) -> None:
        from larpanda.data.generate import generate

        preset, _, query = source.removeprefix(GENERATE).partition("?")
        options = {"events": 1000, "seed": 0}
        try:
            given = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
        except ValueError:
            raise ValueError(f"{source}: expected {GENERATE}PRESET?events=N&seed=S") from None
        for name, value in given:
            if name not in options:
                raise ValueError(f"{source}: there is no option {name!r}; expected {' or '.join(options)}")
            if not value.isascii() or not value.isdecimal():
                raise ValueError(f"{source}: {name} is {value!r}; expected a whole number from 0 up")
            options[name] = int(value)
        self._truth = truth
        self._events = generate(options["events"], seed=options["seed"], preset=preset)
        self.name = self._events.source  # which does not say how many were asked for

    def __len__(self) -> int:
        return len(self._events)

    def __getitem__(self, entry: int, /) -> Event:
        event = self._events[entry]
        if self._truth:
            return event
        none = torch.full((len(event),), UNKNOWN)
        return Event(event.position, event.energy, none, none.clone(), none.clone(), none.clone(), key=event.key)

    def key(self, entry: int, /) -> EventKey:
        return EventKey(self.name, entry)

    def close(self) -> None:
        """Nothing is open."""


def open_events(
    source: Source | Sequence[Source], *, truth: bool = True, energy_scale: float = 1.0, voxel_mm: float = VOXEL_MM
) -> Events:
    """Open events, wherever they are.

    Args:
        source: a PILArNet-M file (.h5, .hdf5, .parquet; revisions v1 to v3_extra, see docs/formats.md); a folder of
            such files, with those below it; a glob; ``"generate:PRESET?events=1000&seed=0"``, where PRESET may
            be a YAML file (docs/generate.md); or a list of these.
        truth: False reads the points alone, which is faster.
        energy_scale: MeV for a unit of the file's voxel values, where they are a charge.
        voxel_mm: pitch of the file's voxels; index i becomes the 3 mm voxel that holds its centre.

    Returns:
        A sequence of events: length, index, slice, iteration. An event is read when it is asked for, each time. Its
        ``key`` has the file, the row in it and the experiment's own numbers where the file has them; ``key(i)`` gives
        it without reading the points. Random order is fast in HDF5; in Parquet it costs a row group an event.

    Raises:
        FileNotFoundError: there is no such file, or no file of events in a folder or under a glob.
        ValueError: a file is not what it should be, or an argument. What is wrong with one event is raised when it is
            read, and the others stay readable; an energy or a position that cannot be is left to ``Event.problem``.

    Example:
        >>> events = open_events("tests/data/geant4_20_v3extra.h5")
        >>> len(events), len(events[0]), str(events[-1].key)
        (20, 5253, 'tests/data/geant4_20_v3extra.h5: event 19')
    """
    for name, value in (("energy_scale", energy_scale), ("voxel_mm", voxel_mm)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; expected a positive number")
    sources: list[Source] = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not sources:
        raise ValueError("no source of events was given; expected files, folders, globs or generate:PRESET")
    parts: list[Part] = []
    for one in sources:
        if isinstance(one, str) and one.startswith(GENERATE):
            if energy_scale != 1 or voxel_mm != VOXEL_MM:
                raise ValueError(f"{one}: generated events are in MeV and voxels of 3 mm; they take no scale or pitch")
            parts.append(_Generated(one, truth))
        else:
            from larpanda.data.pilarnet import EventFile

            paths = event_files(os.fspath(one))
            parts += [EventFile(p, truth=truth, energy_scale=energy_scale, voxel_mm=voxel_mm) for p in paths]
    return Events(parts)


def write_events(path: Source, events: Iterable[Event]) -> None:
    """Write events as a PILArNet-M v3_extra file, which `open_events` gives back equal.

    The file appears when it is complete (an old one of that name is replaced), or not at all. Points keep their order
    if those of LEDs come first, as in any event that was read from a file; else they are ordered by cluster.
    Truth that v3_extra has no column for lies in a list of our own, `larpanda_truth`, and the run, subrun and event of
    keys that have them in lists of those names (docs/formats.md).

    Args:
        path: ends in .h5 or .hdf5 (with the number of points of each event beside it, in ``<name>_points.npy``), or in
            .parquet.
        events: any iterable; one event at a time is in memory.

    Raises:
        ValueError: another suffix; or an event that has a ``problem()`` or labels that contradict each other.
        OSError: the folder does not exist, cannot be written to, or the disk is full.
    """
    from larpanda.data.pilarnet import write

    write(Path(path), events)


def median_energy_warning(events: Sequence[Event], limit: int = 20) -> str | None:
    """One line if the energies of the first events can hardly be MeV per voxel, or None.

    Args:
        events: those to look at; events that cannot be read are passed over.
        limit: how many that are not empty.
    """
    readable = islice(_not_empty(events), limit)
    energy = [value for event in readable for value in event.energy[torch.isfinite(event.energy)].tolist()]
    if not energy:
        return None
    low, high = MEDIAN_ENERGY_MEV
    median = statistics.median(energy)
    if low <= median <= high:
        return None
    return (
        f"the median voxel energy is {median:.3g} MeV; expected {low:g} to {high:g} MeV: if the values are a charge or "
        "in other units, say how many MeV one is (--energy-scale, energy_scale=)"
    )


def _not_empty(events: Sequence[Event]) -> Iterator[Event]:
    for index in range(len(events)):
        try:
            event = events[index]
        except ValueError:
            continue
        if len(event):
            yield event


def entries_of(spec: str | None, n: int) -> list[int]:
    """Entries that ``10:20,37`` stands for, in order, each once. Raises ValueError for one that is not there."""
    if spec is None:
        return list(range(n))
    chosen: set[int] = set()
    for part in spec.split(","):
        first, colon, last = part.partition(":")
        try:
            low = int(first) if first or not colon else 0
            high = (int(last) if last else n) if colon else low + 1
        except ValueError:
            raise ValueError(f"--events {spec}: expected numbers and ranges such as 10:20,37") from None
        if not 0 <= low < high <= n:
            raise ValueError(f"--events {part}: there are {n} events, 0 to {n - 1}")
        chosen.update(range(low, high))
    return sorted(chosen)


def event_files(source: str) -> list[Path]:
    """The files of events that a file, folder or glob stands for, sorted.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file whose name does not tell that it holds events.
    """
    from larpanda.data.rows import SUFFIXES

    path = Path(source)
    kinds = ", ".join(SUFFIXES)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{source}: not a file of events; expected a name that ends in {kinds}")
        return [path]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise FileNotFoundError(f"{source}: no file of events in this folder; expected names that end in {kinds}")
        return found
    if any(character in source for character in "*?["):
        matches = [Path(match) for match in sorted(glob.glob(source, recursive=True))]
        files = [p for p in matches if p.suffix.lower() in SUFFIXES and p.is_file()]
        folders = [file for p in matches if p.is_dir() for file in event_files(str(p))]
        if not (found := sorted({*files, *folders})):
            raise FileNotFoundError(f"{source}: no file of events matches; expected names that end in {kinds}")
        return found
    raise FileNotFoundError(f"{source}: no such file or folder; check the name")
