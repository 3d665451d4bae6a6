"""PILArNet-M files made by hand, with h5py and pyarrow, against what a person would read in them."""

import math
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from larpanda.data import open_events
from larpanda.data.rows import Hdf5Rows, ParquetRows
from larpanda.event import UNKNOWN, CreationProcess, EventKey, Motif, Species

GEANT4 = Path(__file__).parent / "geant4_20_v3extra.h5"
NAN = math.nan

# One event by hand: 3 LED points, a muon, a photon in two fragments (the second is the larger, the first its own
# group), and a kaon, which has number 5 in some files. Group and interaction numbers have gaps.
CLUSTER = [
    # points, fragment, group, interaction, motif, species
    [3, -1, -1, -1, 4, -1],
    [2, 7, 7, 4, 1, 2],
    [1, 5, 5, 2, 0, 0],
    [2, 9, 5, 2, 0, 0],
    [1, 11, 11, 2, 1, 5],
]
EXTRA = [
    # mass MeV, momentum GeV/c, start, primary, then px, py, pz GeV/c, parent's PDG code and group
    [-1] * 11,
    [105.658, 0.5, 10, 20, 30, 1, 0.3, 0.4, 0.0, 0, 0],
    [0.0, 0.25, 1, 2, 3, 0, 0.0, 0.0, 0.25, 111, 8],
    [0.0, 0.125, 4, 5, 6, 0, 0.0, 0.125, 0.0, 22, 5],
    [493.677, 0.75, -4, -5, -6, 0, 0.75, 0.0, 0.0, 2212, 3],
]
OWN = [
    # end, contained, process
    [NAN, NAN, NAN, -1, -1],
    [15, 25, 35, 1, 0],
    [NAN, NAN, NAN, 0, 8],
    [7, 8, 9, 1, 4],
    [-1, -1, -1, -1, 10],
]
INTERACTION = [[2, 1.5, 2.5, 3.5], [4, 10, 20, 30]]
POINT = [[10 + i, 20, 30 + i, 0.25 * (i + 1), 0.5, 7, 1000, 0.3] for i in range(9)]

REVISIONS = {
    "v1": {"cluster": [row[:5] for row in CLUSTER]},
    "v2": {"cluster": CLUSTER, "cluster_extra": [row[:5] for row in EXTRA]},
    "v3": {"cluster": CLUSTER, "cluster_extra": [row[:6] for row in EXTRA]},
    "packed 9": {"cluster": CLUSTER, "cluster_extra": [row[:9] for row in EXTRA]},
    "packed 11": {"cluster": CLUSTER, "cluster_extra": EXTRA},
    "v3_extra": {
        "cluster": CLUSTER,
        "cluster_extra": [row[:6] for row in EXTRA],
        "cluster_extra_2": [row[6:] for row in EXTRA],
        "interaction_extra": INTERACTION,
    },
}


def row_of(revision):
    return {"point": POINT} | REVISIONS[revision]


def with_cluster(i, row):
    """The clusters by hand, but for one."""
    return {"cluster": [*CLUSTER[:i], row, *CLUSTER[i + 1 :]]}


def write_by_hand(path, rows, types=None):
    """Rows: [{name of a list: nested numbers}], a name missing in one row is an empty list there."""
    types = {"cluster": "int64"} | (types or {})
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        dtype = np.dtype(types.get(name, "float32"))
        columns[name] = dtype, [np.asarray(row.get(name, []), dtype).ravel() for row in rows]
    if path.suffix == ".parquet":
        arrays = {
            name: pa.array(values, pa.large_list(pa.from_numpy_dtype(dtype)))
            for name, (dtype, values) in columns.items()
        }
        pq.write_table(pa.table(arrays), path, row_group_size=2)
        return path
    with h5py.File(path, "w") as file:
        for name, (dtype, values) in columns.items():
            dataset = file.create_dataset(name, (len(rows),), h5py.vlen_dtype(dtype))
            for i, value in enumerate(values):
                dataset[i] = value
    return path


@pytest.fixture(params=[".h5", ".parquet"])
def path(request, tmp_path):
    return tmp_path / f"events{request.param}"


