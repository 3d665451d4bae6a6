"""What is wrong with files of events, event by event. A file is read in another process, which may hang or die of it.

What a readout must be, the readers and ``Event.problem`` know; here is what they do not ask, and the count of it all.
"""

import functools
import math
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from larpanda.crew import Outcome, Tell, outcomes
from larpanda.data import Part, median_energy_warning
from larpanda.data.pilarnet import EventFile, contradiction
from larpanda.event import MAX_POINTS, MIN_ENERGY_MEV, UNKNOWN, VOXEL_MM, Event, EventKey, Status

FIRST = 5  # events of each problem of a file whose reasons are kept
MAX_VOXEL_MEV = 10_000.0  # of a voxel; 20 events of Geant4 reach 22 MeV: so much is a wrong unit or bit
ENERGY_EDGES_MEV = np.logspace(-3, 4, 57)  # of the histogram of energy per voxel: 8 bins a decade
TRIES = 2  # what ends two processes is the file; one alone may suffer from what it read before
REASON_LENGTH = 300
UNIT_EVENTS = 20  # that are looked at for a wrong unit of energy

Reader = Callable[..., Part]  # a path, energy_scale=, voxel_mm= -> its events; a function or class of a module


class Kind(str, Enum):
    """What can be wrong with an event. Where Status has a word for it, this is the same word."""

    EMPTY = Status.EMPTY.value  # no voxel
    TOO_SMALL = Status.TOO_SMALL.value  # fewer than 2 voxels above threshold
    TOO_LARGE = Status.TOO_LARGE.value  # more than MAX_POINTS
    BAD_INPUT = Status.BAD_INPUT.value  # cannot be read, or has an Event.problem()
    ZERO_ENERGY = "zero_energy"  # of a voxel
    HIGH_ENERGY = "high_energy"  # above MAX_VOXEL_MEV in a voxel
    DUPLICATES = "duplicates"  # several rows in one voxel
    CONTRADICTION = "contradiction"  # labels that cannot all be true
    FAILED = Status.FAILED.value  # the reader met what it does not know

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an event."""

    kind: Kind
    reason: str  # one line: what was found, what was expected


@dataclass(frozen=True, slots=True, eq=False)
class EventCheck:
    """What was found in one event."""

    entry: int
    problems: tuple[Problem, ...]
    n_voxels: int | None  # None: it could not be read
    energy_mev: float  # sum over voxels, NaN if it could not be read or a voxel has no finite energy
    energy_counts: npt.NDArray[np.int64]  # voxels in the bins of ENERGY_EDGES_MEV


@dataclass(frozen=True, slots=True)
class Found:
    """A problem that events of a file have."""

    kind: Kind
    n_events: int
    first: tuple[tuple[int, str], ...]  # entry and reason of the first FIRST of them


@dataclass(frozen=True, slots=True, eq=False)
class FileCheck:
    """What was found in one file."""

    file: str
    n_events: int | None  # None: it could not be opened
    n_good: int  # events without a problem
    found: tuple[Found, ...]  # in the order of Kind
    error: str  # why it was not read to its end, empty if it was
    warning: str  # what may be wrong with all events alike, empty if nothing
    n_voxels: npt.NDArray[np.int64]  # of the events that could be read
    energy_mev: npt.NDArray[np.float64]  # of those whose energies are finite
    energy_counts: npt.NDArray[np.int64]  # voxels of all events in the bins of ENERGY_EDGES_MEV

    @property
    def is_good(self) -> bool:
        """True if every event could be read and has no problem."""
        return not self.error and not self.found


def find_problems(
    outcome: Event | Exception, *, max_voxels: int = MAX_POINTS, duplicates: bool = True
) -> tuple[Problem, ...]:
    """Say what is wrong with an event.

    Args:
        outcome: the event, or what its reader raised.
        max_voxels: more are a problem.
        duplicates: whether several rows in one voxel are; not for files of a finer pitch, where they must be.

    Returns:
        Problems in the order of Kind, each kind once; nothing for a good event. Checks that need numbers which are
        not there (NaN, labels that are none) are left out.
    """
    if isinstance(outcome, Exception):
        return (Problem(Kind.BAD_INPUT if isinstance(outcome, ValueError | OSError) else Kind.FAILED, _said(outcome)),)
    bad_input, bad_labels = outcome.problem(), contradiction(outcome)
    reasons = {
        Kind.BAD_INPUT: bad_input,
        Kind.CONTRADICTION: bad_labels or _two_of_one(outcome, "species") or _two_of_one(outcome, "interaction"),
    }
    if not len(outcome):
        reasons[Kind.EMPTY] = "no voxel"
    if len(outcome) > max_voxels:
        reasons[Kind.TOO_LARGE] = f"{len(outcome):,} voxels; expected at most {max_voxels:,}"
    if len(outcome) and bad_input is None:
        reasons[Kind.ZERO_ENERGY] = _some(outcome.energy == 0, outcome.energy, "0; expected more")
        expected = f"above {MAX_VOXEL_MEV:,.0f} MeV"
        reasons[Kind.HIGH_ENERGY] = _some(outcome.energy > MAX_VOXEL_MEV, outcome.energy, expected)
        if bad_labels is None:  # else rows of a voxel cannot be merged
            cells, _ = outcome.visible(-math.inf)
            n_seen, n_merged = int((cells.energy > MIN_ENERGY_MEV).sum()), len(outcome) - len(cells)
            if n_seen < 2:
                reasons[Kind.TOO_SMALL] = f"{n_seen} voxels above {MIN_ENERGY_MEV:g} MeV; expected at least 2"
            if n_merged and duplicates:
                reasons[Kind.DUPLICATES] = f"{n_merged} of {len(outcome)} rows lie in the voxel of another row"
    return tuple(Problem(kind, reason) for kind in Kind if (reason := reasons.get(kind)))


def _some(wrong: Tensor, energy: Tensor, what: str) -> str | None:
    """What is said of the [N] rows that are wrong, if any."""
    if not wrong.any():
        return None
    row = int(wrong.nonzero()[0])
    return (
        f"{int(wrong.sum())} of {len(wrong)} energies are {what} (the first at row {row}: {energy[row].item():g} MeV)"
    )


def _two_of_one(event: Event, name: str) -> str | None:
    """The first particle whose points differ in a label that is its own."""
    label = getattr(event, name)
    known = (event.particle != UNKNOWN) & (label != UNKNOWN)
    particle, row = torch.unique(event.particle[known], return_inverse=True)
    none = torch.zeros_like(particle)
    low, high = (none.scatter_reduce(0, row, label[known], what, include_self=False) for what in ("amin", "amax"))
    if not len(several := (low != high).nonzero().flatten()):
        return None
    i = several[0]
    others = f" (and {len(several) - 1} other particles)" if len(several) > 1 else ""
    return f"particle {int(particle[i])} has {name} {int(low[i])} and {int(high[i])}{others}; expected one"


def _said(error: Exception) -> str:
    """One line of what was raised; with its type if it is not one that readers raise."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def check_files(
    files: Sequence[Path],
    *,
    energy_scale: float = 1.0,
    voxel_mm: float = VOXEL_MM,
    workers: int = 1,
    limit_s: float = 60.0,
    reader: Reader = EventFile,
    progress: Callable[[str, int, int], None] = lambda file, done, n: None,
) -> Iterator[FileCheck]:
    """Check every event of every file. Whatever a file does to its reader, there is a report of it.

    Args:
        files: of events; one given twice is checked once.
        energy_scale: MeV for a unit of the file's voxel values.
        voxel_mm: pitch of the file's voxels.
        workers: processes that read; this one does not. A script needs ``if __name__ == "__main__":``.
        limit_s: seconds for one event (or to open a file) before its reader is ended; it has two tries.
        reader: opens a file.
        progress: called with the file, how many of its events are checked, and how many it has.

    Returns:
        One report a file, in the order of the files; the same for any number of workers.

    A reader that does not come back from the first events names the first: it looks at several to tell the revision.
    """
    tallies = {path: _Tally() for path in files}

    def told(path: Path, what: int | EventCheck) -> None:
        if isinstance(what, int):
            tallies[path] = _Tally(what)  # from the beginning, should this be the second try
            return
        tally = tallies[path]
        tally.add(what)
        progress(str(path), tally.n_checked, tally.n_events or 0)

    work = functools.partial(_read_file, reader=reader, energy_scale=energy_scale, voxel_mm=voxel_mm, limit_s=limit_s)
    unreported = deque(tallies)
    for outcome in outcomes(list(tallies), work, workers, patience_s=limit_s, tries=TRIES, told=told):
        tallies[outcome.task].end(outcome)
        while unreported and tallies[unreported[0]].last is not None:
            path = unreported.popleft()
            yield tallies.pop(path).report(str(path))


