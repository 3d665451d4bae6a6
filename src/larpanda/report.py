"""A model's numbers over events with truth (metrics.json, index.html), and what a bundle, run or file holds."""

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from larpanda.data import open_events
from larpanda.data.rows import open_rows
from larpanda.display.figures import MOTIF_NAME, bars_svg, confusion_svg, lines_svg
from larpanda.display.scene import page
from larpanda.evaluate.clustering import CONVENTIONS as INSTANCE_CONVENTIONS
from larpanda.evaluate.clustering import Clustering, Overlap, clustering, clustering_as_json, overlap
from larpanda.evaluate.segmentation import (
    CONVENTIONS,
    Part,
    Segmentation,
    as_json,
    confusion,
    parts_as_json,
    segmentation,
    segmentation_by,
)
from larpanda.event import MIN_ENERGY_MEV, Event, Motif, Species
from larpanda.model.bundle import find_bundle, read_bundle_config
from larpanda.parallel import gathered, rank, world
from larpanda.publish import publish_text
from larpanda.reconstruct import Reconstructor
from larpanda.runs import describe_run, is_run

BY = {"n_voxels": "voxels above threshold", "energy_mev": "energy above threshold, MeV"}
WORST = 6  # events on the page beside the report


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Motif metrics of a model over events, and which events they are."""

    semantic: Segmentation
    by: Mapping[str, tuple[Part, ...]]  # the same in ranges of n_voxels and of energy_mev, above threshold
    entries: tuple[int, ...]  # of the sequence that was evaluated
    tables: tuple[npt.NDArray[np.int64], ...]  # [5, 5] each: confusion of every event
    events: Sequence[Event]
    left_out: tuple[str, ...]  # a line for each event without truth, or that could not be used
    particle: Clustering | None  # None: the model has no such head, or the events no such truth
    interaction: Clustering | None


def evaluate_events(model: Reconstructor, events: Sequence[Event], entries: Iterable[int], seed: int = 0) -> Evaluation:
    """Compare a model's motifs with the truth, voxels above its threshold, one event at a time.

    Started by torchrun, the processes share the events; all get the same result as one alone.

    Args:
        model: with a semantic head.
        events: with truth; those without, and those that cannot be used, are left out and listed.
        entries: which of them.
        seed: of the bootstrap.

    Raises:
        ValueError: no event can be used.
    """
    if model.model.semantic is None:
        raise ValueError(f"bundle {model.name} has no semantic head to evaluate")
    mine = {place: _judge(model, events, entry) for place, entry in enumerate(entries) if place % world() == rank()}
    judged = {place: one for part in gathered(mine) for place, one in part.items()}
    in_order = [judged[place] for place in sorted(judged)]
    used = [one for one in in_order if isinstance(one, _Judged)]
    left_out = [one for one in in_order if isinstance(one, str)]
    if not used:
        reason = f"; the first: {left_out[0]}" if left_out else ""
        raise ValueError(f"no event with truth among {len(left_out)}{reason}")
    tables = [one.table for one in used]
    by = {
        name: segmentation_by([getattr(one, name) for one in used], tables, seed=seed)
        for name in ("n_voxels", "energy_mev")
    }
    return Evaluation(
        segmentation(tables, seed=seed),
        by,
        tuple(one.entry for one in used),
        tuple(tables),
        events,
        tuple(left_out),
        _clustering([one.particle for one in used], len(Species), seed),
        _clustering([one.interaction for one in used], 1, seed),
    )


def _clustering(tables: Sequence[Overlap | None], n_classes: int, seed: int) -> Clustering | None:
    known = [table for table in tables if table is not None]
    return clustering(known, n_classes, seed=seed) if known else None


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    entry: int
    table: npt.NDArray[np.int64]  # [5, 5]
    n_voxels: int  # above threshold
    energy_mev: float  # of them
    particle: Overlap | None
    interaction: Overlap | None


def _judge(model: Reconstructor, events: Sequence[Event], entry: int) -> _Judged | str:
    """Of one event; or why it is left out."""
    try:
        event = events[entry]
    except (ValueError, OSError) as error:
        return str(error)
    if problem := event.problem() or ("" if event.has_truth else "no motif labels"):
        return f"{event.key or f'event {entry}'}: {problem}"
    visible, row_point = event.visible(model.model.config.min_energy_mev)
    energy = float(visible.energy.double().sum())
    found = model.reconstruct(event)
    row = torch.empty(len(visible), dtype=torch.long)  # one of those that became each point; all have its answer
    row[row_point[row_point >= 0]] = (row_point >= 0).nonzero()[:, 0]
    table = confusion(visible.motif, found.motif[row])
    particle = interaction = None
    if found.particles is not None and (visible.particle >= 0).any():
        species = np.array([int(one.species) for one in found.particles] + [0])
        truth, mine = visible.particle.numpy(), found.particle[row].numpy()
        kind = np.maximum(visible.species.numpy(), 0)
        particle = overlap(truth, mine, kind, species[mine], visible.energy.numpy())
    if found.interactions is not None and (visible.interaction >= 0).any():
        truth, mine = visible.interaction.numpy(), found.interaction[row].numpy()
        interaction = overlap(truth, mine, energy=visible.energy.numpy())
    return _Judged(entry, table, len(visible), energy, particle, interaction)


def table(result: Evaluation) -> str:
    """The numbers as text."""
    scores = result.semantic
    lines = [f"{scores.events} events, {scores.voxels} voxels above threshold; 68 % intervals over events"]
    lines.append(f"macro F1  {scores.macro_f1:.3f}  [{scores.macro_f1_low:.3f}, {scores.macro_f1_high:.3f}]")
    for motif in Motif:
        i = int(motif)
        if np.isnan(scores.f1[i]):
            lines.append(f"{MOTIF_NAME[motif]:<8}  absent")
            continue
        lines.append(
            f"{MOTIF_NAME[motif]:<8}  {scores.f1[i]:.3f}  [{scores.f1_low[i]:.3f}, {scores.f1_high[i]:.3f}]"
            f"  precision {scores.precision[i]:.3f}  recall {scores.recall[i]:.3f}"
        )
    for name, found in (("particles", result.particle), ("interactions", result.interaction)):
        if found is not None:
            lines.append(f"{name}, {found.events} events")
            for key in ("ari", "pq", "purity", "efficiency", "fraction_unassigned"):
                one = found.means[key]
                lines.append(f"  {key:<20}{one.value:.3f}  [{one.low:.3f}, {one.high:.3f}]")
    return "\n".join(lines)


def summary(result: Evaluation, model: Reconstructor) -> str:
    """The numbers as rows for the side panel of a page of events: name, tab, value."""
    scores = result.semantic
    rows = [("model", model.name), ("events", str(scores.events)), ("macro F1", f"{scores.macro_f1:.3f}")]
    rows += [(MOTIF_NAME[motif], f"{scores.f1[int(motif)]:.3f}") for motif in Motif]
    return "\n".join(f"{name}\t{value}" for name, value in rows)


def write_report(out: Path, result: Evaluation, model: Reconstructor, sources: Sequence[str]) -> None:
    """Write metrics.json, index.html with the figures, and events.html with the events of lowest accuracy."""
    scores = result.semantic
    metrics = {
        "events": scores.events,
        "left_out": len(result.left_out),
        "semantic": as_json(scores),
        "semantic_by": {name: parts_as_json(parts) for name, parts in result.by.items()},
        **{name: clustering_as_json(one, names) for name, one, names in _instances(result) if one is not None},
        "conventions": conventions(result),
        "data": [Path(source).name if not source.startswith("generate:") else source for source in sources],
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "min_energy_mev": model.model.config.min_energy_mev,
    }
    names = [MOTIF_NAME[motif] for motif in Motif]
    accuracy = [np.trace(t) / max(t.sum(), 1) for t in result.tables]
    worst = np.argsort(accuracy, kind="stable")[:WORST].tolist()
    pairs = [(event, model.reconstruct(event)) for event in (result.events[result.entries[i]] for i in worst)]
    publish_text(
        out / "events.html", page(pairs, f"The {len(worst)} events of lowest accuracy", summary(result, model))
    )
    figures = bars_svg(scores.f1.tolist(), scores.f1_low.tolist(), scores.f1_high.tolist(), names)
    links = ", ".join(
        f'<a href="events.html#event={place}">{result.entries[i]}</a> ({accuracy[i]:.0%})'
        for place, i in enumerate(worst)
    )
    body = _REPORT.format(
        title=html.escape(f"{model.name} on {', '.join(map(str, metrics['data']))}"),  # type: ignore[call-overload]
        table=html.escape(table(result)),
        bars=figures,
        confusion=confusion_svg(scores.confusion, names),
        conventions="".join(
            f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in conventions(result).items()
        ),
        by="".join(f"<figure>{_by_svg(parts, BY[name])}</figure>" for name, parts in result.by.items()),
        worst=links,
    )
    publish_text(out / "index.html", body)
    publish_text(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")


def _instances(result: Evaluation) -> list[tuple[str, Clustering | None, list[str]]]:
    species = [one.name.lower() for one in Species]
    return [("particle", result.particle, species), ("interaction", result.interaction, ["interaction"])]


def conventions(result: Evaluation) -> dict[str, str]:
    """What each number of an evaluation is."""
    instances = any(one is not None for _, one, _ in _instances(result))
    return {**(INSTANCE_CONVENTIONS if instances else {}), **CONVENTIONS}


def _by_svg(parts: Sequence[Part], what: str) -> str:
    places = [math.sqrt(max(part.low, 1e-3) * max(part.high, 1e-3)) for part in parts]
    results = [part.result for part in parts]
    ends = ([r.macro_f1_low for r in results], [r.macro_f1_high for r in results])
    return lines_svg([("macro F1", places, [r.macro_f1 for r in results], *ends)], what, "macro F1")


def describe(what: str) -> str:
    """What a bundle, a run folder or a file of events or tables holds; builds no model. Draws the curves of a run.

    Raises:
        ValueError, FileNotFoundError: it is none of these.
    """
    path = Path(what)
    if is_run(path):
        return describe_run(path)
    if path.suffix == ".parquet" and path.is_file() and (text := _describe_table(path)):
        return text
    if path.is_file():
        return _describe_events(what)
    folder = find_bundle(what)
    config, provenance = read_bundle_config(folder)
    weights, size = _count_weights(folder / "model.safetensors")
    content = {"config": asdict(config), "provenance": dict(provenance)}
    return f"bundle {folder.name}: {weights} weights, {size / 1e6:.1f} MB\n{json.dumps(content, indent=2)}"


def _describe_table(path: Path) -> str | None:
    """Our own tables carry their provenance; other Parquet files are events."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    metadata: Mapping[bytes, bytes] = file.schema_arrow.metadata or {}
    if b"provenance" not in metadata or "entry" not in file.schema_arrow.names:
        return None
    columns = "\n".join(
        f"  {field.name:<18} {field.type!s:<8} {(field.metadata or {}).get(b'unit', b'').decode():<4} "
        f"{(field.metadata or {}).get(b'description', b'').decode()}"
        for field in file.schema_arrow
    )
    return f"{path}: {file.metadata.num_rows} rows\n{columns}\nprovenance: {metadata[b'provenance'].decode()}"


