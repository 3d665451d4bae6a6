"""Particles and interactions: query heads against clustering of voxels, on the same events by the same metrics.

    python benchmarks/instances.py BUNDLE --tune SOURCE --tune-events 100 --out RESULT.json TEST...

BUNDLE has a semantic head, and a particle or an interaction head or both. For each TEST and each level a row of:

- ``head``: the queries' masks, voxels that touch voting together, divided at gaps (``model/selection.py``); ``head, all
  covered``: points in none given to the least unlikely one; ``head, as published``: selected as in the paper;
- ``components``: voxels that touch (26 neighbours) and have the same predicted motif; deposits of low energy in none;
- ``DBSCAN``: scikit-learn's; radius, least number of neighbours, and whether motifs are told apart, are those of best
  ARI on the events to tune with.

A cluster has the species that most true particles of its motif have on the events to tune with. Prints a Markdown
table and writes the same numbers, with 68 % intervals from a bootstrap over events, as JSON.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import DBSCAN

from larpanda.data import open_events
from larpanda.evaluate.clustering import Overlap, overlap, rand_index
from larpanda.evaluate.summary import clustering
from larpanda.event import Event, Motif, PointBatch, Species
from larpanda.model.bundle import Model, load_bundle
from larpanda.model.selection import AS_PUBLISHED, INTERACTIONS, PARTICLES, n_things
from larpanda.sparse.pieces import TOUCHING
from larpanda.train.instances import instance_tables

What = Literal["particle", "interaction"]
LEVELS: tuple[What, ...] = ("particle", "interaction")
Settings = tuple[float, int, bool]  # of DBSCAN: radius in voxels, neighbours with the voxel itself, motifs apart
Ints = npt.NDArray[np.int64]
GRID: dict[What, tuple[Settings, ...]] = {
    "particle": tuple(product((1.8, 2.5, 3.5, 5.0, 8.0), (1, 3, 5, 10), (True, False))),
    "interaction": tuple(product((3.0, 8.0, 15.0, 25.0, 40.0, 60.0), (1, 3, 5, 10), (False,))),
}
SHOWN = ("ari", "ari_predicted_thing", "pq", "pq_any_class", "purity", "efficiency", "fraction_unassigned")


@dataclass(frozen=True)
class Seen:
    """What baselines know of an event, and its truth: voxels above threshold."""

    position: npt.NDArray[np.float32]  # [N, 3] voxels
    motif: Ints  # [N] predicted
    energy: npt.NDArray[np.float32]  # [N] MeV
    truth: dict[What, Ints]  # [N] each
    species: Ints  # [N] of the true particle
    true_motif: Ints  # [N]


@torch.no_grad()
def see(model: Model, event: Event) -> Seen:
    """Predict an event's motifs."""
    assert model.semantic is not None
    visible = event.visible(model.config.min_energy_mev)[0]
    motif = model.semantic(model.encoder(PointBatch.pack([visible]))).argmax(1)
    return Seen(
        visible.position.numpy(),
        motif.numpy(),
        visible.energy.numpy(),
        {"particle": visible.particle.numpy(), "interaction": visible.interaction.numpy()},
        np.maximum(visible.species.numpy(), 0),
        visible.motif.numpy(),
    )


def clusters(event: Seen, radius: float, neighbours: int, apart: bool) -> Ints:
    """[N] clusters of the voxels that are no low-energy deposits, -1 for none."""
    found = np.full(len(event.motif), -1, np.int64)
    thing = event.motif != Motif.LED
    groups = [event.motif == motif for motif in Motif if motif != Motif.LED] if apart else [thing]
    n = 0
    for group in groups:
        if group.any():
            label = DBSCAN(eps=radius, min_samples=neighbours).fit(event.position[group]).labels_
            found[group] = np.where(label < 0, -1, label + n)
            n += int(label.max()) + 1
    return found