@dataclass(frozen=True, slots=True)
class _End:
    """What a reader says last of a file."""

    error: str = ""
    warning: str = ""


def _read_file(path: Path, tell: Tell, *, reader: Reader, energy_scale: float, voxel_mm: float, limit_s: float) -> _End:
    """Check a file, in a process of its own: tells the number of events, and then of each."""
    torch.set_num_threads(1)
    _end_after(limit_s)
    try:
        try:
            events = reader(path, energy_scale=energy_scale, voxel_mm=voxel_mm)
            n_events, n_bytes = len(events), path.stat().st_size
        except Exception as error:  # of a damaged file a library may raise anything
            return _End(_short(_said(error), path))
        if n_events > n_bytes:  # a damaged number could keep us for years
            return _End(f"it claims {n_events:,} events in {n_bytes:,} bytes; copy or make it again")
        tell(n_events)
        readable: list[Event] = []
        for entry in range(n_events):
            _end_after(limit_s)
            outcome = _read(events, entry)
            if isinstance(outcome, Event) and len(outcome) and len(readable) < UNIT_EVENTS:
                readable.append(outcome)
            tell(_checked(EventKey(events.name, entry), outcome, duplicates=voxel_mm >= VOXEL_MM))
        events.close()
        return _End(warning=median_energy_warning(readable, UNIT_EVENTS) or "")
    finally:
        _end_after(None)