def read_one(path, row, types=None, **options):
    return open_events(write_by_hand(path, [row], types), **options)[0]


# What a file says


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_revision_and_container(path, revision):
    event = read_one(path, row_of(revision))
    assert event.position.tolist() == [row[:3] for row in POINT]
    assert event.energy.tolist() == [row[3] for row in POINT]
    assert event.motif.tolist() == [4, 4, 4, 1, 1, 0, 0, 0, 1]
    assert event.particle.tolist() == [-1, -1, -1, 1, 1, 0, 0, 0, 2]
    assert event.interaction.tolist() == [-1, -1, -1, 1, 1, 0, 0, 0, 0]
    v1 = revision == "v1"
    assert event.species.tolist() == ([-1] * 9 if v1 else [-1, -1, -1, 2, 2, 0, 0, 0, -1])
    assert str(event.key) == f"{path}: event 0"

    truth = event.particles
    assert truth.track_id.tolist() == [5, 7, 11]
    assert truth.species.tolist() == ([-1] * 3 if v1 else [0, 2, -1])
    known = revision not in ("v1", "v2")
    torch.testing.assert_close(truth.mass, torch.tensor([NAN] * 3 if v1 else [0, 105.658, 493.677]), equal_nan=True)
    torch.testing.assert_close(truth.momentum, torch.tensor([NAN] * 3 if v1 else [250.0, 500, 750]), equal_nan=True)
    start = torch.tensor([[1.0, 2, 3], [10, 20, 30], [-4, -5, -6]])
    torch.testing.assert_close(truth.start, start if known else torch.full((3, 3), NAN), equal_nan=True)
    assert truth.primary.tolist() == ([0, 1, 0] if known else [-1] * 3)

    vector = torch.tensor([[0, 0, 250.0], [300, 400, 0], [750, 0, 0]])
    with_vector, with_parent = revision in ("packed 9", "packed 11", "v3_extra"), revision in ("packed 11", "v3_extra")
    expected = vector if with_vector else torch.full((3, 3), NAN)
    torch.testing.assert_close(truth.momentum_vector, expected, equal_nan=True)
    assert truth.parent_pdg.tolist() == ([111, 0, 2212] if with_parent else [-1] * 3)
    assert truth.parent_track_id.tolist() == ([8, 0, 3] if with_parent else [-1] * 3)
    if revision == "v3_extra":
        assert event.vertex.tolist() == [[1.5, 2.5, 3.5], [10, 20, 30]]
    else:
        assert event.vertex is None
    assert truth.end.isnan().all()
    assert truth.contained.tolist() == truth.process.tolist() == [UNKNOWN] * 3


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("revision", ["v2", "v3_extra"])
def test_our_own_list_beside_any_revision(path, revision, dtype):
    truth = read_one(path, row_of(revision) | {"larpanda_truth": OWN}, {"larpanda_truth": dtype}).particles
    assert truth.end.dtype == torch.float32
    torch.testing.assert_close(truth.end, torch.tensor([[NAN] * 3, [15, 25, 35], [-1, -1, -1]]), equal_nan=True)
    assert truth.contained.tolist() == [0, 1, UNKNOWN]
    assert truth.process.tolist() == [CreationProcess.DECAY, CreationProcess.PRIMARY, CreationProcess.CAPTURE]
    assert truth.track_id.tolist() == [5, 7, 11]


def test_containment_and_processes_that_we_do_not_know_are_unknown(path):
    own = [OWN[0], [15, 25, 35, 2, 11], [1, 2, 3, NAN, NAN], OWN[3], [1, 2, 3, 0.5, -7]]
    truth = read_one(path, row_of("v3_extra") | {"larpanda_truth": own}).particles
    assert truth.contained.tolist() == truth.process.tolist() == [UNKNOWN] * 3
    assert not truth.end.isnan().any()


