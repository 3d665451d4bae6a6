"""What write_events makes: a file in the layout v3_extra, whole or not at all, that open_events gives back equal."""

import contextlib
import math
import os
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from larpanda.data import open_events, write_events
from larpanda.data.rows import read_rows
from larpanda.event import UNKNOWN, CreationProcess, Event, EventKey, Motif, ParticleTruth

GEANT4 = Path(__file__).parent / "geant4_20_v3extra.h5"
NAN = math.nan


@pytest.fixture(params=[".h5", ".parquet"])
def path(request, tmp_path):
    return tmp_path / f"events{request.param}"


def assert_equal(a, b):
    """Every field of Event but the key, to the last bit; NaN is equal to NaN."""
    for name in ("position", "energy", "motif", "species", "particle", "interaction", "vertex"):
        assert_same(getattr(a, name), getattr(b, name), name)
    assert (a.particles is None) == (b.particles is None)
    if a.particles is not None:
        for field in fields(ParticleTruth):
            assert_same(getattr(a.particles, field.name), getattr(b.particles, field.name), field.name)


def assert_same(a, b, name):
    if a is None or b is None:
        assert a is b, name
        return
    assert a.dtype == b.dtype, name
    np.testing.assert_array_equal(a, b, err_msg=name)


def back(path, events):
    write_events(path, events)
    return open_events(path)


def test_reference_events_come_back_equal_row_by_row(path):
    events = open_events(GEANT4)
    again = back(path, events)
    assert len(again) == 20
    for a, b in zip(events, again, strict=True):
        assert_equal(a, b)


def numbers(low, high):
    """float32, NaN among them: what is not known."""
    return st.floats(low, high, width=32) | st.just(NAN)


def tensors(element, *shape, dtype=torch.int64):
    size = math.prod(shape)
    return st.lists(element, min_size=size, max_size=size).map(lambda x: torch.tensor(x, dtype=dtype).reshape(shape))


def truth_about(p):
    """Tables of p particles, any of their numbers unknown."""

    def real(low, *shape):
        return tensors(numbers(low, 1e5), *shape, dtype=torch.float32)

    return st.builds(
        ParticleTruth,
        track_id=st.sets(st.integers(0, 2**40), min_size=p, max_size=p).map(lambda x: torch.tensor(sorted(x)).long()),
        species=tensors(st.integers(-1, 4), p),
        mass=real(0, p),
        momentum=real(0, p),
        momentum_vector=real(-1e5, p, 3),
        start=real(-1e5, p, 3),
        end=real(-1e5, p, 3),
        contained=tensors(st.integers(-1, 1), p),
        primary=tensors(st.integers(-1, 1), p),
        process=tensors(st.integers(-1, len(CreationProcess) - 1), p),
        parent_pdg=tensors(st.sampled_from([-1, 0, 13, -211, 1000180400]), p),
        parent_track_id=tensors(st.integers(-1, 2**40), p),
    )


@st.composite
def any_event(draw):
    """Any points with any labels; tables of as many particles and interactions as the points show, or some more."""
    n = draw(st.integers(0, 12))
    led = st.just((4, -1, -1, -1))
    other = st.tuples(st.integers(-1, 3), st.integers(-1, 4), st.integers(-1, 3), st.integers(-1, 2))
    labels = np.array(draw(st.lists(led | other, min_size=n, max_size=n)), np.int64).reshape(n, 4).T
    voxel = draw(tensors(st.integers(0, 767), n, 3))
    energy = draw(tensors(st.floats(0, 1e4, width=32), n, dtype=torch.float32))
    event = Event.from_arrays(voxel, energy, *labels)
    p, k = (max(ids.tolist(), default=-1) + 1 + draw(st.integers(0, 2)) for ids in (event.particle, event.interaction))
    vertex = tensors(numbers(-1e3, 1e3), k, 3, dtype=torch.float32)
    return replace(event, particles=draw(st.none() | truth_about(p)), vertex=draw(st.none() | vertex))


