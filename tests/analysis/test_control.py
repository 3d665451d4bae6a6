"""Control samples of a perfect reconstruction are what nature says."""

import json

import numpy as np
import pytest
import torch
from perfect import perfect

import larpanda
from larpanda.analysis.control import ControlSamples, control_samples, samples_as_json
from larpanda.analysis.kinematics import Detector, measure_event
from larpanda.analysis.ranges import loss_mev_per_cm
from larpanda.display.control import control_svg
from larpanda.event import EnergyScale, Particle, Reconstruction, Species, Status


@pytest.fixture(scope="module")
def samples():
    total = ControlSamples()
    for event in larpanda.generate(80, seed=125):
        found = perfect(event)
        total.add(control_samples(event, found, measure_event(event, found, Detector(), EnergyScale()), Detector()))
    return total


def test_michel_electrons_end_where_they_must(samples):
    assert len(samples.michel_mev) >= 5
    assert np.median(samples.michel_mev) == pytest.approx(35, abs=12)
    assert np.mean(np.array(samples.michel_mev) < 60) > 0.9


def test_muons_that_go_through_lose_what_least_ionising_particles_lose(samples):
    assert len(samples.through_dedx) >= 20
    assert np.median(samples.through_dedx) == pytest.approx(2.2, abs=0.25)


def test_what_lies_far_from_a_track_is_not_in_its_loss():
    x = np.arange(768)
    line = np.stack([x, np.full(768, 300), np.full(768, 300)], 1)
    stray = np.argwhere(np.ones((4, 4, 4))) + [300, 400, 300]
    losses = []
    for voxel in (line, np.concatenate([line, stray])):
        event = larpanda.Event.from_arrays(voxel, np.full(len(voxel), 0.6))
        owner, none = torch.zeros(len(voxel), dtype=torch.long), torch.zeros(len(voxel), dtype=torch.bool)
        one = Particle(0, Species.MUON, 1.0, (0.2,) * 5, -1, len(voxel), 0.6 * len(voxel))
        shares = torch.full((len(voxel), 5), torch.nan)
        found = Reconstruction(Status.OK, "", none, owner + 1, shares, owner, owner - 1, (one,), (), 0)
        measured = measure_event(event, found, Detector(), EnergyScale())
        losses.append(control_samples(event, found, measured, Detector()).through_dedx)
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx([2.0], rel=0.01)


@pytest.mark.parametrize("species", [Species.MUON, Species.PROTON])
def test_stopping_particles_lose_energy_as_their_range_says(samples, species):
    to_go, loss = np.array(samples.residual_cm[species]), np.array(samples.dedx[species])
    assert len(to_go) > 40
    near, far = to_go < 4, to_go > 6
    for chosen in (near, far):
        expected = loss_mev_per_cm(to_go[chosen], species)
        assert np.median(loss[chosen] / expected) == pytest.approx(1.0, abs=0.12)
    assert np.median(loss[near]) > 1.3 * np.median(loss[far])


def test_the_figure_has_every_sample_and_is_the_same_each_time(samples):
    kept = json.loads(json.dumps(samples_as_json(samples)))
    svg = control_svg(kept)
    assert svg == control_svg(kept)
    for text in (f"({len(samples.michel_mev)})", f"({len(samples.through_dedx)})", "residual range in cm"):
        assert text in svg
    assert "<svg" in control_svg(samples_as_json(ControlSamples()))
