"""The embedded generator: simulated events with complete truth, made when they are asked for. No download.

What the physics is, and how close it comes to Geant4, is told in docs/physics.md.
"""

from collections.abc import Sequence
from typing import overload

import numpy as np
import torch

from larpanda.data.physics.image import Image, cell_of, place_image
from larpanda.data.physics.labels import Labels, interaction_of, label
from larpanda.data.physics.material import (
    ELECTRON_MASS,
    MUON_MASS,
    PION_MASS,
    PROTON_MASS,
)
from larpanda.data.physics.presets import PRESETS, draw
from larpanda.data.physics.transport import Truth, simulate
from larpanda.event import PDG, UNKNOWN, Event, EventKey, ParticleTruth, compact

_MASS_MEV = {22: 0.0, 11: ELECTRON_MASS, 13: MUON_MASS, 211: PION_MASS, 2212: PROTON_MASS}
_SPECIES = {pdg: int(species) for species, pdg in PDG.items()}


def generate(n: int, seed: int = 0, preset: str = "pilarnet", start: int = 0) -> "GeneratedEvents":
    """Simulate events of a preset.

    Args:
        n: how many.
        seed: of the whole sample. Event i depends on preset, seed and i only.
        preset: "pilarnet" (particle bombs like those of PILArNet-M), or "single:electron", "single:photon",
            "single:muon", "single:pion", "single:proton".
        start: number of the first event: ``generate(n, start=k)[i]`` is ``generate(k + n)[k + i]``.

    Returns:
        A sequence of Event that makes event i when it is asked for, 20 ms each; nothing is kept.

    Raises:
        ValueError: an unknown preset, or a negative number.

    >>> events = generate(2, seed=3)
    >>> len(events), events[0].key.file
    (2, 'generate:pilarnet?seed=3')
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r} of the generator; known are {', '.join(PRESETS)}")
    for name, value in (("n", n), ("seed", seed), ("start", start)):
        if value < 0:
            raise ValueError(f"{name} = {value} of the generator is negative; expected 0 or more")
    return GeneratedEvents(preset, seed, range(start, start + n))


class GeneratedEvents(Sequence[Event]):
    """Events numbered by a range, made anew on every access: same number, same bytes. See `generate`."""

    __slots__ = ("_numbers", "_preset", "_seed")

    def __init__(self, preset: str, seed: int, numbers: range) -> None:
        self._preset, self._seed, self._numbers = preset, seed, numbers

    def __repr__(self) -> str:
        return f"GeneratedEvents({self._preset!r}, seed={self._seed}, numbers={self._numbers})"

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Event: ...

    @overload
    def __getitem__(self, index: slice) -> "GeneratedEvents": ...

    def __getitem__(self, index: "int | slice") -> "Event | GeneratedEvents":
        if isinstance(index, slice):
            return GeneratedEvents(self._preset, self._seed, self._numbers[index])
        try:
            number = self._numbers[index]
        except IndexError:
            raise IndexError(f"event {index} of {len(self)} generated events") from None
        return _make(self._preset, self._seed, number)


def _make(preset: str, seed: int, number: int) -> Event:
    """Event `number`. Events that are too small are drawn again, from the next generator of the same number."""
    settings = PRESETS[preset]
    attempt = 0
    while True:
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number, attempt])))
        truth = simulate(draw(settings, rng), rng)
        image = place_image(truth, rng)
        labels = label(truth, image)
        if len(labels.key) >= settings.min_voxels:
            return _event(truth, image, labels, EventKey(f"generate:{preset}?seed={seed}", number))
        attempt += 1


def _event(truth: Truth, image: Image, labels: Labels, key: EventKey) -> Event:
    tracks = np.unique(labels.particle[labels.particle != UNKNOWN])  # the particles, by track id
    interaction = interaction_of(tracks, truth)
    particle_of_cluster = np.where(labels.particle == UNKNOWN, UNKNOWN, np.searchsorted(tracks, labels.particle))
    particle = particle_of_cluster[labels.cluster]
    species = np.array([_SPECIES.get(abs(int(pdg)), UNKNOWN) for pdg in truth.pdg[tracks]], np.int64)
    numbers = np.unique(interaction)
    starts = {p.interaction: p.position_mm for p in truth.primaries}
    vertex = image.to_voxels(np.array([starts[int(i)] for i in numbers]).reshape(-1, 3))
    known = particle != UNKNOWN
    interaction_of_voxel = np.full(len(particle), UNKNOWN)
    interaction_of_voxel[known] = interaction[particle[known]]
    species_of_voxel = np.full(len(particle), UNKNOWN)
    species_of_voxel[known] = species[particle[known]]
    return Event(
        position=torch.from_numpy(cell_of(labels.key).astype(np.float32)),
        energy=torch.from_numpy(labels.energy.astype(np.float32)),
        motif=torch.from_numpy(labels.motif[labels.cluster]),
        species=torch.from_numpy(species_of_voxel),
        particle=torch.from_numpy(particle),
        interaction=compact(torch.from_numpy(interaction_of_voxel)),
        particles=_particle_truth(truth, image, labels, tracks, species),
        vertex=torch.from_numpy(vertex.astype(np.float32)),
        key=key,
    )


def _particle_truth(
    truth: Truth, image: Image, labels: Labels, tracks: np.ndarray, species: np.ndarray
) -> ParticleTruth:
    cut = truth.lost > 0  # [T + 1] tracks of which some energy is not in the image
    cut[truth.owner[~image.inside]] = True
    energy, place, direction = truth.start[tracks, 0], truth.start[tracks, 1:4], truth.start[tracks, 4:7]
    mass = np.array([_MASS_MEV.get(abs(int(pdg)), np.nan) for pdg in truth.pdg[tracks]])
    momentum = np.sqrt(energy * (energy + 2 * mass))
    parent = truth.parent[tracks]
    return ParticleTruth(
        track_id=torch.from_numpy(tracks),
        species=torch.from_numpy(species),
        mass=torch.from_numpy(mass.astype(np.float32)),
        momentum=torch.from_numpy(momentum.astype(np.float32)),
        momentum_vector=torch.from_numpy((momentum[:, None] * direction).astype(np.float32)),
        start=torch.from_numpy(image.to_voxels(place).astype(np.float32)),
        end=torch.from_numpy(image.to_voxels(truth.end[tracks]).astype(np.float32)),
        contained=torch.from_numpy((~np.isin(tracks, labels.of_track[cut])).astype(np.int64)),
        primary=torch.from_numpy((parent == 0).astype(np.int64)),
        process=torch.from_numpy(truth.process[tracks]),
        parent_pdg=torch.from_numpy(np.where(parent > 0, truth.pdg[parent], 0)),
        parent_track_id=torch.from_numpy(parent),
    )