def rows_of(event):
    columns = (event.energy, event.motif, event.species, event.particle, event.interaction)
    return list(zip(map(tuple, event.position.tolist()), *(column.tolist() for column in columns), strict=True))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(any_event(), max_size=3), st.sampled_from([".h5", ".parquet"]))
def test_any_events_come_back_equal(events, suffix):
    with tempfile.TemporaryDirectory() as folder:
        again = back(Path(folder) / f"a{suffix}", events)
        assert len(again) == len(events)
        for a, b in zip(events, again, strict=True):
            led = a.motif == Motif.LED
            if not led[: int(led.sum())].all():  # rows had to move: the same points, in another order
                assert sorted(rows_of(a)) == sorted(rows_of(b))
                assert (b.motif[: int(led.sum())] == Motif.LED).all()
                columns = ("position", "energy", "motif", "species", "particle", "interaction")
                a = replace(a, **{name: getattr(b, name) for name in columns})
            assert_equal(a, b)


def test_a_written_file_keeps_the_rules_of_the_layout(tmp_path):
    rng = np.random.default_rng(4)
    particle = rng.integers(-1, 6, 400)
    motif = np.where(particle < 0, 4, particle % 4)
    event = Event.from_arrays(rng.integers(0, 768, (400, 3)), rng.random(400), motif, None, particle, particle // 2)
    empty = Event.from_arrays([], [])
    write_events(tmp_path / "a.h5", [event, empty])
    assert np.load(tmp_path / "a_points.npy").tolist() == [400, 0]
    with h5py.File(tmp_path / "a.h5") as file:
        assert h5py.check_vlen_dtype(file["cluster"].dtype) == np.int64
        assert h5py.check_vlen_dtype(file["point"].dtype) == np.float32
        assert [len(file[name][1]) for name in file] == [0] * 5
        cluster = file["cluster"][0].reshape(-1, 6)
        size, fragment, group, interaction, written_motif, species = cluster.T
        assert len(file["cluster_extra"][0]) == 6 * len(cluster)
        assert len(file["cluster_extra_2"][0]) == 5 * len(cluster)
        point = file["point"][0].reshape(-1, 8)
    assert np.array_equal(point[:, 3], point[:, 4])
    assert np.isnan(point[:, 5:]).all()
    assert size.sum() == 400
    assert cluster[0].tolist() == [(particle < 0).sum(), -1, -1, -1, 4, -1]
    assert (written_motif[1:] != 4).all()
    assert len(set(fragment)) == len(fragment)
    assert group[1:].tolist() == list(range(6))  # shuffled points come together again, one cluster each
    assert np.array_equal(fragment, group)
    assert interaction[1:].tolist() == [0, 0, 1, 1, 2, 2]
    assert (species == -1).all()


def with_ends(event, seed=0):
    """The event, with the truth that v3_extra has no column for."""
    rng, p = np.random.default_rng(seed), len(event.particles)
    end = torch.from_numpy(rng.uniform(-1e3, 1e3, (p, 3)).astype(np.float32))
    end[rng.random(p) < 0.3] = NAN
    contained, process = (torch.from_numpy(rng.integers(-1, top, p)) for top in (2, len(CreationProcess)))
    return replace(event, particles=replace(event.particles, end=end, contained=contained, process=process))


def names_in(path):
    if path.suffix == ".parquet":
        return pq.read_schema(path).names
    with h5py.File(path) as file:
        return list(file)


V3_EXTRA = {"point", "cluster", "cluster_extra", "cluster_extra_2", "interaction_extra"}


def test_what_v3_extra_has_no_column_for_lies_in_a_list_of_its_own(tmp_path):
    event = with_ends(open_events(GEANT4)[0])
    write_events(tmp_path / "plain.h5", open_events(GEANT4)[:1])
    write_events(tmp_path / "a.h5", [event])
    truth = event.particles
    with h5py.File(tmp_path / "a.h5") as file, h5py.File(tmp_path / "plain.h5") as plain:
        for name in V3_EXTRA:  # another loader reads by name, and finds what it would have found
            np.testing.assert_array_equal(file[name][0], plain[name][0])
        group = file["cluster"][0].reshape(-1, 6)[:, 2].tolist()
        own = file["larpanda_truth"][0].reshape(-1, 5)
    assert len(own) == len(group)
    row_of = {track: row for row, track in enumerate(truth.track_id.tolist())}
    for track, row in zip(group, own, strict=True):
        particle = row_of.get(track)
        expected = [NAN, NAN, NAN, -1, -1]
        if particle is not None:
            expected = [*truth.end[particle].tolist(), int(truth.contained[particle]), int(truth.process[particle])]
        np.testing.assert_array_equal(row, expected)


def test_a_file_has_our_list_only_if_an_event_has_something_in_it(path):
    events = list(open_events(GEANT4)) * 6  # of Parquet two row groups, and the list begins in the third
    none_known = back(path, events)
    assert set(names_in(path)) - {"n_points", "event_id"} == V3_EXTRA
    unknown = none_known[0].particles
    assert unknown.end.isnan().all()
    assert (unknown.contained == UNKNOWN).all()
    assert (unknown.process == UNKNOWN).all()
    before = names_in(path)

    events[103] = with_ends(events[103])
    again = back(path, events)
    assert set(names_in(path)) == {*before, "larpanda_truth"}
    assert names_in(path)[-1] == "larpanda_truth" or path.suffix == ".h5"  # which keeps names by the alphabet
    for a, b in zip(events, again, strict=True):
        assert_equal(a, b)
    assert {p.name for p in path.parent.iterdir()} <= {path.name, "events_points.npy"}


@pytest.mark.parametrize("column", ["end", "contained", "process"])
def test_one_known_number_is_enough_for_our_list(path, column):
    event = open_events(GEANT4)[2]
    values = getattr(event.particles, column).clone()
    values[1] = 1
    event = replace(event, particles=replace(event.particles, **{column: values}))
    assert_equal(back(path, [event])[0], event)


NUMBERS = ("run", "subrun", "event")


def numbers_in(path):
    """The experiment's own numbers as the file has them."""
    if path.suffix == ".parquet":
        return [tuple(row.values()) for row in pq.read_table(path, columns=list(NUMBERS)).to_pylist()]
    with h5py.File(path) as file:
        assert {file[name].dtype for name in NUMBERS} == {np.dtype("int64")}
        return list(zip(*(file[name][:].tolist() for name in NUMBERS), strict=True))


def test_the_experiments_own_numbers_come_back(path):
    given = [{"run": 12, "subrun": 0, "event": 2**62}, {"event": np.int64(4)}, {}, {"run": -999}]
    events = [Event.from_arrays([[i, 2, 3]], [1.0], **numbers) for i, numbers in enumerate(given)]
    again = back(path, events)
    assert [event.key for event in again] == [EventKey(str(path), i, **numbers) for i, numbers in enumerate(given)]
    none = None if path.suffix == ".parquet" else UNKNOWN
    assert numbers_in(path) == [(12, 0, 2**62), (none, none, 4), (none, none, none), (-999, none, none)]
    assert [(row.run, row.subrun, row.event) for row in read_rows(path)] == [
        (key.run, key.subrun, key.event) for key in (event.key for event in again)
    ]
    other = path.with_name(f"other{path.suffix}")
    assert [event.key for event in back(other, again)] == [replace(event.key, file=str(other)) for event in again]


def test_a_file_has_numbers_only_if_an_event_has_one(path):
    plain = [replace(event, key=None) for event in open_events(GEANT4)] * 6  # of Parquet two row groups and some more
    write_events(path, plain)
    bare, without = names_in(path), path.read_bytes()
    assert set(bare) - {"n_points", "event_id"} == V3_EXTRA
    write_events(path, [replace(event, key=EventKey("a.h5", i)) for i, event in enumerate(plain)])
    assert path.read_bytes() == without

    numbered, ended = replace(plain[0], key=EventKey("a.h5", 0, subrun=3)), with_ends(plain[0])
    for first, second in ((numbered, ended), (ended, numbered)):
        events = [*plain[:60], first, *plain[61:110], second, *plain[111:]]
        again = back(path, events)
        expected = [*bare, "larpanda_truth", *NUMBERS]  # whichever came first
        assert names_in(path) == (expected if path.suffix == ".parquet" else sorted(expected))
        assert [event.key.subrun for event in again] == [3 if event is numbered else UNKNOWN for event in events]
        assert {event.key.run for event in again} == {UNKNOWN}
        for a, b in zip(events, again, strict=True):
            assert_equal(a, b)
        assert {p.name for p in path.parent.iterdir()} <= {path.name, "events_points.npy"}


def test_who_cannot_be_written_is_named_by_its_numbers(path):
    event = replace(Event.from_arrays([[1, 2, 3]], [1.0], run=5, event=8), energy=torch.tensor([NAN]))
    with pytest.raises(ValueError, match=r"event 0 \(run 5, event 8\) cannot be written"):
        write_events(path, [event])


def test_fragments_that_lie_apart_stay_apart(tmp_path):
    particle = np.array([-1, 1, 1, 0, 2, 0, 0])  # of particle 0 one point, then two
    motif = np.where(particle < 0, 4, 0)
    write_events(tmp_path / "a.h5", [Event.from_arrays(np.zeros((7, 3)), np.ones(7), motif, None, particle)])
    with h5py.File(tmp_path / "a.h5") as file:
        size, fragment, group, *_ = file["cluster"][0].reshape(-1, 6).T
    assert size.tolist() == [1, 2, 1, 1, 2]
    assert group.tolist() == [-1, 1, 0, 2, 0]
    assert fragment.tolist() == [-1, 1, 3, 2, 0]  # the larger of the two speaks for its particle


def test_parquet_says_how_many_points_and_which_event(tmp_path):
    events = [Event.from_arrays([[i, 0, 0]] * (i % 3), [1.0] * (i % 3)) for i in range(120)]
    write_events(tmp_path / "a.parquet", iter(events))
    file = pq.ParquetFile(tmp_path / "a.parquet")
    table = file.read()
    assert table["n_points"].to_pylist() == [i % 3 for i in range(120)]
    assert table["event_id"].to_pylist() == list(range(120))
    assert file.metadata.num_row_groups == 3
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert [len(event) for event in open_events(tmp_path / "a.parquet")] == [i % 3 for i in range(120)]


def test_no_events_at_all(path):
    assert len(back(path, [])) == 0


def test_the_same_events_give_the_same_bytes(path):
    write_events(path, open_events(GEANT4)[:3])
    first = path.read_bytes()
    write_events(path, open_events(GEANT4)[:3])
    assert path.read_bytes() == first


def test_a_file_can_be_written_over_while_it_is_read(path):
    events = back(path, open_events(GEANT4)[:4])
    write_events(path, events[1:3])
    assert [len(event) for event in open_events(path)] == [len(event) for event in open_events(GEANT4)[1:3]]


@pytest.mark.parametrize("has_particles", [True, False])
@pytest.mark.parametrize("has_vertex", [True, False])
@pytest.mark.parametrize("n", [0, 3])
def test_a_table_of_nothing_is_not_the_same_as_no_table(path, n, has_particles, has_vertex):
    led = Event.from_arrays(np.zeros((n, 3)), np.ones(n), np.full(n, 4))
    full = open_events(GEANT4)[0].particles
    none = ParticleTruth(*(getattr(full, field.name)[:0] for field in fields(ParticleTruth)))
    event = replace(led, particles=none if has_particles else None, vertex=torch.empty(0, 3) if has_vertex else None)
    assert_equal(back(path, [event])[0], event)


def test_particles_and_interactions_that_no_point_shows_are_kept(path):
    full = next(event for event in open_events(GEANT4) if len(event.vertex) > 2)
    chosen = (full.particle == 3) | (full.motif == Motif.LED)
    columns = ("position", "energy", "motif", "species", "particle", "interaction")
    event = replace(full, **{name: getattr(full, name)[chosen] for name in columns})
    assert 1 < len(event) < len(full)
    assert_equal(back(path, [event])[0], event)


def geant4(**changes):
    return replace(open_events(GEANT4)[0], **changes)


def same_track_twice():
    truth = open_events(GEANT4)[0].particles
    return replace(truth, track_id=truth.track_id.clamp(max=1))


def first_particle(**changes):
    """Truth of an event, in which columns of the first particle are something else."""
    truth = open_events(GEANT4)[0].particles
    columns = {name: torch.cat([torch.tensor([x]), getattr(truth, name)[1:]]) for name, x in changes.items()}
    return geant4(particles=replace(truth, **columns))


def led_with_particle():
    return Event.from_arrays([[1, 2, 3]], [1.0], [4], None, [0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(Event.from_arrays([[1, 2, 3]], [1.0]), energy=torch.tensor([NAN])), "energies are NaN"),
        (lambda: replace(Event.from_arrays([[1, 2, 3]], [1.0]), position=torch.tensor([[0.5, 0, 0]])), "positions"),
        (led_with_particle, "1 LED points have a particle"),
        (lambda: replace(led_with_particle(), motif=torch.tensor([5])), r"motif spans 5\.\.5; expected 0\.\.4"),
        (lambda: geant4(vertex=torch.zeros(1, 3)), r"interaction spans -1\.\.\d; expected 0\.\.0"),
        (lambda: first_particle(primary=2), r"primary spans 0\.\.2; expected 0\.\.1, or -1 for unknown"),
        (lambda: first_particle(contained=-2), r"contained spans -2\.\.-1; expected 0\.\.1"),
        (lambda: first_particle(process=11), r"process spans -1\.\.11; expected 0\.\.10"),
        (lambda: geant4(particles=same_track_twice()), r"track_id is \[1, 1, "),
    ],
)
def test_an_event_that_would_not_come_back_is_refused(path, make, message):
    good = Event.from_arrays([[1, 2, 3]], [1.0])
    with pytest.raises(ValueError, match=message) as caught:
        write_events(path, [good, make()])
    assert "event 1" in str(caught.value)
    assert list(path.parent.iterdir()) == []


