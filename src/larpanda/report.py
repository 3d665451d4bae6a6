"""A model's numbers over events with truth (metrics.json, index.html), and what a bundle, run or file holds."""

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from torch import Tensor

from larpanda.analysis.closure import CONVENTIONS as KINEMATIC_CONVENTIONS
from larpanda.analysis.closure import (
    Closure,
    Comparison,
    Spread,
    VertexComparison,
    closures,
    closures_as_json,
    compare,
    comparison_table,
    pi0_masses,
    spread_as_json,
    vertex_misses,
)
from larpanda.analysis.control import ControlSamples, control_samples, samples_as_json
from larpanda.analysis.kinematics import measure_event
from larpanda.data import open_events
from larpanda.data.rows import open_rows
from larpanda.display.figures import MOTIF_NAME
from larpanda.display.lists import Scores, Shown
from larpanda.display.scene import page
from larpanda.evaluate.calibration import Calibration, calibration, calibration_as_json
from larpanda.evaluate.clustering import CONVENTIONS as INSTANCE_CONVENTIONS
from larpanda.evaluate.clustering import UNKNOWN_CLASS, Overlap, efficiency, matches, overlap, purity, rand_index
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
from larpanda.evaluate.summary import Clustering, clustering, clustering_as_json, per_event_as_json
from larpanda.event import MIN_ENERGY_MEV, Event, Motif, Reconstruction, Species, rows_of_points
from larpanda.gallery import METRICS, PER_EVENT, describe_evaluation, draw_figures
from larpanda.model.bundle import find_bundle, read_bundle_config
from larpanda.parallel import gathered, rank, world
from larpanda.publish import publish_text, publishing
from larpanda.reconstruct import DETECTOR, Reconstructor
from larpanda.runs import describe_run, is_run