def test_reference_file_number_by_number():
    events = open_events(GEANT4)
    assert len(events) == 20
    with h5py.File(GEANT4) as file:
        for i, event in enumerate(events):
            point, cluster = file["point"][i].reshape(-1, 8), file["cluster"][i].reshape(-1, 6)
            assert np.array_equal(event.position, point[:, :3])
            assert np.array_equal(event.energy, point[:, 3])
            size, _, group, interaction, motif, species = cluster.T
            for ours, theirs in ((event.motif, motif), (event.species, species), (event.interaction, interaction)):
                assert np.array_equal(ours, np.repeat(theirs, size))
            track = np.append(event.particles.track_id, UNKNOWN)  # the last is what an id of -1 picks
            assert np.array_equal(track[event.particle], np.repeat(group, size))
            assert np.array_equal(event.vertex, file["interaction_extra"][i].reshape(-1, 4)[:, 1:])
            assert event.problem() is None


@pytest.mark.parametrize("locking", [None, False])
def test_the_user_may_have_the_same_file_open(locking):
    with h5py.File(GEANT4, locking=locking):
        assert len(open_events(GEANT4)[0]) == 5253
    events = open_events(GEANT4)
    assert len(events[0]) == 5253
    with h5py.File(GEANT4) as file:
        assert len(file["point"]) == len(events)


def test_reference_file_obeys_relativity_and_geometry():
    for event in open_events(GEANT4):
        truth = event.particles
        torch.testing.assert_close(truth.momentum_vector.norm(dim=1), truth.momentum, rtol=1e-5, atol=1e-3)
        muon = truth.species == Species.MUON
        assert torch.allclose(truth.mass[muon], torch.tensor(105.658), atol=0.01)
        primary = truth.primary == 1
        for particle in primary.nonzero().flatten():  # a primary begins where its interaction does
            interaction = event.interaction[event.particle == particle][0]
            assert torch.equal(truth.start[particle], event.vertex[interaction])


def test_a_kaon_is_not_led(path):
    event = read_one(path, row_of("v3_extra"))
    kaon = event.motif != Motif.LED
    kaon &= event.species == UNKNOWN
    assert event.particle[kaon].tolist() == [2]
    assert (event.particle[event.motif == Motif.LED] == UNKNOWN).all()


def test_led_belongs_to_nothing_whatever_a_file_says(path):
    row = row_of("v3") | with_cluster(0, [3, 40, 40, 30, 4, 1])
    event = read_one(path, row)
    for column in (event.species, event.particle, event.interaction):
        assert column[:3].tolist() == [UNKNOWN] * 3
    assert event.particles.track_id.tolist() == [5, 7, 11]
    assert event.interaction[3:].tolist() == [1, 1, 0, 0, 0, 0]


def test_the_largest_fragment_speaks_where_none_is_its_own_group(path):
    row = row_of("v3_extra")
    row["cluster"] = [[n, 6 if fragment == 5 else fragment, *rest] for n, fragment, *rest in CLUSTER]
    assert read_one(path, row).particles.momentum.tolist() == [125, 500, 750]


def test_masses_and_momenta_below_zero_are_unknown(path):
    row = row_of("v3")
    row["cluster_extra"] = [EXTRA[0][:6], [-1] * 6, *([-1, NAN, 1, 2, 3, 0] for _ in range(3))]
    truth = read_one(path, row).particles
    assert truth.mass.isnan().all()
    assert truth.momentum.isnan().all()
    assert truth.start.isnan().all(1).tolist() == [False, True, False]  # only where all of a row is -1
    assert truth.primary.tolist() == [0, -1, 0]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int32", "uint16", "uint8", ">f4", ">i8"])
def test_points_of_any_numeric_type(path, dtype):
    if path.suffix == ".parquet" and dtype[0] == ">":
        dtype = dtype[1:]  # Parquet knows no byte order
    row = {"point": [[1, 2, 3, 4, 4, 0, 0, 0], [200, 100, 50, 7, 7, 0, 0, 0]]}
    event = read_one(path, row, {"point": dtype})
    assert event.position.dtype == event.energy.dtype == torch.float32
    assert event.position.tolist() == [[1, 2, 3], [200, 100, 50]]
    assert event.energy.tolist() == [4, 7]


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", ">i4", "float32", "float64"])
def test_labels_of_any_numeric_type(path, dtype):
    if path.suffix == ".parquet" and dtype[0] == ">":
        dtype = dtype[1:]
    event = read_one(path, row_of("v2"), {"cluster": dtype, "cluster_extra": "float64"})
    assert event.particle.dtype == torch.int64
    assert event.particle.tolist() == [-1, -1, -1, 1, 1, 0, 0, 0, 2]


