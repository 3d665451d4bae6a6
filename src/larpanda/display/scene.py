"""Events to look at: one interactive page that needs no network, or a plain picture. Reads and decides nothing.

The page is `viewer.html` with the vendored three.js, `viewer.js` and the data of its events written into it.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from larpanda.display.figures import INSTANCE_COLORS, MOTIF_COLOR, MOTIF_NAME
from larpanda.display.lists import Integers, Json, Scores, Shown, found_list, true_list
from larpanda.event import IMAGE_VOXELS, UNKNOWN, VOXEL_CM, Event, Motif, Reconstruction, Species

IMAGE_CM = IMAGE_VOXELS * VOXEL_CM
FARTHEST_VOXEL = 32_000  # what 16 bits of the page hold; a position beyond is not drawn


def page(events: Sequence[Shown], title: str, summary: str = "") -> str:
    """Show events in a browser: truth beside prediction, in 3D, as one document that opens from a disk.

    Args:
        events: in the order of the page (#event=3 is the fourth). Of a model that looks for particles or interactions
            these are listed below the picture.
        title: of the page.
        summary: plain text for the side panel; a line "name<TAB>value" becomes a row of a table.

    Returns:
        An HTML document with everything in it: about 0.6 MB, and 30 bytes for each voxel with all labels.

    Raises:
        ValueError: there is no event, or a reconstruction has another number of rows than its event.
    """
    if not events:
        raise ValueError("no events to show; a page needs at least one")
    data: Json = {
        "motifs": [{"name": MOTIF_NAME[motif], "color": MOTIF_COLOR[motif]} for motif in Motif],
        "species": [species.name.lower() for species in Species],
        "instance_colors": INSTANCE_COLORS,
        "voxel_cm": VOXEL_CM,
        "image_cm": IMAGE_CM,
        "events": [_event(number, shown) for number, shown in enumerate(events)],
    }
    folder = resources.files("larpanda.display")
    parts = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in ("three.bundle.js", "viewer.js")}
    template = folder.joinpath("viewer.html").read_text(encoding="utf-8")
    style = re.search("<style>(.*?)</style>", template, re.DOTALL)
    assert style is not None
    # Nothing runs and nothing is fetched but what is named here: a name that smuggles in a script stays text.
    parts["policy"] = (
        f"default-src 'none'; style-src {_hash(style[1])}; img-src data: blob:; base-uri 'none'; form-action 'none'; "
        f"script-src {_hash(parts['three.bundle.js'])} {_hash(parts['viewer.js'])}"
    )
    parts["title"] = html.escape(title)
    parts["summary"] = _summary(summary)
    # "<" as an escape: no text of ours can end the script element that holds it (or start a comment in it).
    parts["data"] = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return re.sub(r"\{\{([a-z.]+)\}\}", lambda match: parts[match[1]], template)


def picture(event: Event, reconstruction: Reconstruction | None, path: Path, title: str = "") -> None:
    """Draw an event into a PNG file: its three projections, coloured by motif, truth above prediction.

    Args:
        event: with truth, or without: then there is no such row.
        reconstruction: of the event, or None.
        path: of the file, replaced if it exists.
        title: above the picture; empty for the event's own name.

    Raises:
        ValueError: the reconstruction has another number of rows than the event.
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = _panels(event, reconstruction)
    figure = Figure(figsize=(13, 0.7 + 4.4 * len(rows)), dpi=130, layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False)
    position = (event.position.double().numpy() + 0.5) * VOXEL_CM
    drawable = np.isfinite(position).all(axis=1)
    size = 3.0 * _relative_size(event.energy.double().numpy())
    note = _note(reconstruction)
    for panels, (name, motif) in zip(axes, rows, strict=True):
        for panel, (across, up) in zip(panels, ((2, 1), (2, 0), (0, 1)), strict=True):
            for label in (UNKNOWN, Motif.LED, Motif.SHOWER, Motif.TRACK, Motif.DELTA, Motif.MICHEL):  # rarest on top
                chosen = drawable & (motif == label)
                color = "#D0D0D0" if label == UNKNOWN else MOTIF_COLOR[Motif(label)]
                panel.scatter(*position[chosen][:, [across, up]].T, s=size[chosen], c=color, linewidths=0)
            panel.set(xlim=(0, IMAGE_CM), ylim=(0, IMAGE_CM), aspect="equal")
            panel.set_xlabel(f"{'xyz'[across]} [cm]{', beam' if across == 2 else ''}")
            panel.set_ylabel(f"{'xyz'[up]} [cm]")
            panel.tick_params(color="#999999", labelsize=9)
            panel.spines[:].set_color("#BBBBBB")
        panels[0].set_title(name, loc="left", fontweight="bold")
        if note and name == "prediction":
            panels[1].set_title(note, loc="left", fontsize=9, color="#A03000", parse_math=False)
    marks = [Line2D([], [], marker="o", linestyle="", color=MOTIF_COLOR[m], label=MOTIF_NAME[m]) for m in Motif]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)
    figure.suptitle(title or _name(event, 0), parse_math=False)
    figure.savefig(path, format="png", metadata={"Software": "larpanda"})