def test_what_goes_wrong_on_the_way_leaves_the_old_file_and_nothing_else(path):
    write_events(path, open_events(GEANT4)[:2])
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}

    def breaks():
        yield open_events(GEANT4)[5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_events(path, breaks())
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


@pytest.fixture
def public_path(path):
    """As `path`, in a folder that every user can look into."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / path.name


@contextlib.contextmanager
def without_privileges():
    """Root may write everywhere: be nobody for a while."""
    if not hasattr(os, "geteuid"):
        pytest.skip("permissions of folders are tested on POSIX systems")
    is_root = os.geteuid() == 0
    if is_root:
        try:
            os.seteuid(65534)
        except PermissionError:
            pytest.skip("root that may not become another user")
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_folder_that_may_not_be_written_to(public_path):
    public_path.parent.chmod(0o555)
    with without_privileges(), pytest.raises(PermissionError) as caught:
        write_events(public_path, [])
    assert str(caught.value) == f"[Errno 13] cannot write: Permission denied: '{public_path}'"
    assert list(public_path.parent.iterdir()) == []


def test_a_file_that_may_not_be_read(public_path):
    write_events(public_path, [])
    public_path.chmod(0o000)
    with without_privileges(), pytest.raises(PermissionError) as caught:
        open_events(public_path)
    assert str(caught.value) == f"[Errno 13] Permission denied: '{public_path}'"


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_places_where_no_file_can_be(tmp_path, suffix):
    (tmp_path / "file").touch()
    (tmp_path / f"folder{suffix}").mkdir()
    for parent in ("file", "none"):
        with pytest.raises(FileNotFoundError, match=rf"a\{suffix}: there is no folder .*{parent}; make it first"):
            write_events(tmp_path / parent / f"a{suffix}", [])
    with pytest.raises(IsADirectoryError, match="this is a folder"):
        write_events(tmp_path / f"folder{suffix}", [])


def test_a_name_that_tells_no_format(tmp_path):
    with pytest.raises(ValueError, match=r"a\.npz: .*ends in \.h5, \.hdf5, \.parquet"):
        write_events(tmp_path / "a.npz", [])
