"""Events that fill the detector, each with a reconstruction that gets some of it wrong."""

import numpy as np
import pytest
import torch

from larpanda.event import (
    MIN_ENERGY_MEV,
    UNKNOWN,
    Event,
    Interaction,
    Motif,
    Particle,
    Reconstruction,
    Species,
    Status,
)


def straight_event(n: int, seed: int = 0, particles: int = 8) -> Event:
    """Straight lines with scattered LEDs around them: n rows, all labels, a quarter of them below the threshold."""
    rng = np.random.default_rng(seed)
    particle = rng.integers(-2, particles, n).clip(UNKNOWN)
    start, end = rng.uniform(60, 700, (2, particles, 3))
    along = rng.random((n, 1))
    voxel = np.where(
        particle[:, None] < 0, rng.uniform(60, 700, (n, 3)), start[particle] * along + end[particle] * (1 - along)
    )
    motif = np.where(particle < 0, Motif.LED, particle % 4)
    energy = np.where(rng.random(n) < 0.25, rng.uniform(0.02, MIN_ENERGY_MEV, n), rng.uniform(0.2, 2, n))
    species = np.where(particle < 0, UNKNOWN, particle % 5)
    return Event.from_arrays(
        voxel.round(), energy, motif, species, particle, np.where(particle < 0, UNKNOWN, particle // 3)
    )


def found_in(event: Event, seed: int = 0) -> Reconstruction:
    """A tenth of the motifs wrong, particles numbered otherwise than in truth."""
    rng = np.random.default_rng(seed)
    n = len(event)
    seen = (event.energy > MIN_ENERGY_MEV).numpy()
    motif = np.where(rng.random(n) < 0.1, rng.integers(0, 5, n), event.motif.numpy())
    motif = np.where(seen, motif, UNKNOWN)
    probability = np.where(np.arange(5) == motif[:, None], 0.8, 0.05)
    probability[~seen] = np.nan
    particle = np.where(seen & (event.particle.numpy() >= 0), 100 - event.particle.numpy(), UNKNOWN)
    interaction = np.where(particle >= 0, event.interaction.numpy(), UNKNOWN)
    return Reconstruction(
        status=Status.OK,
        reason="",
        below_threshold=torch.from_numpy(~seen),
        motif=torch.from_numpy(motif),
        motif_probability=torch.from_numpy(probability.astype(np.float32)),
        particle=torch.from_numpy(particle),
        interaction=torch.from_numpy(interaction),
        particles=tuple(
            Particle(int(i), Species.MUON, 0.9, (0.0, 0.0, 1.0, 0.0, 0.0), 0, int((particle == i).sum()), 1.0)
            for i in np.unique(particle[particle >= 0])
        ),
        interactions=tuple(
            Interaction(int(i), 0.9, int((interaction == i).sum()), 1.0)
            for i in np.unique(interaction[interaction >= 0])
        ),
        n_merged=0,
    )


def refused(n: int, status: Status, reason: str) -> Reconstruction:
    """What an event of n rows gets that could not be reconstructed."""
    unknown = torch.full((n,), UNKNOWN)
    nothing = torch.full((n, 5), float("nan"))
    return Reconstruction(
        status, reason, torch.zeros(n, dtype=torch.bool), unknown, nothing, unknown, unknown, None, None, 0
    )


@pytest.fixture(scope="session")
def make_event():
    return straight_event


@pytest.fixture(scope="session")
def make_reconstruction():
    return found_in


@pytest.fixture(scope="session")
def make_refused():
    return refused