def species_of_motifs(events: Sequence[Seen]) -> Ints:
    """[5] the species that most true particles have whose voxels are mostly of a motif."""
    count = np.zeros((len(Motif), len(Species)), np.int64)
    for event in events:
        for particle in np.unique(event.truth["particle"][event.truth["particle"] >= 0]):
            mine = event.truth["particle"] == particle
            motif = np.bincount(np.maximum(event.true_motif[mine], 0)).argmax()
            count[motif, np.bincount(event.species[mine]).argmax()] += 1
    return count.argmax(1)


def judge(event: Seen, what: What, found: Ints, species: Ints) -> Overlap:
    """The table of an event's clusters."""
    if what == "interaction":
        return overlap(event.truth[what], found, energy=event.energy)
    return overlap(event.truth[what], found, event.species, species[event.motif], event.energy)


def tuned(events: Sequence[Seen], what: What) -> Settings:
    """DBSCAN's settings of best mean ARI."""

    def score(settings: Settings) -> float:
        tables = [overlap(event.truth[what], clusters(event, *settings)) for event in events]
        return float(np.nanmean([rand_index(table) for table in tables]))

    return max(GRID[what], key=score)


def numbers(tables: Sequence[Overlap], n_classes: int) -> dict[str, list[float]]:
    """Each number with its interval."""
    found = clustering(tables, n_classes)
    one_class = [
        Overlap(t.true, t.found, t.voxels, t.energy, np.zeros_like(t.true_class), np.zeros_like(t.found_class))
        for t in tables
    ]
    means = {**found.means, "pq_any_class": clustering(one_class, 1).means["pq"]}
    return {name: [round(x, 5) for x in (one.value, one.low, one.high)] for name, one in means.items()}


def tables_of(
    model: Model, what: What, events: Sequence[Event], seen: Sequence[Seen], settings: Settings, species: Ints
) -> dict[str, list[Overlap]]:
    """The tables of all events by each method."""
    ours = PARTICLES if what == "particle" else INTERACTIONS
    return {
        "head": instance_tables(model, what, events),
        "head, all covered": instance_tables(model, what, events, replace(ours, cover_all=True)),
        "head, as published": instance_tables(model, what, events, AS_PUBLISHED),
        "components": [judge(one, what, clusters(one, TOUCHING, 1, True), species) for one in seen],
        "DBSCAN": [judge(one, what, clusters(one, *settings), species) for one in seen],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("tests", nargs="+", metavar="TEST")
    parser.add_argument("--tune", default="generate:pilarnet?events=100&seed=8", metavar="SOURCE")
    parser.add_argument("--tune-events", type=int, default=100)
    parser.add_argument("--out", type=Path, metavar="RESULT.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_bundle(arguments.bundle).model
    tune = [see(model, event) for event in open_events(arguments.tune)[: arguments.tune_events]]
    species = species_of_motifs(tune)
    levels: list[What] = [what for what in LEVELS if getattr(model, what) is not None]
    settings = {what: tuned(tune, what) for what in levels}
    results = []
    for source, what in product(arguments.tests, levels):
        events = open_events(source)
        seen = [see(model, event) for event in events]
        print(f"\n{Path(source).name}, {len(events)} events, {what}s; DBSCAN: {settings[what]}\n")
        print(f"| | {' | '.join(SHOWN)} |\n{'|---' * (len(SHOWN) + 1)}|")
        for name, tables in tables_of(model, what, events, seen, settings[what], species).items():
            row = numbers(tables, n_things(what))
            shown = (f"{row[key][0]:.3f} [{row[key][1]:.3f}, {row[key][2]:.3f}]" for key in SHOWN)
            print(f"| {name} | {' | '.join(shown)} |", flush=True)
            where = {"source": Path(source).name, "events": len(events), "level": what, "method": name}
            results.append({**where, "dbscan": list(settings[what]), "numbers": row})
    if arguments.out:
        content = {"bundle": Path(arguments.bundle).name, "results": results}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
