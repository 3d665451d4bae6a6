"""The embedded generator: simulated events with complete truth, made when they are asked for. No download.

What the physics is, and how close it comes to Geant4, is told in docs/physics.md.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, overload

import numpy as np
import torch

from larpanda import __version__
from larpanda.data.physics.cells import cell_of
from larpanda.data.physics.detector import apply_detector
from larpanda.data.physics.image import Image, place_image
from larpanda.data.physics.labels import Labels, interaction_of, label
from larpanda.data.physics.presets import MASS_MEV, Preset, draw, find_preset
from larpanda.data.physics.transport import Truth, simulate
from larpanda.event import PDG, UNKNOWN, Event, EventKey, ParticleTruth

_SPECIES = {pdg: int(species) for species, pdg in PDG.items()}
MAX_DRAWS = 1000  # of one event, until it has `min_voxels`


def generate(
    n: int,
    seed: int = 0,
    preset: str | os.PathLike[str] | Preset = "pilarnet",
    start: int = 0,
    settings: Sequence[str] = (),
) -> "GeneratedEvents":
    """Simulate events of a preset.

    Args:
        n: how many.
        seed: of the whole sample. Event i depends on preset, seed and i only.
        preset: what is in an event: "pilarnet" (particle bombs like those of PILArNet-M), another name of
            `physics.presets.PRESETS`, a YAML file of your own, or a `Preset`; see docs/generate.md.
        start: number of the first event: ``generate(n, start=k)[i]`` is ``generate(k + n)[k + i]``.
        settings: changes to the preset, such as ``rain.particles=4,8``.

    Returns:
        A sequence of Event that makes event i when it is asked for, 16 ms each; nothing is kept.

    Raises:
        ValueError: an unknown preset or field, an impossible value, or a negative number. Making an event raises it
            too, if 1,000 draws in a row have fewer voxels than the preset's `min_voxels`.
        FileNotFoundError: there is no such YAML file.

    >>> events = generate(2, seed=3)
    >>> len(events), events[0].key.file
    (2, 'generate:pilarnet?seed=3')
    """
    for name, value in (("n", n), ("seed", seed), ("start", start)):
        if value < 0:
            raise ValueError(f"{name} = {value} of the generator is negative; expected 0 or more")
    name, found = find_preset(preset, settings)
    return GeneratedEvents(name, found, seed, range(start, start + n))


class GeneratedEvents(Sequence[Event]):
    """Events numbered by a range, made anew on every access: same number, same bytes. See `generate`."""

    __slots__ = ("_numbers", "_preset", "_seed", "preset_name")

    def __init__(self, preset_name: str, preset: Preset, seed: int, numbers: range) -> None:
        self.preset_name, self._preset, self._seed, self._numbers = preset_name, preset, seed, numbers

    def __repr__(self) -> str:
        return f"GeneratedEvents({self.preset_name!r}, seed={self._seed}, numbers={self._numbers})"

    @property
    def source(self) -> str:
        """What the keys of the events call their file."""
        return f"generate:{self.preset_name}?seed={self._seed}"

    def provenance(self) -> dict[str, Any]:
        """All that decides what the events are, as JSON values."""
        numbers = self._numbers
        return {
            "larpanda": __version__,
            "preset": self.preset_name,
            "settings": asdict(self._preset),
            "seed": self._seed,
            "event_numbers": {"start": numbers.start, "stop": numbers.stop, "step": numbers.step},
        }

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Event: ...

    @overload
    def __getitem__(self, index: slice) -> "GeneratedEvents": ...

    def __getitem__(self, index: "int | slice") -> "Event | GeneratedEvents":
        if isinstance(index, slice):
            return GeneratedEvents(self.preset_name, self._preset, self._seed, self._numbers[index])
        try:
            number = self._numbers[index]
        except IndexError:
            raise IndexError(f"event {index} of {len(self)} generated events") from None
        return _make(self._preset, self._seed, EventKey(self.source, number))


def _make(preset: Preset, seed: int, key: EventKey) -> Event:
    """Event `key.entry`. Events that are too small are drawn again, from the next generator of the same number."""
    largest = 0
    for attempt in range(MAX_DRAWS):
        rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, key.entry, attempt])))
        truth = simulate(draw(preset, rng), rng, preset.active_half_mm)
        image = place_image(truth, rng, preset.active_half_mm)
        labels = label(truth, image)
        if len(labels.key) >= preset.min_voxels:
            return apply_detector(_event(truth, image, labels, key), preset.detector, rng)
        largest = max(largest, len(labels.key))
    raise ValueError(
        f"{key}: the largest of {MAX_DRAWS} draws had {largest} voxels; expected {preset.min_voxels}, the preset's "
        "min_voxels: lower it, or start more"
    )


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
    interaction_of_voxel[known] = np.searchsorted(numbers, interaction)[particle[known]]
    species_of_voxel = np.full(len(particle), UNKNOWN)
    species_of_voxel[known] = species[particle[known]]
    return Event(
        position=torch.from_numpy(cell_of(labels.key).astype(np.float32)),
        energy=torch.from_numpy(labels.energy.astype(np.float32)),
        motif=torch.from_numpy(labels.motif[labels.cluster]),
        species=torch.from_numpy(species_of_voxel),
        particle=torch.from_numpy(particle),
        interaction=torch.from_numpy(interaction_of_voxel),
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
    mass = np.array([MASS_MEV.get(abs(int(pdg)), np.nan) for pdg in truth.pdg[tracks]])
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
