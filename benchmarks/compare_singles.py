"""Single particles of the generator against those of Geant4, and against what is known exactly.

    python benchmarks/compare_singles.py singles.npz --events 1000 --seed 1

Each particle starts at (0, 0, 0) and flies along z in argon without end; its deposits are summed in cells of 3 mm, and
cells of 0.01 MeV and more are kept. A quantity passes if it is off by no more than its tolerance, or by no more than
2.5 combined standard errors where that is larger. Exit code 1 if one fails.

The file has, one entry a voxel: `voxel` (floor(position / 3 mm)), `energy` (MeV), `event`; one an event: `event_set`,
`path_length_cm` (of the particle itself), `end_process` (Geant4's name), `deposited_mev`; one a set: `set_particle`,
`set_kinetic_mev`.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from larpanda.data.physics import radiation, showers
from larpanda.data.physics.decays import MICHEL_END_MEV
from larpanda.data.physics.kernel import DECAY, STOPPED
from larpanda.data.physics.material import ELECTRON_MASS, PI_ZERO_MASS
from larpanda.data.physics.presets import Primary
from larpanda.data.physics.transport import Truth, simulate
from larpanda.event import VOXEL_CM, VOXEL_MM

PDG = {
    "e-": 11, "e+": -11, "gamma": 22, "mu-": 13, "mu+": -13, "pi-": -211, "pi+": 211, "pi0": 111,
    "proton": 2212, "neutron": 2112,
}  # fmt: skip
RANGED = ("mu", "pi+", "pi-", "pr")  # what stops: how the names begin
EVERYWHERE = (10_000.0, 10_000.0, 10_000.0)  # mm
STEP_MM = 1.0  # the longest step, as in the Geant4 sample
MIN_VOXEL_MEV = 0.01
SIGMA = 2.5
DEPTHS_CM = (30, 60, 90, 120)
RADIUS_SHARES = (50, 68, 90)
BIN_CM, BINS = 5, 60
AXIS_VOXELS, AXIS_MEV = 2, 0.3  # where a photon is taken to have converted: the first such voxel so near to the axis
SHAPE = (
    "voxels > 0.01 MeV",
    "voxels > 0.13 MeV",
    *(f"energy within {d} cm of depth, share" for d in DEPTHS_CM),
    "mean depth, cm",
    *(f"r{r}, cm" for r in RADIUS_SHARES),
    "depth of the first voxel, cm",
)

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """E events of one particle and energy."""

    shape: Floats  # [E, len(SHAPE)], NaN where there is nothing to measure
    profile: Floats  # [E, BINS] MeV in bins of depth
    path_cm: Floats  # [E] length of the particle's own path
    rested: Bools  # [E] not ended by a reaction in flight
    deposited: Floats  # [E] MeV, all of it


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What our own events say that a formula knows."""

    interaction_cm: Floats  # depth of a photon's first interaction
    michel_mev: Floats  # total energy of the positrons of mu+ at rest
    mass_mev: Floats  # of what a neutral pion becomes


class Scores:
    """Prints one row a comparison and counts those that fail."""

    def __init__(self) -> None:
        self.failed = self.made = 0
        print("| quantity | Geant4 or exact | ours | off, % | in standard errors | tolerance, % | |")
        print("|---|---|---|---|---|---|---|")

    def compare(self, quantity: str, first: tuple[float, float], second: tuple[float, float], tolerance: float) -> None:
        """Judge values with their standard errors; `tolerance` is a share of the first, infinite for no verdict."""
        error = float(np.hypot(first[1], second[1]))
        off = second[0] - first[0]
        passed = abs(off) <= max(tolerance * abs(first[0]), SIGMA * error)  # False for NaN
        verdict = ("PASS" if passed else "FAIL") if np.isfinite(tolerance) else ""
        self.failed += verdict == "FAIL"
        self.made += verdict != ""
        columns = [quantity, *(f"{value:.5g}" + (f" ± {e:.2g}" if e else "") for value, e in (first, second))]
        columns += [f"{100 * off / first[0]:+.2g}" if first[0] else "", f"{off / error:+.1f}" if error else ""]
        columns += [f"{100 * tolerance:.2g}" if verdict else "", verdict]
        print("| " + " | ".join(columns) + " |", flush=True)


def shape_of(cell: npt.NDArray[np.int64], energy: Floats) -> tuple[list[float], Floats]:
    """The quantities of SHAPE, and the energies in bins of depth, of an event of cells [N, 3] and MeV [N]."""
    if not len(energy):
        return [0.0, 0.0] + [np.nan] * (len(SHAPE) - 2), np.zeros(BINS)
    x, y, depth = ((cell + 0.5) * VOXEL_CM).T
    radius = np.hypot(x, y)
    outward = np.argsort(radius, kind="stable")
    inside = np.cumsum(energy[outward]) / energy.sum()
    on_axis = (radius < AXIS_VOXELS * VOXEL_CM) & (energy > AXIS_MEV)
    shape = [float(len(energy)), float((energy > 0.13).sum())]
    shape += [float(energy[depth < d].sum() / energy.sum()) for d in DEPTHS_CM]
    shape += [float(np.average(depth, weights=energy))]
    shape += [float(radius[outward[np.searchsorted(inside, r / 100)]]) for r in RADIUS_SHARES]
    shape += [float(depth[on_axis].min()) if on_axis.any() else np.nan]
    return shape, np.histogram(depth, BINS, (0, BIN_CM * BINS), weights=energy)[0]


