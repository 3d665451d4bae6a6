"""Detector effects: closed forms, brute force with single electrons, and what must not change."""

import itertools
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from larpanda.data import open_events, write_events
from larpanda.data.physics.detector import (
    DEAD_WIRES,
    Detector,
    apply_detector,
    electrons,
    recombination_factor,
    shares,
)
from larpanda.event import UNKNOWN, Event, EventKey, Motif, ParticleTruth

GEANT4 = Path(__file__).parents[1] / "geant4_20_v3extra.h5"
COLUMNS = ("position", "energy", "motif", "species", "particle", "interaction")
EVERYTHING = Detector(
    recombination=True,
    longitudinal_cm2_s=5.0,
    transverse_cm2_s=11.0,
    dead_boxes=(((300, 0, 0), (320, 768, 768)),),
    dead_fraction=0.1,
    gain=1.1,
    noise_mev=0.02,
    noise_voxels=50.0,
    threshold_mev=0.05,
)


@pytest.fixture(scope="module")
def event():
    return open_events(GEANT4)[0]


def rng(seed=0):
    return np.random.default_rng(seed)


def one_voxel(x=400, y=400, z=400, energy=1.0):
    return Event.from_arrays([[x, y, z]], [energy])


def keys(event):
    return list(map(tuple, event.position.int().tolist()))


def energies(event):
    """{voxel: MeV}; fails if a voxel has two rows."""
    found = dict(zip(keys(event), event.energy.double().tolist(), strict=True))
    assert len(found) == len(event)
    return found


def assert_equal(a, b):
    """Every column and table, to the last bit; NaN is equal to NaN."""
    for name in (*COLUMNS, "vertex"):
        assert getattr(a, name).dtype == getattr(b, name).dtype
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for field in fields(ParticleTruth):
        np.testing.assert_array_equal(getattr(a.particles, field.name), getattr(b.particles, field.name))


# No effect


@pytest.mark.parametrize("detector", [Detector(), Detector(field_kv_cm=0.2, drift_cm_us=0.1, anode_x=-20.0)])
def test_by_default_nothing_happens(event, detector):
    generator = rng()
    assert apply_detector(event, detector, generator) is event
    assert generator.random() == rng().random()
    faulty = Event(*(torch.full((1, *c.shape[1:]), -1).to(c.dtype) for c in (getattr(event, n) for n in COLUMNS)))
    assert apply_detector(faulty, detector, rng()) is faulty


@pytest.mark.parametrize("weak", [{"threshold_mev": 1e-6}, {"dead_boxes": (((0, 0, 0), (1, 1, 1)),)}])
def test_an_effect_that_meets_nothing_leaves_every_byte(event, weak):
    after = apply_detector(event, Detector(**weak), rng())
    assert_equal(after, event)
    assert after.key == event.key


# Recombination


def test_recombination_is_the_modified_box():
    for dedx, field in ((2.105, 0.5), (5.0, 0.5), (20.0, 0.5), (10.0, 0.273)):
        xi = 0.212 * dedx / (1.396 * field)
        assert recombination_factor(dedx, field) == pytest.approx(math.log(0.93 + xi) / xi)
    assert recombination_factor(2.1, 0.5) == pytest.approx(0.70, abs=0.01)  # the number that everybody knows
    assert electrons(2.105, 2.105) == pytest.approx(6.3e4, rel=0.01)  # of a MIP, a cm


def test_denser_ionisation_recombines_more_and_a_stronger_field_less():
    dedx = np.geomspace(1e-3, 100, 2000)
    r = recombination_factor(dedx, 0.5)
    assert (np.diff(r) <= 0).all()
    assert ((r > 0) & (r < 1)).all()
    assert (np.diff(r[dedx > 1.54]) < 0).all()  # from the maximum of the formula on
    assert (np.abs(np.diff(r)) < 0.01).all()  # no step where the constant part begins
    assert (np.diff([recombination_factor(5.0, field) for field in (0.1, 0.3, 0.5, 1.0)]) > 0).all()