COMPARED = "particles.parquet"
WORST = 6  # events by each number on the page beside the report


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """Particles or interactions of a model over events."""

    found: Clustering
    entries: tuple[int, ...]  # of the events that have such truth
    classes: Calibration | None  # of the probabilities of particles' species


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Motif metrics of a model over events, and which events they are."""

    semantic: Segmentation
    by: Mapping[str, tuple[Part, ...]]  # the same in ranges of n_voxels and of energy_mev, above threshold
    entries: tuple[int, ...]  # of the sequence that was evaluated
    tables: tuple[npt.NDArray[np.int64], ...]  # [5, 5] each: confusion of every event
    events: Sequence[Event]
    left_out: tuple[str, ...]  # a line for each event without truth, or that could not be used
    particle: "Instances | None"  # None: the model has no such head, or the events no such truth
    interaction: "Instances | None"
    compared: tuple[tuple[int, Comparison], ...]  # true particles with momenta, each with the row of its event
    vertices: tuple[VertexComparison, ...]
    control: ControlSamples | None  # None: the model has no particle head


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
        _particles(used, seed),
        _interactions(used, seed),
        tuple((one.entry, particle) for one in used for particle in one.compared),
        tuple(vertex for one in used for vertex in one.vertices),
        _together([one.control for one in used if one.control is not None]),
    )


def _together(samples: Sequence[ControlSamples]) -> ControlSamples | None:
    if not samples:
        return None
    total = ControlSamples()
    for one in samples:
        total.add(one)
    return total


def _particles(judged: Sequence["_Judged"], seed: int) -> Instances | None:
    known = [(one.entry, one.particle, one.species_probability) for one in judged if one.particle is not None]
    if not known:
        return None
    entries, tables, probabilities = zip(*known, strict=True)
    pairs = [matches(table) for table in tables]
    said = np.concatenate([p[pair.found] for p, pair in zip(probabilities, pairs, strict=True)])
    true = np.concatenate([table.true_class[pair.true] for table, pair in zip(tables, pairs, strict=True)])
    told = true != UNKNOWN_CLASS
    return Instances(clustering(tables, len(Species), seed=seed), entries, calibration(said[told], true[told]))


def _interactions(judged: Sequence["_Judged"], seed: int) -> Instances | None:
    known = [(one.entry, one.interaction) for one in judged if one.interaction is not None]
    if not known:
        return None
    entries, tables = zip(*known, strict=True)
    return Instances(clustering(tables, 1, seed=seed), entries, None)


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    entry: int
    table: npt.NDArray[np.int64]  # [5, 5]
    n_voxels: int  # above threshold
    energy_mev: float  # of them
    compared: list[Comparison]  # if the truth has momenta; so the next
    vertices: list[VertexComparison]
    control: ControlSamples | None  # None: the model has no particle head
    particle: Overlap | None
    species_probability: npt.NDArray[np.float64]  # [P, 5] of the predicted particles
    interaction: Overlap | None


def _judge(model: Reconstructor, events: Sequence[Event], entry: int) -> _Judged | str:
    """Of one event; or why it is left out."""
    try:
        event = events[entry]
    except (ValueError, OSError) as error:
        return str(error)
    if problem := event.problem() or ("" if event.has_truth else "no motif labels"):
        return f"{event.key or f'event {entry}'}: {problem}"
    found = model.reconstruct(event)
    visible, row = _seen(event, model)
    particle, interaction = _overlaps(visible, found, row)
    probability = np.array([one.species_probability for one in found.particles or ()]).reshape(-1, len(Species))
    energy = float(visible.energy.double().sum())
    table = confusion(visible.motif, found.motif[row])
    measured = (
        None if found.particles is None else measure_event(event, found, DETECTOR, model.model.config.energy_scale)
    )
    threshold = model.model.config.min_energy_mev
    compared, vertices = compare(event, found, measured, threshold, DETECTOR, model.model.config.energy_scale)
    control = None if measured is None else control_samples(event, found, measured, DETECTOR)
    return _Judged(entry, table, len(visible), energy, compared, vertices, control, particle, probability, interaction)


def _seen(event: Event, model: Reconstructor) -> tuple[Event, Tensor]:
    """The points that a model sees, and [M] int64, of each one of the rows that became it: all have its answer."""
    visible, row_point = event.visible(model.model.config.min_energy_mev)
    return visible, rows_of_points(row_point, len(visible))


def _overlaps(visible: Event, found: Reconstruction, row: Tensor) -> tuple[Overlap | None, Overlap | None]:
    """True against found particles, and interactions; None without a head, or without such truth."""
    particle = interaction = None
    if found.particles is not None and (visible.particle >= 0).any():
        species = np.array([int(one.species) for one in found.particles] + [0])
        truth, mine = visible.particle.numpy(), found.particle[row].numpy()
        particle = overlap(truth, mine, visible.species.numpy(), species[mine], visible.energy.numpy())
    if found.interactions is not None and (visible.interaction >= 0).any():
        truth, mine = visible.interaction.numpy(), found.interaction[row].numpy()
        interaction = overlap(truth, mine, energy=visible.energy.numpy())
    return particle, interaction


def shown(model: Reconstructor, event: Event) -> Shown:
    """An event as a page shows it: reconstructed, and with heads for it measured and compared with the truth."""
    found = model.reconstruct(event)
    if (found.particles is None and found.interactions is None) or event.problem():
        return Shown(event, found)
    interactions, particles = measure_event(event, found, DETECTOR, model.model.config.energy_scale)
    visible, row = _seen(event, model)
    return Shown(
        event,
        found,
        tuple(particles[one.id] for one in found.particles or ()),
        tuple(interactions.get(one.id) for one in found.interactions or ()),
        *map(_scores, _overlaps(visible, found, row)),
    )


def _scores(table: Overlap | None) -> Scores | None:
    return None if table is None else Scores(rand_index(table), purity(table), efficiency(table))


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
            lines.append(f"{name}, {found.found.events} events")
            for key in ("ari", "pq", "purity", "efficiency", "fraction_unassigned"):
                one = found.found.means[key]
                lines.append(f"  {key:<20}{one.value:.3f}  [{one.low:.3f}, {one.high:.3f}]")
    return "\n".join([*lines, *_measured_lines(result)])


def _measured_lines(result: Evaluation) -> list[str]:
    """Energies and directions of true particles, on their own voxels and as found; nothing without heads or momenta."""
    if not result.compared or result.particle is None:
        return []
    particles = [one for _, one in result.compared]
    matched = sum(one.found is not None for one in particles)
    lines = [f"true particles measured on their voxels; as found, {matched} of {len(particles)} (IoU above 0.5)"]
    for on_truth, found in zip(closures(particles, True), closures(particles, False), strict=True):
        cells = [_measured_cell(one) for one in (on_truth, found)]
        lines.append(f"  {on_truth.species.name.lower():<9} {'; '.join(cells)}")
    return lines


def _measured_cell(one: Closure) -> str:
    energy, angle = one.energy, one.angle_degrees
    said = f"energy / true {energy.middle:.3f} +- {energy.half_width:.3f} ({energy.n})"
    if math.isnan(energy.middle):
        said = f"energy of {energy.n}, too few"
    return said if math.isnan(angle.middle) else f"{said}, 68 % of angles {angle.middle:.1f} degrees ({angle.n})"


def summary(result: Evaluation, model: Reconstructor) -> str:
    """The numbers as rows for the side panel of a page of events: name, tab, value."""
    scores = result.semantic
    rows = [("model", model.name), ("events", str(scores.events)), ("macro F1", f"{scores.macro_f1:.3f}")]
    rows += [(MOTIF_NAME[motif], f"{scores.f1[int(motif)]:.3f}") for motif in Motif]
    return "\n".join(f"{name}\t{value}" for name, value in rows)


def write_report(out: Path, result: Evaluation, model: Reconstructor, sources: Sequence[str]) -> None:
    """Write metrics.json, per_event.json, figures/, index.html, and events.html with the worst events."""
    scores = result.semantic
    names = [Path(source).name if not source.startswith("generate:") else source for source in sources]
    metrics = {
        "events": scores.events,
        "left_out": len(result.left_out),
        "semantic": as_json(scores),
        "semantic_by": {name: parts_as_json(parts) for name, parts in result.by.items()},
        **{name: clustering_as_json(one.found, classes) for name, one, classes in _instances(result)},
        "conventions": conventions(result),
        "data": names,
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "min_energy_mev": model.model.config.min_energy_mev,
    }
    if result.compared:
        metrics["kinematics"] = _kinematics(result)
        out.mkdir(parents=True, exist_ok=True)
        with publishing(out / COMPARED) as part:
            pq.write_table(comparison_table(result.compared), part, compression="zstd")
    if result.particle is not None and result.particle.classes is not None:
        metrics["particle_calibration"] = calibration_as_json(result.particle.classes)
    accuracy = [float(np.trace(t) / t.sum()) if t.sum() else math.nan for t in result.tables]
    shares = [None if math.isnan(share) else round(share, 4) for share in accuracy]
    each = {
        "semantic": {"entry": list(result.entries), "accuracy": shares},
        **{
            name: {"entry": list(one.entries), **per_event_as_json(one.found.each, classes)}
            for name, one, classes in _instances(result)
        },
        **({"control": samples_as_json(result.control)} if result.control else {}),
    }
    worst = {"accuracy of motifs": _lowest(result.entries, np.array(accuracy))}
    for name, one, _ in _instances(result):
        worst[f"ARI of {name}s"] = _lowest(one.entries, one.found.each.values["ari"])
    entries = list(dict.fromkeys(entry for lowest in worst.values() for entry, _ in lowest))
    events = [shown(model, result.events[entry]) for entry in entries]
    publish_text(out / "events.html", page(events, "The worst events", summary(result, model)))
    links = "".join(
        f"<li>{name}: {', '.join(_link(entries.index(entry), entry, value) for entry, value in lowest)}</li>"
        for name, lowest in worst.items()
    )
    publish_text(out / PER_EVENT, json.dumps(each) + "\n")
    publish_text(out / METRICS, json.dumps(metrics, indent=2) + "\n")
    body = _REPORT.format(
        title=html.escape(f"{model.name} on {', '.join(names)}"),
        table=html.escape(table(result)),
        figures="\n".join(
            f"<figure>{figure.svg}<figcaption>{html.escape(figure.caption)}</figcaption></figure>"
            for figure in draw_figures(out)
        ),
        conventions="".join(
            f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in conventions(result).items()
        ),
        worst=links,
    )
    publish_text(out / "index.html", body)


def _kinematics(result: Evaluation) -> dict[str, Any]:
    """Particles and vertices as measured on true voxels and, with heads, as found."""
    particles = [one for _, one in result.compared]
    ways = {"reco_on_truth": True, **({"reco": False} if result.particle is not None else {})}
    found: dict[str, Any] = {"particles": len(particles), "matched": sum(one.found is not None for one in particles)}
    for name, on_truth in ways.items():
        misses = vertex_misses(result.vertices, on_truth)
        found[name] = {
            **closures_as_json(closures(particles, on_truth)),
            "vertex_cm": spread_as_json(Spread.within(misses)),
            "within_1_cm": float(np.mean(np.array(misses) < 1.0)) if misses else None,
            "pi0_mass_mev": spread_as_json(Spread.of(pi0_masses(particles, on_truth))),
        }
    return found


def _lowest(entries: Sequence[int], values: npt.NDArray[np.float64]) -> list[tuple[int, float]]:
    """The events of lowest value, and these; those without one are not among them."""
    order = [i for i in np.argsort(values, kind="stable").tolist() if not np.isnan(values[i])]
    return [(entries[i], float(values[i])) for i in order[:WORST]]


def _link(place: int, entry: int, value: float) -> str:
    return f'<a href="events.html#event={place}">{entry}</a> ({value:.2f})'


def _instances(result: Evaluation) -> list[tuple[str, Instances, list[str]]]:
    species = [one.name.lower() for one in Species]
    both = (("particle", result.particle, species), ("interaction", result.interaction, ["interaction"]))
    return [(name, one, classes) for name, one, classes in both if one is not None]


def conventions(result: Evaluation) -> dict[str, str]:
    """What each number of an evaluation is."""
    of_instances = INSTANCE_CONVENTIONS if _instances(result) else {}
    return {**(KINEMATIC_CONVENTIONS if result.compared else {}), **of_instances, **CONVENTIONS}


def describe(what: str) -> str:
    """What a bundle, a folder of a run or an evaluation, or a file of events or tables holds; builds no model.

    Draws the curves of a run, and the figures of an evaluation.

    Raises:
        ValueError, FileNotFoundError: it is none of these.
    """
    path = Path(what)
    if is_run(path):
        return describe_run(path)
    if (path / METRICS).is_file():
        return describe_evaluation(path)
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
{figures}
<h2>Worst events</h2>
<p>Events of lowest value, which is in brackets; truth beside prediction.</p>
<ul>{worst}</ul>
<p>Numbers for programs:
<a href="metrics.json">metrics.json</a>, of every event <a href="per_event.json">per_event.json</a>; figures are in
figures/.</p>
<h2>Conventions</h2>
<dl>{conventions}</dl>
</html>
"""
