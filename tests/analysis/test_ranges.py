"""Ranges against published tables, Geant4 and the generator's own stopping power."""

import sys
from pathlib import Path

import numpy as np
import pytest

from larpanda.analysis.ranges import energy_mev, loss_mev_per_cm, momentum_mev, range_cm
from larpanda.event import MASS_MEV, Species

DENSITY = 1.396  # g/cm3
STOPPING = (Species.MUON, Species.PION, Species.PROTON)


def test_muons_are_those_of_the_particle_data_group():
    """Groom, Mokhov, Striganov 2001, liquid argon, g/cm2."""
    energy = [10, 14, 20, 30, 40, 80, 100, 140, 200, 300, 400, 800, 1000, 1400, 2000, 3000]
    g_cm2 = [0.9833, 1.786, 3.321, 6.598, 10.58, 30.84, 42.50, 67.32, 106.3, 172.5, 238.5, 493.4, 616.3, 855.2]
    g_cm2 += [1202, 1758]
    np.testing.assert_allclose(range_cm(energy, Species.MUON), np.array(g_cm2) / DENSITY, rtol=0.004, atol=0.011)


@pytest.mark.parametrize(
    ("species", "energy", "stopped_cm", "error"),
    [
        (Species.MUON, 100, 30.60, 0.69 / 40**0.5),
        (Species.MUON, 400, 171.51, 5.24 / 40**0.5),
        (Species.PION, 100, 26.80, 2.30 / 40**0.5),
        (Species.PROTON, 50, 2.32, 0.03 / 60**0.5),
        (Species.PROTON, 200, 26.04, 0.23 / 40**0.5),
        (Species.PROTON, 400, 81.57, 0.78 / 30**0.5),
    ],
)
def test_geant4_stops_there(species, energy, stopped_cm, error):
    """Mean stopping distance of 30 to 60 particles that did not react (Geant4, physics list QGSP_BERT)."""
    assert range_cm(energy, species) == pytest.approx(stopped_cm, abs=3 * error + 0.01 * stopped_cm)


@pytest.mark.parametrize("species", STOPPING)
def test_there_and_back(species):
    energy = np.geomspace(0.1, 4900, 200)
    np.testing.assert_allclose(energy_mev(range_cm(energy, species), species), energy, rtol=1e-3)
    way = range_cm(energy, species)
    between, loss = (way[1:] + way[:-1]) / 2, np.diff(energy) / np.diff(way)
    above = energy[:-1] > 2
    np.testing.assert_allclose(loss_mev_per_cm(between, species)[above], loss[above], rtol=0.01)


def test_the_ends():
    assert range_cm(0.0, Species.PROTON) == 0.0
    assert energy_mev(0.0, Species.MUON) == 0.0
    assert np.isnan(range_cm(6000.0, Species.PION))
    assert np.isnan(energy_mev(1e5, Species.PION))
    for function in (range_cm, energy_mev):
        with pytest.raises(ValueError, match="electron: has no range; expected muon, pion, proton"):
            function(10.0, Species.ELECTRON)


def test_a_muon_at_its_minimum_loses_2_1_mev_per_cm():
    assert loss_mev_per_cm(range_cm(268, Species.MUON), Species.MUON) == pytest.approx(2.105, rel=0.003)


def test_momentum():
    for species in Species:
        p = momentum_mev(np.array([0.0, 250.0]), species)
        energy = np.hypot(p, MASS_MEV[species]) - MASS_MEV[species]
        np.testing.assert_allclose(energy, [0.0, 250.0], atol=1e-9)


def test_tables_are_made_by_the_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    sys.modules.pop("range_tables", None)
    from range_tables import table

    from larpanda.analysis.ranges import RANGE_CM

    for species, ranges in RANGE_CM.items():
        np.testing.assert_allclose(table(species), ranges, rtol=1e-3)
