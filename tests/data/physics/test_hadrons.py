"""Reactions of hadrons: conservation laws, closed forms, and what the PDG says of argon."""

import numpy as np
import pytest

from larpanda.data.physics import hadrons
from larpanda.data.physics.kernel import CAPTURE, DECAY, HADRONIC, STOPPED, VANISHED
from larpanda.data.physics.material import PION_MASS, PROTON, energy_of_range, stopping_tables, table_at
from larpanda.data.physics.presets import Primary
from larpanda.data.physics.transport import simulate

EVERYWHERE = (10_000.0, 10_000.0, 10_000.0)


def follow(pdg, energy, seed, direction=(0.0, 0.0, 1.0), half=EVERYWHERE):
    primary = Primary(0, pdg, float(energy), (0.0, 0.0, 0.0), direction)
    return simulate((primary,), np.random.default_rng([pdg + 1000, int(energy), seed]), half)


def test_no_reaction_of_the_table_makes_energy():
    """Kinetic energies, and the masses of pions that come out, against what went in."""
    tables = hadrons.reaction_tables()
    mass = np.isin(tables.kind, [3, 4, 5]) * PION_MASS
    out = np.add.reduceat(tables.out_energy + mass, tables.first[:-1])
    block = np.repeat(np.arange(6), np.diff(tables.block))
    going_in = tables.energy + np.array([PION_MASS, PION_MASS, 0.0, 0.0, PION_MASS, 105.7])[block]
    # A captured neutron, an evaporated alpha and a bound pion give back some binding energy.
    assert (out < 1.002 * going_in + 15.0).all()
    assert (out[block < 2] < going_in[block < 2]).mean() > 0.99


def test_the_mean_free_path_of_fast_protons_is_the_pdgs():
    """Nuclear interaction length of liquid argon: 119.7 g/cm2, 85.7 cm, at high energy; a proton of 1 GeV is near."""
    _, _, reactions = hadrons.rates(hadrons.reaction_tables(), hadrons.PROTONS, 1000.0)
    assert 0.1 / reactions == pytest.approx(85.7, rel=0.15)


def test_thermal_neutrons_are_captured_as_argon_captures_them():
    """0.66 barn at 2200 m/s, and as one over the speed above."""
    per_barn = 2.1045e-3
    tables = hadrons.reaction_tables()
    for energy, barn in ((2.5e-8, 0.66), (1e-6, 0.66 * 0.025**0.5)):
        _, captures, _ = hadrons.rates(tables, hadrons.NEUTRONS, energy)
        assert captures == pytest.approx(per_barn * barn, rel=0.25)  # some 200 neutrons of the table


def test_a_captured_neutron_sets_its_binding_energy_free_as_photons():
    captured = 0
    for seed in range(40):
        truth = follow(2112, 0.5, seed)
        photons = truth.process == CAPTURE
        if truth.fate[1] == STOPPED:
            captured += 1
            assert 6.0 <= truth.start[photons, 0].sum() <= 6.1  # the nucleus keeps what is too little for one
    assert captured > 10


@pytest.mark.parametrize(("pdg", "energy"), [(211, 300), (-211, 400), (2212, 400), (2112, 200)])
def test_what_comes_out_is_turned_with_the_projectile(pdg, energy):
    """The mean momentum of the products is along the projectile, wherever that goes."""
    along, across, upward = np.array([[2.0, -1.0, 2.0], [1.0, 2.0, 0.0], [-4.0, 2.0, 5.0]])
    flow = []
    for seed in range(200):
        truth = follow(pdg, energy, seed, tuple(along / 3))
        mine = (truth.parent == 1) & (truth.process == HADRONIC)
        flow.append((truth.start[mine, 0, None] * truth.start[mine, 4:7]).sum(0))
    for axis in (along, across, upward):
        one = np.array(flow) @ axis / np.linalg.norm(axis)
        significance = one.mean() / one.std() * len(one) ** 0.5
        assert significance > 5 if axis is along else abs(significance) < 4


def test_pions_and_muons_at_rest_end_as_they_should():
    for seed in range(20):
        for pdg in (-211, 13):
            truth = follow(pdg, 2, seed)
            children = truth.process[truth.parent == 1]
            assert truth.fate[1] == STOPPED
            assert set(children) <= ({CAPTURE} if pdg == -211 else {CAPTURE, DECAY})
        reacted = follow(211, 300, seed)
        if (reacted.process[reacted.parent == 1] == HADRONIC).any():
            assert reacted.fate[1] == VANISHED


@pytest.mark.parametrize(("ion", "mass", "charge"), [(0, 1875.6, 1), (1, 2808.9, 1), (3, 3727.4, 2)])
def test_light_ions_go_as_far_as_protons_of_their_speed_times_mass_over_charge_squared(ion, mass, charge):
    from larpanda.data.physics.kernel import Particle
    from larpanda.data.physics.transport import _empty

    ledger, stopping = _empty(1000, 10), stopping_tables()
    energy = 60.0
    hadrons._stop_ion(ledger, stopping, np.full(3, 1e4), ion, Particle(energy, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    n = ledger.used[0]
    assert ledger.deposit[:n].sum() == pytest.approx(energy)
    assert (ledger.owner[:n] == 0).all()
    protons = table_at(stopping.range_mm[PROTON], energy * 938.272 / mass)
    expected = protons * mass / 938.272 / charge**2
    assert ledger.place[:n, 1].max() == pytest.approx(expected, abs=0.36)  # half a step
    assert energy_of_range(stopping.range_mm[PROTON], protons) == pytest.approx(energy * 938.272 / mass)