def _end_after(limit_s: float | None) -> None:
    """Have the system end this process some time after its parent should have, if that one is gone. None: never."""
    if hasattr(signal, "alarm"):  # not on Windows
        signal.alarm(0 if limit_s is None else min(math.ceil(2 * limit_s), 2**31 - 1))


def _read(events: Part, entry: int) -> Event | Exception:
    try:
        return events[entry]
    except Exception as error:  # as above
        return error


def _checked(key: EventKey, outcome: Event | Exception, *, duplicates: bool) -> EventCheck:
    problems = find_problems(outcome, duplicates=duplicates)
    problems = tuple(Problem(one.kind, _short(one.reason, key)) for one in problems)
    if isinstance(outcome, Exception):
        return EventCheck(key.entry, problems, None, math.nan, np.zeros(len(ENERGY_EDGES_MEV) - 1, np.int64))
    energy = outcome.energy.double().numpy()
    counts = np.histogram(energy[np.isfinite(energy)], ENERGY_EDGES_MEV)[0]
    total = float(energy.sum()) if np.isfinite(energy).all() else math.nan
    return EventCheck(key.entry, problems, len(outcome), total, counts)


def _short(reason: str, where: Path | EventKey) -> str:
    """Without the place, which stands elsewhere, and not longer than a person reads."""
    reason = reason.removeprefix(" ".join(f"{where}:".split()) + " ")
    return reason if len(reason) <= REASON_LENGTH else f"{reason[:REASON_LENGTH]}..."


@dataclass(slots=True, eq=False)
class _Tally:
    """What is known of a file so far."""

    n_events: int | None = None
    n_checked: int = 0
    n_good: int = 0
    n_voxels: list[int] = field(default_factory=list)
    energy_mev: list[float] = field(default_factory=list)
    energy_counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(ENERGY_EDGES_MEV) - 1, np.int64))
    n_found: dict[Kind, int] = field(default_factory=dict)
    first: dict[Kind, list[tuple[int, str]]] = field(default_factory=dict)
    last: _End | None = None  # while it is being read

    def add(self, event: EventCheck) -> None:
        """Count an event."""
        self.n_checked += 1
        self.n_good += not event.problems
        if event.n_voxels is not None:
            self.n_voxels.append(event.n_voxels)
        if math.isfinite(event.energy_mev):
            self.energy_mev.append(event.energy_mev)
        self.energy_counts += event.energy_counts
        for problem in event.problems:
            self.n_found[problem.kind] = self.n_found.get(problem.kind, 0) + 1
            first = self.first.setdefault(problem.kind, [])
            if len(first) < FIRST:
                first.append((event.entry, problem.reason))

    def end(self, outcome: Outcome[Path, _End]) -> None:
        """Take what the reader says last, or what became of it."""
        if outcome.result is not None:
            self.last = outcome.result
            return
        what = f"reader {outcome.ending or f'failed ({outcome.error})'}"
        if self.n_events is None:
            self.last = _End(f"{what} while it opened the file")
        elif self.n_checked == self.n_events:
            self.last = _End(f"{what} after the last event")
        else:
            rest = f"events {self.n_checked} to {self.n_events - 1} were not checked"
            self.last = _End(f"{what} at event {self.n_checked}; {rest}")

    def report(self, file: str) -> FileCheck:
        """All of it."""
        assert self.last is not None
        return FileCheck(
            file,
            self.n_events,
            self.n_good,
            tuple(Found(kind, self.n_found[kind], tuple(self.first[kind])) for kind in Kind if kind in self.n_found),
            self.last.error,
            self.last.warning,
            np.array(self.n_voxels, np.int64),
            np.array(self.energy_mev, np.float64),
            self.energy_counts,
        )
