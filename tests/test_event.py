"""Events: what is refused, what a model sees, and how events are packed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from larpanda.event import MOTIF_PRIORITY, UNKNOWN, Event, EventKey, Motif, ParticleTruth, PointBatch, compact


def test_an_event_of_plain_lists():
    event = Event.from_arrays([[1, 2, 3], [4, 5, 6]], [0.5, 1.5], motif=[1, 4], particle=[7, -1])
    assert len(event) == 2
    assert event.particle.tolist() == [0, UNKNOWN]
    assert event.species.tolist() == [UNKNOWN, UNKNOWN]
    assert event.has_truth


def test_an_event_of_arrays_has_the_numbers_that_it_is_given():
    assert Event.from_arrays([[1, 2, 3]], [0.5]).key is None
    assert Event.from_arrays([[1, 2, 3]], [0.5], run=UNKNOWN).key is None
    event = Event.from_arrays([[1, 2, 3]], [0.5], run=7, event=np.int32(0))
    assert event.key == EventKey("", UNKNOWN, run=7, event=0)
    assert str(event.key) == "run 7, event 0"
    assert event.visible()[0].key == event.key
    assert str(EventKey("a.h5", 3, run=7)) == "a.h5: event 3"


def test_an_event_of_nothing():
    event = Event.from_arrays([], [])
    assert len(event) == 0
    assert len(event.visible()[0]) == 0
    assert event.problem() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voxel": [[1, 2]]}, r"voxel has shape \(1, 2\)"),
        ({"voxel": [[1.5, 2, 3]]}, r"first at row 0: 1\.5, 2, 3"),
        ({"voxel": [[0, 0, 768]]}, r"whole numbers in 0\.\.767"),
        ({"voxel": [[0, -1, 0]]}, r"whole numbers in 0\.\.767"),
        ({"voxel": [[0, float("nan"), 0]]}, r"whole numbers in 0\.\.767"),
        ({"energy": [float("nan")]}, "1 of 1 energies are NaN"),
        ({"energy": [-0.1]}, "energies are NaN, infinite or negative"),
        ({"energy": [1.0, 2.0]}, r"energy has shape \(2,\); expected \[1\]"),
        ({"energy": ["a lot"]}, "energy has type"),
        ({"motif": [5]}, r"motif spans 5\.\.5; expected 0\.\.4"),
        ({"species": [-2]}, r"species spans -2"),
        ({"particle": [0.5]}, "particle has type float64; expected integers"),
        ({"run": 7.0}, r"run is 7\.0; expected a whole number, or -1 for none"),
        ({"subrun": None}, "subrun is None; expected a whole number"),
        ({"event": 2**63}, "event is 9223372036854775808; expected a whole number of 64 bits"),
    ],
)
def test_faults_are_named(change, message):
    arguments = {"voxel": [[1, 2, 3]], "energy": [1.0], **change}
    with pytest.raises(ValueError, match=message):
        Event.from_arrays(**arguments)


rows = st.lists(
    st.tuples(
        st.tuples(*[st.integers(0, 2)] * 3),
        st.sampled_from([0.0, 0.05, 0.1, 0.13, 0.7]),
        st.integers(-1, 4),
        st.integers(-1, 2),
    ),
    max_size=40,
)


@given(rows, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_what_a_model_sees_against_a_loop(rows, random):
    voxel, energy, motif, particle = zip(*rows, strict=True) if rows else ([], [], [], [])
    event = Event.from_arrays(voxel, energy, motif=list(motif) or None, particle=list(particle) or None)
    seen, row_point = event.visible(0.13)
    cells = {}
    for n, v in enumerate(voxel):
        cells.setdefault(v, []).append(n)
    expected = {}
    for v, members in cells.items():
        total = np.float32(0)
        for e in sorted(np.float32(energy[n]) for n in members):
            total += e
        rank = {m: r for r, m in enumerate([*MOTIF_PRIORITY, UNKNOWN])}
        if total > np.float32(0.13) + 1e-6:
            expected[v] = (min((motif[n] for n in members), key=rank.get), members)
        elif total > np.float32(0.13) - 1e-6:
            return  # on the edge: summation order decides
    assert [tuple(p) for p in seen.position.long().tolist()] == sorted(expected)
    for point, v in enumerate(sorted(expected)):
        best, members = expected[v]
        assert seen.motif[point] == best
        assert seen.energy[point].item() == pytest.approx(sum(energy[n] for n in members), rel=1e-5)
        assert all(row_point[n] == point for n in members)
    assert (row_point >= 0).sum() == sum(len(m) for _, m in expected.values())
    shuffled = list(range(len(rows)))
    random.shuffle(shuffled)
    order = torch.tensor(shuffled, dtype=torch.long)
    names = ("position", "energy", "motif", "species", "particle", "interaction")
    again, _ = Event(*(getattr(event, name)[order] for name in names)).visible(0.13)
    assert all(torch.equal(getattr(again, name), getattr(seen, name)) for name in names)


def test_the_threshold_is_strict_and_applies_to_the_sum():
    event = Event.from_arrays([[0, 0, 0], [1, 1, 1], [1, 1, 1]], [0.125, 0.0625, 0.07])
    seen, row_point = event.visible(0.125)
    assert row_point.tolist() == [-1, 0, 0]
    assert seen.position.tolist() == [[1, 1, 1]]


def test_a_track_keeps_the_voxel_it_shares():
    event = Event.from_arrays([[5, 5, 5]] * 3, [1, 1, 1], motif=[4, 1, 2], species=[-1, 2, 1], particle=[-1, 3, 0])
    seen, _ = event.visible()
    assert (seen.motif.item(), seen.species.item(), seen.particle.item()) == (Motif.TRACK, 2, 1)


def test_packing(make_cloud):
    events = [make_cloud(5), make_cloud(0), make_cloud(3, seed=1)]
    batch = PointBatch.pack(events)
    assert batch.start.tolist() == [0, 5, 5, 8]
    assert batch.event_id.tolist() == [0] * 5 + [2] * 3
    assert torch.equal(batch.energy[5:], events[2].energy)
    with pytest.raises(ValueError, match="no events"):
        PointBatch.pack([])


@given(st.lists(st.integers(-3, 50)))
def test_compact_ids_are_gapless_and_keep_order(ids):
    new = compact(torch.tensor(ids, dtype=torch.long)).tolist()
    assert [n for n in sorted(set(new)) if n >= 0] == list(range(len({i for i in ids if i >= 0})))
    for old_a, new_a in zip(ids, new, strict=True):
        assert (new_a == UNKNOWN) == (old_a < 0)
        for old_b, new_b in zip(ids, new, strict=True):
            if min(old_a, old_b) >= 0:
                assert (old_a < old_b) == (new_a < new_b)


def test_kinetic_energy_is_that_of_relativity():
    proton, muon = 938.272, 105.658
    gamma = 1.25  # beta is 0.6
    mass = torch.tensor([0.0, muon, muon, proton, proton, float("nan"), muon])
    momentum = torch.tensor([250.0, 0.6 * gamma * muon, 0.0, 1.0, 1e6, 300.0, float("nan")])
    expected = [250.0, 0.25 * muon, 0.0, 1 / (2 * proton), 1e6 - proton, float("nan"), float("nan")]
    number = torch.zeros(7, dtype=torch.long)
    place = torch.zeros(7, 3)
    truth = ParticleTruth(
        track_id=number, species=number, mass=mass, momentum=momentum, momentum_vector=place, start=place, end=place,
        contained=number, primary=number, process=number, parent_pdg=number, parent_track_id=number,
    )  # fmt: skip
    assert truth.kinetic_energy.dtype == torch.float32
    torch.testing.assert_close(truth.kinetic_energy, torch.tensor(expected), equal_nan=True)