def test_integers_in_an_extra_table(path):
    truth = read_one(path, row_of("v3"), {"cluster_extra": "int16"}).particles
    assert truth.mass.tolist() == [0, 105, 493]


def test_parquet_with_lists_of_32_bit_offsets_and_nulls(tmp_path):
    point = np.ravel(POINT).tolist()
    cluster = pa.array([np.ravel(CLUSTER), None, []], pa.list_(pa.int32()))
    table = pa.table(
        {"point": pa.array([point, None, []], pa.list_(pa.float64())), "cluster": cluster, "n_points": [9, 0, 0]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    events = open_events(tmp_path / "a.parquet")
    assert [len(event) for event in events] == [9, 0, 0]
    assert [event.has_truth for event in events] == [True, False, False]


# The experiment's own numbers


def with_columns(path, **columns):
    """The file with more datasets or columns, as they are given."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values))
        pq.write_table(table, path, row_group_size=2)
    else:
        with h5py.File(path, "r+") as file:
            for name, values in columns.items():
                file[name] = values
    return path


@pytest.mark.parametrize("truth", [True, False])
@pytest.mark.parametrize(
    "columns",
    [
        {"run": [12, 12, 13, 14], "subrun": [0, 1, 0, -999], "event": [7, 2**62, 0, -1]},
        {"event": [5, 4, 3, 2]},
        {"run": [1, 1, 1, 1], "event": [5, 4, 3, 2]},
        {},
    ],
)
def test_numbers_of_the_experiment_are_in_the_keys(path, columns, truth):
    rows = [row_of("v3"), {"point": []}, {"point": POINT}, row_of("v3")]
    events = open_events(with_columns(write_by_hand(path, rows), **columns), truth=truth)
    expected = [EventKey(str(path), i, **{name: values[i] for name, values in columns.items()}) for i in range(4)]
    assert [event.key for event in events] == expected
    assert [events.key(i) for i in range(4)] == expected
    assert [events[i].key for i in (3, 0, 2)] == [expected[i] for i in (3, 0, 2)]
    assert all(type(getattr(events[0].key, name)) is int for name in ("run", "subrun", "event"))
    assert str(events[1].key) == f"{path}: event 1"
    assert pickle.loads(pickle.dumps(events))[2].key == expected[2]


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i4", ">i8"])
def test_numbers_of_any_integer_type(path, dtype):
    if path.suffix == ".parquet" and dtype[0] == ">":
        dtype = dtype[1:]
    events = open_events(with_columns(write_by_hand(path, many(3)), run=np.array([7, 0, 100], dtype)))
    assert [event.key.run for event in events] == [7, 0, 100]


def test_a_number_of_64_bits_without_sign_is_none(path):
    values = np.array([2**64 - 1, 2**63, 2**63 - 1], np.uint64)
    events = open_events(with_columns(write_by_hand(path, many(3)), event=values))
    assert [event.key.event for event in events] == [UNKNOWN, UNKNOWN, 2**63 - 1]


def test_nulls_of_parquet_are_unknown_and_event_id_is_no_number_of_the_experiment(tmp_path):
    path = write_by_hand(tmp_path / "a.parquet", many(5))
    with_columns(path, run=[None, 3, None, None, 4], subrun=[None] * 5, event_id=[50, 51, 52, 53, 54])
    events = open_events(path)
    assert [event.key.run for event in events] == [UNKNOWN, 3, UNKNOWN, UNKNOWN, 4]
    assert {(event.key.subrun, event.key.event) for event in events} == {(UNKNOWN, UNKNOWN)}


def test_numbers_that_are_no_integers(path):
    wrong = [("run", [1.0, 2.0, 3.0]), ("subrun", ["1", "2", "3"]), ("event", [True, False, True])]
    if path.suffix == ".parquet":
        wrong += [("run", [[1], [2], [3]]), ("event", [None, 1.5, None])]
    else:
        wrong += [("run", np.ones((3, 1), int)), ("event", 7)]
    for name, values in wrong:
        with_columns(write_by_hand(path, many(3)), **{name: values})
        with pytest.raises(ValueError, match=rf"events\.\w+: '{name}' is .*; expected one integer for each event"):
            open_events(path, truth=False)


def test_a_group_in_place_of_numbers(tmp_path):
    path = write_by_hand(tmp_path / "a.h5", many(3))
    with h5py.File(path, "r+") as file:
        file.create_group("run")
    with pytest.raises(ValueError, match=r"a\.h5: 'run' is <HDF5 group .*; expected one integer for each event"):
        open_events(path)


@pytest.mark.parametrize("truth", [True, False])
def test_more_or_fewer_numbers_than_events(tmp_path, truth):
    path = with_columns(write_by_hand(tmp_path / "a.h5", many(3)), run=[1, 2, 3], event=[1, 2])
    with pytest.raises(ValueError, match=r"a\.h5: 'event' has 2 events and 'point' 3; expected as many$"):
        open_events(path, truth=truth)


def test_an_event_that_cannot_be_read_keeps_its_numbers(path):
    rows = [row_of("v3"), row_of("v3") | {"point": POINT[:-1]}]
    events = open_events(with_columns(write_by_hand(path, rows), run=[8, 9]))
    with pytest.raises(ValueError, match="event 1: the sizes"):
        events[1]
    assert events.key(1) == EventKey(str(path), 1, run=9)


def test_numbers_that_cannot_be_read(path, monkeypatch):
    events = open_events(with_columns(write_by_hand(path, many(2)), run=[8, 9]))

    def breaks(self, key, entry):
        raise OSError("a bad block")

    monkeypatch.setattr(Hdf5Rows, "read", breaks)
    monkeypatch.setattr(ParquetRows, "read", breaks)
    with pytest.raises(ValueError, match=r"event 1: 'run' cannot be read \(a bad block\); copy the file again"):
        events[1]
    assert events.key(1) == EventKey(str(path), 1)


# Events of every size


def test_an_empty_event_and_one_of_one_voxel_have_their_place(path):
    one = {"point": POINT[:1], "cluster": [[1, -1, -1, -1, 4, -1]], "cluster_extra": [[-1] * 6]}
    led_only = {"point": [], "cluster": [[0, -1, -1, -1, 4, -1]], "cluster_extra": [[-1] * 6]}
    events = open_events(write_by_hand(path, [{"point": []}, one, row_of("v3"), led_only]))
    assert [len(event) for event in events] == [0, 1, 9, 0]
    assert [event.key.entry for event in events] == [0, 1, 2, 3]
    assert events[0].position.shape == (0, 3)
    assert events[1].motif.tolist() == [Motif.LED]
    assert len(events[1].particles) == len(events[3].particles) == 0
    assert all(event.problem() is None for event in events)


def test_duplicate_voxels_stay_rows_of_their_own(path):
    row = row_of("v3") | {"point": [POINT[0]] * 9}
    event = read_one(path, row)
    assert len(event) == 9
    visible, point = event.visible()
    assert len(visible) == 1
    assert point.tolist() == [0] * 9
    assert visible.motif.tolist() == [Motif.TRACK]


def test_labels_for_some_events_only(path):
    events = open_events(write_by_hand(path, [{"point": POINT}, row_of("v3_extra"), {"point": POINT}]))
    assert [event.has_truth for event in events] == [False, True, False]
    for column in ("motif", "species", "particle", "interaction"):
        assert (getattr(events[0], column) == UNKNOWN).all()
    assert events[0].particles is None
    assert events[0].vertex is None


def test_extras_for_some_events_only(path):
    rows = [{"point": POINT, "cluster": CLUSTER}, row_of("v3_extra") | {"larpanda_truth": OWN}]
    bare, full = open_events(write_by_hand(path, rows))
    assert bare.particle.tolist() == full.particle.tolist()
    assert bare.particles.track_id.tolist() == [5, 7, 11]
    assert bare.particles.momentum.isnan().all()
    assert bare.particles.end.isnan().all()
    assert bare.particles.process.tolist() == [UNKNOWN] * 3
    assert full.particles.process.tolist() == [8, 0, 10]
    assert bare.vertex is None


def test_a_file_of_points_alone(path):
    event = read_one(path, {"point": POINT})
    assert len(event) == 9
    assert not event.has_truth


def test_interactions_of_no_vertex_of_two_and_of_no_cluster(path):
    row = row_of("v3_extra") | {"interaction_extra": [[4, 1, 2, 3], [9, 7, 7, 7], [4, 8, 8, 8]]}
    torch.testing.assert_close(read_one(path, row).vertex, torch.tensor([[NAN] * 3, [1, 2, 3]]), equal_nan=True)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [(3, NAN, "1 of 9 energies"), (3, -0.5, "1 of 9 energies"), (3, math.inf, "1 of 9 energies"),
     (0, NAN, "1 of 9 positions"), (1, 768, "1 of 9 positions"), (2, -1, "1 of 9 positions"),
     (2, 3.5, "1 of 9 positions")],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"energy_scale": 2.0, "voxel_mm": 3.3}])
def test_unphysical_points_are_given_as_they_are(path, column, value, message, options):
    row = row_of("v3") | {"point": [list(point) for point in POINT]}
    row["point"][4][column] = value
    bad, good = open_events(write_by_hand(path, [row, row_of("v3")]), **options)
    assert len(bad) == 9
    assert message in bad.problem()
    assert good.problem() is None


def test_a_number_too_large_for_float32_is_found(path):
    row = {"point": [[1, 2, 3, 1e300, 0, 0, 0, 0]]}
    assert "energies" in read_one(path, row, {"point": "float64"}).problem()


# Which revision a file is


def many(n, **changes):
    return [row_of("v3") | changes for _ in range(n)]


def v1_of_six_clusters():
    """30 numbers: 6 clusters of 5, or 5 of 6."""
    cluster = [[4, -1, -1, -1, 4]] + [[1, i, i, 0, 1] for i in range(5)]
    return {"point": POINT, "cluster": cluster}


def test_a_length_that_fits_two_revisions(path):
    event = read_one(path, v1_of_six_clusters())
    assert event.motif.tolist() == [4, 4, 4, 4, 1, 1, 1, 1, 1]
    v2_without_extra = {"point": POINT, "cluster": CLUSTER}
    assert read_one(path, v2_without_extra).motif.tolist() == [4, 4, 4, 1, 1, 0, 0, 0, 1]


def test_a_faulty_first_event_does_not_decide_for_its_file(path):
    short = row_of("v3") | {"cluster_extra": [row[:5] for row in EXTRA]}  # as long as a row of v2
    events = open_events(write_by_hand(path, [short, *many(3)]))
    assert events[1].particles.primary.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match=r"event 0: 'cluster_extra' has 25 numbers; expected 6 .*30 for 5"):
        events[0]


def test_the_revision_does_not_depend_on_which_event_is_read_first(path):
    rows = [v1_of_six_clusters() | {"point": POINT[:8]}, v1_of_six_clusters(), v1_of_six_clusters()]
    events = open_events(write_by_hand(path, rows))
    assert events[2].motif.tolist() == [4, 4, 4, 4, 1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"event 0: the sizes in 'cluster' .*sum to 9; expected 8"):
        events[0]


def test_a_v1_file_of_one_faulty_event_is_read_as_v1(path):
    row = {"point": POINT, "cluster": [[2, -1, -1, -1, 4], [3, 1, 1, 0, 1], [1, 2, 2, 0, 0]]}
    with pytest.raises(ValueError, match="sum to 6; expected 9"):
        read_one(path, row)


# Faults of one event


FAULTS = {
    "point": ({"point": np.ravel(POINT)[:-1]}, "'point' has 71 numbers; expected 8 for each voxel"),
    "sizes": ({"point": POINT[:-1]}, r"sizes in 'cluster' .*sum to 9; expected 8"),
    "negative size": (with_cluster(4, [-1, 11, 11, 2, 1, 5]), r"sizes in 'cluster' \(the smallest is -1\)"),
    "cluster": ({"cluster": np.ravel(CLUSTER)[:-2]}, "'cluster' has 28 numbers; expected 6"),
    "motif": (with_cluster(4, [1, 11, 11, 2, 5, 4]), r"'cluster' has motif 5 for cluster 4; expected 0\.\.4"),
    "extra": ({"cluster_extra": np.ravel(EXTRA)[:29]}, "'cluster_extra' has 29 numbers; expected 6 .* 30 for 5"),
    "extra without cluster": ({"cluster": []}, "sizes in 'cluster' .*sum to 0; expected 9"),
    "extra 2": ({"cluster_extra_2": [1, 2, 3]}, "'cluster_extra_2' has 3 numbers; expected 5 .* 25 for 5"),
    "interaction": ({"interaction_extra": [1, 2, 3]}, "'interaction_extra' has 3 numbers; expected 4"),
    "our own": ({"larpanda_truth": np.ravel(OWN)[:24]}, "'larpanda_truth' has 24 numbers; expected 5 .* 25 for 5"),
    "fraction": (with_cluster(4, [1, 11, 11.5, 2, 1, 4]), r"'cluster' has 1, 11, 11\.5, .* whole numbers"),
    "nan": (with_cluster(4, [1, 11, NAN, 2, 1, 4]), "'cluster' has 1, 11, nan, .* whole numbers"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_its_place_and_leaves_the_others_readable(path, fault):
    change, message = FAULTS[fault]
    rows = [row_of("v3_extra"), row_of("v3_extra") | change, row_of("v3_extra")]
    events = open_events(write_by_hand(path, rows, {"cluster": "float64"}))
    with pytest.raises(ValueError, match=message) as caught:
        events[1]
    assert f"{path}: event 1: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [len(events[i]) for i in (0, 2)] == [9, 9]
    if fault != "point":
        assert len(open_events(path, truth=False)[1]) == len(change.get("point", POINT))


# Faults of a file


def test_text_with_the_name_of_a_file_of_events(path):
    path.write_text("hello, this is not what its name says\n")
    with pytest.raises(ValueError, match=r"events\.\w+: not (HDF5|Parquet), .*begins with b'hello"):
        open_events(path)


def test_an_empty_file(path):
    path.touch()
    with pytest.raises(ValueError, match="is empty \\(0 bytes\\)"):
        open_events(path)


@pytest.mark.parametrize("keep", [0.2, 0.9])
def test_a_truncated_file(path, keep):
    whole = write_by_hand(path, many(50)).read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ValueError, match="truncated") as caught:
        open_events(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("signature", [b"HEAP", b"SNOD", b"TREE"])
def test_a_file_whose_names_cannot_be_listed(tmp_path, signature):
    path = write_by_hand(tmp_path / "a.h5", many(3))
    path.write_bytes(path.read_bytes().replace(signature, b"OOPS"))
    with pytest.raises(ValueError, match=r"a\.h5: this HDF5 file is truncated or damaged"):
        open_events(path)


def test_no_points(path):
    write_by_hand(path, [{"cluster": CLUSTER, "energy": [1.0]}])
    with pytest.raises(ValueError, match=r"it has no 'point' \(it has: cluster, energy\)"):
        open_events(path)


def test_lists_of_unequal_numbers_of_events(tmp_path):
    path = write_by_hand(tmp_path / "a.h5", many(3))
    with h5py.File(path, "r+") as file:
        del file["cluster"]
        file.create_dataset("cluster", (2,), h5py.vlen_dtype("int64"))
    with pytest.raises(ValueError, match="'cluster' has 2 events and 'point' 3"):
        open_events(path)
    assert len(open_events(path, truth=False)) == 3


def test_points_that_are_no_lists_of_numbers(tmp_path):
    with h5py.File(tmp_path / "table.h5", "w") as file:
        file["point"] = np.zeros((3, 8))
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("point")
    with h5py.File(tmp_path / "text.h5", "w") as file:
        file["point"] = ["a", "b"]
    pq.write_table(pa.table({"point": [["a"], ["b"]]}), tmp_path / "text.parquet")
    pq.write_table(pa.table({"point": [1.0, 2.0]}), tmp_path / "numbers.parquet")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match="expected one list of numbers for each event"):
            open_events(path)


def test_the_index_beside_a_file_is_not_needed_and_not_believed(tmp_path):
    path = write_by_hand(tmp_path / "a.h5", many(3))
    np.save(tmp_path / "a_points.npy", [1, 2, 3, 4])
    assert [len(event) for event in open_events(path)] == [9, 9, 9]
    (tmp_path / "a_points.npy").write_text("rubbish")
    assert [len(event) for event in open_events(path)] == [9, 9, 9]


# Reading one event is not reading the file


def test_one_event_touches_one_row_of_hdf5(tmp_path, monkeypatch):
    events = open_events(write_by_hand(tmp_path / "a.h5", [row_of("v3_extra")] * 12))
    events[0]  # the revision is found with the first events
    touched = set()
    getitem = h5py.Dataset.__getitem__

    def spy(dataset, index):
        touched.add((dataset.name, index))
        return getitem(dataset, index)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    events[7]
    assert touched == {(f"/{name}", 7) for name in row_of("v3_extra")}
    touched.clear()
    open_events(tmp_path / "a.h5", truth=False)[9]
    assert touched == {("/point", 9)}


def test_parquet_in_order_reads_each_row_group_once(tmp_path, monkeypatch):
    events = open_events(write_by_hand(tmp_path / "a.parquet", many(20)), truth=False)
    read = []
    read_row_group = pq.ParquetFile.read_row_group

    def spy(file, group, columns, **options):
        read.append((group, *columns))
        return read_row_group(file, group, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    assert sum(len(event) for event in events) == 180
    assert read == [(group, "point") for group in range(10)]
    read.clear()
    events[5]
    assert read == [(2, "point")]


def test_an_open_file_can_be_sent_to_another_process(path):
    events = open_events(write_by_hand(path, many(3)))
    before = events[1]
    copy = pickle.loads(pickle.dumps(events))
    assert copy[1].energy.tolist() == before.energy.tolist()
    assert copy[1].particles.momentum.tolist() == before.particles.momentum.tolist()


def test_a_child_process_opens_the_file_itself(path, monkeypatch):
    events = open_events(write_by_hand(path, many(3)))
    before = events[1]
    monkeypatch.setattr(os, "getpid", lambda: 123456789)
    assert events[1].energy.tolist() == before.energy.tolist()
    assert events._parts[0]._process == 123456789


# Units and pitches


def test_energy_scale(path):
    event = read_one(path, row_of("v3"), energy_scale=1e-3)
    torch.testing.assert_close(event.energy, torch.tensor([row[3] for row in POINT]) * 1e-3)


@pytest.mark.parametrize("pitch", [1.0, 2.5, 3.0, 4.0, 4.5, 5.0, 6.0])
def test_another_pitch_puts_centres_into_our_voxels(path, pitch):
    index = np.random.default_rng(0).integers(0, int(768 * 3 / pitch), (200, 3))
    row = row_of("v3_extra") | {"point": np.column_stack([index, np.ones((200, 5))]), "larpanda_truth": OWN}
    row["cluster"] = [[193, *CLUSTER[0][1:]], *([2, *c[1:]] for c in CLUSTER[1:3]), *CLUSTER[3:]]
    event = read_one(path, row, voxel_mm=pitch)
    centre_mm = (index + 0.5) * pitch
    low_mm = event.position.numpy() * 3.0
    assert ((low_mm <= centre_mm + 1e-9) & (centre_mm < low_mm + 3 + 1e-9)).all()
    assert event.problem() is None
    same = read_one(path, row)
    torch.testing.assert_close(event.particles.start, same.particles.start * pitch / 3)
    torch.testing.assert_close(event.particles.end, same.particles.end * pitch / 3, equal_nan=True)
    torch.testing.assert_close(event.vertex, same.vertex * pitch / 3)