def geant4_sample(file: dict[str, npt.NDArray[np.generic]], number: int) -> Sample:
    """One set of the file."""
    events = np.flatnonzero(file["event_set"] == number)
    first, last = (np.searchsorted(file["event"], events, side) for side in ("left", "right"))
    found = [
        shape_of(file["voxel"][a:b].astype(np.int64), file["energy"][a:b].astype(np.float64))
        for a, b in zip(first, last, strict=True)
    ]
    return Sample(
        np.array([shape for shape, _ in found]),
        np.array([profile for _, profile in found]),
        file["path_length_cm"][events].astype(np.float64),
        np.array(["Inelastic" not in str(end) for end in file["end_process"][events]]),
        file["deposited_mev"][events].astype(np.float64),
    )


def our_sample(particle: str, kinetic: float, number: int, events: int, seed: int) -> tuple[Sample, Known]:
    """The same set by the generator. Event i depends on the set, the seed and i only."""
    primary = Primary(0, PDG[particle], kinetic, (0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    shapes, profiles, interaction, michel, mass = [], [], [], [], []
    path, rested, deposited = np.zeros(events), np.zeros(events, bool), np.zeros(events)
    for i in range(events):
        truth = simulate((primary,), np.random.default_rng([seed, number, i]), EVERYWHERE, STEP_MM)
        shape, profile = shape_of(*_voxels(truth))
        shapes.append(shape)
        profiles.append(profile)
        path[i], rested[i], deposited[i] = truth.path[1] / 10, truth.fate[1] == STOPPED, truth.deposit.sum()
        children = np.flatnonzero(truth.parent == 1)
        decayed = children[truth.process[children] == DECAY]
        if particle == "gamma":
            interaction.append(truth.start[children[0], 3] / 10)
        if particle == "mu+" and truth.fate[1] == STOPPED:
            michel += (truth.start[decayed[truth.pdg[decayed] == -11], 0] + ELECTRON_MASS).tolist()
        if particle == "pi0":
            mass.append(_invariant_mass(truth, decayed))
    sample = Sample(np.array(shapes), np.array(profiles), path, rested, deposited)
    return sample, Known(np.array(interaction), np.array(michel), np.array(mass))


def _voxels(truth: Truth) -> tuple[npt.NDArray[np.int64], Floats]:
    """The cells of an event [N, 3] and their energies [N]."""
    cell = np.floor(truth.place / VOXEL_MM).astype(np.int64)
    base = 2 * int(EVERYWHERE[0] / VOXEL_MM) + 4
    x, y, z = (cell + base // 2).T
    _, row, inverse = np.unique((x * base + y) * base + z, return_index=True, return_inverse=True)
    energy = np.bincount(inverse, truth.deposit, minlength=len(row))
    keep = energy >= MIN_VOXEL_MEV
    return cell[row[keep]], energy[keep]


def _invariant_mass(truth: Truth, tracks: npt.NDArray[np.int64]) -> float:
    mass = np.where(np.abs(truth.pdg[tracks]) == 11, ELECTRON_MASS, 0.0)
    kinetic = truth.start[tracks, 0]
    momentum = np.sqrt(kinetic * (kinetic + 2 * mass))[:, None] * truth.start[tracks, 4:7]
    return float(np.sqrt((kinetic + mass).sum() ** 2 - (momentum.sum(0) ** 2).sum()))


def mean(value: Floats) -> tuple[float, float]:
    """The mean of what is not NaN, and its standard error; NaN, which fails, of fewer than two."""
    known = value[np.isfinite(value)]
    if len(known) < 2:
        return np.nan, np.nan
    return float(known.mean()), float(known.std(ddof=1) / len(known) ** 0.5)


def spread(value: Floats) -> tuple[float, float]:
    """The standard deviation, and its standard error from the fourth moment; NaN, which fails, of fewer than two."""
    if len(value) < 2:
        return np.nan, np.nan
    d = value - value.mean()
    variance = (d**2).mean()
    return float(variance**0.5), float(np.sqrt(((d**4).mean() - variance**2) / len(d) / variance) / 2)


def stopped(sample: Sample) -> Floats:
    """Path lengths of particles that stopped, cm.

    Geant4's `end_process` does not tell a decay in flight from one at rest, and a hard elastic collision shortens the
    way too; so what lies more than four robust standard deviations from the median is left out, on both sides.
    """
    path = sample.path_cm[sample.rested]
    for _ in range(3 if len(path) else 0):
        middle = np.median(path)
        path = path[np.abs(path - middle) <= 4 * 1.4826 * np.median(np.abs(path - middle))]
    return path


def peak(profile: Floats, rng: np.random.Generator) -> tuple[tuple[float, float], tuple[float, float]]:
    """Depth (cm) and height (MeV/cm) of the maximum of the mean profile, by a parabola; errors by bootstrap."""
    n = len(profile)
    weight = np.concatenate([np.full((1, n), 1 / n), rng.multinomial(n, np.full(n, 1 / n), 200) / n])
    means = weight @ profile / BIN_CM
    at = np.clip(means.argmax(1), 1, BINS - 2)
    low, top, high = (means[np.arange(len(means)), at + step] for step in (-1, 0, 1))
    shift = (low - high) / (2 * (low - 2 * top + high))
    depth, height = (at + 0.5 + shift) * BIN_CM, top - (low - high) * shift / 4
    return (float(depth[0]), float(depth[1:].std())), (float(height[0]), float(height[1:].std()))


def compare_set(scores: Scores, particle: str, kinetic: float, geant4: Sample, ours: Sample) -> None:
    """All that has a counterpart in Geant4."""
    name = f"{particle} {kinetic:g}"
    columns = {quantity: (geant4.shape[:, i], ours.shape[:, i]) for i, quantity in enumerate(SHAPE)}

    def both(quantity: str, tolerance: float) -> None:
        first, second = columns[quantity]
        scores.compare(f"{name}: {quantity}", mean(first), mean(second), tolerance)

    for quantity in SHAPE[:2]:
        both(quantity, 0.08)
    scores.compare(f"{name}: deposited, MeV", mean(geant4.deposited), mean(ours.deposited), np.inf)
    if particle.startswith(RANGED):
        first, second = stopped(geant4), stopped(ours)
        scores.compare(f"{name}: range, cm", mean(first), mean(second), 0.015)
        scores.compare(f"{name}: spread of the range, cm", spread(first), spread(second), 0.30)
    if (particle, kinetic) == ("e-", 500):
        for quantity in SHAPE[2:-1]:
            both(quantity, 0.08)
        peaks = [peak(sample.profile, np.random.default_rng(0)) for sample in (geant4, ours)]
        for i, quantity in enumerate(("depth of the maximum, cm", "height of the maximum, MeV/cm")):
            scores.compare(f"{name}: {quantity}", peaks[0][i], peaks[1][i], 0.08)
    if particle == "gamma" and kinetic >= 100:
        both(SHAPE[-1], 0.05)


def compare_known(scores: Scores, particle: str, kinetic: float, ours: Sample, known: Known) -> None:
    """All that is known without Geant4."""
    name = f"{particle} {kinetic:g}"
    if particle == "gamma":
        rate = showers._compton_rate(kinetic) + radiation.pair_rate(kinetic, radiation.radiation_tables())
        exact = (1 / rate / 10, 0.0)
        scores.compare(f"{name}: first interaction against 1 / mu, cm", exact, mean(known.interaction_cm), 0.05)
    if particle == "pi0":
        scores.compare(
            f"{name}: mass, farthest off, MeV", (PI_ZERO_MASS, 0.0), _farthest(known.mass_mev, PI_ZERO_MASS), 1e-6
        )
    rest = {"e-": 0.0, "gamma": 0.0, "e+": 2 * ELECTRON_MASS, "pi0": PI_ZERO_MASS}
    if particle in rest:
        energy = kinetic + rest[particle]
        scores.compare(
            f"{name}: deposited, event farthest off, MeV", (energy, 0.0), _farthest(ours.deposited, energy), 1e-6
        )


def compare_michels(scores: Scores, total: Floats) -> None:
    """Total energies of Michel positrons: 37.0 MeV on average, and none above the end point."""
    scores.compare("Michel positrons: mean total energy, MeV", (37.0, 0.0), mean(total), 0.5 / 37.0)
    gap = MICHEL_END_MEV / (2 * len(total))  # expected between the largest of so many and the end point
    scores.compare("Michel positrons: largest total energy, MeV", (52.83, 0.0), (float(total.max()), gap), 0.1 / 52.83)


def _farthest(value: Floats, expected: float) -> tuple[float, float]:
    return float(value[np.abs(value - expected).argmax()]), 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("geant4", type=Path, metavar="GEANT4.npz")
    parser.add_argument("--events", type=int, default=1000, help="of each set, of ours")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with np.load(options.geant4) as archive:
        file = dict(archive)
    scores = Scores()
    michels = []
    for number, (particle, kinetic) in enumerate(
        zip(file["set_particle"].tolist(), file["set_kinetic_mev"].tolist(), strict=True)
    ):
        print(f"{particle} {kinetic:g} MeV ...", file=sys.stderr)
        ours, known = our_sample(particle, kinetic, number, options.events, options.seed)
        compare_set(scores, particle, kinetic, geant4_sample(file, number), ours)
        compare_known(scores, particle, kinetic, ours, known)
        michels.append(known.michel_mev)
    compare_michels(scores, np.concatenate(michels))
    print(f"\n{scores.failed} of {scores.made} fail ({options.events} of our events a set, seed {options.seed})")
    sys.exit(1 if scores.failed else 0)


if __name__ == "__main__":
    main()