def straight_track(dedx, seed):
    """A line of 20 cm in a random direction from a random place, a point every 0.05 mm."""
    generator = rng(seed)
    direction = generator.normal(size=3)
    direction /= np.linalg.norm(direction)
    voxel = np.floor(384 + generator.random(3) + np.arange(-333, 333, 1 / 60)[:, None] * direction)
    voxel, count = np.unique(voxel, axis=0, return_counts=True)
    return Event.from_arrays(voxel, count * dedx * 0.3 / 60)


@pytest.mark.parametrize(("dedx", "tolerance"), [(2.105, 0.01), (5.0, 0.02), (10.0, 0.02), (20.0, 0.02)])
def test_a_track_loses_what_its_dedx_says(dedx, tolerance):
    tracks = [straight_track(dedx, seed) for seed in range(20)]
    after = [apply_detector(track, Detector(recombination=True), rng()) for track in tracks]
    found = sum(t.energy.sum().item() for t in after) / sum(t.energy.sum().item() for t in tracks)
    assert found == pytest.approx(recombination_factor(dedx, 0.5) / recombination_factor(2.105, 0.5), rel=tolerance)


def test_recombination_does_not_care_for_the_order_of_rows(event):
    order = torch.from_numpy(rng().permutation(len(event)))
    shuffled = replace(event, **{name: getattr(event, name)[order] for name in COLUMNS})
    a, b = (energies(apply_detector(e, Detector(recombination=True), rng())) for e in (event, shuffled))
    assert a == b


# Diffusion


def sigma_voxels(constant, x, anode_x=0.0):
    """By hand: drift of 1.6 mm/us."""
    drift_s = abs(x + 0.5 - anode_x) * 0.3 / 0.16e6
    return math.sqrt(2 * constant * drift_s) / 0.3


def test_one_voxel_spreads_like_a_million_electrons():
    detector = Detector(longitudinal_cm2_s=5.0, transverse_cm2_s=11.0)
    n = 1_000_000
    sigma = [sigma_voxels(constant, 700) for constant in (5.0, 11.0, 11.0)]
    generator = rng()
    place = generator.random((n, 3)) + generator.normal(size=(n, 3)) * sigma
    cells, counts = np.unique(np.floor(place).astype(int) + [700, 400, 400], axis=0, return_counts=True)
    counted = dict(zip(map(tuple, cells.tolist()), counts.tolist(), strict=True))
    found = energies(apply_detector(one_voxel(x=700), detector, rng()))
    for voxel in found.keys() | counted.keys():
        expected = found.get(voxel, 0.0) * n
        assert abs(counted.get(voxel, 0) - expected) < 5 * math.sqrt(expected) + 15, voxel


def variances(event):
    w, x = event.energy.double().numpy(), event.position.double().numpy()
    mean = w @ x / w.sum()
    return mean, w @ (x - mean) ** 2 / w.sum()


@pytest.mark.parametrize("x", [0, 100, 400, 767])
def test_the_variance_is_that_of_diffusion_and_pixels(x):
    mean, found = variances(apply_detector(one_voxel(x, 300, 300), Detector(transverse_cm2_s=13.0), rng()))
    # Uniform in a voxel + normal + binned: sigma^2 + 1/6, less what is known about the place within the voxel.
    n = np.arange(1, 5000)
    sigma2 = sigma_voxels(13.0, x) ** 2
    expected = sigma2 + 1 / 6 - (np.exp(-2 * (np.pi * n) ** 2 * sigma2) / n**2).sum() / np.pi**2
    np.testing.assert_allclose(mean, [x, 300, 300], atol=1e-6)
    np.testing.assert_allclose(found, [0, expected, expected], rtol=0.01)


