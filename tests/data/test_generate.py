"""The generator as its users see it: a sequence of events that depends on nothing but preset, seed and number."""

import pickle

import numpy as np
import pytest
import torch

from larpanda.data.generate import generate
from larpanda.data.physics import kernel
from larpanda.data.physics.presets import PRESETS, draw
from larpanda.event import PDG, UNKNOWN, CreationProcess, Event, EventKey, Motif, Species


def same(a: Event, b: Event) -> bool:
    columns = ("position", "energy", "motif", "species", "particle", "interaction", "vertex")
    truth = ("track_id", "momentum_vector", "start", "process", "parent_track_id")
    return (
        a.key == b.key
        and all(torch.equal(getattr(a, name), getattr(b, name)) for name in columns)
        and all(torch.equal(getattr(a.particles, name), getattr(b.particles, name)) for name in truth)
    )


@pytest.fixture(scope="module")
def events():
    return list(generate(80, seed=101))


def test_an_event_depends_on_seed_and_number_only(events):
    again = generate(80, seed=101)
    assert same(again[7], events[7])
    assert same(again[-1], events[79])
    assert same(again[5:50:3][2], events[11])
    assert same(generate(3, seed=101, start=20)[1], events[21])
    assert same(pickle.loads(pickle.dumps(again))[4], events[4])
    assert [len(e) for e in again[2:5]] == [len(e) for e in events[2:5]]
    assert not same(generate(1, seed=102)[0], events[0])
    assert len(events[0]) != len(events[1])


