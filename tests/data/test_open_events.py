"""Files, folders, globs and the generator as one sequence."""

import os
import pickle
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import larpanda.data
from larpanda.data import entries_of, median_energy_warning, open_events, write_events
from larpanda.data.stream import Subset, drawn
from larpanda.event import UNKNOWN, Event, EventKey


def numbered(first, n, energy=1.0):
    """Events that can be told apart: event i is one voxel, at x + 700 y = i."""
    return [Event.from_arrays([[i % 700, i // 700, 0]], [energy], [1], None, [0]) for i in range(first, first + n)]


def number(event):
    x, y, _ = event.position[0].tolist()
    return x + 700 * y


@pytest.fixture
def folder(tmp_path):
    """Ten events in four files: b.parquet 0..2, deep/a.h5 3..4, deep/empty.h5, z.HDF5 5..9, and things beside them."""
    (tmp_path / "deep").mkdir()
    write_events(tmp_path / "b.parquet", numbered(0, 3))
    write_events(tmp_path / "deep" / "a.h5", numbered(3, 2))
    write_events(tmp_path / "deep" / "empty.h5", [])
    write_events(tmp_path / "z.HDF5", numbered(5, 5))
    (tmp_path / "README.txt").write_text("not events")
    (tmp_path / "unfinished.h5.17.part").write_text("not events either")
    return tmp_path


# What a source can be


def test_a_file(folder):
    for source in (folder / "z.HDF5", str(folder / "z.HDF5")):
        events = open_events(source)
        assert [number(event) for event in events] == [5, 6, 7, 8, 9]
        assert events[2].key == EventKey(str(folder / "z.HDF5"), 2)


def test_a_folder_with_all_below_it_in_order_of_names(folder):
    events = open_events(folder)
    assert [number(event) for event in events] == list(range(10))
    assert events[3].key == EventKey(str(folder / "deep" / "a.h5"), 0)


def test_globs(folder):
    assert [number(event) for event in open_events(str(folder / "*"))] == list(range(10))
    assert [number(event) for event in open_events(str(folder / "deep" / "?.h5"))] == [3, 4]
    assert [number(event) for event in open_events(str(folder / "**" / "*.h5"))] == [3, 4]


def test_a_name_with_brackets_is_a_name_if_there_is_such_a_file(tmp_path):
    write_events(tmp_path / "run[1].h5", numbered(0, 2))
    assert len(open_events(tmp_path / "run[1].h5")) == 2


def test_a_list_in_its_own_order(folder):
    events = open_events([folder / "z.HDF5", str(folder / "b.par*")])
    assert [number(event) for event in events] == [5, 6, 7, 8, 9, 0, 1, 2]


def test_a_relative_name_stays_relative_and_works_from_elsewhere(folder, monkeypatch):
    monkeypatch.chdir(folder)
    events = open_events("deep")
    assert events[1].key == EventKey(os.path.join("deep", "a.h5"), 1)
    events = open_events("deep/a.h5")
    monkeypatch.chdir("/")
    assert number(events[0]) == 3


class Numbered(list):
    def __init__(self, source, events):
        super().__init__(events)
        self.source = source


@pytest.fixture
def generator(monkeypatch):
    """In place of the real one: its events say which they are."""

    def generate(n, seed=0, preset="pilarnet"):
        if preset != "pilarnet":
            raise ValueError(f"unknown preset {preset!r}")
        return Numbered(f"generate:{preset}?seed={seed}", numbered(100 * seed, n))

    monkeypatch.setitem(sys.modules, "larpanda.data.generate", SimpleNamespace(generate=generate))


@pytest.mark.usefixtures("generator")
def test_the_generator():
    events = open_events("generate:pilarnet?events=3&seed=2")
    assert [number(event) for event in events] == [200, 201, 202]
    assert len(open_events("generate:pilarnet")) == 1000
    assert number(open_events("generate:pilarnet?seed=5")[7]) == 507
    assert len(open_events("generate:pilarnet?events=0")) == 0
    assert events.key(1).file == "generate:pilarnet?seed=2"
    bare = open_events("generate:pilarnet?events=3", truth=False)[0]
    assert not bare.has_truth
    assert bare.particle.tolist() == [UNKNOWN]


def test_the_generator_with_a_file_of_ones_own(tmp_path):
    proton = "{pdg: [2212], energy_mev: [200, 300]}"
    text = f"vertex: {{particles: [1, 1], half_mm: [9, 9, 9], sources: [{proton}]}}"
    (tmp_path / "mine.yml").write_text(text)
    events = open_events(f"generate:{tmp_path}/mine.yml?events=3&seed=2")
    assert len(events) == 3
    assert events[2].key == events.key(2)
    assert re.fullmatch(r"generate:mine\.yml#[0-9a-f]{12}\?seed=2", events.key(2).file)
    with pytest.raises(FileNotFoundError):
        open_events("generate:no/such.yaml?events=3")


@pytest.mark.usefixtures("generator")
def test_files_and_the_generator_together(folder):
    events = open_events([str(folder / "b.parquet"), "generate:pilarnet?events=2&seed=1"])
    assert [number(event) for event in events] == [0, 1, 2, 100, 101]


@pytest.mark.usefixtures("generator")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("generate:nonesuch", "unknown preset 'nonesuch'"),
        ("generate:pilarnet?event=3", "no option 'event'; expected events or seed"),
        ("generate:pilarnet?events=-3", "events is '-3'; expected a whole number"),
        ("generate:pilarnet?seed=1.5", "seed is '1.5'; expected a whole number"),
        ("generate:pilarnet?seed=", "seed is ''; expected a whole number"),
        ("generate:pilarnet?1000", r"expected generate:PRESET\?events=N&seed=S"),
    ],
)
def test_a_mistake_in_what_to_generate(source, message):
    with pytest.raises(ValueError, match=message):
        open_events(source)


@pytest.mark.usefixtures("generator")
def test_generated_events_take_no_units():
    with pytest.raises(ValueError, match="they take no scale or pitch"):
        open_events("generate:pilarnet", energy_scale=2.0)


# What a source cannot be


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("none.h5", FileNotFoundError, "no such file or folder"),
        ("none*.h5", FileNotFoundError, r"none\*\.h5: no file of events matches"),
        ("empty", FileNotFoundError, r"empty: no file of events in this folder; .*\.h5, \.hdf5, \.parquet"),
        ("notes.txt", ValueError, r"notes\.txt: not a file of events; .*ends in \.h5, \.hdf5, \.parquet"),
        ("text.h5", ValueError, r"text\.h5: not HDF5, whatever its name says: it begins with b'text'"),
    ],
)
def test_one_line_names_what_is_wrong(tmp_path, monkeypatch, source, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(error, match=message) as caught:
        open_events(source)
    assert "\n" not in str(caught.value)
    assert source in str(caught.value)


def test_no_source_at_all():
    with pytest.raises(ValueError, match="no source of events"):
        open_events([])


@pytest.mark.parametrize("name", ["energy_scale", "voxel_mm"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_units_that_cannot_be(folder, name, value):
    with pytest.raises(ValueError, match=f"{name} is .*; expected a positive number"):
        open_events(folder, **{name: value})


# The sequence


def test_index_and_slice_as_of_a_list(folder):
    events, model = open_events(folder), list(range(10))
    assert [number(events[i]) for i in (0, 4, 9, -1, -10)] == [0, 4, 9, 9, 0]
    assert number(events[np.int64(4)]) == number(events[torch.tensor(4)]) == 4
    for window in (slice(2, 7), slice(None, None, -1), slice(-3, None), slice(5, 2), slice(1, 9, 3), slice(0, 99)):
        assert [number(event) for event in events[window]] == model[window]
        assert len(events[window]) == len(model[window])
    assert [number(event) for event in events[2:9][::2][1:]] == model[2:9][::2][1:]
    assert [number(event) for event in reversed(events)] == model[::-1]
    for index in (10, -11):
        with pytest.raises(IndexError, match=rf"event {index} was asked for; there are 10"):
            events[index]


def test_a_slice_keeps_the_place_in_the_file(folder):
    events = open_events(folder)[4:7]
    assert [event.key.entry for event in events] == [1, 0, 1]
    assert [events.key(i) for i in range(3)] == [event.key for event in events]
    assert events.key(-1) == events[2].key


def test_numbers_stay_with_their_events_in_any_order(tmp_path):
    for name, first in (("a.h5", 0), ("b.parquet", 4)):
        write_events(tmp_path / name, [replace(e, key=EventKey("", -1, event=number(e))) for e in numbered(first, 4)])
    events = open_events(tmp_path)
    shown = Subset(events[::-1], [5, 0, 3])
    for some in (events, events[1:7:2], shown, shown[1:], drawn(events, 8, seed=3)):
        assert [event.key.event for event in some] == [number(event) for event in some]
    assert [events[::-1].key(i).event for i in range(8)] == [7, 6, 5, 4, 3, 2, 1, 0]


def test_a_sequence_can_be_sent_to_another_process(folder):
    events = open_events(folder)[1:]
    assert number(events[0]) == 1
    copy = pickle.loads(pickle.dumps(events))
    assert [number(event) for event in copy] == list(range(1, 10))


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    for i in range(6):
        write_events(tmp_path / f"{i}.h5", numbered(10 * i, 2))
    monkeypatch.setattr(larpanda.data, "OPEN_FILES", 2)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else None
    events = open_events(tmp_path)
    for _ in range(2):
        assert [number(event) for event in events] == [0, 1, 10, 11, 20, 21, 30, 31, 40, 41, 50, 51]
        assert [number(events[i : i + 1][0]) for i in range(0, 12, 2)] == [0, 10, 20, 30, 40, 50]
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before + 2


def test_without_truth(folder):
    events = open_events(folder, truth=False)
    assert [number(event) for event in events] == list(range(10))
    assert not any(event.has_truth for event in events)


# The warning about units


def test_energies_that_look_like_mev_and_those_that_do_not(tmp_path):
    write_events(tmp_path / "a.h5", numbered(0, 5, energy=0.4))
    assert median_energy_warning(open_events(tmp_path)) is None
    for scale in (1e-3, 1e4):
        line = median_energy_warning(open_events(tmp_path, energy_scale=scale))
        assert f"median voxel energy is {0.4 * scale:.3g} MeV" in line
        assert "--energy-scale" in line
        assert "\n" not in line


def test_the_warning_looks_at_the_first_events_that_hold_something():
    empty = Event.from_arrays([], [])
    charge = numbered(0, 3, energy=1e5)
    assert median_energy_warning([]) is None
    assert median_energy_warning([empty] * 30) is None
    assert median_energy_warning([empty] * 30 + charge) is not None
    assert median_energy_warning(numbered(0, 3, energy=1.0) + charge * 9, limit=3) is None


def test_the_warning_passes_over_what_cannot_be_read_or_is_nan():
    class Faulty(list):
        def __getitem__(self, index):
            if index == 0:
                raise ValueError("event 0 is damaged")
            return super().__getitem__(index)

    nan = numbered(0, 1)[0]
    nan.energy[:] = float("nan")
    assert median_energy_warning(Faulty([None, nan])) is None
    assert median_energy_warning(Faulty([None, nan, *numbered(0, 1, energy=50.0)])) is not None


def test_entries_are_numbers_and_ranges_and_nothing_between_commas():
    assert entries_of("7,0:3,2,8:", 10) == [0, 1, 2, 7, 8, 9]
    assert entries_of(":2", 10) == [0, 1]
    for spec in ("5,", ",", "", "a", "3:2", "10"):
        with pytest.raises(ValueError, match="--events"):
            entries_of(spec, 10)