def _event(number: int, shown: Shown) -> Json:
    """What the page knows about one event; points that have no place in space are counted, not drawn."""
    event, reconstruction = shown.event, shown.reconstruction
    motifs = dict(_panels(event, reconstruction))
    position = event.position.double().numpy()
    drawn = (np.abs(np.nan_to_num(position, nan=np.inf)) <= FARTHEST_VOXEL).all(axis=1)
    energy = event.energy.numpy()
    columns: dict[str, npt.NDArray[np.generic]] = {"row": np.arange(len(event)), "energy": energy}
    if "truth" in motifs:
        columns |= {
            "truth_motif": motifs["truth"],
            "truth_species": event.species.numpy(),
            "truth_particle": event.particle.numpy(),
            "truth_interaction": event.interaction.numpy(),
        }
    if reconstruction is not None:
        motif, particle = motifs["prediction"], reconstruction.particle.numpy()
        probability = reconstruction.motif_probability.numpy()[np.arange(len(motif)), np.maximum(motif, 0)]
        species = {particle.id: int(particle.species) for particle in reconstruction.particles or ()}
        columns |= {
            "prediction_motif": motif,
            "prediction_percent": np.nan_to_num(100 * probability).round().astype(np.int64),
            "prediction_species": np.array([species.get(i, UNKNOWN) for i in particle.tolist()], dtype=np.int64),
            "prediction_particle": particle,
            "prediction_interaction": reconstruction.interaction.numpy(),
        }
    columns = {name: column[drawn] for name, column in columns.items()}
    columns["position"] = position[drawn].round().astype(np.int64)
    return {
        "name": _name(event, number),
        "n_voxels": len(event),
        "n_drawn": int(drawn.sum()),
        "energy_mev": float(energy.sum(dtype=np.float64)) if np.isfinite(energy).all() else None,
        "panels": list(motifs),
        "truth": {
            "n_particles": len(np.unique(event.particle[event.particle >= 0].numpy())),
            "n_interactions": len(np.unique(event.interaction[event.interaction >= 0].numpy())),
        },
        "reconstruction": None if reconstruction is None else _found(event, reconstruction),
        **_lists(shown),
        "columns": {name: _encoded(column) for name, column in columns.items()},
    }


def _lists(shown: Shown) -> dict[str, Json]:
    """Lists of particles for each panel, and how well they agree; of a model that looks for none there is neither."""
    found = found_list(shown)
    if found is None:
        return {"lists": {}, "scores": {}}
    lists = {"truth": true_list(shown.event), "prediction": found}
    scores = {"particles": shown.particle_scores, "interactions": shown.interaction_scores}
    return {
        "lists": {side: groups for side, groups in lists.items() if groups is not None},
        "scores": {name: _scores(one) for name, one in scores.items() if one is not None},
    }


def _scores(scores: Scores) -> Json:
    return {name: value if math.isfinite(value) else None for name, value in asdict(scores).items()}


def _found(event: Event, reconstruction: Reconstruction) -> Json:
    """What the page says of a reconstruction as a whole, and how well it agrees with the truth."""
    found: dict[str, Json] = {
        "status": str(reconstruction.status),
        "reason": reconstruction.reason,
        "n_merged": reconstruction.n_merged,
        "n_below_threshold": int(reconstruction.below_threshold.sum()),
        "n_particles": None if reconstruction.particles is None else len(reconstruction.particles),
        "n_interactions": None if reconstruction.interactions is None else len(reconstruction.interactions),
    }
    if event.has_truth:
        found["agreement"] = _agreement(event.motif.numpy(), reconstruction.motif.numpy())
        found["particle_color"] = matched_colors(event.particle.numpy(), reconstruction.particle.numpy())
        found["interaction_color"] = matched_colors(event.interaction.numpy(), reconstruction.interaction.numpy())
    return found


