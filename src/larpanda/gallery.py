"""The figures of an evaluation, drawn from its metrics.json and per_event.json alone: Figures 7 to 9 of the paper."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larpanda.display.control import control_svg
from larpanda.display.figures import MOTIF_NAME, bars_svg, boxes_svg, confusion_svg, distributions_svg, lines_svg
from larpanda.event import Motif, Species
from larpanda.publish import publish_text

METRICS, PER_EVENT = "metrics.json", "per_event.json"
BY = {"n_voxels": "voxels above threshold", "energy_mev": "energy above threshold, MeV"}
SCORES = {"ari": "ARI", "purity": "purity", "efficiency": "efficiency"}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure, and what it shows."""

    name: str
    svg: str
    caption: str


def draw_figures(folder: Path) -> list[Figure]:
    """Draw an evaluation's figures, write them to ``folder/figures/NAME.svg``, and return them.

    Raises:
        ValueError: metrics.json or per_event.json is not that of an evaluation.
        FileNotFoundError: it is not there.
    """
    metrics, each = (_read(folder / name) for name in (METRICS, PER_EVENT))
    figures = []
    for name, (draw, caption) in _FIGURES.items():
        try:
            svg = draw(metrics, each)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{folder}: {METRICS} or {PER_EVENT} lacks what figure {name} shows ({error})") from None
        if svg is not None:
            publish_text(folder / "figures" / f"{name}.svg", svg + "\n")
            figures.append(Figure(name, svg, caption))
    return figures


def describe_evaluation(folder: Path) -> str:
    """The headline numbers of an evaluation, for a person; draws its figures again."""
    metrics = _read(folder / METRICS)
    figures = draw_figures(folder)
    lines = [f"{folder}: {metrics['model']} on {', '.join(metrics['data'])}, {metrics['events']} events"]
    wanted = {"semantic": ("macro_f1",), "particle": ("ari", "pq"), "interaction": ("ari", "pq")}
    for part, names in wanted.items():
        for name in names if part in metrics else ():
            value, low, high = (_number(metrics[part][f"{name}{end}"]) for end in ("", "_low", "_high"))
            lines.append(f"{part} {name}  {value:.3f}  [{low:.3f}, {high:.3f}]")
    lines.append(f"figures: {', '.join(figure.name for figure in figures)} in {folder / 'figures'}")
    return "\n".join(lines)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); evaluate again") from None


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _motifs(metrics: Any, each: Any) -> str | None:
    f1, low, high = (
        [_number(value) for value in metrics["semantic"][f"f1{end}"].values()] for end in ("", "_low", "_high")
    )
    return bars_svg(f1, low, high, [MOTIF_NAME[motif] for motif in Motif])


def _motif_confusion(metrics: Any, each: Any) -> str | None:
    return confusion_svg(metrics["semantic"]["confusion"], [MOTIF_NAME[motif] for motif in Motif])


def _by(name: str) -> Callable[[Any, Any], str | None]:
    def draw(metrics: Any, each: Any) -> str | None:
        parts = metrics["semantic_by"][name]
        places = [math.sqrt(max(part["low"], 1e-3) * max(part["high"], 1e-3)) for part in parts]
        value, low, high = ([_number(part[f"macro_f1{end}"]) for part in parts] for end in ("", "_low", "_high"))
        return lines_svg([("macro F1", places, value, low, high)], BY[name], "macro F1")

    return draw


def _particles(metrics: Any, each: Any) -> str | None:
    if "particle" not in each:
        return None
    found = each["particle"]
    species = [one.name.lower() for one in Species]
    return distributions_svg(
        [
            (title, [("aggregated", _column(found[name]))] + [(s, _column(found[f"{name}_class"][s])) for s in species])
            for name, title in SCORES.items()
        ]
    )


def _species(metrics: Any, each: Any) -> str | None:
    if "particle" not in metrics:
        return None
    return confusion_svg(metrics["particle"]["class_confusion"], [one.name.lower() for one in Species])


def _interactions(metrics: Any, each: Any) -> str | None:
    if "interaction" not in each:
        return None
    found = each["interaction"]
    panels = [(title, _column(found[name])) for name, title in SCORES.items()]
    return boxes_svg(panels, found["true_instances"], "true interactions in the event", doubtful=1)


def _reliability(metrics: Any, each: Any) -> str | None:
    if "particle_calibration" not in metrics:
        return None
    found = metrics["particle_calibration"]
    filled = [(said, right) for said, right in zip(found["said"], found["right"], strict=True) if said is not None]
    said, right = ([pair[i] for pair in filled] for i in (0, 1))
    nothing = [math.nan] * len(filled)
    same = ("as said", [0.0, 1.0], [0.0, 1.0], [math.nan] * 2, [math.nan] * 2)
    ece = f"{len(filled)} bins, ECE {_number(found['ece']):.3f}"
    return lines_svg([same, (ece, said, right, nothing, nothing)], "probability said", "share that is right")


def _control(metrics: Any, each: Any) -> str | None:
    return control_svg(each["control"]) if "control" in each else None


def _column(values: list[float | None]) -> list[float]:
    return [_number(value) for value in values]


Draw = Callable[[Any, Any], str | None]
_FIGURES: Mapping[str, tuple[Draw, str]] = {
    "motifs": (_motifs, "F1 of each motif, with 68 % intervals from a bootstrap over events."),
    "motif_confusion": (_motif_confusion, "Motifs of voxels."),
    **{
        name: (_by(name), "Events in order, cut into parts of equal number; each point is in the middle of its part.")
        for name in BY
    },
    "particles": (
        _particles,
        "Particles, events one by one (Figure 7 of the paper): red diamond mean, line median, box quartiles (in "
        "brackets), whiskers 10th and 90th percentile; counts on a logarithmic axis. By species: ARI of it against the "
        "rest, purity of predicted and efficiency of true particles of the species.",
    ),
    "species": (
        _species,
        "Species of particles that are matched by IoU above 0.5; on the right normalised by column, as in Figure 8 of "
        "the paper.",
    ),
    "interactions": (
        _interactions,
        "Interactions against their number (Figure 9 of the paper). *: with one true interaction ARI is 1, or 0 if a "
        "single voxel is told apart; so a rise from there on says nothing.",
    ),
    "control": (
        _control,
        "Control samples of what was found, no truth asked: Michel electrons (their spectrum ends at 53 MeV, dashed), "
        "mean energy loss of muons that go through (2.1 MeV/cm is the least), loss of stopping muons and protons "
        "against residual range with the expected mean (lines), mass of pairs of photons (that of the pion dashed).",
    ),
    "calibration": (_reliability, "Probability of the species of matched particles, and how often it is right."),
}
