"""Control samples: what physicists look at first, since nature tells how it must be. They need no truth.

Michel electrons end at 53 MeV, muons that go through lose 2 MeV/cm, stopping muons and protons lose energy as their
residual range says, and two photons of a neutral pion have its mass.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from larpanda.analysis.kinematics import (
    Detector,
    Group,
    InteractionMeasure,
    Numbers,
    ParticleMeasure,
    angle_degrees,
    core,
)
from larpanda.analysis.trajectory import loss_profile, trajectory
from larpanda.event import VOXEL_CM, Event, Motif, Particle, Reconstruction, Species

THROUGH_CM = 30.0  # a muon that goes through is at least so long
AT_WALL_CM = 5.0  # and both its ends are so near to a wall
STOPPING = {Species.MUON: 30.0, Species.PROTON: 15.0}  # cm of residual range that are looked at
STEP_CM = 1.0
MICHEL_CM = 2.0  # from the end of a muon that stopped to its Michel electron
PHOTON_MEV = 25.0  # of each of two photons


@dataclass(frozen=True, slots=True)
class ControlSamples:
    """What was found of them in some events."""

    michel_mev: list[float] = field(default_factory=list)  # energies of Michel electrons
    through_dedx: list[float] = field(default_factory=list)  # MeV/cm, mean over each muon that goes through
    residual_cm: Mapping[Species, list[float]] = field(default_factory=lambda: {one: [] for one in STOPPING})
    dedx: Mapping[Species, list[float]] = field(default_factory=lambda: {one: [] for one in STOPPING})  # MeV/cm there
    pi0_mass_mev: list[float] = field(default_factory=list)

    def add(self, other: "ControlSamples") -> None:
        """Those of other events."""
        self.michel_mev.extend(other.michel_mev)
        self.through_dedx.extend(other.through_dedx)
        self.pi0_mass_mev.extend(other.pi0_mass_mev)
        for species in STOPPING:
            self.residual_cm[species].extend(other.residual_cm[species])
            self.dedx[species].extend(other.dedx[species])


def control_samples(
    event: Event,
    found: Reconstruction,
    measured: tuple[Mapping[int, InteractionMeasure], Mapping[int, ParticleMeasure]],
    detector: Detector,
) -> ControlSamples:
    """The control samples of one event, of what was found in it.

    Args:
        event: that was reconstructed.
        found: in it.
        measured: of that (``kinematics.measure_event``).
        detector: where its walls are.
    """
    samples = ControlSamples()
    position = (event.position.double().cpu().numpy() + 0.5) * VOXEL_CM
    energy, motif, owner = event.energy.double().cpu().numpy(), found.motif.cpu().numpy(), found.particle.cpu().numpy()
    michels = position[motif == Motif.MICHEL]

    def line(one: Particle) -> Group:
        """The voxels that a track's length and ends are of."""
        rows = owner == one.id
        return core(Group(one.species, position[rows], energy[rows]))

    for one in found.particles or ():
        rows, mine = owner == one.id, measured[1][one.id]
        if one.species is Species.ELECTRON and (motif[rows] == Motif.MICHEL).mean() > 0.5 and mine.contained:
            samples.michel_mev.append(mine.energy_mev)
        elif one.species is Species.MUON and _goes_through(mine, detector):
            samples.through_dedx.append(float(line(one).energy.sum()) / mine.length_cm)
        elif one.species in STOPPING and mine.contained and _stopped(one, mine, michels):
            to_go, loss = _near_the_end(line(one), np.array(mine.end_cm), STOPPING[one.species])
            samples.residual_cm[one.species].extend(to_go)
            samples.dedx[one.species].extend(loss)
    samples.pi0_mass_mev.extend(_pi0_masses(found.particles or (), measured[1]))
    return samples


def _goes_through(one: ParticleMeasure, detector: Detector) -> bool:
    ends = (np.array([one.start_cm]), np.array([one.end_cm]))
    return one.length_cm >= THROUGH_CM and not any(detector.contains(end, AT_WALL_CM) for end in ends)


def _stopped(one: Particle, mine: ParticleMeasure, michels: Numbers) -> bool:
    """A muon with a Michel electron at its end: it may leave the argon within the image. A proton by its Bragg peak."""
    if one.species is not Species.MUON:
        return not math.isnan(mine.range_energy_mev)
    return len(michels) > 0 and bool(np.linalg.norm(michels - mine.end_cm, axis=1).min() <= MICHEL_CM)


def _near_the_end(group: Group, end: Numbers, most_cm: float) -> tuple[list[float], list[float]]:
    """Residual range (cm) and energy loss (MeV/cm) of the last steps of a track, but for the very last."""
    track = trajectory(group.position)
    first, last = np.linalg.norm(group.position[track.ends] - end, axis=1)
    if first > last:
        track = track.reversed()
    to_go, loss = loss_profile(track.along, group.energy, track.length, STEP_CM)
    chosen = (to_go < min(most_cm, track.length - STEP_CM)) & (to_go > STEP_CM)
    return to_go[chosen].tolist(), loss[chosen].tolist()


def _pi0_masses(particles: Sequence[Particle], measured: Mapping[int, ParticleMeasure]) -> list[float]:
    """Of each interaction with exactly two primary photons of 25 MeV or more, both contained."""
    by_interaction: dict[int, list[ParticleMeasure]] = {}
    for one in particles:
        mine = measured[one.id]
        if one.species is Species.PHOTON and one.interaction >= 0 and mine.primary and mine.energy_mev >= PHOTON_MEV:
            by_interaction.setdefault(one.interaction, []).append(mine)
    masses = []
    for pair in by_interaction.values():
        if len(pair) == 2 and all(one.contained for one in pair):
            angle = math.radians(angle_degrees(*(np.array(one.direction) for one in pair)))
            masses.append(math.sqrt(max(2 * pair[0].energy_mev * pair[1].energy_mev * (1 - math.cos(angle)), 0.0)))
    return masses


def samples_as_json(samples: ControlSamples) -> dict[str, object]:
    """Numbers of four digits."""
    stopping = {
        one.name.lower(): {"residual_cm": _rounded(samples.residual_cm[one]), "dedx": _rounded(samples.dedx[one])}
        for one in STOPPING
    }
    lists = {name: _rounded(getattr(samples, name)) for name in ("michel_mev", "through_dedx", "pi0_mass_mev")}
    return {**lists, "stopping": stopping}


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
