"""Stopping powers and ranges against published tables, and the fluctuations against their mean."""

import numpy as np
import pytest

from larpanda.data.physics import material
from larpanda.data.physics.material import DENSITY, ELECTRON_MASS, LOSS_CONSTANT, MUON_MASS, PION_MASS, PROTON_MASS


def range_cm(energy, mass):
    return np.interp(energy, material.grid(), material.ranges(material.bethe(material.grid(), mass))) / 10


@pytest.mark.parametrize(
    ("energy", "g_cm2"),  # PDG, muons in liquid argon
    [(14, 1.786), (20, 3.321), (40, 10.58), (100, 42.50), (200, 106.3), (400, 238.5), (1000, 616.3), (2000, 1202)],
)
def test_muon_ranges_are_those_of_the_pdg(energy, g_cm2):
    assert range_cm(energy, MUON_MASS) * DENSITY == pytest.approx(g_cm2, rel=0.01)


@pytest.mark.parametrize(
    ("mass", "energy", "cm"),  # Geant4, particles that stop
    [(PION_MASS, 50, 9.15), (PROTON_MASS, 50, 2.32), (PROTON_MASS, 100, 7.88), (PROTON_MASS, 400, 81.6)],
)
def test_pion_and_proton_ranges_are_those_of_geant4(mass, energy, cm):
    assert range_cm(energy, mass) == pytest.approx(cm, rel=0.02)


def test_a_muon_loses_least_near_270_mev():
    energy = np.arange(100.0, 600.0)
    loss = material.bethe(energy, MUON_MASS) * 10 / DENSITY
    assert energy[loss.argmin()] == pytest.approx(270, abs=15)
    assert loss.min() == pytest.approx(1.508, rel=0.005)  # MeV cm2/g, PDG


@pytest.mark.parametrize(
    ("energy", "mev_cm"), [(0.1, 4.07), (0.5, 2.07), (1, 1.91), (10, 2.17), (100, 2.48), (1000, 2.71)]
)
def test_electrons_lose_what_berger_and_seltzer_say(energy, mev_cm):
    assert material.electron_collisions(np.array(float(energy))) * 10 == pytest.approx(mev_cm, rel=0.01)


@pytest.mark.parametrize("energy", [100.0, 300.0, 2000.0])
def test_small_transfers_and_knock_ons_make_up_the_whole_loss(energy):
    """The restricted loss, and the integral of T times the spectrum of the knock-ons that transport draws."""
    gamma = 1 + energy / MUON_MASS
    beta2 = 1 - gamma**-2
    largest = material.largest_transfer(np.array(energy), MUON_MASS)
    transfer = np.geomspace(material.DELTA_CUT, largest, 20001)
    spectrum = LOSS_CONSTANT / beta2 / transfer**2 * (1 - beta2 * transfer / largest)
    carried = ((spectrum * transfer)[1:] + (spectrum * transfer)[:-1]) @ np.diff(transfer) / 2
    restricted = material.bethe(np.array(energy), MUON_MASS, material.DELTA_CUT)
    assert restricted + carried == pytest.approx(material.bethe(np.array(energy), MUON_MASS), rel=1e-3)


def test_range_and_energy_are_inverse():
    for row in material.stopping_tables().range_mm:
        for energy in (0.5, 20.0, 700.0):
            assert material.energy_of_range(row, material.table_at(row, energy)) == pytest.approx(energy, rel=1e-6)


@pytest.mark.parametrize("energy", [5.0, 50.0, 500.0])
def test_many_short_steps_lose_what_one_long_step_loses(energy):
    tables = material.stopping_tables()
    left = energy
    for _ in range(10):
        left -= material.mean_loss(tables, material.PROTON, left, *material.place_of(left), 0.01)
    at_once = material.mean_loss(tables, material.PROTON, energy, *material.place_of(energy), 0.1)
    assert energy - left == pytest.approx(at_once, rel=0.01)


def test_straggling_keeps_the_mean_and_is_skewed():
    rng = np.random.default_rng(1)
    mean = 0.13
    loss = np.array([material.straggle(mean, 300.0, rng) for _ in range(40_000)])
    assert loss.mean() == pytest.approx(mean, abs=4 * loss.std() / 200)
    assert loss.min() > 0
    assert np.median(loss) < 0.9 * mean


def test_slow_heavy_particles_straggle_like_bohr():
    rng = np.random.default_rng(2)
    beta2 = 0.04
    largest = float(2 * ELECTRON_MASS * beta2 / (1 - beta2))
    mean = 1.5
    loss = np.array([material.straggle_heavy(mean, 0.7, beta2, largest, rng) for _ in range(20_000)])
    assert loss.mean() == pytest.approx(mean, abs=4 * loss.std() / 140)
    assert loss.var() == pytest.approx(LOSS_CONSTANT / beta2 * 0.7 * largest, rel=0.1)