def test_the_variance_grows_as_twice_the_constant_times_the_time():
    detector = Detector(longitudinal_cm2_s=20.0)  # for a sigma beyond half a voxel, where pixels add a constant
    (_, near), (_, far) = (variances(apply_detector(one_voxel(x), detector, rng())) for x in (300, 600))
    assert far[0] - near[0] == pytest.approx(2 * 20.0 * (300 * 0.3 / 0.16e6) / 0.3**2, rel=0.02)


def test_drift_is_counted_from_the_anode_on_either_side():
    detector = Detector(longitudinal_cm2_s=6.0, transverse_cm2_s=13.0, anode_x=400.5)
    near, left, right = (apply_detector(one_voxel(x), detector, rng()) for x in (400, 100, 700))
    assert len(near) == 1
    shifted = {(x + 600, y, z): energy for (x, y, z), energy in energies(left).items()}
    assert shifted == pytest.approx(energies(right))


@pytest.mark.parametrize("sigma", [0.0, 1e-12, 1e-3, 0.1, 0.5, 1.5])
def test_shares_are_symmetric_and_add_up(sigma):
    (row,) = shares(np.array([sigma]))
    assert row.sum() == pytest.approx(1, abs=1e-4)
    assert (row == row[::-1]).all()
    assert (row >= 0).all()


def test_energy_is_conserved_but_for_what_leaves_the_image(make_cloud):
    detector = Detector(longitudinal_cm2_s=5.0, transverse_cm2_s=11.0)
    cloud = make_cloud(300)
    after = apply_detector(cloud, detector, rng())
    assert after.energy.double().sum().item() == pytest.approx(cloud.energy.double().sum().item(), rel=1e-6)
    inside = apply_detector(one_voxel(), detector, rng())
    own_plane = inside.energy[inside.position[:, 1] == 400].sum().item()
    at_the_face = apply_detector(one_voxel(y=0), detector, rng())
    assert at_the_face.energy.sum().item() == pytest.approx((1 + own_plane) / 2, rel=1e-5)


def test_voxels_add_up_and_belong_to_what_gave_them_most(make_cloud):
    """Against one voxel at a time, with dictionaries."""
    detector = Detector(longitudinal_cm2_s=5.0, transverse_cm2_s=11.0)
    cloud = make_cloud(80, side=6)
    by_label = {}
    for row in range(len(cloud)):
        alone = Event(*(getattr(cloud, name)[row : row + 1] for name in COLUMNS))
        label = tuple(int(getattr(cloud, name)[row]) for name in COLUMNS[2:])
        for voxel, energy in energies(apply_detector(alone, detector, rng())).items():
            sums = by_label.setdefault(voxel, {})
            sums[label] = sums.get(label, 0.0) + energy
    after = apply_detector(cloud, detector, rng())
    assert energies(after) == pytest.approx({voxel: sum(s.values()) for voxel, s in by_label.items()}, rel=1e-5)
    labels = zip(*(getattr(after, name).tolist() for name in COLUMNS[2:]), strict=True)
    for voxel, label in zip(keys(after), labels, strict=True):
        assert by_label[voxel][label] >= max(by_label[voxel].values()) * (1 - 1e-6)


@pytest.mark.parametrize("motifs", [(Motif.SHOWER, Motif.TRACK), (Motif.TRACK, Motif.SHOWER)])
def test_of_equal_shares_the_priority_of_motifs_decides(motifs):
    pair = Event.from_arrays([[400, 399, 400], [400, 401, 400]], [1.0, 1.0], motifs, [1, 2], [0, 1], [0, 0])
    after = apply_detector(pair, Detector(transverse_cm2_s=11.0), rng())
    between = after.motif[keys(after).index((400, 400, 400))]
    assert between == Motif.TRACK


# Gain, noise, threshold


def test_gain_scales_every_energy(event):
    after = apply_detector(event, Detector(gain=1.25), rng())
    assert torch.equal(after.energy, event.energy * 1.25)
    assert_equal(replace(after, energy=event.energy), event)


