"""The paper's Figures 2, 5 and 11 to 15 from their result files alone: read, drawn, and put on a page with captions."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from larpanda.config import config_from_json
from larpanda.display.plates import Embedding, Examples, Made, Plate, Throughput, Views, plate_svg
from larpanda.event import VOXEL_MM
from larpanda.publish import publish_text

PAGE = "figures.md"
NEAREST = 10  # points of a map whose motif is compared
AGAIN = "remove it, and larpanda study figures makes it again"
MOST_TOLD = 300  # characters of an error: one that quotes a column of numbers has no end


@dataclass(frozen=True)
class Counterpart:
    """A figure of the paper."""

    kind: type[Plate]
    title: str
    differs: str
    """What the paper's shows, and how ours differs."""


_INSTANCES = "two random and two poor ones of 1,000 of PILArNet-M, by 107 million weights. Ours: generated events."
_SPEED = "images/s and memory of an A100, at most {} in {} GB. Ours: a smaller model on a CPU, and all of its process."
FIGURES: Mapping[int, Counterpart] = {
    2: Counterpart(
        Embedding,
        "features of points",
        "points of 1,000 images of PILArNet-M (which ones is not said) by an encoder of 91 million weights. Ours: "
        "generated events, 1.6 million weights, and random weights beside them.",
    ),
    5: Counterpart(
        Views,
        "views of an event",
        "views of an event of PILArNet-M. Ours: a generated event, two recipes, and above each view where it lies.",
    ),
    11: Counterpart(
        Examples,
        "motifs, true and predicted",
        "random events of PILArNet-M with their F1, by 107 million weights. Ours: generated events, and two of "
        "the four are the worst.",
    ),
    12: Counterpart(Examples, "particles, true and predicted", _INSTANCES),
    13: Counterpart(Examples, "interactions, true and predicted", _INSTANCES),
    14: Counterpart(Throughput, "speed and memory, motifs", _SPEED.format("112.4", "2.2")),
    15: Counterpart(Throughput, "speed and memory, all heads", _SPEED.format("31.5", "3.0")),
}


def plate_path(out: Path, number: int) -> Path:
    """The result file of a figure."""
    return out / f"figure-{number}.json"


def read_plate(path: Path, kind: type[Plate]) -> Plate:
    """A result file. Raises ValueError, in one line with what to do, if it is missing or is none."""
    try:
        plate: Plate = config_from_json(kind, json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; larpanda study figures makes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); {AGAIN}") from None
    except ValueError as error:
        raise ValueError(f"{_short(error)}; {AGAIN}") from None
    return plate


def write_plate(path: Path, plate: Plate) -> None:
    """Write a result file, whole or not at all; a column of numbers is one line."""
    text = json.dumps(asdict(plate), indent=1, allow_nan=False)
    publish_text(path, re.sub(r"\[[-\d\s.,e]*\]", lambda match: re.sub(r"\s+", "", match[0]), text) + "\n")


def write_atlas(out: Path, numbers: Sequence[int] = ()) -> str:
    """Draw the figures whose result files are in a folder, and write figures.md with all of them.

    Args:
        out: folder of the files.
        numbers: figures that must be there; none: at least one of any.

    Returns:
        The page.

    Raises:
        ValueError: a result file is missing or damaged.
    """
    there = [number for number in FIGURES if number in numbers or plate_path(out, number).exists()]
    if not there:
        raise ValueError(f"{out}: no results of figures there; run larpanda study figures first")
    parts = []
    for number in there:
        path, paper = plate_path(out, number), FIGURES[number]
        plate = read_plate(path, paper.kind)
        try:
            svg, said = plate_svg(plate), caption(plate)
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path}: cannot be drawn ({_short(error)}); {AGAIN}") from None
        publish_text(path.with_suffix(".svg"), svg + "\n")
        parts.append(
            f"## Figure {number}: {paper.title}\n\n![Figure {number}]({path.with_suffix('.svg').name})\n\n"
            f"{said} {_origin(plate.made)}\n\nThe paper's Figure {number}: {paper.differs}"
        )
    text = "\n\n".join(parts)
    publish_text(out / PAGE, text + "\n")
    return text