def _panels(event: Event, reconstruction: Reconstruction | None) -> list[tuple[str, Integers]]:
    """What there is to show, by name, with the motif of each row: truth, prediction, or the bare charge."""
    panels = [("truth", event.motif.numpy())] if event.has_truth else []
    if reconstruction is not None:
        if len(reconstruction.motif) != len(event):
            raise ValueError(
                f"the reconstruction has {len(reconstruction.motif)} rows, its event {_name(event, 0)} {len(event)}; "
                "show an event with its own"
            )
        panels.append(("prediction", reconstruction.motif.numpy()))
    return panels or [("charge", event.motif.numpy())]


def _name(event: Event, number: int) -> str:
    """What the event is called: the file without its folders, which say more about a computer than about physics."""
    if event.key is None:
        return f"event {number}"
    key = event.key
    if key.entry == UNKNOWN:
        return str(key)
    return f"{Path(key.file).name}: event {key.entry}" + (f" ({key.numbers})" if key.numbers else "")


def _note(reconstruction: Reconstruction | None) -> str:
    if reconstruction is None or reconstruction.status == "ok":
        return ""
    return f"{reconstruction.status}: {reconstruction.reason}" if reconstruction.reason else str(reconstruction.status)


def _agreement(truth: Integers, found: Integers) -> Json:
    """Accuracy and F1 = 2 TP / (2 TP + FP + FN) of each motif over the event's rows that have both labels."""
    both = (truth >= 0) & (found >= 0)
    if not both.any():
        return None
    truth, found = truth[both], found[both]
    f1: list[float | None] = []
    for motif in Motif:
        either = int((truth == motif).sum() + (found == motif).sum())
        f1.append(2 * int(((truth == motif) & (found == motif)).sum()) / either if either else None)
    present = [value for value in f1 if value is not None]
    return {"accuracy": float((truth == found).mean()), "f1": f1, "macro_f1": sum(present) / len(present)}


def matched_colors(truth: Integers, found: Integers) -> list[tuple[int, int]]:
    """(id, colour) of each instance found: that of the true one it shares most voxels with, if no other has it.

    Args:
        truth: [N] numbers of true instances, which are their colours; UNKNOWN for none.
        found: [N] ids of those found, likewise.
    """
    both = (truth >= 0) & (found >= 0)
    base = int(found.max(initial=0)) + 1
    pairs, overlap = np.unique(truth[both] * base + found[both], return_counts=True)
    color: dict[int, int] = {}
    taken: set[int] = set()
    for pair in pairs[np.argsort(-overlap, kind="stable")].tolist():
        true, mine = divmod(pair, base)
        if mine not in color and true not in taken:
            color[mine] = true
            taken.add(true)
    fresh = int(truth.max(initial=UNKNOWN)) + 1
    for mine in np.unique(found[found >= 0]).tolist():
        if mine not in color:
            color[mine] = fresh
            fresh += 1
    return list(color.items())


def _relative_size(energy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[N] sizes of points: cube root of energy over its median, within 0.5 to 2.5; 1 where that is no number."""
    usable = np.isfinite(energy) & (energy > 0)
    if not usable.any():
        return np.ones_like(energy)
    ratio = np.divide(energy, np.median(energy[usable]), out=np.ones_like(energy), where=usable)
    return np.clip(np.cbrt(ratio), 0.5, 2.5)


def _encoded(column: npt.NDArray[np.generic]) -> Json:
    """[type, base64]: integers in the least of 8, 16 and 32 bits that holds them, others in float32, little-endian."""
    kind = "Float32"
    if column.dtype.kind == "i":
        bounds = (int(column.min(initial=0)), int(column.max(initial=0)))
        kind = next(
            f"Int{bits}" for bits in (8, 16, 32) if -(2 ** (bits - 1)) <= bounds[0] and bounds[1] < 2 ** (bits - 1)
        )
    stored = np.ascontiguousarray(column, dtype=np.dtype(kind.lower()).newbyteorder("<"))
    return [kind, base64.b64encode(stored.tobytes()).decode("ascii")]


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _summary(text: str) -> str:
    """Rows of a table and paragraphs; everything is escaped."""
    parts = []
    for line in filter(None, text.split("\n")):  # splitlines would also end a line at U+2028
        name, tab, value = line.partition("\t")
        cells = (html.escape(name.strip()), html.escape(value.strip()))
        parts.append("<dt>{}</dt><dd>{}</dd>".format(*cells) if tab else f"<p>{cells[0]}</p>")
    return f"<dl>{''.join(parts)}</dl>" if parts else ""
