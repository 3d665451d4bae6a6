"""The tables of events and voxels: nothing lost, nothing invented, and never half a file."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from larpanda.analysis import tables
from larpanda.analysis.tables import EVENTS, INTERACTIONS, PARTICLES, VOXELS, TableWriter
from larpanda.event import UNKNOWN, Event, EventKey, Interaction, Particle, Reconstruction, Species, Status

PROVENANCE = {"model": "nano", "config": {"min_energy_mev": 0.13}}
KEY = EventKey("/data/in/run7.h5", 0)
PAGE = Path(__file__).parents[2] / "docs" / "tables.md"


def make(n, entry=0, seed=0, heads=True, key=KEY):
    """An event of n voxels and a reconstruction of it with every kind of row."""
    rng = np.random.default_rng([seed, entry])
    event = Event.from_arrays(rng.integers(0, 768, (n, 3)), rng.gamma(1, 0.8, n))
    below = event.energy <= 0.13
    probability = torch.from_numpy(rng.dirichlet(np.ones(5), n).astype(np.float32))
    motif = probability.argmax(1)
    ids = torch.from_numpy(rng.integers(-1, 3, n)) if heads else torch.full((n,), UNKNOWN)
    motif[below], ids[below], probability[below] = UNKNOWN, UNKNOWN, math.nan
    reconstruction = Reconstruction(
        status=Status.OK if n else Status.EMPTY,
        reason="" if n else "no voxel",
        below_threshold=below,
        motif=motif,
        motif_probability=probability,
        particle=ids,
        interaction=ids.clamp(max=0),
        particles=tuple(Particle(k, Species.MUON, 0.9, (0.2,) * 5, 0, 1, 1.0) for k in range(3)) if heads else None,
        interactions=(Interaction(0, 0.9, n, 1.0),) if heads else None,
        n_merged=0,
    )
    return replace(event, key=replace(key, entry=entry)), reconstruction


def write(folder, pairs, stem="run7", provenance=PROVENANCE):
    with TableWriter(folder, stem, provenance) as writer:
        for event, reconstruction in pairs:
            writer.write(event, reconstruction)
    return pq.read_table(folder / f"{stem}_events.parquet"), pq.read_table(folder / f"{stem}_voxels.parquet")


def test_one_row_an_event_and_one_a_voxel_in_the_order_given(tmp_path):
    pairs = [make(n, entry) for entry, n in enumerate([300, 0, 1, 50])]
    events, voxels = write(tmp_path / "new" / "folder", pairs)
    assert events["entry"].to_pylist() == [0, 1, 2, 3]
    assert events["n_voxels"].to_pylist() == [300, 0, 1, 50]
    assert events["status"].to_pylist() == ["ok", "empty", "ok", "ok"]
    assert events["reason"].to_pylist() == ["", "no voxel", "", ""]
    assert set(events["file"].to_pylist()) == {"run7.h5"}
    assert voxels["entry"].to_pylist() == [0] * 300 + [2] + [3] * 50
    x, y, z = (voxels[axis].to_numpy() for axis in "xyz")
    position = np.concatenate([event.position for event, _ in pairs])
    np.testing.assert_array_equal(np.rint(np.stack([x, y, z], 1) / 0.3 - 0.5), position)
    np.testing.assert_allclose(x, (position[:, 0] + 0.5) * 0.3, rtol=1e-6)


def test_voxel_columns_say_what_the_reconstruction_says(tmp_path):
    event, reconstruction = make(400)
    _, voxels = write(tmp_path, [(event, reconstruction)])
    below = reconstruction.below_threshold.tolist()
    assert 0 < sum(below) < 400
    assert voxels["below_threshold"].to_pylist() == below
    assert voxels["motif"].to_pylist() == reconstruction.motif.tolist()
    assert voxels["particle_id"].to_pylist() == reconstruction.particle.tolist()
    assert voxels["interaction_id"].to_pylist() == reconstruction.interaction.tolist()
    best = reconstruction.motif_probability.max(1).values.tolist()
    assert voxels["motif_probability"].to_pylist() == [None if low else p for low, p in zip(below, best, strict=True)]


def test_energy_is_conserved(tmp_path):
    events, voxels = write(tmp_path, [make(20_000, entry) for entry in range(3)])
    for entry, energy_mev in enumerate(events["energy_mev"].to_pylist()):
        rows = voxels["energy_mev"].to_numpy()[voxels["entry"].to_numpy() == entry]
        assert energy_mev == pytest.approx(math.fsum(rows.tolist()), rel=1e-12)
        assert (rows == make(20_000, entry)[0].energy.numpy()).all()


def test_what_is_not_known_is_null_and_what_was_not_found_is_zero(tmp_path):
    full = make(50, 0, key=EventKey("a.h5", 0, run=12, subrun=0, event=345))
    nothing_found = make(50, 1)
    nothing_found = nothing_found[0], replace(nothing_found[1], particles=(), interactions=())
    events, _ = write(tmp_path, [full, nothing_found, make(50, 2, heads=False)])
    assert events["run"].to_pylist() == [12, None, None]
    assert events["subrun"].to_pylist() == [0, None, None]
    assert events["event"].to_pylist() == [345, None, None]
    assert events["n_particles"].to_pylist() == [3, 0, None]
    assert events["n_interactions"].to_pylist() == [1, 0, None]


def test_bad_input_keeps_its_rows(tmp_path):
    n, nan = 4, math.nan
    event = Event(
        torch.tensor([[1.5, 0, 0], [nan, 0, 0], [-4, 0, 900], [1, 2, 3]]),
        torch.tensor([nan, math.inf, -math.inf, 1.0]),
        *(torch.full((n,), UNKNOWN) for _ in range(4)),
        key=KEY,
    )
    none = torch.full((n,), UNKNOWN)
    bad = Reconstruction(
        Status.BAD_INPUT, event.problem(), none < 0, none, torch.full((n, 5), nan), none, none, None, None, 0
    )
    events, voxels = write(tmp_path, [(event, bad)])
    assert events["status"].to_pylist() == ["bad_input"]
    assert events["reason"].to_pylist()[0].startswith("3 of 4 energies are NaN")
    assert math.isnan(events["energy_mev"].to_pylist()[0])
    assert len(voxels) == n
    assert voxels["motif_probability"].null_count == n
    np.testing.assert_array_equal(voxels["energy_mev"].to_numpy(), event.energy)


def test_an_event_that_could_not_be_read_has_a_row_without_numbers(tmp_path):
    with TableWriter(tmp_path, "a", PROVENANCE) as writer:
        writer.write(*make(10, 0))
        writer.write_failed(EventKey("/x/a.h5", 1), Status.FAILED, "/x/a.h5: event 1: point has 7 columns; expected 8")
        writer.write(*make(10, 2))
    events, voxels = (pq.read_table(tmp_path / f"a_{name}.parquet") for name in ("events", "voxels"))
    row = events.to_pylist()[1]
    assert (row["file"], row["entry"], row["status"]) == ("a.h5", 1, "failed")
    assert row["reason"] == "a.h5: event 1: point has 7 columns; expected 8"
    numbers = ("run", "subrun", "event", "n_voxels", "n_merged", "energy_mev", "n_particles", "n_interactions")
    assert all(row[name] is None for name in numbers)
    assert voxels["entry"].to_pylist() == [0] * 10 + [2] * 10


@pytest.mark.parametrize("pairs", [[], [(0, 0)]], ids=["no events", "one empty event"])
def test_no_voxels_still_make_readable_tables(tmp_path, pairs):
    events, voxels = write(tmp_path, [make(n, entry) for n, entry in pairs])
    assert (len(events), len(voxels)) == (len(pairs), 0)
    assert voxels.schema.equals(VOXELS)


def test_row_groups_hold_whole_events_and_change_nothing_else(tmp_path, monkeypatch):
    pairs = [make(n, entry) for entry, n in enumerate([30, 90, 10, 10, 250, 0, 20])]
    expected = write(tmp_path, pairs, "one")
    monkeypatch.setattr(tables, "ROW_GROUP_VOXELS", 100)
    monkeypatch.setattr(tables, "ROW_GROUP_EVENTS", 2)
    streamed = write(tmp_path, pairs, "many")
    assert all(a.equals(b) for a, b in zip(expected, streamed, strict=True))
    file = pq.ParquetFile(tmp_path / "many_voxels.parquet")
    assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [120, 270, 20]
    assert pq.ParquetFile(tmp_path / "many_events.parquet").num_row_groups == 4


def test_columns_carry_their_units_and_the_file_where_it_comes_from(tmp_path):
    for table, schema in zip(write(tmp_path, [make(5)]), (EVENTS, VOXELS), strict=True):
        assert table.schema.names == schema.names
        for field, declared in zip(table.schema, schema, strict=True):
            assert field.equals(declared)
            assert field.metadata[b"description"] == declared.metadata[b"description"]
            assert field.metadata[b"unit"] == {"energy_mev": b"MeV", "x": b"cm", "y": b"cm", "z": b"cm"}.get(
                field.name, b""
            )
        stored = table.schema.metadata
        assert json.loads(stored[b"provenance"]) == PROVENANCE
        assert json.loads(stored[b"voxel_size_cm"]) == 0.3
        assert json.loads(stored[b"origin_cm"]) == [0, 0, 0]


def test_the_page_of_the_tables_lists_exactly_these_columns():
    sections = re.findall(r"^## `\*_(\w+)\.parquet`.*?\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.S | re.M)
    assert [name for name, _ in sections] == ["events", "particles", "interactions", "voxels"]
    for (_, text), schema in zip(sections, (EVENTS, PARTICLES, INTERACTIONS, VOXELS), strict=True):
        assert re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", text, re.M) == [
            (
                field.name,
                {"float": "float32", "double": "float64"}.get(str(field.type), str(field.type)),
                field.metadata[b"unit"].decode(),
                field.metadata[b"description"].decode(),
            )
            for field in schema
        ]
        assert all(("; null " in f.metadata[b"description"].decode()) == f.nullable for f in schema)


def test_the_page_of_the_tables_explains_every_status():
    section = PAGE.read_text().split("## What `status` says")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == set(map(str, Status))


def test_the_same_events_give_the_same_bytes(tmp_path):
    pairs = [make(500, entry) for entry in range(5)]
    moved = [(replace(e, key=replace(e.key, file="/elsewhere/run7.h5")), r) for e, r in pairs]
    write(tmp_path / "a", pairs)
    write(tmp_path / "b", moved, provenance=dict(reversed(PROVENANCE.items())))
    for name in ("run7_events.parquet", "run7_voxels.parquet"):
        content = (tmp_path / "a" / name).read_bytes()
        assert content == (tmp_path / "b" / name).read_bytes()
        assert b"/data/in" not in content
        assert str(tmp_path).encode() not in content


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing_or_the_tables_of_before(tmp_path, monkeypatch, error):
    monkeypatch.setattr(tables, "ROW_GROUP_VOXELS", 100)

    def interrupted():
        with TableWriter(tmp_path, "a", PROVENANCE) as writer:
            writer.write(*make(500))
            assert not list(tmp_path.glob("*b_*"))
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    before = [table.num_rows for table in write(tmp_path, [make(7)], "a")]
    with pytest.raises(error):
        interrupted()
    assert [pq.read_table(tmp_path / f"a_{name}.parquet").num_rows for name in ("events", "voxels")] == before
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_has_its_final_name_before_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROW_GROUP_VOXELS", 100)
    with TableWriter(tmp_path, "a", PROVENANCE) as writer:
        writer.write(*make(500))
        assert {path.suffix for path in tmp_path.iterdir()} == {".part"}
        assert not list(tmp_path.glob("*events*.parquet"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_events.parquet", "a_voxels.parquet"]


def test_an_events_file_never_stands_beside_voxels_of_another_run(tmp_path, monkeypatch):
    write(tmp_path, [make(7)], "a")
    rename = tables.os.replace

    def dies_after_the_first(source, target):
        if target.name == "a_events.parquet":
            raise OSError("power cut")
        rename(source, target)

    monkeypatch.setattr(tables.os, "replace", dies_after_the_first)
    with pytest.raises(OSError, match="power cut"):
        write(tmp_path, [make(9)], "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a_voxels.parquet"]
    assert pq.read_table(tmp_path / "a_voxels.parquet").num_rows == 9


def test_two_writers_of_the_same_tables_do_not_mix(tmp_path):
    with TableWriter(tmp_path, "a", PROVENANCE) as first, TableWriter(tmp_path, "a", PROVENANCE) as second:
        first.write(*make(100))
        second.write(*make(200))
    assert pq.read_table(tmp_path / "a_voxels.parquet").num_rows == 100  # the last to end
    assert pq.read_table(tmp_path / "a_events.parquet")["n_voxels"].to_pylist() == [100]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path):
    script = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
from test_tables import PROVENANCE, TableWriter, make
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with TableWriter({folder!r}, "a", PROVENANCE) as writer:
        for entry in range(3):
            writer.write(*make(20_000, entry))
except OSError as error:
    print("refused:", error.errno)
"""
    if sys.platform != "linux":
        pytest.skip("limits the size of a file as Linux does")
    code = script.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused:")
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_names_what_is_wrong_with_the_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="found a file, expected a folder"):
            write(folder, [])

    def refuse(*_):
        raise PermissionError(13, "Failed to open local file 'a_voxels.parquet.0f3a.part'")

    monkeypatch.setattr(pa, "OSFile", refuse)
    with pytest.raises(PermissionError, match=r"cannot write tables here \(Permission denied\); choose another"):
        write(tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_refuses_an_event_without_key_and_provenance_that_is_not_json(tmp_path):
    event, reconstruction = make(3)
    for key in (None, Event.from_arrays([[1, 2, 3]], [1.0], run=7).key):
        with pytest.raises(ValueError, match="without key"):
            write(tmp_path, [(replace(event, key=key), reconstruction)])
    for bad in ({"score": math.nan}, {"folder": tmp_path}):
        with pytest.raises(ValueError, match="provenance"):
            TableWriter(tmp_path, "a", bad)
    assert list(tmp_path.iterdir()) == []
