"""pandas, awkward and HDF5 hold what the Parquet tables hold."""

import io
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import larpanda
from larpanda.analysis.frames import to_awkward, to_hdf5, to_pandas
from larpanda.archive import merge
from larpanda.event import Event
from larpanda.model.backbone import EncoderConfig
from larpanda.model.bundle import Bundle, Model, ModelConfig
from larpanda.model.panoptic import PanopticConfig
from larpanda.model.semantic import SemanticConfig
from larpanda.reconstruct import FileConfig, Reconstructor, reconstruct_file

NAMES = ("events", "particles", "interactions", "voxels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_cloud):
    """Tables of two files, with an empty event in each, and merged ones."""
    out = tmp_path_factory.mktemp("tables")
    torch.manual_seed(0)
    heads = {"particle": PanopticConfig(6, 5, 16, blocks=1), "interaction": PanopticConfig(4, 1, 16, blocks=1)}
    model = Model(ModelConfig(EncoderConfig((16, 16), (1, 1), window=32), SemanticConfig(None), **heads))
    reconstructor = Reconstructor(Bundle(model.requires_grad_(False), "tiny", {}, "0" * 64), "cpu")
    none = Event.from_arrays(np.zeros((0, 3), int), [])
    files = []
    for i, name in enumerate(("b", "a")):
        events = [make_cloud(80, seed=i), none, make_cloud(50 + i, seed=10 + i), make_cloud(1)]
        larpanda.write_events(out / f"{name}.h5", events)
        reconstruct_file(str(out / f"{name}.h5"), out, reconstructor, FileConfig(hdf5=True))
        files.append(str(out / f"{name}.h5"))
    merge(files, out)
    return out


def test_frames_are_indexed_by_event_and_know_their_units(folder):
    particles = to_pandas(folder / "a_particles.parquet")
    assert particles.index.names == ["entry", "particle_id"]
    assert particles.attrs["units"]["energy_mev"] == "MeV"
    assert "pdg" not in particles.attrs["units"]
    table = pq.read_table(folder / "a_particles.parquet")
    assert particles["energy_mev"].tolist() == table["energy_mev"].to_pylist()
    merged = to_pandas(folder / "merged/particles.parquet")
    assert len(merged.loc["a.h5"]) == len(particles)
    events = to_pandas(folder / "a_events.parquet")
    assert events.index.names == ["file", "entry"]
    assert events["run"].isna().all()
    sums = merged.loc["a.h5"].groupby("entry").size()
    assert events["n_particles"].fillna(0).sum() == sums.sum()


@pytest.mark.parametrize("stem", ["a", "b", None])
def test_awkward_events_hold_their_particles_and_voxels(folder, stem):
    events = to_awkward(folder if stem else folder / "merged", stem)
    prefix = f"{folder}/{stem}_" if stem else f"{folder}/merged/"
    tables = {name: pq.read_table(f"{prefix}{name}.parquet").to_pylist() for name in NAMES}
    assert [str(name) for name in events.status] == [row["status"] for row in tables["events"]]
    for i, event in enumerate(tables["events"]):
        mine = [
            row
            for row in tables["particles"]
            if row["entry"] == event["entry"] and row.get("file", event["file"]) == event["file"]
        ]
        assert events.particles.energy_mev[i].tolist() == [row["energy_mev"] for row in mine]
        assert len(events.voxels[i]) == event["n_voxels"]
    assert float(np.sum(events.voxels.energy_mev[0])) == pytest.approx(events.energy_mev[0], rel=1e-5)


def test_hdf5_has_every_column_with_unit_and_no_null(folder):
    content = to_hdf5(folder, "a")
    assert (folder / "a_tables.h5").read_bytes() == content  # and is the same each time
    with h5py.File(io.BytesIO(content)) as file:
        assert "tiny" in file.attrs["provenance"]
        for name in NAMES:
            table = pq.read_table(folder / f"a_{name}.parquet")
            assert set(file[name]) == set(table.column_names)
            for field in table.schema:
                data = file[name][field.name]
                assert data.attrs["unit"] == (field.metadata or {}).get(b"unit", b"").decode()
                assert data.attrs["description"]
                for value, there in zip(
                    data.asstr()[:] if data.dtype.kind == "O" else data[:], table[field.name], strict=True
                ):
                    expected = there.as_py()
                    if expected is None:
                        assert value == -1 or np.isnan(value)
                    else:
                        assert value == expected


def test_hdf5_of_an_earlier_run_does_not_stay(folder, tmp_path, make_cloud):
    from larpanda.archive import check

    assert check([], folder) == []
    damaged = (folder / "a_tables.h5").read_bytes()
    (folder / "a_tables.h5").write_bytes(damaged[:-1])
    assert check([], folder) == ["a.h5: a_tables.h5 differs from what was written"]
    (folder / "a_tables.h5").write_bytes(damaged)


def test_tables_of_two_runs_are_not_put_together(folder, tmp_path):
    for name in ("events", "voxels"):
        shutil.copy(folder / f"a_{name}.parquet", tmp_path)
    table = pq.read_table(tmp_path / "a_events.parquet")
    pq.write_table(table.slice(0, 2), tmp_path / "a_events.parquet")
    with pytest.raises(ValueError, match="rows of events that the table of events has not"):
        to_awkward(tmp_path, "a")


def test_what_is_not_there_is_named(folder):
    for function in (to_awkward, to_hdf5):
        with pytest.raises(FileNotFoundError, match=r"c_events\.parquet: no such table"):
            function(folder, "c")


@pytest.mark.parametrize(("function", "library"), [("to_pandas", "pandas"), ("to_awkward", "awkward")])
def test_without_the_library_it_says_what_to_install(function, library):
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        f"from larpanda.analysis.frames import {function}\n"
        f"try: {function}('x')\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{function} needs {library}: pip install {library}\n"
