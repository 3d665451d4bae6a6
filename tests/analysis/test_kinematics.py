"""Measures of made-up particles whose numbers are known, and of generated ones against what the simulation knows."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest

import larpanda
from larpanda.analysis.kinematics import Detector, Group, angle_degrees, measure
from larpanda.analysis.ranges import energy_mev, momentum_mev, range_cm
from larpanda.event import VOXEL_CM, EnergyScale, Motif, Species

NO_SCALE = EnergyScale(1.0, 1.0, 1.0, 1.0, 1.0)
UNIT = np.array([0.6, 0.48, 0.64])


def track(species, kinetic, start, direction=UNIT, until_cm=None):
    """Voxels of a straight particle that loses what the tables say, to its stop or for so many cm."""
    whole = float(range_cm(kinetic, species))
    way = np.arange(0.005, whole if until_cm is None else until_cm, 0.01)
    loss = -np.diff(energy_mev(np.maximum(whole - np.append(way - 0.005, way[-1] + 0.005), 0.0), species))
    cell = np.floor((np.asarray(start) + way[:, None] * direction) / VOXEL_CM).astype(int)
    cells, row = np.unique(cell, axis=0, return_inverse=True)
    return Group(species, (cells + 0.5) * VOXEL_CM, np.bincount(row.ravel(), loss))


def shower(species, start, direction, n=400, seed=0):
    """Voxels along a cone that opens."""
    rng = np.random.default_rng(seed)
    along = rng.gamma(2.0, 8.0, n)
    across = rng.normal(0, 0.06, (n, 3)) * along[:, None]
    position = np.asarray(start) + along[:, None] * direction + across
    near = np.asarray(start) + np.linspace(0, 6, 20)[:, None] * direction
    cells = np.unique(np.floor(np.concatenate([near, position]) / VOXEL_CM).astype(int), axis=0)
    return Group(species, (cells + 0.5) * VOXEL_CM, np.full(len(cells), 0.8))


@pytest.mark.parametrize(
    ("species", "kinetic"),
    [(Species.MUON, 200.0), (Species.MUON, 60.0), (Species.PION, 120.0), (Species.PROTON, 150.0)],
)
def test_a_stopping_track(species, kinetic):
    group = track(species, kinetic, (100, 100, 100))
    interaction, (one,) = measure([group], Detector(), NO_SCALE)
    assert one.length_cm == pytest.approx(range_cm(kinetic, species), abs=0.4)
    assert one.range_energy_mev == one.energy_mev == pytest.approx(kinetic, rel=0.04)
    assert one.calo_energy_mev == pytest.approx(kinetic, rel=0.01)
    assert one.momentum_mev == pytest.approx(momentum_mev(one.energy_mev, species))
    assert np.linalg.norm(np.array(one.start_cm) - 100) < 0.5  # it knows by the Bragg peak where it stopped
    assert angle_degrees(np.array(one.direction), UNIT) < 2.0
    assert one.end_dedx > one.start_dedx
    assert one.contained
    assert one.primary
    assert np.linalg.norm(np.array(interaction.vertex_cm) - 100) < 0.5
    assert interaction.topology == {Species.MUON: "1mu", Species.PION: "1pi", Species.PROTON: "1p"}[species]


def test_a_muon_that_leaves_began_inside():
    group = track(Species.MUON, 800.0, (100, 100, 100), until_cm=200 / UNIT[2])
    inside = ((group.position > 0) & (group.position < 230.4)).all(1)
    group = Group(group.species, group.position[inside], group.energy[inside])
    interaction, (one,) = measure([group], Detector(), replace(NO_SCALE, muon=2.0))
    assert np.linalg.norm(np.array(one.start_cm) - 100) < 0.5
    assert not one.contained
    assert not interaction.contained
    assert math.isnan(one.range_energy_mev)
    assert one.energy_mev == one.calo_energy_mev == pytest.approx(2 * group.energy.sum())


def test_a_michel_electron_is_where_the_muon_stopped():
    muon = track(Species.MUON, 150.0, (100, 100, 100), until_cm=40.0)  # its last part is missing, so no Bragg peak
    end = 100 + 40 * UNIT
    near = np.array([[0.3, 0, 0], [0.6, 0.3, 0], [0.9, 0.3, 0.3]])
    michel = Group(Species.ELECTRON, end + near, np.ones(3), michel=True)
    for groups in ([muon, michel], [michel, muon]):
        interaction, measures = measure(groups, Detector(), NO_SCALE)
        assert np.linalg.norm(np.array(interaction.vertex_cm) - 100) < 0.5
        assert sorted(one.primary for one in measures) == [False, True]


def test_a_vertex_is_where_particles_meet_and_photons_point():
    vertex = np.array([80.0, 120.0, 90.0])
    left, right = np.array([-0.8, 0.6, 0.0]), np.array([0.0, -0.6, 0.8])
    photon = shower(Species.PHOTON, vertex + 15 * UNIT, UNIT)
    groups = [track(Species.MUON, 180.0, vertex, left), track(Species.PROTON, 120.0, vertex, right), photon]
    interaction, measures = measure(groups, Detector(), NO_SCALE)
    assert np.linalg.norm(np.array(interaction.vertex_cm) - vertex) < 0.5
    assert interaction.topology == "1g1mu1p"
    assert interaction.fiducial
    assert all(one.primary for one in measures)
    assert interaction.energy_mev == pytest.approx(sum(one.energy_mev for one in measures))
    assert measures[2].vertex_distance_cm == pytest.approx(15, abs=1)
    for one, direction in zip(measures, (left, right, UNIT), strict=True):
        assert angle_degrees(np.array(one.direction), direction) < 3.5
    assert math.isnan(measures[2].range_energy_mev)
    assert math.isnan(measures[2].end_dedx)


def test_two_photons_meet_where_their_axes_do():
    vertex = np.array([100.0, 100.0, 100.0])
    ways = (UNIT, np.array([-0.6, 0.48, 0.64]))
    groups = [shower(Species.PHOTON, vertex + 12 * way, way, seed=i) for i, way in enumerate(ways)]
    interaction, measures = measure(groups, Detector(), NO_SCALE)
    assert np.linalg.norm(np.array(interaction.vertex_cm) - vertex) < 3.0
    assert [one.primary for one in measures] == [True, True]
    assert interaction.topology == "2g"


def test_a_shower_that_fell_apart_begins_where_its_first_piece_does():
    place = np.array([100.0, 100.0, 100.0])
    aside = np.array([0.8, -0.36, -0.48]) * 4
    pieces = [shower(Species.PHOTON, place + at * UNIT + off, UNIT) for at, off in ((40, aside), (0, 0 * aside))]
    interaction, (behind, first) = measure(pieces, Detector(), NO_SCALE)
    assert np.linalg.norm(np.array(interaction.vertex_cm) - place) < 3.0
    assert first.vertex_distance_cm < 0.5
    assert first.primary
    assert behind.primary  # it points back there
    assert interaction.energy_mev == pytest.approx(first.energy_mev + behind.energy_mev)
    assert interaction.topology == "2g"


def test_no_interaction_is_without_a_primary_particle():
    """Photons in any place and direction, which need not meet."""
    rng = np.random.default_rng(3)
    for _ in range(40):
        ways = rng.normal(size=(int(rng.integers(1, 4)), 3))
        ways /= np.linalg.norm(ways, axis=1, keepdims=True)
        groups = [shower(Species.PHOTON, rng.uniform(50, 180, 3), way, n=60, seed=i) for i, way in enumerate(ways)]
        interaction, particles = measure(groups, Detector(), NO_SCALE)
        assert any(one.primary for one in particles)
        assert interaction.energy_mev > 0


@pytest.mark.parametrize("length", [3.3, 4.2, 4.8, 20.0])
def test_loss_at_either_end_is_that_of_three_centimetres(length):
    kinetic = float(energy_mev(np.array(length), Species.PROTON))
    _, (one,) = measure([track(Species.PROTON, kinetic, (100, 100, 100))], Detector(), NO_SCALE)
    to_go = energy_mev(np.array([length, max(length - 3, 0.0), min(3.0, length)]), Species.PROTON)
    assert one.start_dedx == pytest.approx((to_go[0] - to_go[1]) / 3, rel=0.12)  # a voxel of 0.3 cm more or less
    assert one.end_dedx == pytest.approx(to_go[2] / 3, rel=0.12)


def test_a_track_whose_ends_cannot_be_told_begins_where_it_loses_less():
    """A third of what a Bragg peak makes is too little to be sure, and more than nothing; whatever way it lies."""
    for way in (UNIT, -UNIT):
        whole = track(Species.MUON, 400.0, (120, 120, 120), way, until_cm=60)
        late = ((whole.position - 120) @ way) > 57
        first, last = whole.energy[((whole.position - 120) @ way) < 3].sum(), whole.energy[late].sum()
        wanted = first + 0.3 * 3.0 * 2.8  # MeV, where a stopping muon loses 2.8 MeV/cm more in its last 3 cm
        group = replace(whole, energy=np.where(late, whole.energy * wanted / last, whole.energy))
        _, (one,) = measure([group], Detector(), NO_SCALE)
        assert math.isnan(one.range_energy_mev) or one.contained
        assert np.linalg.norm(np.array(one.start_cm) - 120) < 1.0


def test_a_voxel_has_no_loss_and_no_direction():
    for species in Species:
        _, (one,) = measure([Group(species, np.full((1, 3), 100.0), np.ones(1))], Detector(), NO_SCALE)
        assert math.isnan(one.start_dedx)
        assert math.isnan(one.end_dedx)
        assert np.isnan(one.direction).all()


@pytest.mark.parametrize("species", list(Species))
def test_the_order_of_voxels_changes_no_digit(species):
    """Not even where several are equally far, and where a stub has no axis."""
    rng = np.random.default_rng(1)
    for size in ((2, 2, 1), (3, 3, 1), (4, 4, 4), (9, 2, 2)):
        cells = np.argwhere(np.ones(size)) * VOXEL_CM + 90.15
        energy = np.ones(len(cells))
        _, (expected,) = measure([Group(species, cells, energy)], Detector(), NO_SCALE)
        assert np.linalg.norm(expected.direction) == pytest.approx(1.0)
        for _ in range(5):
            order = rng.permutation(len(cells))
            _, (found,) = measure([Group(species, cells[order], energy[order])], Detector(), NO_SCALE)
            np.testing.assert_equal(asdict(found), asdict(expected))


def test_order_changes_nothing_and_shifts_shift():
    rng = np.random.default_rng(0)
    vertex = np.array([80.1, 120.0, 90.3])
    groups = [
        track(Species.MUON, 180.0, vertex, UNIT),
        track(Species.PION, 90.0, vertex, np.array([0.0, -0.6, 0.8])),
        shower(Species.ELECTRON, vertex, np.array([0.0, 1.0, 0.0])),
    ]
    expected, particles = measure(groups, Detector(), NO_SCALE)
    turned = [
        Group(group.species, group.position[order], group.energy[order])
        for group in groups[::-1]
        for order in [rng.permutation(len(group.energy))]
    ]
    found, others = measure(turned, Detector(), NO_SCALE)
    np.testing.assert_allclose(found.vertex_cm, expected.vertex_cm, rtol=1e-9)
    assert found.topology == expected.topology == "1e1mu1pi"
    for one, other in zip(particles, others[::-1], strict=True):
        for name in one.__dataclass_fields__:
            np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-9, atol=1e-9)
    moved = [Group(group.species, group.position + 30.0, group.energy) for group in groups]
    shifted, _ = measure(moved, Detector(), NO_SCALE)
    np.testing.assert_allclose(shifted.vertex_cm, np.array(expected.vertex_cm) + 30.0, rtol=1e-9)


@pytest.mark.parametrize("species", list(Species))
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_voxels(species, n):
    group = Group(species, np.array([[30.0, 30.0, 30.0 + 0.3 * i] for i in range(n)]), np.full(n, 0.5))
    interaction, (one,) = measure([group], Detector(), NO_SCALE)
    assert all(math.isfinite(value) for value in (*one.start_cm, *one.end_cm, *interaction.vertex_cm))
    assert one.energy_mev > 0
    assert interaction.topology == ""
    assert np.isfinite(one.direction).all() == (n > 1)
    assert np.isnan(one.direction).all() == (n == 1)


def test_walls():
    detector = Detector((0, 0, 0), (100, 100, 100), 5.0, 10.0)
    at = lambda x: Group(Species.PROTON, np.array([[50.0, 50.0, x]]), np.ones(1))  # noqa: E731
    for x, contained, fiducial in ((50, True, True), (93, True, False), (97, False, False), (5, True, False)):
        interaction, (one,) = measure([at(x)], detector, NO_SCALE)
        assert (one.contained, interaction.fiducial) == (contained, fiducial)
    with pytest.raises(ValueError, match="expected low below high"):
        Detector((0, 0, 5), (1, 1, 5))
    with pytest.raises(ValueError, match="must not be negative"):
        Detector(containment_cm=-1.0)


def test_generated_particles_by_their_true_voxels():
    """Muons that stopped, by their length; the directions of tracks."""
    ratios, angles = [], []
    for event in larpanda.generate(12, seed=104):
        visible = event.visible()[0]
        truth, position = visible.particles, (visible.position.double().numpy() + 0.5) * VOXEL_CM
        for p in range(len(truth)):
            rows = ((visible.particle == p) & (visible.motif == Motif.TRACK)).numpy()
            species = int(truth.species[p])
            if species not in (2, 3, 4) or rows.sum() < 35:
                continue
            group = Group(Species(species), position[rows], visible.energy.double().numpy()[rows])
            _, (one,) = measure([group], Detector(), NO_SCALE)
            angle = angle_degrees(np.array(one.direction), truth.momentum_vector[p].double().numpy())
            angles.append(min(angle, 180 - angle))
            if species == 2 and one.contained and truth.contained[p] == 1:
                ratios.append(one.range_energy_mev / float(truth.kinetic_energy[p]))
    assert len(angles) > 20
    assert np.median(angles) < 3.0
    assert np.median(ratios) == pytest.approx(1.0, abs=0.03)