def caption(plate: Plate) -> str:
    """What a figure shows, and of how many."""
    match plate:
        case Embedding():
            return _embedding_caption(plate)
        case Views():
            return _views_caption(plate)
        case Examples():
            return _examples_caption(plate)
        case Throughput():
            return _throughput_caption(plate)


def _embedding_caption(plate: Embedding) -> str:
    motif = np.array(plate.motif)
    same, by_chance = (100 * agreement(x, y, motif) for x, y in ((plate.x, plate.y), (plate.random_x, plate.random_y)))
    return (
        f"t-SNE of {len(plate.x):,} points of {plate.events:,} events, of each event a few of different motifs, so "
        "that rare ones are seen; above by the pre-trained encoder, below by the same with random weights. Of a "
        f"point's {NEAREST} nearest in the map {same:.0f} % have its motif, with random weights {by_chance:.0f} %."
    )


def _views_caption(plate: Views) -> str:
    recipes = " and ".join(
        f"`{recipe.recipe}` (masked points: {'taken away' if recipe.removed else 'moved and hidden'})"
        for recipe in plate.recipes
    )
    return (
        f"Views of event {plate.entry}, {len(plate.z):,} voxels, by the recipes {recipes}, masks as at the end of "
        "training; z across, y up. Upper rows: where a view lies in the event. Lower rows: the view, turned and "
        "centred, as the encoder gets it."
    )


def _examples_caption(plate: Examples) -> str:
    chosen = [sum(one.chosen == how for one in plate.examples) for how in ("random", "worst")]
    what = {"semantic": "Motifs", "particle": "Particles", "interaction": "Interactions"}[plate.task]
    colors = "" if plate.task == "semantic" else " Grey: in none. What is found has the colour of its best match."
    return (
        f"{what} of {chosen[0]} random events, and of the {chosen[1]} worst of {plate.judged} by "
        f"{plate.examples[0].scores[0].name}. The image of 230 cm in cells of {plate.cell_voxels * VOXEL_MM:g} mm; of "
        f"voxels behind one another the nearest is seen, the same in truth and prediction.{colors}"
    )


def _throughput_caption(plate: Throughput) -> str:
    heads = "motifs" if plate.heads == "semantic" else "motifs, particles and interactions, masks made to instances"
    base = np.mean([speed.base_mb for speed in plate.speeds])
    return (
        f"Events a second (blue) and peak memory (red) against batch size: encoder, {heads}; threads: {plate.threads}. "
        f"Mean and standard deviation over {len(plate.speeds[0].events_per_s)} passes; each is {plate.events} events "
        f"in batches of that size, the same for all sizes, median {plate.voxels:,} voxels. Each size has a process of "
        f"its own, which holds {base:,.0f} MB before the first event."
    )


def agreement(x: Sequence[float], y: Sequence[float], label: npt.NDArray[np.integer]) -> float:
    """Share of the nearest points in the plane that have a point's label, the mean over points.

    Args:
        x: [P].
        y: [P].
        label: [P].
    """
    from scipy.spatial import cKDTree

    place = np.column_stack([x, y])
    k = min(NEAREST, len(place) - 1)
    near = cKDTree(place).query(place, k + 1)[1]
    # of points in one place any may come first: leave out the point itself, or else the farthest
    others = near != np.arange(len(place))[:, None]
    others[others.all(1), -1] = False
    return float((label[near] == label[:, None])[others].mean())


def _origin(made: Made) -> str:
    model = f" model `{made.model}` ({made.weights_sha256[:12]})," if made.model and made.weights_sha256 else ""
    how = f"`{made.command}` on {made.machine}, larpanda {made.larpanda}"
    return f"Events `{made.source}`,{model} seed {made.seed}; {how}."


def _short(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= MOST_TOLD else f"{text[:MOST_TOLD]} ..."
