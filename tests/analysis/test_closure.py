"""Measured against true particles: what a perfect reconstruction gives, what does not match, and the numbers."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from perfect import perfect

import larpanda
from larpanda.analysis.closure import (
    COMPARISONS,
    CONVENTIONS,
    Spread,
    closures,
    closures_as_json,
    compare,
    comparison_table,
    fit_scale,
    pi0_masses,
    vertex_misses,
)
from larpanda.analysis.kinematics import Detector, measure_event
from larpanda.event import PDG, EnergyScale, Reconstruction, Species

DETECTOR, SCALE = Detector(), EnergyScale()


@pytest.fixture(scope="module")
def events():
    return [*larpanda.generate(6, seed=120)]


def compared(event, found):
    measured = measure_event(event, found, DETECTOR, SCALE) if found is not None else None
    return compare(event, found, measured, 0.13, DETECTOR, SCALE)


def test_a_perfect_reconstruction_is_measured_as_the_truth_is(events):
    particles, vertices = [], []
    for event in events:
        some, others = compared(event, perfect(event))
        particles += some
        vertices += others
    assert len(particles) > 30
    assert len(vertices) > 6
    for one in particles:
        assert one.iou > 0.99
        assert one.found_species == one.species
        assert one.found.contained == one.on_truth.contained
        # the reconstruction also has particles of fewer than 5 voxels, which may turn a vertex and what begins there
        assert one.found.calo_energy_mev == pytest.approx(one.on_truth.calo_energy_mev, rel=1e-5)
    for one in particles:
        assert one.found.length_cm == pytest.approx(one.on_truth.length_cm, rel=0.2) or one.n_voxels < 60
    same = [np.allclose(one.found.start_cm, one.on_truth.start_cm) for one in particles]
    assert np.mean(same) > 0.85
    assert len(vertex_misses(vertices, False)) == len(vertex_misses(vertices, True))
    rows = zip(closures(particles, True), closures(particles, False), strict=True)
    for on_truth, found in rows:
        assert on_truth.energy.n == found.energy.n
        assert on_truth.calo.middle == pytest.approx(found.calo.middle, rel=1e-5, nan_ok=True)


def test_what_shares_too_little_does_not_match(events):
    event = events[0]
    found = perfect(event)
    sizes = torch.bincount(found.particle[found.particle >= 0])
    largest = int(sizes.argmax())
    rows = (found.particle == largest).nonzero()[:, 0]
    cut = found.particle.clone()
    cut[rows[: int(len(rows) * 0.6)]] = -1
    (one,) = (c for c in compared(event, replace_particle(found, cut))[0] if c.particle == largest)
    assert 0.35 < one.iou < 0.45
    assert one.found is one.found_species is None
    assert one.on_truth.calo_energy_mev > 0
    none = compared(event, None)[0]
    assert all(c.found is None and c.iou == 0.0 for c in none)
    assert [c.particle for c in none] == [c.particle for c in compared(event, found)[0]]


def replace_particle(found, particle):
    values = {name: getattr(found, name) for name in found.__slots__}
    return Reconstruction(**{**values, "particle": particle})


def test_only_particles_of_five_voxels_with_truth_are_compared(events):
    event = events[0]
    seen = event.visible(0.13)[0]
    count = np.bincount(seen.particle[seen.particle >= 0].numpy(), minlength=len(seen.particles))
    inside = np.zeros(len(count), bool)
    inside[np.unique(seen.particle[(seen.particle >= 0) & (seen.interaction >= 0)].numpy())] = True
    expected = [i for i in range(len(count)) if count[i] >= 5 and seen.particles.species[i] >= 0 and inside[i]]
    assert sorted(one.particle for one in compared(event, None)[0]) == expected
    bare = larpanda.Event.from_arrays(event.position.long().numpy(), event.energy.numpy())
    assert compared(bare, None) == ([], [])


def test_what_the_truth_does_not_say_is_null(events):
    truth = events[1].particles
    nothing = torch.full_like(truth.contained, -1)
    silent = replace(events[1], particles=replace(truth, contained=nothing, primary=nothing))
    rows = comparison_table([(0, one) for one in compared(silent, perfect(silent))[0]]).to_pylist()
    assert {(row["contained"], row["primary"]) for row in rows} == {(None, None)}
    said = comparison_table([(0, one) for one in compared(events[1], perfect(events[1]))[0]]).to_pylist()
    assert {row["primary"] for row in said} <= {True, False}


def test_a_particle_without_energy_is_in_no_ratio(events):
    truth = events[1].particles
    still = replace(truth, momentum_vector=truth.momentum_vector * 0, momentum=truth.momentum * 0)
    particles, _ = compared(replace(events[1], particles=still), perfect(events[1]))
    assert len(particles) > 3
    assert all(row.energy.n == row.calo.n == 0 for row in closures(particles, True))


def test_spreads_are_quantiles_and_say_when_there_are_too_few():
    values = np.random.default_rng(0).normal(1.0, 0.1, 1000).tolist()
    one = Spread.of([*values, math.nan])
    assert (one.n, one.middle) == (1000, np.median(values))
    assert one.half_width == pytest.approx(0.1, rel=0.1)  # of a normal distribution it is its deviation
    assert Spread.within(values).middle == np.quantile(values, 0.68)
    few = Spread.of(values[:4])
    assert few.n == 4
    assert math.isnan(few.middle)


def test_the_scale_makes_the_median_one(events):
    ones = EnergyScale(1.0, 1.0, 1.0, 1.0, 1.0)
    raw = [p for event in events for p in compare(event, None, None, 0.13, DETECTOR, ones)[0]]
    scale = fit_scale(raw)
    again = [p for event in events for p in compare(event, None, None, 0.13, DETECTOR, scale)[0]]
    for row in closures(again, True):
        if row.species in (Species.PHOTON, Species.ELECTRON) and row.calo.n >= 5:
            assert row.calo.middle == pytest.approx(1.0, abs=0.02)


def test_the_table_has_a_row_for_each_with_both_ways(events):
    event = events[1]
    particles, _ = compared(event, perfect(event))
    lonely = replace(particles[0], found=None, found_species=None, iou=0.2)
    table = comparison_table([(4, lonely), *((5, one) for one in particles[1:])])
    assert table.schema == COMPARISONS
    rows = table.to_pylist()
    assert [row["entry"] for row in rows] == [4] + [5] * (len(particles) - 1)
    assert rows[0]["reco_pdg"] is rows[0]["reco_energy_mev"] is rows[0]["reco_start_x"] is None
    for row, one in zip(rows, particles, strict=True):
        assert row["pdg"] == PDG[one.species]
        assert row["reco_on_truth_energy_mev"] == one.on_truth.energy_mev
        assert (row["reco_on_truth_range_energy_mev"] is None) == math.isnan(one.on_truth.range_energy_mev)
    assert rows[1]["reco_length"] == pytest.approx(particles[1].found.length_cm, rel=1e-6)


def test_numbers_for_programs_have_null_for_too_few(events):
    particles, _ = compared(events[0], None)
    numbers = closures_as_json(closures(particles, True))
    assert set(numbers) == {species.name.lower() for species in Species}
    assert numbers["pion"]["energy"]["n"] < 5 or numbers["pion"]["energy"]["middle"] > 0
    for species in numbers.values():
        parts = species["energy_by_kinetic"]
        assert sum(part["n"] for part in parts) == species["energy"]["n"]
        assert [part["high_mev"] for part in parts[:-1]] == [part["low_mev"] for part in parts[1:]]
        assert parts[-1]["high_mev"] is None
    assert numbers["electron"]["flipped"] == {"n": 0, "middle": None, "half_width": None}
    assert closures_as_json(closures(particles, False))["muon"]["energy"] == {
        "n": 0,
        "middle": None,
        "half_width": None,
    }


def test_the_conventions_are_those_of_the_page():
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text().partition("## Kinematics")[2]
    assert dict(re.findall(r"^\| `(\w+)` \| (.*?) \|$", page, re.M)) == CONVENTIONS


def test_photons_of_a_pion_have_its_mass():
    events = larpanda.generate(40, seed=7, preset="single:pi0")
    particles = [p for event in events for p in compared(event, None)[0]]
    masses = pi0_masses(particles, True)
    assert len(masses) >= 5
    assert np.median(masses) == pytest.approx(135, rel=0.25)
    silent = [replace(one, contained=None) for one in particles]  # a truth that does not say what is contained
    assert set(masses) <= set(pi0_masses(silent, True))
    for told, untold in zip(closures(particles, True), closures(silent, True), strict=True):
        assert told.energy.n <= untold.energy.n


def test_truth_without_ends_says_nothing_of_flips(events):
    particles = [one for event in events for one in compared(event, None)[0]]
    known = [replace(one, end_cm=one.end_cm * math.nan) for one in particles]
    for with_ends, without in zip(closures(particles, True), closures(known, True), strict=True):
        assert without.flipped.n == without.end_cm.n == without.length.n == 0
        assert without.energy == with_ends.energy