def _describe_events(what: str) -> str:
    events = open_events(what)
    with closing(open_rows(Path(what), what)) as rows:
        provenance = rows.provenance
    lines = [f"{what}: {len(events)} events"]
    if len(events):
        event = events[0]
        lines.append(f"event 0: {len(event)} voxels, {event.energy.double().sum():.1f} MeV")
        if event.has_truth:
            counts = [f"{int((event.motif == m).sum())} {MOTIF_NAME[m]}" for m in Motif]
            lines.append(f"truth: {', '.join(counts)}; above {MIN_ENERGY_MEV} MeV {len(event.visible()[0])}")
            lines.append(f"particles: {'momenta and vertices' if event.particles else 'ids only'}")
        else:
            lines.append("no truth")
    if provenance is not None:
        lines.append(f"provenance: {provenance}")
    return "\n".join(lines)


def _count_weights(path: Path) -> tuple[int, int]:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    return sum(int(np.prod(shape)) for shape in shapes), path.stat().st_size


_REPORT = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
pre {{ background: #f4f4f4; padding: 1rem; overflow-x: auto; }}
svg {{ max-width: 100%; height: auto; }}
dt {{ font-weight: 600; }} dd {{ margin: 0 0 .4rem 1.5rem; }}
</style>
<h1>{title}</h1>
<pre>{table}</pre>
<figure>{bars}<figcaption>F1 of each motif, with 68 % intervals from a bootstrap over events</figcaption></figure>
<figure>{confusion}</figure>
<h2>Against size and energy</h2>
<p>Events in order, cut into parts of equal number; each point stands in the middle of its part.</p>
{by}
<h2>Worst events</h2>
<p>Those of lowest accuracy, truth beside prediction: event {worst}. Numbers for programs:
<a href="metrics.json">metrics.json</a>.</p>
<h2>Conventions</h2>
<dl>{conventions}</dl>
</html>
"""
