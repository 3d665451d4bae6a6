"""The lists of a page say what was measured and what is true, and only where a model looks for particles."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from larpanda.analysis.kinematics import Detector, measure_event
from larpanda.data.generate import generate
from larpanda.display.lists import Shown, found_list, true_list
from larpanda.event import UNKNOWN, VOXEL_CM, EnergyScale, Interaction, Motif, Particle, Species


@pytest.fixture(scope="module")
def event():
    """Several interactions with secondary particles."""
    return generate(4, seed=100)[3]


@pytest.fixture(scope="module")
def found(event, make_reconstruction):
    """The truth under other numbers, the last particle in no interaction."""
    one = make_reconstruction(event)
    owner = {100 - p: int(event.interaction[event.particle == p][0]) for p in range(len(event.particles))}
    species = {100 - p: Species(int(event.species[event.particle == p][0])) for p in range(len(event.particles))}
    particles = [
        Particle(p.id, species[p.id], 0.5, p.species_probability, owner[p.id], p.n_voxels, 1.0) for p in one.particles
    ]
    particles[-1] = replace(particles[-1], interaction=UNKNOWN)
    return replace(one, particles=tuple(particles))


@pytest.fixture(scope="module")
def measured(event, found):
    return measure_event(event, found, Detector(), EnergyScale())


@pytest.fixture(scope="module")
def shown(event, found, measured):
    interactions, particles = measured
    return Shown(
        event,
        found,
        tuple(particles[one.id] for one in found.particles),
        tuple(interactions.get(one.id) for one in found.interactions),
    )


def rows(groups):
    return {row["id"]: row for group in groups for row in group["particles"]}


def test_every_particle_found_is_listed_once_with_what_was_measured(shown, found, measured):
    groups = found_list(shown)
    interactions, particles = measured
    assert sum(len(group["particles"]) for group in groups) == len(found.particles) == len(rows(groups))
    for one in found.particles:
        row, measure = rows(groups)[one.id], particles[one.id]
        assert (row["species"], row["score"], row["n_voxels"]) == (one.species, one.score, one.n_voxels)
        assert (row["energy_mev"], row["length_cm"]) == (measure.energy_mev, measure.length_cm)
        assert (row["contained"], row["at_vertex"]) == (measure.contained, measure.primary)
        assert row["direction"] == (measure.direction if math.isfinite(measure.direction[0]) else None)
    for group in groups[:-1]:
        head, measure = group["interaction"], interactions[group["interaction"]["id"]]
        assert (head["topology"], head["vertex_cm"], head["energy_mev"]) == (
            measure.topology,
            measure.vertex_cm,
            measure.energy_mev,
        )
        assert {row["interaction"] for row in group["particles"]} == {head["id"]}
    assert groups[-1]["interaction"] is None
    assert [row["id"] for row in groups[-1]["particles"]] == [found.particles[-1].id]


def test_particles_at_the_vertex_come_first_then_by_energy(shown):
    order = [[(not p["at_vertex"], -p["energy_mev"]) for p in group["particles"]] for group in found_list(shown)]
    assert order == [sorted(group) for group in order]
    assert any(late for group in order for late, _ in group)


def test_the_truth_is_that_of_the_file(event):
    truth, groups = event.particles, true_list(event)
    assert sorted(rows(groups)) == list(range(len(truth)))
    for p, row in rows(groups).items():
        assert row["species"] == int(truth.species[p])
        assert row["energy_mev"] == pytest.approx(float(truth.kinetic_energy[p]))
        assert row["n_voxels"] == int((event.particle == p).sum())
        assert np.linalg.norm(row["direction"]) == pytest.approx(1.0)
        assert row["contained"] == bool(truth.contained[p])
        assert row["score"] is row["length_cm"] is None
    for group in groups:
        head = group["interaction"]
        np.testing.assert_allclose(head["vertex_cm"], event.vertex[head["id"]].numpy() * VOXEL_CM, rtol=1e-6)
        first = [p for p in group["particles"] if p["at_vertex"]]
        assert head["energy_mev"] == pytest.approx(sum(p["energy_mev"] for p in first))
    # a pion, a proton and a photon of the vertex itself, and the four photons of two neutral pions
    assert groups[0]["interaction"]["topology"] == "5g1pi1p"


def test_labels_alone_are_a_truth_too(make_event):
    event = make_event(400)  # particle p is of interaction p // 3 and of species p % 5
    groups = true_list(event)
    assert [[row["id"] // 3 for row in group["particles"]] for group in groups] == [[0] * 3, [1] * 3, [2] * 2]
    assert all(row["species"] == p % 5 and row["energy_mev"] is None for p, row in rows(groups).items())
    assert groups[0]["interaction"]["vertex_cm"] is groups[0]["interaction"]["energy_mev"] is None
    motifs = replace(event, particle=torch.full((400,), UNKNOWN), interaction=torch.full((400,), UNKNOWN))
    assert true_list(motifs) is None
    assert true_list(replace(event, motif=torch.full((400,), UNKNOWN))) is None


def test_a_model_with_one_of_the_heads_has_its_list(event, found, shown):
    no_interactions = replace(shown, reconstruction=replace(found, interactions=None), interactions=None)
    groups = found_list(no_interactions)
    assert len(groups) == 1
    assert groups[0]["interaction"] is None
    assert len(groups[0]["particles"]) == len(found.particles)
    no_particles = Shown(event, replace(found, particles=None))
    assert [group["particles"] for group in found_list(no_particles)] == [[]] * len(found.interactions)
    assert found_list(Shown(event, replace(found, particles=None, interactions=None))) is None
    assert found_list(Shown(event)) is None
    assert found_list(Shown(event, replace(found, particles=(), interactions=()))) == []


def test_what_is_no_number_is_none(shown, found):
    nothing = replace(
        shown.particles[0], energy_mev=math.nan, length_cm=math.nan, direction=(math.nan,) * 3, primary=False
    )
    row = rows(found_list(replace(shown, particles=(nothing, *shown.particles[1:]))))[found.particles[0].id]
    assert row["energy_mev"] is row["length_cm"] is row["direction"] is None


def test_an_interaction_without_particles_is_listed(event, found):
    lonely = Interaction(77, 0.3, 5, 2.5)
    groups = found_list(Shown(event, replace(found, interactions=(*found.interactions, lonely))))
    group = next(group for group in groups if group["interaction"] and group["interaction"]["id"] == 77)
    assert group["particles"] == []
    assert (group["interaction"]["deposited_mev"], group["interaction"]["energy_mev"]) == (2.5, None)


def test_measures_of_other_particles_are_refused(event, found, shown):
    with pytest.raises(ValueError, match=f"{len(found.particles) - 1} particles were measured and"):
        Shown(event, found, shown.particles[1:])
    with pytest.raises(ValueError, match="interactions were measured and 0 found"):
        Shown(event, None, interactions=shown.interactions)


def test_a_particle_is_of_the_interaction_of_most_of_its_voxels(make_event):
    event = make_event(400)
    mine = (event.particle == 0).nonzero()[:, 0]
    mixed = event.interaction.clone()
    mixed[mine[: len(mine) // 3]] = 2
    groups = true_list(replace(event, interaction=mixed, motif=torch.full((400,), int(Motif.TRACK))))
    assert {row["id"] for row in groups[0]["particles"]} == {0, 1, 2}
