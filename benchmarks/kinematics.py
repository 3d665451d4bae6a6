"""Are measured energies, directions, lengths and vertices right? On the true voxels of particles, no model.

    python benchmarks/kinematics.py TEST [--fit SOURCE] [--events N]

Energy scales are fitted on the events of --fit (median of kinetic energy over energy in voxels, contained particles of
5 voxels or more above threshold, each species) and judged, with all else, on those of TEST. Prints Markdown.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from larpanda.analysis.kinematics import (
    Detector,
    EnergyScale,
    Group,
    InteractionMeasure,
    ParticleMeasure,
    angle_degrees,
    measure,
)
from larpanda.analysis.ranges import RANGE_CM, range_cm
from larpanda.data import open_events
from larpanda.event import MIN_ENERGY_MEV, VOXEL_CM, Event, Motif, Species

LEAST_VOXELS = 5
PI0_MASS = 134.977


@dataclass(frozen=True)
class Known:
    """A particle: what the simulation knows of it, and what was measured."""

    species: Species
    kinetic: float  # MeV
    start: np.ndarray  # [3] cm
    end: np.ndarray  # [3] cm
    direction: np.ndarray  # [3] momentum
    contained: bool  # in the truth and by its voxels
    at_rest: bool  # a track that went as far as its energy allows, within a tenth
    parent: tuple[int, int]  # PDG code and track of the parent
    voxels: int
    found: ParticleMeasure


@dataclass(frozen=True)
class Vertex:
    """An interaction: how far the vertex is off, and how many tracks and electrons begin there."""

    miss: float  # cm
    begins: int
    inside: bool  # the true vertex is fiducial


def particles_of(event: Event, scale: EnergyScale) -> tuple[list[Known], list[Vertex]]:
    """Measure the true particles of an event, interaction by interaction."""
    seen = event.visible(MIN_ENERGY_MEV)[0]
    truth = seen.particles
    assert truth is not None
    position = (seen.position.double().numpy() + 0.5) * VOXEL_CM
    energy, motif = seen.energy.double().numpy(), seen.motif.numpy()
    owner, interaction = seen.particle.numpy(), seen.interaction.numpy()
    particles, vertices = [], []
    for number in np.unique(interaction[interaction >= 0]):
        ids = [
            p
            for p in np.unique(owner[(interaction == number) & (owner >= 0)])
            if truth.species[p] >= 0 and (owner == p).sum() >= LEAST_VOXELS
        ]
        if not ids:
            continue
        groups = [
            Group(
                Species(int(truth.species[p])),
                position[owner == p],
                energy[owner == p],
                bool((motif[owner == p] == Motif.MICHEL).mean() > 0.5),
            )
            for p in ids
        ]
        whole, measures = measure(groups, Detector(), scale)
        starts = {p: truth.start[p].double().numpy() * VOXEL_CM for p in ids}
        for p, one in zip(ids, measures, strict=True):
            species, kinetic = Species(int(truth.species[p])), float(truth.kinetic_energy[p])
            end = truth.end[p].double().numpy() * VOXEL_CM
            went = float(np.linalg.norm(end - starts[p]))
            particles.append(
                Known(
                    species,
                    kinetic,
                    starts[p],
                    end,
                    truth.momentum_vector[p].double().numpy(),
                    one.contained and int(truth.contained[p]) == 1,
                    species in RANGE_CM and abs(went - range_cm(kinetic, species)) < 0.1 * range_cm(kinetic, species),
                    (int(truth.parent_pdg[p]), int(truth.parent_track_id[p])),
                    int((owner == p).sum()),
                    one,
                )
            )
        vertices += _vertex(truth, ids, starts, whole)
    return particles, vertices


def _vertex(
    truth: object, ids: Sequence[int], starts: dict[int, np.ndarray], whole: InteractionMeasure
) -> list[Vertex]:
    primaries = [p for p in ids if int(truth.primary[p]) == 1]
    if not primaries:
        return []
    true = starts[primaries[0]]
    begins = sum(
        bool(np.linalg.norm(starts[p] - true) < 0.1) and Species(int(truth.species[p])) is not Species.PHOTON
        for p in ids
    )
    inside = Detector().contains(true[None], Detector().fiducial_cm)
    return [Vertex(float(np.linalg.norm(np.array(whole.vertex_cm) - true)), begins, inside)]


def fit(particles: Sequence[Known]) -> EnergyScale:
    """The scale of each species: median of true over summed energy."""
    factors = {}
    for species in Species:
        mine = [p for p in particles if p.species is species and p.contained]
        whole = [p for p in mine if p.at_rest or species not in RANGE_CM]  # what reacts leaves its energy to others
        ratio = [p.kinetic / p.found.calo_energy_mev for p in whole]
        factors[species.name.lower()] = round(float(np.median(ratio)), 4) if ratio else 1.0
    return EnergyScale(**factors)


def quantiles(values: Sequence[float]) -> str:
    """Median, and half of the central 68 %."""
    known = np.array([value for value in values if not math.isnan(value)])
    if len(known) < 5:
        return "too few"
    low, middle, high = np.quantile(known, (0.16, 0.5, 0.84))
    return f"{middle:.3f} ± {(high - low) / 2:.3f}"


def share(values: Sequence[float], part: float) -> str:
    """A quantile."""
    known = [value for value in values if not math.isnan(value)]
    return f"{np.quantile(known, part):.2f}" if len(known) >= 5 else "too few"


def print_tables(particles: Sequence[Known], vertices: Sequence[Vertex]) -> None:
    """What the issue asks for."""
    columns = ("n, contained", "energy / true", "calorimetric / true", "by range / true", "n, at rest", "energy / true")
    columns += ("n, not contained", "calorimetric / true")
    print(f"| | {' | '.join(columns)} |\n{'|---' * 9}|")
    for species in Species:
        mine = [p for p in particles if p.species is species]
        inside, outside = ([p for p in mine if p.contained == contained] for contained in (True, False))
        row = [quantiles([p.found.energy_mev / p.kinetic for p in inside])]
        row += [quantiles([p.found.calo_energy_mev / p.kinetic for p in inside])]
        row += [quantiles([p.found.range_energy_mev / p.kinetic for p in inside])]
        rest = [p for p in inside if p.at_rest]
        row += [f"{len(rest)}", quantiles([p.found.energy_mev / p.kinetic for p in rest])]
        row += [f"{len(outside)}", quantiles([p.found.calo_energy_mev / p.kinetic for p in outside])]
        print(f"| {species.name.lower()} | {len(inside)} | {' | '.join(row)} |")
    print(
        "\n| | n, 10 cm or more | angle, 68 % (degrees) | start, 68 % (cm) | end, 68 % (cm) | flipped | length / true |"
    )
    print("|---" * 7 + "|")
    for species in Species:
        long = [p for p in particles if p.species is species and p.contained and p.found.length_cm >= 10]
        gaps = [[float(np.linalg.norm(np.array(p.found.start_cm) - end)) for end in (p.start, p.end)] for p in long]
        flips = [first > second for first, second in gaps]
        track = species in (Species.MUON, Species.PION, Species.PROTON)
        row = [share([angle_degrees(np.array(p.found.direction), p.direction) for p in long], 0.68)]
        row += [share([first for first, _ in gaps], 0.68) if species is not Species.PHOTON else ""]
        row += [share([float(np.linalg.norm(np.array(p.found.end_cm) - p.end)) for p in long], 0.68) if track else ""]
        row += [f"{np.mean(flips):.3f}" if track and flips else ""]
        row += [
            quantiles([p.found.length_cm / max(float(np.linalg.norm(p.end - p.start)), 0.3) for p in long])
            if track
            else ""
        ]
        print(f"| {species.name.lower()} | {len(long)} | {' | '.join(row)} |")
    print("\n| tracks and electrons at the (fiducial) vertex | n | 68 % within (cm) | share within 1 cm |")
    print("|---" * 4 + "|")
    for name, chosen in (
        ("1", [v for v in vertices if v.inside and v.begins == 1]),
        ("2 or more", [v for v in vertices if v.inside and v.begins >= 2]),
        ("1 or more", [v for v in vertices if v.inside and v.begins >= 1]),
    ):
        misses = [v.miss for v in chosen]
        print(f"| {name} | {len(misses)} | {share(misses, 0.68)} | {np.mean(np.array(misses) < 1):.3f} |")
    masses = pi0_masses(particles)
    print(
        f"\nTwo contained photons of a neutral pion: mass {quantiles(masses)} MeV, {len(masses)} pairs; true {PI0_MASS}"
    )


def pi0_masses(particles: Sequence[Known]) -> list[float]:
    """Masses of pairs of photons with one neutral pion as parent, from measured energies and directions."""
    families: dict[tuple[float, ...], list[Known]] = {}
    for p in particles:
        if p.species is Species.PHOTON and p.parent[0] == 111 and p.contained:
            families.setdefault((p.parent[1], *p.start.round(3)), []).append(p)
    masses = []
    for family in families.values():
        if len(family) == 2:
            a, b = family
            cosine = math.cos(math.radians(angle_degrees(np.array(a.found.direction), np.array(b.found.direction))))
            masses.append(math.sqrt(max(2 * a.found.energy_mev * b.found.energy_mev * (1 - cosine), 0.0)))
    return masses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test", metavar="TEST")
    parser.add_argument("--fit", default="generate:pilarnet?events=1000&seed=9", metavar="SOURCE")
    parser.add_argument("--events", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fitted = [
        p
        for event in open_events(arguments.fit)[: arguments.events]
        for p in particles_of(event, EnergyScale(1.0, 1.0, 1.0, 1.0, 1.0))[0]
    ]
    scale = fit(fitted)
    print(f"{scale}\n")
    events = open_events(arguments.test)[: arguments.events]
    found = [particles_of(event, scale) for event in events]
    print(f"{Path(arguments.test).name}, {len(events)} events\n")
    print_tables([p for one, _ in found for p in one], [v for _, one in found for v in one])


if __name__ == "__main__":
    main()