def test_noise_has_the_moments_of_its_setting(make_cloud):
    cloud = make_cloud(20_000, side=40)
    cloud = replace(cloud, energy=torch.full((20_000,), 10.0))
    after = apply_detector(cloud, Detector(noise_mev=0.1, gain=2.0), rng())  # the gain does not act on the noise
    noise = after.energy.double() - 20
    assert len(after) == 20_000
    assert noise.mean().abs() < 5 * 0.1 / math.sqrt(20_000)
    assert noise.std().item() == pytest.approx(0.1, abs=5 * 0.1 / math.sqrt(40_000))
    assert (noise**3).mean().abs() < 5 * 0.1**3 * math.sqrt(15 / 20_000)


def test_what_noise_makes_negative_is_gone(make_cloud):
    cloud = make_cloud(20_000, side=40)
    after = apply_detector(replace(cloud, energy=torch.zeros(20_000)), Detector(noise_mev=0.1), rng())
    assert (after.energy >= 0).all()
    assert len(after) == pytest.approx(10_000, abs=5 * math.sqrt(5_000))


def test_noise_voxels_are_led_above_the_threshold_and_a_poisson_number(make_cloud):
    cloud = make_cloud(100)
    detector = Detector(noise_mev=0.02, noise_voxels=30.0, threshold_mev=0.1)
    numbers, excess = [], []
    for seed in range(300):
        after = apply_detector(cloud, detector, rng(seed))
        occupied = set(keys(cloud))
        noise = torch.tensor([voxel not in occupied for voxel in keys(after)])
        for name, label in zip(COLUMNS[2:], (Motif.LED, UNKNOWN, UNKNOWN, UNKNOWN), strict=True):
            assert (getattr(after, name)[noise] == label).all()
        numbers.append(int(noise.sum()))
        excess += (after.energy[noise].double() - 0.1).tolist()
    assert np.mean(numbers) == pytest.approx(30, abs=5 * math.sqrt(30 / 300))
    assert np.var(numbers) == pytest.approx(30, rel=5 * math.sqrt(2 / 300))
    assert np.mean(excess) == pytest.approx(0.02, rel=5 / math.sqrt(len(excess)))
    assert np.std(excess) == pytest.approx(0.02, rel=5 * math.sqrt(2 / len(excess)))
    assert min(excess) >= -1e-8


def test_the_threshold_keeps_what_is_on_it():
    line = Event.from_arrays([[1, 1, z] for z in range(4)], [0.12, 0.13, 0.14, 0.0])
    assert keys(apply_detector(line, Detector(threshold_mev=0.13), rng())) == [(1, 1, 1), (1, 1, 2)]
    assert keys(apply_detector(line, Detector(threshold_mev=0.13, gain=0.95), rng())) == [(1, 1, 2)]


# Dead regions


def test_a_dead_box_takes_exactly_its_voxels(event):
    low, high = torch.tensor([0, 200, 0]), torch.tensor([400, 500, 700])
    inside = ((event.position >= low) & (event.position < high)).all(1)
    assert 0 < inside.sum() < len(event)
    boxes = (((0, 200, 0), (300, 500, 700)), ((250, 200, 0), (400, 500, 700)))  # overlapping, together the same
    after = apply_detector(event, Detector(dead_boxes=boxes), rng())
    assert_equal(after, replace(event, **{name: getattr(event, name)[~inside] for name in COLUMNS}))
    assert len(after.particles) == len(event.particles)


def test_a_box_ends_before_its_high_corner():
    cube = np.array(list(itertools.product(range(4), repeat=3)))
    boxes = (((1, 1, 1), (2, 3, 4)),)
    after = apply_detector(Event.from_arrays(cube, np.ones(64)), Detector(dead_boxes=boxes), rng())
    gone = {(1, y, z) for y in (1, 2) for z in (1, 2, 3)}
    assert set(keys(after)) == set(map(tuple, cube.tolist())) - gone


