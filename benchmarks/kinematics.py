"""Are measured energies, directions, lengths and vertices right? On true voxels, and with a model on what it finds.

    python benchmarks/kinematics.py TEST [--fit SOURCE] [--events N] [--model BUNDLE]

Energy scales are fitted on the events of --fit (median of kinetic energy over energy in voxels, contained particles of
5 voxels or more above threshold, each species) and judged, with all else, on those of TEST. Prints Markdown.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import larpanda
from larpanda.analysis.closure import (
    PI0_MASS_MEV,
    Closure,
    Comparison,
    Spread,
    VertexComparison,
    closures,
    compare,
    fit_scale,
    pi0_masses,
    vertex_misses,
)
from larpanda.analysis.kinematics import Detector, measure_event
from larpanda.data import open_events
from larpanda.event import MIN_ENERGY_MEV, EnergyScale

ONE = EnergyScale(1.0, 1.0, 1.0, 1.0, 1.0)


def text(one: Spread, digits: int = 3) -> str:
    """A cell of a table: median and half of the central 68 %, or a quantile."""
    if math.isnan(one.middle):
        return f"too few ({one.n})"
    return f"{one.middle:.{digits}f}" + ("" if math.isnan(one.half_width) else f" ± {one.half_width:.{digits}f}")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """As Markdown."""
    print(f"\n| | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def print_closures(found: Sequence[Closure], vertices: Sequence[float], masses: Sequence[float]) -> None:
    """What the particles of one way of grouping give."""
    print_table(
        ("n, contained", "energy / true", "calorimetric / true", "by range / true", "n, at rest", "energy / true")
        + ("n, not contained", "calorimetric / true"),
        [
            (one.species.name.lower(), str(one.energy.n), text(one.energy), text(one.calo), text(one.by_range))
            + (str(one.energy_at_rest.n), text(one.energy_at_rest))
            + (str(one.calo_uncontained.n), text(one.calo_uncontained))
            for one in found
        ],
    )
    print_table(
        ("n, 10 cm or more", "angle, 68 % (degrees)", "start, 68 % (cm)", "end, 68 % (cm)", "flipped", "length / true"),
        [
            (one.species.name.lower(), str(one.angle_degrees.n), text(one.angle_degrees, 2), text(one.start_cm, 2))
            + (text(one.end_cm, 2), text(one.flipped), text(one.length))
            for one in found
        ],
    )
    within = np.mean(np.array(vertices) < 1) if vertices else math.nan
    print(f"\nFiducial vertices with a track or electron: 68 % within {text(Spread.within(vertices), 2)} cm, ", end="")
    print(f"{within:.3f} within 1 cm ({len(vertices)})")
    print(f"Pairs of photons of a neutral pion: mass {text(Spread.of(masses), 1)} MeV, {len(masses)} pairs; ", end="")
    print(f"true {PI0_MASS_MEV}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test", metavar="TEST")
    parser.add_argument("--fit", default="generate:pilarnet?events=1000&seed=9", metavar="SOURCE")
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--model", metavar="BUNDLE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    detector = Detector()
    fitted = [
        one
        for event in open_events(arguments.fit)[: arguments.events]
        for one in compare(event, None, None, MIN_ENERGY_MEV, detector, ONE)[0]
    ]
    scale = fit_scale(fitted)
    print(f"{scale}\n")
    model = larpanda.load(arguments.model) if arguments.model else None
    particles: list[Comparison] = []
    vertices: list[VertexComparison] = []
    events = open_events(arguments.test)[: arguments.events]
    for event in events:
        found = model.reconstruct(event) if model else None
        measured = measure_event(event, found, detector, scale) if found else None
        some, others = compare(event, found, measured, MIN_ENERGY_MEV, detector, scale)
        particles += some
        vertices += others
    print(f"{Path(arguments.test).name}, {len(events)} events")
    for on_truth in (True, False) if model else (True,):
        matched = sum(one.found is not None for one in particles)
        print(f"\n## {'True voxels' if on_truth else f'Found: {matched} of {len(particles)} particles match'}")
        print_closures(
            closures(particles, on_truth), vertex_misses(vertices, on_truth), pi0_masses(particles, on_truth)
        )


if __name__ == "__main__":
    main()
