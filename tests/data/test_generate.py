"""The generator as its users see it: a sequence of events that depends on nothing but preset, seed and number."""

import pickle

import numpy as np
import pytest
import torch

from larpanda.data.generate import generate
from larpanda.data.physics import kernel
from larpanda.data.physics.presets import PRESETS, Bomb, Preset, Source
from larpanda.event import IMAGE_VOXELS, PDG, UNKNOWN, CreationProcess, Event, EventKey, Motif, Species


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
        ({"n": 1, "preset": "pilarnett"}, "unknown preset 'pilarnett'.*known are pilarnet, config_a.*single:neutron"),
        ({"n": 1, "settings": ["rain.particles=9,4"]}, "--set: rain: particles is 9 to 4"),
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
        free = michel & (p.parent_pdg == -PDG[Species.MUON])
        assert (p.momentum[free] < 53.0).all()
        assert (p.momentum[michel] < 60.0).all()  # a mu- decays within the atom, which smears the end at 52.83
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


@pytest.mark.parametrize(
    ("name", "voxels"),  # mean of a few hundred events of Geant4 with these settings; 20 here scatter by a tenth
    [("config_a", 3721), ("config_b", 3218), ("config_c", 2988), ("config_d", None), ("config_e", None)],
)
def test_the_other_bombs_make_events(name, voxels):
    events = list(generate(20, seed=100, preset=name))
    assert all(e.problem() is None and len(e) for e in events)
    if voxels:
        assert np.mean([len(e) for e in events]) == pytest.approx(voxels, rel=0.3)


def test_neutral_primaries_show_by_what_they_make():
    for e in generate(10, seed=105, preset="single:pi0"):
        assert set(e.particles.parent_pdg[e.particles.species == Species.PHOTON].tolist()) <= {111, 11, -11}
        assert (e.motif[e.particle >= 0] == Motif.SHOWER).float().mean() > 0.5
    led = torch.cat([e.motif for e in generate(20, seed=105, preset="single:neutron")]) == Motif.LED
    assert led.float().mean() > 0.5  # recoils and capture photons, far apart


def test_energy_is_recorded_in_the_active_volume_of_the_preset():
    muon = (Source((13,), (900.0, 900.0)),)
    size = {}
    for half in (100.0, 300.0):
        bomb = Bomb((1, 1), (0.0, 0.0, 0.0), muon)
        events = generate(10, preset=Preset(bomb, active_half_mm=(half, half, half)))
        size[half] = [int((e.position.amax(0) - e.position.amin(0)).max()) for e in events]
    assert max(size[100.0]) <= 200 / 3 + 1 < max(size[300.0]) <= 600 / 3 + 1


def test_an_event_without_any_particle_is_empty():
    none_or_one = Preset(Bomb((0, 1), (0.0, 0.0, 0.0), (Source((2212,), (200.0, 200.0)),)), min_voxels=0)
    sizes = [len(e) for e in generate(20, preset=none_or_one)]
    assert min(sizes) == 0 < max(sizes)


def test_a_preset_that_no_event_fulfils_is_an_error(monkeypatch):
    monkeypatch.setattr("larpanda.data.generate.MAX_DRAWS", 5)
    events = generate(3, preset="single:proton", settings=["min_voxels=100000"])
    with pytest.raises(ValueError, match=r"event 1: the largest of 5 draws had \d+ voxels; expected 100000.*lower it"):
        events[1]


YAML = "vertex: {particles: [1, 2], half_mm: [0, 0, 0], sources: [{pdg: [13, -13], energy_mev: [50, 5e+2]}]}"


def test_a_file_of_ones_own_is_known_by_its_name_and_content(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.yaml").write_text(YAML)
    (tmp_path / "mine.yaml").write_text("# the same, elsewhere\n" + YAML + "\nmin_voxels: 1\n")
    (tmp_path / "other.yaml").write_text(YAML.replace("50,", "60,"))
    a, b, other = (generate(2, preset=tmp_path / name) for name in ("a/mine.yaml", "mine.yaml", "other.yaml"))
    assert same(a[1], b[1])
    assert a.provenance() == b.provenance()
    assert a.source.startswith("generate:mine.yaml#")
    assert str(tmp_path) not in repr(a.provenance())
    assert a.preset_name.partition("#")[2] != other.preset_name.partition("#")[2]
    assert same(pickle.loads(pickle.dumps(a))[1], a[1])
    settings = Preset(Bomb((1, 2), (0, 0, 0), (Source((13, -13), (50, 500)),)))  # whole numbers where floats are meant
    assert generate(1, preset=settings).preset_name == a.preset_name.replace("mine.yaml", "preset")


def test_settings_change_a_preset_and_its_name():
    assert generate(1, settings=["min_voxels=1024"]).source == "generate:pilarnet?seed=0"
    changed = generate(1, preset="single:muon", settings=["vertex.half_mm=0,0,0", "direction=flat_theta"])
    assert changed.preset_name.startswith("single:muon#")
    assert changed.provenance()["settings"]["vertex"]["half_mm"] == (0.0, 0.0, 0.0)


def test_a_contained_track_ends_in_the_image_and_what_ends_outside_is_not_contained(events):
    odd = tracks = 0
    for e in events:
        p = e.particles
        began, inside = (((place >= 0) & (place <= IMAGE_VOXELS)).all(1) for place in (p.start, p.end))
        for i in range(len(p)):
            if (e.motif[e.particle == i] == Motif.TRACK).all():
                assert inside[i] or not p.contained[i]
                of_vertex = began[i] and p.species[i] != Species.MUON  # the rain's start beside the active volume
                tracks += int(of_vertex)
                odd += int(of_vertex and inside[i] != p.contained[i].bool())
        assert set(p.contained.tolist()) <= {0, 1}
    assert odd < 0.1 * tracks  # one that grazes a face, or whose delta ray leaves


def test_primaries_come_from_nothing_and_their_children_from_something(events):
    for e in events[:30]:
        p = e.particles
        assert ((p.process == CreationProcess.PRIMARY) == (p.primary == 1)).all()
        delta = torch.tensor([bool((e.motif[e.particle == i] == Motif.DELTA).any()) for i in range(len(p))])
        assert (p.process[delta] == CreationProcess.KNOCK_ON).all()


def test_a_detector_in_the_preset_acts_on_the_same_events():
    plain = generate(3, seed=104, preset="single:muon")[1]
    louder = generate(3, seed=104, preset="single:muon", settings=["detector.gain=1.1"])[1]
    assert torch.equal(plain.position, louder.position)
    assert torch.allclose(louder.energy, 1.1 * plain.energy)
    assert torch.equal(plain.motif, louder.motif)
    noisy = [generate(3, seed=104, preset="single:muon", settings=["detector.noise_mev=0.02"])[1] for _ in range(2)]
    assert torch.equal(noisy[0].energy, noisy[1].energy)
    with pytest.raises(ValueError, match=r"detector.*gain is -1"):
        generate(3, seed=104, settings=["detector.gain=-1"])