def test_dead_wires_are_slabs_in_z():
    z = np.arange(768)
    wall = Event.from_arrays(np.stack([z * 0 + 5, z * 0 + 7, z], 1), np.ones(768))
    dead = []
    for seed in range(200):
        alive = np.isin(z, apply_detector(wall, Detector(dead_fraction=0.2), rng(seed)).position[:, 2].numpy())
        slabs = alive.reshape(-1, DEAD_WIRES)
        assert (slabs.all(1) | ~slabs.any(1)).all()
        dead.append(1 - alive.mean())
        less = apply_detector(wall, Detector(dead_fraction=0.1), rng(seed)).position[:, 2].numpy()
        assert alive[~np.isin(z, less)].sum() == 0  # what is dead at 10 % is dead at 20 % too
    assert np.mean(dead) == pytest.approx(0.2, abs=5 * math.sqrt(0.2 * 0.8 / (200 * 96)))
    assert len(apply_detector(wall, Detector(dead_fraction=1.0), rng())) == 0


def test_nothing_is_seen_in_a_dead_region():
    """Neither charge that diffuses into it, nor noise."""
    detector = replace(EVERYTHING, dead_boxes=(((399, 0, 0), (768, 768, 768)),), noise_voxels=2000.0)
    after = apply_detector(one_voxel(x=398), detector, rng())
    assert len(after) > 500
    assert (after.position[:, 0] < 399).all()


# Events


def test_same_seed_same_bytes_other_seed_other_noise(event):
    first, again, other = (apply_detector(event, EVERYTHING, rng(seed)) for seed in (1, 1, 2))
    assert_equal(first, again)
    assert keys(first) != keys(other)


@pytest.mark.parametrize("shuffled", [False, True])
def test_all_effects_together_give_an_event_that_can_be(event, shuffled):
    if shuffled:  # LED points anywhere
        order = torch.from_numpy(rng().permutation(len(event)))
        event = replace(event, **{name: getattr(event, name)[order] for name in COLUMNS})
    after = apply_detector(event, EVERYTHING, rng())
    assert after.problem() is None
    assert len(energies(after)) == len(after)
    led = after.motif == Motif.LED
    assert led[: int(led.sum())].all()
    labels = {tuple(row) for row in torch.stack([getattr(event, name) for name in COLUMNS[2:]], 1).tolist()}
    assert {tuple(row) for row in torch.stack([getattr(after, name) for name in COLUMNS[2:]], 1).tolist()} <= labels
    assert after.key == event.key
    assert after.particles is event.particles
    assert after.vertex is event.vertex


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_written_and_read_back_row_by_row(tmp_path, suffix):
    after = [apply_detector(event, EVERYTHING, rng(entry)) for entry, event in enumerate(open_events(GEANT4)[:5])]
    everywhere = Detector(dead_boxes=(((0, 0, 0), (768, 768, 768)),))
    after.append(apply_detector(after[0], everywhere, rng()))  # truth without a voxel
    write_events(tmp_path / f"a{suffix}", after)
    for a, b in zip(after, open_events(tmp_path / f"a{suffix}"), strict=True):
        assert_equal(a, b)


def test_without_a_table_ids_stay_without_gaps(make_cloud):
    ids = torch.arange(200)
    cloud = replace(make_cloud(200), motif=torch.full((200,), int(Motif.TRACK)), particle=ids, interaction=ids)
    left = apply_detector(cloud, Detector(dead_boxes=(((0, 0, 0), (312, 768, 768)),)), rng())
    assert 0 < len(left) < 200
    assert left.particle.tolist() == left.interaction.tolist() == list(range(len(left)))


@pytest.mark.parametrize("detector", [EVERYTHING, replace(EVERYTHING, noise_voxels=0.0)])
def test_an_event_without_truth_stays_without(event, detector):
    unlabelled = Event.from_arrays(event.position, event.energy)
    after = apply_detector(unlabelled, detector, rng())
    assert not after.has_truth
    assert energies(after) == energies(apply_detector(event, detector, rng()))
    assert after.particles is None


