"""What detector effects cost, and how well recombination from voxels agrees with recombination step by step.

python benchmarks/detector_effects.py
"""

import time

import numpy as np

from larpanda.data import open_events
from larpanda.data.physics.detector import (
    MIP_MEV_CM,
    Detector,
    apply_detector,
    recombination_factor,
)
from larpanda.data.physics.presets import Primary
from larpanda.data.physics.transport import MAX_STEP_MM, simulate
from larpanda.event import IMAGE_VOXELS, VOXEL_MM, Event

PARTICLES = (("muon", 13, 300), ("muon", 13, 1000), ("pion", 211, 100), ("electron", 11, 30), ("electron", 11, 500),
             ("photon", 22, 300), ("proton", 2212, 50), ("proton", 2212, 100), ("proton", 2212, 200),
             ("proton", 2212, 400))  # fmt: skip
TRIES = 30
EFFECTS = {
    "recombination": Detector(recombination=True),
    "diffusion, threshold 0.01 MeV": Detector(longitudinal_cm2_s=5, transverse_cm2_s=11, threshold_mev=0.01),
    "dead wires": Detector(dead_fraction=0.05),
    "noise, threshold 0.05 MeV": Detector(noise_mev=0.02, noise_voxels=100, threshold_mev=0.05),
    "all of them": Detector(recombination=True, longitudinal_cm2_s=5, transverse_cm2_s=11, dead_fraction=0.05,
                            gain=1.1, noise_mev=0.02, noise_voxels=100, threshold_mev=0.05),
}  # fmt: skip


def visible_fraction(pdg: int, energy_mev: float, seed: int) -> tuple[float, float, float]:
    """MeV that a particle leaves, and what recombination makes of it: step by step, from voxels."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    truth = simulate((Primary(0, pdg, float(energy_mev), (0.0, 0.0, 0.0), tuple(map(float, direction))),), rng)
    # A deposit lies in the middle of its step: the step is about the mean distance to the ones before and after.
    distance = np.linalg.norm(np.diff(truth.place, axis=0), axis=1)
    distance[(np.diff(truth.owner) != 0) | (distance > 2 * MAX_STEP_MM)] = np.nan
    around = np.stack([np.append(np.nan, distance), np.append(distance, np.nan)])
    known = ~np.isnan(around)
    step_mm = np.where(known, around, 0).sum(0) / np.maximum(known.sum(0), 1)
    step_mm[step_mm == 0] = MAX_STEP_MM
    mip = recombination_factor(MIP_MEV_CM, 0.5)
    by_steps = truth.deposit * recombination_factor(truth.deposit / step_mm * 10, 0.5) / mip
    voxel, row = np.unique(np.floor(truth.place / VOXEL_MM) + IMAGE_VOXELS // 2, axis=0, return_inverse=True)
    inside = ((voxel >= 0) & (voxel < IMAGE_VOXELS)).all(1)
    deposit, by_steps = (np.bincount(row.reshape(-1), weights=w)[inside] for w in (truth.deposit, by_steps))
    event = apply_detector(Event.from_arrays(voxel[inside], deposit), EFFECTS["recombination"], rng)
    return deposit.sum(), by_steps.sum(), event.energy.sum().item()


def main() -> None:
    """Print both tables."""
    print("| particle | kinetic, MeV | left by recombination: step by step | from voxels |\n|---|---|---|---|")
    for name, pdg, energy_mev in PARTICLES:
        mev, by_steps, by_voxels = np.sum([visible_fraction(pdg, energy_mev, seed) for seed in range(TRIES)], axis=0)
        print(f"| {name} | {energy_mev} | {by_steps / mev:.3f} | {by_voxels / mev:.3f} |", flush=True)

    events = list(open_events("generate:pilarnet?events=20&seed=100"))
    print(f"\n{len(events)} events of {np.mean([len(e) for e in events]):.0f} voxels on average")
    print("| effect | ms an event, best of 5 | voxels after |\n|---|---|---|")
    for name, detector in EFFECTS.items():
        best = np.inf
        for _ in range(5):
            start = time.perf_counter()
            after = [apply_detector(event, detector, np.random.default_rng(0)) for event in events]
            best = min(best, (time.perf_counter() - start) / len(events))
        print(f"| {name} | {1000 * best:.1f} | {np.mean([len(e) for e in after]):.0f} |", flush=True)


if __name__ == "__main__":
    main()
