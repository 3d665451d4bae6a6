"""Muons, pions, protons and neutrons: ranges, losses, decays and reactions against the PDG and Geant4."""

import numpy as np
import pytest

from larpanda.data.physics import decays
from larpanda.data.physics.kernel import DECAY, HADRONIC, KNOCK_ON, LEFT, STOPPED
from larpanda.data.physics.material import MUON_MASS, PI_ZERO_MASS, PION_MASS
from larpanda.data.physics.presets import Primary
from larpanda.data.physics.transport import simulate

EVERYWHERE = (10_000.0, 10_000.0, 10_000.0)


def follow(pdg, energy, seed, half=EVERYWHERE):
    primary = Primary(0, pdg, float(energy), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    return simulate((primary,), np.random.default_rng([pdg + 1000, int(energy), seed]), half)


def born_of(truth, track=1):
    return np.flatnonzero(truth.parent == track)[1 if track == 0 else 0 :]


def reached_cm(truth):
    place = truth.place[truth.owner == 1]
    return np.linalg.norm(place[-1]) / 10


@pytest.mark.parametrize(
    ("pdg", "energy", "cm"),  # Geant4: path length of particles that stop; scattering makes the way out 1 to 2 % less
    [(-13, 100, 30.4), (-13, 200, 76.2), (13, 400, 171.2), (2212, 100, 7.88), (2212, 200, 26.1)],
)
def test_particles_stop_where_geant4_stops_them(pdg, energy, cm):
    truths = [follow(pdg, energy, seed) for seed in range(60)]
    stopped = [reached_cm(t) for t in truths if not (t.process[born_of(t)] == HADRONIC).any() or pdg == 13]
    assert np.median(stopped) == pytest.approx(0.99 * cm, rel=0.015)


def test_the_loss_of_a_muon_over_a_centimetre_is_that_of_geant4():
    """1 GeV, the first 1.5 m, everything it makes included: mean 2.25, median 1.91, 5 and 95 % 1.60 and 4.25 MeV/cm."""
    loss = []
    for seed in range(40):
        truth = follow(13, 1000, seed)
        z = truth.place[:, 2] / 10
        loss.append(np.bincount(z[(z > 0) & (z < 150)].astype(int), truth.deposit[(z > 0) & (z < 150)], minlength=150))
    loss = np.concatenate(loss)
    assert loss.mean() == pytest.approx(2.25, rel=0.04)
    assert np.median(loss) == pytest.approx(1.91, rel=0.02)
    assert np.quantile(loss, 0.05) == pytest.approx(1.60, rel=0.03)
    assert np.quantile(loss, 0.95) == pytest.approx(4.25, rel=0.10)


def test_knock_on_electrons_are_as_many_as_in_geant4():
    """1 GeV muons over 4.4 m: 8.3 a metre above 1 MeV, 3.3 above 2, 0.98 above 5."""
    energy, metres = [], 0.0
    for seed in range(40):
        truth = follow(-13, 1000, seed)
        energy.append(truth.start[truth.process == KNOCK_ON, 0])
        metres += reached_cm(truth) / 100
    energy = np.concatenate(energy)
    for cut, rate in ((1, 8.3), (2, 3.3), (5, 0.98)):
        n = (energy > cut).sum()
        assert n / metres == pytest.approx(rate, abs=4 * n**0.5 / metres + 0.04 * rate)


def test_positive_muons_decay_to_michel_positrons_and_negative_ones_seldom():
    michels = 0
    for seed in range(200):
        positive, negative = follow(-13, 5, seed), follow(13, 5, seed)
        michel = positive.pdg[born_of(positive)][positive.process[born_of(positive)] == DECAY]
        assert michel.tolist() == [-11]
        children = born_of(negative)
        michels += (negative.start[children[negative.pdg[children] == 11], 0] > 0.1).sum()
    assert michels / 200 == pytest.approx(0.27, abs=0.11)


def test_the_michel_spectrum_is_that_of_a_free_muon():
    """x^2 (3 - 2 x): mean 0.7, quantiles 0.309 and 0.975 of the end point at 5 and 95 %."""
    rng = np.random.default_rng(6)
    total = np.array([decays.michel_energy(rng) for _ in range(20_000)]) + 0.511
    x = total / decays.MICHEL_END_MEV
    assert x.mean() == pytest.approx(0.7, abs=0.006)
    assert x.max() <= 1
    assert total.max() > 52.5
    # The cumulative distribution is 2 x^3 - x^4.
    for quantile in (0.05, 0.5, 0.95):
        at = np.quantile(x, quantile)
        assert 2 * at**3 - at**4 == pytest.approx(quantile, abs=0.01)


@pytest.mark.parametrize("energy", [1, 200, 1000])
def test_the_photons_of_a_neutral_pion_have_its_mass(energy):
    for seed in range(20):
        truth = follow(111, energy, seed)
        a, b = truth.start[born_of(truth)]
        assert a[0] + b[0] == pytest.approx(energy + PI_ZERO_MASS)
        mass2 = 2 * a[0] * b[0] * (1 - a[4:7] @ b[4:7])
        assert mass2**0.5 == pytest.approx(PI_ZERO_MASS, rel=1e-6)


def test_positive_pions_stop_decay_to_a_muon_and_then_to_a_positron():
    chains = 0
    for seed in range(40):
        truth = follow(211, 20, seed)
        muon = born_of(truth)[np.abs(truth.pdg[born_of(truth)]) == 13]
        if len(muon):
            rest = (PION_MASS - MUON_MASS) ** 2 / (2 * PION_MASS)
            chains += truth.start[muon[0], 0] == pytest.approx(rest)
            assert -11 in truth.pdg[born_of(truth, muon[0])]
    assert chains > 30


def test_a_decay_in_flight_conserves_energy_on_average():
    """A muon from a pion of Lorentz factor g carries g times its energy at rest, averaged over the directions."""
    rng = np.random.default_rng(7)
    gamma, energy, momentum = 3.0, 109.8, 29.8
    total = [decays.boosted(energy, momentum, gamma, 0.0, 0.0, 1.0, rng) for _ in range(4000)]
    assert np.mean([t[0] for t in total]) == pytest.approx(gamma * energy, rel=0.02)
    assert all(np.linalg.norm(t[1:]) == pytest.approx(1) for t in total)


@pytest.mark.parametrize(
    ("pdg", "energy", "share"),  # Geant4: of 60 to 80 particles each
    [(211, 100, 0.32), (211, 200, 0.69), (211, 400, 0.92), (2212, 200, 0.32), (2212, 400, 0.52)],
)
def test_hadrons_react_as_often_as_in_geant4(pdg, energy, share):
    reacted = [(t.process[born_of(t)] == HADRONIC).any() for t in (follow(pdg, energy, seed) for seed in range(150))]
    assert np.mean(reacted) == pytest.approx(share, abs=4 * (share * (1 - share) * (1 / 70 + 1 / 150)) ** 0.5)


def test_reactions_make_what_they_make_in_geant4():
    """pi+ of 200 MeV, a reaction: 1.8 protons (44 % above 30 MeV), 2.3 neutrons, 2.3 photons; pi- at rest: 3.7 n."""
    pdg, energy = [], []
    reactions = 0
    for seed in range(300):
        truth = follow(211, 200, seed, half=(100.0, 100.0, 300.0))
        children = born_of(truth)[truth.process[born_of(truth)] == HADRONIC]
        reactions += len(children) > 0
        pdg.append(truth.pdg[children])
        energy.append(truth.start[children, 0])
    pdg, energy = np.concatenate(pdg), np.concatenate(energy)
    for code, mean in ((2212, 1.8), (2112, 2.3), (22, 2.3)):
        assert (pdg == code).sum() / reactions == pytest.approx(mean, rel=0.2)
    assert (energy[pdg == 2212] > 30).mean() == pytest.approx(0.44, abs=0.1)
    stopped = [follow(-211, 1, seed) for seed in range(100)]
    assert np.mean([(t.pdg[born_of(t)] == 2112).sum() for t in stopped]) == pytest.approx(3.65, rel=0.15)


@pytest.mark.parametrize(("pdg", "energy"), [(211, 300), (-211, 300), (2212, 400), (2112, 100), (13, 300), (-13, 300)])
def test_nothing_deposits_more_than_it_has(pdg, energy):
    rest = {211: PION_MASS, 13: MUON_MASS}.get(abs(pdg), 0.0)
    binding = 80.0  # MeV: what captured neutrons and positrons may add
    for seed in range(30):
        assert follow(pdg, energy, seed).deposit.sum() < energy + rest + binding


def test_nothing_is_recorded_outside_the_volume():
    half = (50.0, 60.0, 70.0)
    for seed in range(5):
        assert (np.abs(follow(11, 300, seed, half).place) < half).all()


def test_an_event_larger_than_the_first_arrays_is_the_same():
    """Forty muons of 3 GeV: the arrays grow on the way, and each muon still gets its 2 MeV a centimetre."""
    primaries = tuple(Primary(i, 13, 3000.0, (0.0, 0.0, -3400.0), (0.0, 0.0, 1.0)) for i in range(40))
    truth = simulate(primaries, np.random.default_rng(8))
    assert len(truth.deposit) > 200_000
    per_muon = np.bincount(truth.owner, truth.deposit)[1:41] / 680
    assert np.median(per_muon) == pytest.approx(1.8, abs=0.2)
    assert (truth.parent[1:] < np.arange(1, len(truth.parent))).all()


def test_tracks_end_where_they_are_said_to_end():
    """A stopping muon: its last deposit; the path is longer than the way out; what leaves is lost."""
    for seed in range(10):
        truth = follow(-13, 150, seed)
        last = truth.place[truth.owner == 1][-1]
        assert truth.fate[1] == STOPPED
        assert np.linalg.norm(truth.end[1] - last) < 0.5
        way = np.linalg.norm(truth.end[1])
        assert 0.9 * truth.path[1] < way < truth.path[1]
    leaving = follow(13, 500, 3, half=(100.0, 100.0, 100.0))
    assert leaving.fate[1] == LEFT
    assert leaving.end[1, 2] > 100
    assert leaving.lost[1] > 300


@pytest.mark.parametrize(("pdg", "energy"), [(11, 300.0), (22, 300.0), (-11, 50.0)])
def test_what_is_not_recorded_is_lost_and_nothing_else(pdg, energy):
    """Deposits and losses of an electromagnetic shower in a small volume add up to its energy, to rounding."""
    annihilated = 2 * 0.51099895 * (pdg == -11)
    for seed in range(5):
        truth = follow(pdg, energy, seed, half=(200.0, 100.0, 300.0))
        inside, lost = truth.deposit.sum(), truth.lost.sum()
        assert lost > 0
        made = (truth.pdg == -11).sum() - (pdg == -11)  # a positron of a pair that left took 1.022 MeV with it
        assert -1e-9 < energy + annihilated - inside - lost < 1.03 * made + 1e-9
