"""Electrons and photons against closed forms, conservation laws and Geant4."""

import numpy as np
import pytest

from larpanda.data.physics import radiation, showers
from larpanda.data.physics.cells import key_of
from larpanda.data.physics.kernel import ANNIHILATION, COMPTON, CONVERSION
from larpanda.data.physics.material import ELECTRON_MASS, X0_MM
from larpanda.data.physics.presets import Primary
from larpanda.data.physics.scattering import scatter
from larpanda.data.physics.transport import simulate

EVERYWHERE = (10_000.0, 10_000.0, 10_000.0)


def follow(pdg, energy, seed):
    primary = Primary(0, pdg, float(energy), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    return simulate((primary,), np.random.default_rng([pdg + 1000, int(energy), seed]), EVERYWHERE)


def voxels(truth):
    """The energies of the 3 mm voxels of an event, those of 0.01 MeV and more."""
    cell = np.floor(truth.place / 3).astype(int)
    _, inverse = np.unique(key_of(cell + 4000), return_inverse=True)
    energy = np.bincount(inverse, truth.deposit)
    return energy[energy >= 0.01]


@pytest.mark.parametrize(("pdg", "energy"), [(11, 1), (11, 200), (22, 5), (22, 300)])
def test_all_energy_is_deposited(pdg, energy):
    for seed in range(5):
        assert follow(pdg, energy, seed).deposit.sum() == pytest.approx(energy, rel=1e-3)


def test_a_positron_leaves_its_rest_energy_and_the_electrons_too():
    for seed in range(5):
        truth = follow(-11, 30, seed)
        assert truth.deposit.sum() == pytest.approx(30 + 2 * ELECTRON_MASS, rel=1e-3)
        assert ((truth.process == ANNIHILATION) & (truth.parent == 1)).sum() == 2


@pytest.mark.parametrize(
    ("pdg", "energy", "events", "raw", "above"),  # Geant4, steps and production cut of 0.7 mm
    [(11, 10, 120, 25.6, 18.2), (11, 50, 60, 130.3, 90.6), (11, 200, 25, 523.6, 353.8), (22, 100, 40, 267.6, 177.8)],
)
def test_showers_are_as_large_as_those_of_geant4(pdg, energy, events, raw, above):
    found = [voxels(follow(pdg, energy, seed)) for seed in range(events)]
    assert np.mean([len(v) for v in found]) == pytest.approx(raw, rel=0.06)
    assert np.mean([(v > 0.13).sum() for v in found]) == pytest.approx(above, rel=0.06)


def test_a_shower_is_as_long_as_those_of_geant4():
    """500 MeV electrons: mean depth 50 cm, 32 % of the energy in the first 30 cm, 96 % in 120 cm."""
    truths = [follow(11, 500, seed) for seed in range(25)]
    depth = np.concatenate([t.place[:, 2] for t in truths]) / 10
    energy = np.concatenate([t.deposit for t in truths])
    assert np.average(depth, weights=energy) == pytest.approx(50.6, rel=0.1)
    assert energy[depth < 30].sum() / energy.sum() == pytest.approx(0.316, abs=0.06)
    assert energy[depth < 120].sum() / energy.sum() == pytest.approx(0.955, abs=0.03)


def test_photons_of_200_mev_convert_after_24_cm():
    """Geant4: 24 to 25 cm at 100 to 300 MeV. High-energy limit: 9/7 of a radiation length, 18 cm."""
    first = []
    for seed in range(400):
        truth = follow(22, 200, seed)
        pair = np.flatnonzero((truth.process == CONVERSION) & (truth.parent == 1))
        first.append(truth.start[pair[0], 3] / 10 if len(pair) else np.nan)
    assert np.nanmean(first) == pytest.approx(24.5, rel=0.2)
    tables = radiation.radiation_tables()
    assert 1 / radiation.pair_rate(1e4, tables) == pytest.approx(9 / 7 * X0_MM, rel=0.01)


def test_the_photon_cross_section_has_its_minimum_near_15_mev():
    tables = radiation.radiation_tables()
    energy = np.geomspace(2, 200, 100)
    mfp = np.array([1 / (showers._compton_rate(k) + radiation.pair_rate(k, tables)) for k in energy]) / 10
    assert energy[mfp.argmax()] == pytest.approx(12, abs=6)
    assert mfp.max() == pytest.approx(29.6, rel=0.05)  # NIST: .0242 cm2/g


@pytest.mark.parametrize(("k", "barn"), [(0.1, 0.4927), (1.0, 0.2112), (10.0, 0.0510)])
def test_compton_scattering_is_klein_nishina(k, barn):
    assert showers._compton_rate(k) == pytest.approx(2.1045e-3 * 18 * barn, rel=0.003)
    rng = np.random.default_rng(3)
    share = np.array([showers._compton_share(k, rng) for _ in range(20_000)])
    cos = np.linspace(-1, 1, 4001)
    kept = 1 / (1 + k / ELECTRON_MASS * (1 - cos))
    weight = kept**2 * (kept + 1 / kept - 1 + cos**2)
    assert share.mean() == pytest.approx(np.average(kept, weights=weight), abs=4 * share.std() / 140)


def test_electrons_radiate_their_energy_over_a_radiation_length():
    """Loss by bremsstrahlung / (E / X0): 0.70 at 10 MeV, 0.91 at 100, 0.99 at 1000 (as in our Geant4)."""
    for energy, expected in ((10, 0.70), (100, 0.91), (1000, 0.99)):
        k = np.linspace(1e-4, 0.9999, 4000) * energy
        loss = 2.1045e-3 * np.mean(radiation.bremsstrahlung(float(energy), k)) * energy
        assert loss / (energy / X0_MM) == pytest.approx(expected, abs=0.04)


def test_radiated_photons_follow_the_cross_section():
    tables = radiation.radiation_tables()
    rng = np.random.default_rng(4)
    k = np.array([radiation.radiated_photon(tables, 100.0, 100.0, rng) for _ in range(20_000)])
    assert k.min() >= radiation.PHOTON_CUT
    assert k.max() <= 100
    edges = np.linspace(np.log(radiation.PHOTON_CUT), np.log(100), 2001)
    centre = np.exp((edges[1:] + edges[:-1]) / 2)
    weight = radiation.bremsstrahlung(100.0, centre)
    assert (k > 10).mean() == pytest.approx(weight[centre > 10].sum() / weight.sum(), abs=0.015)


def test_scattering_widths_are_highlands():
    """Muons over 10 cm in steps of 0.7 mm: the width of the central 68 % against the PDG's formula (good to 11 %)."""
    rng = np.random.default_rng(5)
    mass, energy, steps = 105.658, 400.0, 143
    momentum, beta = np.sqrt(energy * (energy + 2 * mass)), np.sqrt(1 - (mass / (energy + mass)) ** 2)
    plane = np.zeros(700)
    for _ in range(steps):
        cos = np.array([scatter(mass, energy, 0.7, 0.0, rng) for _ in range(len(plane))])
        plane += np.arccos(cos) * np.cos(2 * np.pi * rng.random(len(plane)))
    length = steps * 0.7 / X0_MM
    expected = 13.6 / (beta * momentum) * np.sqrt(length) * (1 + 0.038 * np.log(length / beta**2))
    width = np.diff(np.quantile(plane, [0.16, 0.84]))[0] / 2
    assert width == pytest.approx(expected, rel=0.16)  # and 5 % of statistics


def test_compton_electrons_are_made_by_photons_only():
    truth = follow(22, 300, 1)
    assert (truth.pdg[truth.parent[truth.process == COMPTON]] == 22).all()