@pytest.mark.parametrize("noise_voxels", [0.0, 50.0])
def test_an_empty_event_may_be_noisy(noise_voxels):
    empty = Event.from_arrays(np.empty((0, 3)), [])
    after = apply_detector(empty, replace(EVERYTHING, noise_voxels=noise_voxels), rng())
    assert after.problem() is None
    assert (len(after) > 0) == (noise_voxels > 0)
    assert [getattr(after, name).dtype for name in COLUMNS] == [getattr(empty, name).dtype for name in COLUMNS]


def test_rows_of_one_voxel_become_one():
    twice = Event.from_arrays([[5, 5, 5], [5, 5, 5]], [0.5, 0.25], [Motif.SHOWER, Motif.TRACK], [0, 2], [0, 1], [0, 0])
    after = apply_detector(twice, Detector(gain=2.0), rng())
    assert after.energy.tolist() == [1.5]
    assert after.motif.tolist() == [Motif.TRACK]


def test_a_faulty_event_is_refused_by_name(event):
    energy = event.energy.clone()
    energy[3] = math.nan
    faulty = replace(event, energy=energy, key=EventKey("a.h5", 7))
    with pytest.raises(ValueError, match=r"a\.h5: event 7: 1 of \d+ energies are NaN"):
        apply_detector(faulty, Detector(gain=2.0), rng())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"field_kv_cm": 0.0}, "field_kv_cm is 0; expected a field above 0"),
        ({"longitudinal_cm2_s": -1.0}, "longitudinal_cm2_s is -1; expected 0 or more"),
        ({"transverse_cm2_s": math.nan}, "transverse_cm2_s is nan; expected 0 or more"),
        ({"transverse_cm2_s": 1e5}, "transverse_cm2_s is 100000, which spreads"),
        ({"transverse_cm2_s": 11.0, "drift_cm_us": 1e-4}, "transverse_cm2_s is 11, which spreads"),
        ({"drift_cm_us": 0.0}, "drift_cm_us is 0; expected a speed"),
        ({"anode_x": math.inf}, "anode_x is inf; expected a finite place"),
        ({"dead_fraction": 1.5}, "dead_fraction is 1.5; expected a fraction"),
        ({"dead_fraction": -0.1}, "dead_fraction is -0.1; expected a fraction"),
        ({"gain": 0.0}, "gain is 0; expected a factor above 0"),
        ({"gain": math.inf}, "gain is inf; expected a factor"),
        ({"noise_mev": -0.1}, "noise_mev is -0.1; expected 0 or more"),
        ({"noise_voxels": -1.0}, "noise_voxels is -1; expected a mean"),
        ({"noise_voxels": 5.0}, "noise_mev is 0 and noise_voxels 5; expected the scale"),
        ({"threshold_mev": math.nan}, "threshold_mev is nan; expected 0 or more"),
        ({"dead_boxes": ((0, 0, 0), (8, 8, 8))}, r"dead_boxes has \(0, 0, 0\); expected \(\(x0"),
        ({"dead_boxes": (((0, 0, 0), (8, 8)),)}, "dead_boxes has .*; expected"),
        ({"dead_boxes": (((0, 0, 8), (8, 8, 8)),)}, "dead_boxes has .* each number of the second above"),
        ({"dead_boxes": (((0, 0, 0), (8, 8, math.nan)),)}, "dead_boxes has .*; expected"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"^detector: {message}") as error:
        Detector(**settings)
    assert "\n" not in str(error.value)


def test_the_neighbourhood_does_not_wrap_at_the_faces():
    """Voxels at opposite faces are far apart: each alone keeps the energy it has alone."""
    corners = list(itertools.product((0, 767), repeat=3))
    together = apply_detector(Event.from_arrays(corners, np.full(8, 3.0)), Detector(recombination=True), rng())
    alone = apply_detector(one_voxel(energy=3.0), Detector(recombination=True), rng())
    assert together.energy.tolist() == alone.energy.tolist() * 8
