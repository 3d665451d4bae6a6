"""Two sets of events side by side: what a model sees of them, and how far they are apart in standard errors.

    python benchmarks/compare_generator.py                       # 20 events of Geant4 against 200 of the generator
    python benchmarks/compare_generator.py geant4.parquet "generate:pilarnet?events=400&seed=200"
    python benchmarks/compare_generator.py a.h5 b.h5

Standard errors come from ten groups of events each, which is rough: one row in ten beyond 2 means nothing.
"""

import argparse
from collections.abc import Iterable

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from larpanda.data import open_events
from larpanda.event import MIN_ENERGY_MEV, Event, Motif, Species

QUANTILES = (5, 25, 50, 75, 95)
GROUPS = 10

# A quantity of an event: (sum, count); the quantity of a set is the sum of sums over the sum of counts.
Sums = dict[str, tuple[float, float]]


def describe(event: Event) -> tuple[Sums, dict[str, np.ndarray]]:
    """The sums of an event, and the values whose quantiles are wanted."""
    motif, energy = event.motif.numpy(), event.energy.numpy()
    above = energy > MIN_ENERGY_MEV
    sums: Sums = {
        "voxels": (len(event), 1),
        f"voxels > {MIN_ENERGY_MEV} MeV": (above.sum(), 1),
        "energy, MeV": (energy.sum(), 1),
        "particles": (len(set(event.particle[event.particle >= 0].tolist())), 1),
        "interactions": (len(set(event.interaction[event.interaction >= 0].tolist())), 1),
    }
    for m in Motif:
        sums[f"{m.name} % of voxels"] = (100 * (motif == m).sum(), len(event))
    for m in Motif:
        sums[f"{m.name} % above"] = (100 * (motif[above] == m).sum(), above.sum())
    position, seen = event.position.numpy()[above], motif[above]
    values = _neighbourhood(position, seen, sums)
    for m in Motif:
        values[f"MeV a voxel, {m.name}"] = energy[above & (motif == m)]
    _particles(event, above, sums, values)
    return sums, values


def _neighbourhood(position: np.ndarray, motif: np.ndarray, sums: Sums) -> dict[str, np.ndarray]:
    pairs = cKDTree(position).query_pairs(1.9, output_type="ndarray")
    a, b = np.concatenate([pairs, pairs[:, ::-1]]).T
    near = np.bincount(a, minlength=len(position))
    same = np.bincount(a[motif[a] == motif[b]], minlength=len(position))
    wide = cKDTree(position)
    ball = wide.query_ball_point(position, 5.0, return_length=True)
    for m in Motif:
        of = motif == m
        sums[f"neighbours of 26, {m.name}"] = (near[of].sum(), of.sum())
        sums[f"of these another motif, {m.name}"] = ((near - same)[of].sum(), of.sum())
        sums[f"without a neighbour %, {m.name}"] = (100 * (near[of] == 0).sum(), of.sum())
        sums[f"voxels within 5, {m.name}"] = (ball[of].sum(), of.sum())
    together = motif[pairs[:, 0]] == motif[pairs[:, 1]]
    i, j = pairs[together].T
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(len(position), len(position)))
    label = connected_components(graph, directed=False)[1]
    sizes = np.bincount(label)
    motif_of = np.zeros(len(sizes), np.int64)
    motif_of[label] = motif
    for m in Motif:
        sums[f"connected pieces an event, {m.name}"] = ((motif_of == m).sum(), 1)
        alone = (motif_of == m) & (sizes < 10)
        sums[f"in pieces of < 10 %, {m.name}"] = (100 * sizes[alone].sum(), sizes[motif_of == m].sum())
    return {f"voxels of a piece, {m.name}": sizes[motif_of == m] for m in (Motif.SHOWER, Motif.TRACK, Motif.LED)}


def _particles(event: Event, above: np.ndarray, sums: Sums, values: dict[str, np.ndarray]) -> None:
    particle, motif = event.particle.numpy(), event.motif.numpy()
    kinds = {
        "Michel": (Motif.MICHEL, None),
        "delta": (Motif.DELTA, None),
        "muon": (Motif.TRACK, Species.MUON),
        "pion": (Motif.TRACK, Species.PION),
        "proton": (Motif.TRACK, Species.PROTON),
        "e shower": (Motif.SHOWER, Species.ELECTRON),
        "photon shower": (Motif.SHOWER, Species.PHOTON),
    }
    species = event.species.numpy()
    for name, (m, s) in kinds.items():
        of = (motif == m) & (particle >= 0)
        if s is not None:
            of &= species == s
        ids, size = np.unique(particle[of], return_counts=True)
        sums[f"{name}s an event"] = (len(ids), 1)
        values[f"voxels, {name}"] = size
        values[f"MeV, {name}"] = np.array([event.energy.numpy()[of & (particle == i)].sum() for i in ids])


def table(events: Iterable[Event]) -> tuple[dict[str, float], dict[str, float]]:
    """Each quantity of a set of events, and its standard error."""
    sums: dict[str, np.ndarray] = {}
    values: dict[str, list[list[np.ndarray]]] = {}
    for i, event in enumerate(events):
        one, many = describe(event)
        for name, pair in one.items():
            sums.setdefault(name, np.zeros((GROUPS, 2)))[i % GROUPS] += pair
        for name, found in many.items():
            values.setdefault(name, [[] for _ in range(GROUPS)])[i % GROUPS].append(found)
    mean, error = {}, {}
    for name, s in sums.items():
        mean[name] = s[:, 0].sum() / max(s[:, 1].sum(), 1)
        error[name] = np.std(s[:, 0] / np.maximum(s[:, 1], 1), ddof=1) / GROUPS**0.5
    for name, groups in values.items():
        arrays = [np.concatenate(group) for group in groups if group]
        for q in QUANTILES:
            mean[f"{name}, {q} %"] = float(np.quantile(np.concatenate(arrays), q / 100))
            spread = [np.quantile(array, q / 100) for array in arrays if len(array)]
            error[f"{name}, {q} %"] = float(np.std(spread, ddof=1)) / len(spread) ** 0.5
    return mean, error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", metavar="FILE", nargs="?", default="tests/data/geant4_20_v3extra.h5")
    parser.add_argument("second", metavar="FILE", nargs="?", default="generate:pilarnet?events=200&seed=100")
    options = parser.parse_args()
    torch.set_num_threads(1)
    first, second = table(open_events(options.first)), table(open_events(options.second))
    print(f"| quantity | {options.first} | {options.second} | ratio | standard errors |\n|---|---|---|---|---|")
    for name, a in first[0].items():
        b = second[0][name]
        error = np.hypot(first[1][name], second[1][name])
        ratio = f"{b / a:.3f}" if a else ""
        print(f"| {name} | {a:.4g} | {b:.4g} | {ratio} | {(b - a) / error if error else 0:+.1f} |")


if __name__ == "__main__":
    main()
