"""Distributions of two sets of events in one figure: points with errors are the first, lines the second.

    python benchmarks/plot_generator.py geant4.parquet "generate:pilarnet?events=3000&seed=104" --out docs/physics.png

Numbers of voxels and energies are of all voxels, neighbours of those above 0.13 MeV. Errors are those of counts.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from scipy.spatial import cKDTree

from larpanda.data import open_events
from larpanda.event import MIN_ENERGY_MEV, Event, Motif, Species

MOTIFS = {Motif.SHOWER: "C0", Motif.TRACK: "C3", Motif.LED: "C7"}
SIZES = {"muon": "C3", "proton": "C1", "photon": "C0", "electron": "C2"}
PANELS = {  # title: axis, edges
    "voxels of an event": ("voxels", np.linspace(0, 12000, 49)),
    "energy of an event": ("MeV", np.linspace(0, 6000, 41)),
    "energy of a voxel": ("MeV", np.geomspace(0.01, 5, 61)),
    "neighbours of a voxel": ("occupied of 26", np.arange(-0.5, 20)),
    "voxels of a particle": ("voxels", np.geomspace(10, 3000, 41)),
    "particles of an event": ("particles", np.arange(-0.5, 40)),
}


def fill(events: Iterable[Event]) -> tuple[int, dict[tuple[str, str], np.ndarray]]:
    """The number of events, and the counts of each panel and line."""
    counts: dict[tuple[str, str], np.ndarray] = {}

    def add(panel: str, line: str, values: np.ndarray) -> None:
        found, _ = np.histogram(values, PANELS[panel][1])
        counts[panel, line] = counts.get((panel, line), 0) + found

    n = 0
    for event in events:
        n += 1
        energy, motif, species = event.energy.numpy(), event.motif.numpy(), event.species.numpy()
        add("voxels of an event", "", np.array([len(event)]))
        add("energy of an event", "", np.array([energy.sum()]))
        add("particles of an event", "", np.array([len(set(event.particle.tolist()) - {-1})]))
        above = energy > MIN_ENERGY_MEV
        near = cKDTree(event.position.numpy()[above]).query_ball_point(
            event.position.numpy()[above], 1.9, return_length=True
        )
        for m in MOTIFS:
            add("energy of a voxel", m.name, energy[motif == m])
            add("neighbours of a voxel", m.name, near[motif[above] == m] - 1)
        for s in SIZES:
            mine = event.particle.numpy()[species == Species[s.upper()]]
            add("voxels of a particle", s, np.unique(mine, return_counts=True)[1])
    return n, counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", metavar="FILE")
    parser.add_argument("second", metavar="FILE")
    parser.add_argument("--out", type=Path, default=Path("generator.png"))
    options = parser.parse_args()
    matplotlib.use("agg")
    from matplotlib import pyplot

    (n_first, first), (n_second, second) = fill(open_events(options.first)), fill(open_events(options.second))
    colours = {"": "black", **{m.name: colour for m, colour in MOTIFS.items()}, **SIZES}
    figure, axes = pyplot.subplots(2, 3, figsize=(11, 6), layout="constrained")
    for panel, axis in zip(PANELS, axes.flat, strict=True):
        label, edges = PANELS[panel]
        centre = np.sqrt(edges[1:] * edges[:-1]) if edges[0] > 0 else (edges[1:] + edges[:-1]) / 2
        for (of, line), counts in first.items():
            if of == panel:
                axis.stairs(second[of, line] / n_second, edges, color=colours[line], label=line.lower() or None)
                style = {"fmt": ".", "ms": 3, "lw": 0.8, "color": colours[line]}
                axis.errorbar(centre, counts / n_first, np.sqrt(counts) / n_first, **style)
        if edges[0] > 0:
            axis.set_xscale("log")
        axis.set(title=panel, xlabel=label, ylabel="an event")
        axis.legend(frameon=False, fontsize=8) if axis.get_legend_handles_labels()[1] else None
    figure.suptitle(f"points: {n_first:,} events of the first set; lines: {n_second:,} of the second", fontsize=10)
    figure.savefig(options.out, dpi=80)
    print(options.out)


if __name__ == "__main__":
    main()
