"""From files to a plot: reconstruct events, read the table of particles, look at muons.

    python examples/particles.py                                # generated events, in a temporary folder
    python examples/particles.py events.h5 tables muons.png     # your own

The picture: energies of the muons that were found, by range where they stopped and by calorimetry, and how many events
have which topology.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.compute as compute
import pyarrow.parquet as pq
from matplotlib.figure import Figure

import larpanda
from larpanda.reconstruct import reconstruct_file

MUON = 13  # PDG


def make_events(path: Path) -> None:
    """Ten events of the embedded generator."""
    larpanda.write_events(path, larpanda.generate(10, seed=100))


def draw(tables: Path, stem: str, picture: Path) -> str:
    """Plot what the tables say; returns it in a line."""
    particles = pq.read_table(tables / f"{stem}_particles.parquet")
    muons = particles.filter(compute.equal(particles["pdg"], MUON))
    contained = muons.filter(muons["contained"])
    interactions = pq.read_table(tables / f"{stem}_interactions.parquet")
    topologies = Counter(name for name in interactions["topology"].to_pylist() if name).most_common(8)

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    energies, kinds = figure.subplots(1, 2)
    bins = np.linspace(0, 1000, 21)
    energies.hist(muons["calo_energy_mev"].to_numpy(), bins, label=f"calorimetric, {len(muons)}", histtype="step")
    energies.hist(contained["range_energy_mev"].to_numpy(), bins, label=f"by range, contained, {len(contained)}")
    energies.set_xlabel("muons, kinetic energy in MeV")
    energies.legend(fontsize=8)
    kinds.barh([name for name, _ in topologies][::-1], [n for _, n in topologies][::-1])
    kinds.set_xlabel("interactions")
    figure.savefig(picture)
    counts = f"{particles.num_rows} particles, {len(muons)} of them muons, {interactions.num_rows} interactions"
    return f"{counts}: {picture.name}"


def main(events: Path, tables: Path, picture: Path) -> None:
    """Reconstruct and draw."""
    reconstruct_file(str(events), tables, larpanda.load("nano"))
    print(draw(tables, events.stem, picture))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        main(*map(Path, sys.argv[1:]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            make_events(Path(folder, "events.h5"))
            main(Path(folder, "events.h5"), Path(folder, "tables"), Path(folder, "muons.png"))
