"""What ``larpanda validate`` found, as lines for a terminal and as a page. Checks nothing."""

import html
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from larpanda.data.validate import ENERGY_EDGES_MEV, FIRST, MAX_VOXEL_MEV, FileCheck, Kind
from larpanda.display.figures import histogram_svg
from larpanda.event import MAX_POINTS, MIN_ENERGY_MEV

LINES = 20  # of problems on a terminal; the table has all their numbers
MEANING = {
    Kind.EMPTY: "no voxel",
    Kind.TOO_SMALL: f"fewer than 2 voxels above {MIN_ENERGY_MEV:g} MeV",
    Kind.TOO_LARGE: f"more than {MAX_POINTS:,} voxels",
    Kind.BAD_INPUT: "cannot be read; or an energy is NaN, infinite or negative, or a position is no voxel of the image",
    Kind.ZERO_ENERGY: "a voxel of 0 MeV",
    Kind.HIGH_ENERGY: f"a voxel of more than {MAX_VOXEL_MEV:,.0f} MeV",
    Kind.DUPLICATES: "several rows in one voxel",
    Kind.CONTRADICTION: "labels that cannot all be true",
    Kind.FAILED: "the reader met what it does not know",
}


def text(checks: Sequence[FileCheck]) -> str:
    """A table with a line a file, a line for all, and the first problems."""
    rows = [("file", "events", "good", "problems"), *(_row(check) for check in checks)]
    width = [max(len(row[column]) for row in rows) for column in range(3)]
    table = [f"{a:<{width[0]}}  {b:>{width[1]}}  {c:>{width[2]}}  {d}".rstrip() for a, b, c, d in rows]
    lines = [line for check in checks for line in _lines(check)]
    n_more = sum(_n_problems(check) for check in checks) - len(lines[:LINES])
    more = [f"and {n_more} more"] if n_more else []
    return "\n".join([*table, *_summary(checks), *lines[:LINES], *more])


def page(checks: Sequence[FileCheck]) -> str:
    """A self-contained page: counts, the first events of each problem, histograms. The same for the same checks."""
    n_voxels = _joined([check.n_voxels for check in checks])
    energy_counts = sum((check.energy_counts for check in checks), np.zeros(len(ENERGY_EDGES_MEV) - 1, np.int64))
    top = max(int(n_voxels.max(initial=0)), 1)
    edges = np.unique(np.round(np.geomspace(1, top + 1, 41)))
    figures = (
        (
            histogram_svg(np.histogram(n_voxels, edges)[0], edges, "voxels of an event", "events"),
            n_voxels > 0,
            "events",
        ),
        (histogram_svg(energy_counts, ENERGY_EDGES_MEV, "energy of a voxel, MeV", "voxels"), energy_counts, "voxels"),
    )
    total = {"events": len(n_voxels), "voxels": int(n_voxels.sum())}
    return _PAGE.format(
        summary="<br>".join(html.escape(line) for line in _summary(checks)),
        kinds=_table(("problem", "events", "what it is"), _kinds(checks)),
        files=_table(("file", "events", "good", "problems"), [_row(check) for check in checks]),
        faults=_table(("file", "what"), [row for check in checks for row in _of_file(check)]),
        events=_table(("file", "event", "problem", "reason"), [row for check in checks for row in _of_events(check)]),
        first=FIRST,
        figures="".join(
            f"<figure>{svg}<figcaption>{shown.sum():,} of {total[what]:,} {what} are in its range</figcaption></figure>"
            for svg, shown, what in figures
        ),
    )


def _row(check: FileCheck) -> tuple[str, str, str, str]:
    problems = [f"{found.kind} {found.n_events}" for found in check.found]
    if check.error:
        problems.append("cannot be read" if check.n_events is None else "not read to its end")
    if check.n_events is None:
        return _printable(check.file), "-", "-", ", ".join(problems)
    return _printable(check.file), str(check.n_events), str(check.n_good), ", ".join(problems)


def _summary(checks: Sequence[FileCheck]) -> Iterator[str]:
    n_bad = sum(not check.is_good for check in checks)
    n_events, n_good = sum(check.n_events or 0 for check in checks), sum(check.n_good for check in checks)
    yield f"{len(checks)} files, {n_bad} with problems; {n_events} events, {n_good} good"
    voxels, energy = _joined([c.n_voxels for c in checks]), _joined([c.energy_mev for c in checks])
    if len(voxels) and len(energy):
        yield f"an event has {_span(voxels)} voxels and {_span(energy)} MeV (least / median / most)"


def _span(values: npt.NDArray[np.float64]) -> str:
    return " / ".join(f"{value:,.0f}" for value in (values.min(), np.median(values), values.max()))


def _lines(check: FileCheck) -> Iterator[str]:
    for file, what in _of_file(check):
        yield f"{file}: {what}"
    for file, entry, kind, reason in _of_events(check):
        yield f"{file}: event {entry}: {kind}: {reason}"


def _of_file(check: FileCheck) -> Iterator[tuple[str, str]]:
    if check.error:
        yield _printable(check.file), _printable(check.error)
    if check.warning:
        yield _printable(check.file), f"warning: {_printable(check.warning)}"


def _of_events(check: FileCheck) -> Iterator[tuple[str, str, str, str]]:
    """The first events of each problem, in the order of the file."""
    events = [(entry, found.kind, reason) for found in check.found for entry, reason in found.first]
    for entry, kind, reason in sorted(events, key=lambda event: event[0]):
        yield _printable(check.file), str(entry), str(kind), _printable(reason)


def _n_problems(check: FileCheck) -> int:
    return bool(check.error) + bool(check.warning) + sum(found.n_events for found in check.found)


def _kinds(checks: Sequence[FileCheck]) -> list[tuple[str, str, str]]:
    counts = {kind: sum(f.n_events for check in checks for f in check.found if f.kind == kind) for kind in Kind}
    return [(str(kind), str(n), MEANING[kind]) for kind, n in counts.items() if n]


def _joined(columns: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.float64]:
    return np.concatenate([np.empty(0), *columns])


def _printable(text: str) -> str:
    """A name may hold line breaks, orders to a terminal, or bytes that are no text."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>larpanda validate</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; vertical-align: top; padding: 0.1rem 1rem 0.1rem 0; white-space: nowrap; }}
td:first-child, td:last-child {{ white-space: normal; overflow-wrap: break-word; max-width: 40rem; }}
div {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem; }}
figure {{ margin: 0; }}
svg {{ width: 100%; height: auto; }}
</style>
<h1>What is wrong with these files</h1>
<p>{summary}</p>
<h2>Problems of events</h2>
{kinds}
<h2>Problems of files</h2>
{faults}
<h2>Files</h2>
{files}
<h2>Events with problems</h2>
<p>Of each file the first {first} of each problem.</p>
{events}
<h2>Sizes and energies</h2>
<div>{figures}</div>
</html>
"""