def test_is_a_sequence():
    events = generate(5, seed=3, start=10)
    assert (len(events), len(events[1:3]), len(generate(0))) == (5, 2, 0)
    assert events[1].key == EventKey("generate:pilarnet?seed=3", 11)
    with pytest.raises(IndexError, match="event 5 of 5"):
        events[5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1}, "n = -1 .* negative"),
        ({"n": 1, "seed": -2}, "seed = -2"),
        ({"n": 1, "start": -1}, "start = -1"),
        ({"n": 1, "preset": "pilarnett"}, "unknown preset 'pilarnett'.*known are pilarnet, single:electron"),
    ],
)
def test_says_what_is_wrong_with_an_argument(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        generate(**arguments)
    assert "\n" not in str(error.value)


def test_every_event_keeps_the_rules(events):
    for e in events:
        assert e.problem() is None
        assert len(e) >= PRESETS["pilarnet"].min_voxels
        assert e.energy.dtype == e.position.dtype == torch.float32
        assert len(torch.unique(e.position, dim=0)) == len(e)
        assert e.energy.min() >= np.float32(0.01)
        led = e.motif == Motif.LED
        assert led[: int(led.sum())].all()  # LED first, then cluster by cluster
        for column in (e.species, e.particle, e.interaction):
            assert (column[led] == UNKNOWN).all()
        assert (e.interaction[~led] >= 0).all()
        assert e.particle[~led].unique().tolist() == list(range(len(e.particles)))
        assert e.interaction[~led].unique().tolist() == list(range(len(e.vertex)))
        assert torch.equal(e.species[~led], e.particles.species[e.particle[~led]])
        assert e.species[(e.motif == Motif.MICHEL) | (e.motif == Motif.DELTA)].eq(Species.ELECTRON).all()
        assert not torch.isin(e.species[e.motif == Motif.TRACK], torch.tensor([0, 1])).any()
        for p in range(len(e.particles)):
            assert len(e.interaction[e.particle == p].unique()) == 1
        x = e.position[:, 0]
        assert x.max() - x.min() <= 495  # the drift volume is 148.2 cm wide


def test_the_truth_of_the_particles_is_complete(events):
    for e in events[:30]:
        p = e.particles
        assert (p.track_id.diff() > 0).all()
        assert torch.isfinite(p.momentum).all()
        assert torch.allclose(p.momentum_vector.norm(dim=1), p.momentum, rtol=1e-4)
        assert ((p.primary == 1) == (p.parent_track_id == 0)).all()
        assert (p.parent_pdg[p.primary == 1] == 0).all()
        assert (p.parent_track_id < p.track_id).all()
        michel = torch.tensor([bool((e.motif[e.particle == i] == Motif.MICHEL).any()) for i in range(len(p))])
        assert (p.parent_pdg[michel].abs() == PDG[Species.MUON]).all()
        assert (p.momentum[michel] < 53.0).all()
        assert ((p.primary == 1) == (p.process == CreationProcess.PRIMARY)).all()
        assert (p.process[michel] == CreationProcess.DECAY).all()
        assert (p.parent_pdg[p.process == CreationProcess.CONVERSION] == PDG[Species.PHOTON]).all()
        assert (p.species[p.process == CreationProcess.KNOCK_ON] == Species.ELECTRON).all()
        assert torch.isin(p.process, torch.tensor(list(CreationProcess))).all()


def test_the_kernel_and_the_vocabulary_number_processes_alike():
    theirs = {name: number for name, number in vars(kernel).items() if name in CreationProcess.__members__}
    assert theirs == CreationProcess.__members__


def test_primaries_start_at_their_vertex_and_tracks_begin_there(events):
    near = []
    for e in events[:30]:
        for i in torch.nonzero(e.particles.primary == 1)[:, 0]:
            mine = e.particle == i
            vertex = e.vertex[e.interaction[mine][0]]
            assert torch.allclose(e.particles.start[i], vertex)
            # Between the outermost voxels, and so in the volume that records: the rain starts around it.
            inside = ((vertex > e.position.amin(0)) & (vertex < e.position.amax(0))).all()
            if inside and e.particles.species[i] in (Species.MUON, Species.PION):
                near.append(float((e.position[mine] + 0.5 - vertex).norm(dim=1).min()))
    assert np.quantile(near, 0.9) < 2.0


def test_the_mean_event_is_that_of_geant4(events):
    """Geant4, the same preset, 300 events: voxels 4,427 (3,320 above 0.13 MeV), shower 38 %, track 37 %, LED 23 %."""
    n = np.array([len(e) for e in events])
    above = np.array([int((e.energy > 0.13).sum()) for e in events])
    assert n.mean() == pytest.approx(4427, rel=0.15)
    assert above.mean() / n.mean() == pytest.approx(0.75, abs=0.02)
    share = torch.bincount(torch.cat([e.motif for e in events]), minlength=5) / n.sum()
    expected = torch.tensor([0.38, 0.37, 0.0061, 0.016, 0.227])
    assert (share - expected).abs().lt(torch.tensor([0.07, 0.07, 0.004, 0.008, 0.03])).all(), share
    assert np.mean([len(e.particles) for e in events]) == pytest.approx(11.2, abs=2.1)
    assert np.mean([len(e.vertex) for e in events]) == pytest.approx(4.5, abs=0.6)


@pytest.mark.parametrize(
    ("motif", "quantiles"),  # MeV a voxel above 0.13 MeV, 5, 50 and 95 %: Geant4, 200 events
    [
        (Motif.SHOWER, (0.178, 0.508, 1.208)),
        (Motif.TRACK, (0.185, 0.503, 1.320)),
        (Motif.DELTA, (0.178, 0.486, 1.051)),
        (Motif.LED, (0.138, 0.286, 1.016)),
    ],
)
def test_voxels_have_the_energies_of_geant4(events, motif, quantiles):
    energy = torch.cat([e.energy[e.motif == motif] for e in events])
    found = torch.quantile(energy[energy > 0.13], torch.tensor([0.05, 0.5, 0.95]))
    assert found.tolist() == pytest.approx(quantiles, rel=0.09)


@pytest.mark.parametrize(
    ("name", "species"),
    [("electron", 1), ("photon", 0), ("muon", 2), ("pion", 3), ("proton", 4)],
)
def test_single_particles(name, species):
    for e in generate(5, seed=104, preset=f"single:{name}"):
        assert len(e) >= 10
        assert len(e.vertex) <= 1
        if (e.particles.primary == 1).any():
            assert e.particles.species[0] == species


def test_a_bomb_is_drawn_as_its_preset_says():
    rng = np.random.default_rng(9)
    bombs = [draw(PRESETS["pilarnet"], rng) for _ in range(2000)]
    vertex = [[p for p in bomb if p.interaction == 0] for bomb in bombs]
    rain = [[p for p in bomb if p.interaction > 0] for bomb in bombs]
    assert {len(v) for v in vertex} == {2, 3, 4, 5}
    assert {len(r) for r in rain} == {3, 4, 5, 6, 7}
    assert all(sum(abs(p.pdg) == 13 for p in v) <= 1 for v in vertex)
    assert all(sum(p.pdg == 2212 for p in v) <= 3 for v in vertex)
    assert all(np.dot(p.position_mm, p.direction) <= 0 for r in rain for p in r)
    assert np.mean([len(r) for r in rain]) == pytest.approx(5, abs=0.15)
    codes = [p.pdg for r in rain for p in r]
    weight = {13: 1.5 + 2.8, 22: 1.7, 2212: 0.8}
    assert np.mean(np.abs(codes) == 13) == pytest.approx(weight[13] / sum(weight.values()), abs=0.02)
    assert np.mean([p.direction[2] for v in vertex for p in v]) == pytest.approx(0, abs=0.03)
