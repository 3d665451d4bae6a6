"""Views: an event as training sees it. Each takes a random generator; labels stay with their points.

Truth tables (momenta, vertices) are dropped, since a view turns and shifts the frame they are given in.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from larpanda.event import IMAGE_VOXELS, Event


@dataclass(frozen=True)
class Augmentation:
    """What fine-tuning does to an event before the model's threshold and voxels."""

    symmetry: bool = True
    """Turn and mirror by one of the cube's 48 symmetries, which keep whole voxels whole."""
    charge_scale: float = 0.0
    """Width of a factor on all energies of an event: calibrations differ."""
    charge_jitter: float = 0.0
    """Width of a factor on each energy, in MeV and before any logarithm (paper section 3.3.2: 0.05)."""


def augment(event: Event, augmentation: Augmentation, rng: np.random.Generator) -> Event:
    """One view of an event; the same generator state gives the same view."""
    if augmentation.symmetry:
        event = turn(event, rng)
    factor = rng.normal(1.0, augmentation.charge_scale)
    factors = factor * rng.normal(1.0, augmentation.charge_jitter, len(event))
    energy = event.energy * torch.from_numpy(np.clip(factors, 0.5, 2.0).astype(np.float32))
    return replace(event, energy=energy, particles=None, vertex=None)


def turn(event: Event, rng: np.random.Generator) -> Event:
    """Apply a random one of the 48 rotations and reflections that map the image cube onto itself."""
    axes = torch.from_numpy(rng.permutation(3))
    flip = torch.from_numpy(rng.random(3) < 0.5)
    position = event.position[:, axes]
    position = torch.where(flip, IMAGE_VOXELS - 1 - position, position)
    return replace(event, position=position, particles=None, vertex=None)
