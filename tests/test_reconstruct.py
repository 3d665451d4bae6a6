"""The Reconstructor and the way from files to tables: every row accounted for, whatever is in the file."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow.compute as compute
import pyarrow.parquet as pq
import pytest
import torch

import larpanda
from larpanda.event import UNKNOWN, Event, Status
from larpanda.model.bundle import Bundle, Model, save_bundle
from larpanda.model.panoptic import PanopticConfig
from larpanda.model.selection import select_all
from larpanda.reconstruct import FileConfig, Reconstructor, reconstruct_file

GEANT4 = Path(__file__).parent / "data" / "geant4_20_v3extra.h5"


@pytest.fixture
def model(tmp_path, tiny_model) -> Reconstructor:
    save_bundle(tmp_path / "bundle", tiny_model, {}, "")
    return larpanda.load(tmp_path / "bundle", device="cpu")


def test_rows_are_those_of_the_event(model, make_cloud):
    event = make_cloud(200)
    rows = [*event.position.long().tolist(), [1, 1, 1], event.position[3].long().tolist()]
    whole = Event.from_arrays(rows, [*event.energy.tolist(), 0.1, 0.5])
    logits, features, result = model.semantic(whole), model.features(whole), model.reconstruct(whole)
    assert logits.shape == (202, 5)
    assert features.shape == (202, sum(model.model.config.encoder.channels))
    assert logits[200].isnan().all()  # 0.1 MeV: not seen
    assert features[200].isnan().all()
    assert torch.equal(logits[201], logits[3])  # one voxel, one answer
    assert (result.status, result.n_merged) == (Status.OK, 1)
    assert result.below_threshold.nonzero().flatten().tolist() == [200]
    seen = ~result.below_threshold
    assert torch.equal(result.motif[seen], logits[seen].argmax(1))
    assert result.motif[200] == UNKNOWN
    torch.testing.assert_close(result.motif_probability[seen].sum(1), torch.ones(201))
    assert result.particles is None
    assert (result.particle == UNKNOWN).all()


def test_the_order_of_rows_and_the_company_change_nothing(model, make_cloud):
    event, order = make_cloud(300), torch.randperm(300, generator=torch.Generator().manual_seed(1))
    names = ("position", "energy", "motif", "species", "particle", "interaction")
    other = Event(*(getattr(event, name)[order] for name in names))
    alone = model.semantic(event)
    assert torch.equal(model.semantic(other), alone[order])
    assert torch.equal(model.semantic([make_cloud(50), event])[1], alone)


@pytest.mark.parametrize(
    ("voxel", "energy", "status", "seen"),
    [
        ([], [], Status.EMPTY, 0),
        ([[5, 5, 5]], [1.0], Status.TOO_SMALL, 1),
        ([[5, 5, 5], [6, 5, 5]], [1.0, 0.13], Status.TOO_SMALL, 1),  # 0.13 is not above 0.13
        ([[5, 5, 5], [5, 5, 5]], [1.0, 1.0], Status.TOO_SMALL, 2),
        ([[5, 5, 5], [6, 5, 5]], [0.05, 0.05], Status.TOO_SMALL, 0),
        ([[5, 5, 5], [700, 5, 5]], [1.0, 1.0], Status.OK, 2),
    ],
)
def test_small_events(model, voxel, energy, status, seen):
    result = model.reconstruct(Event.from_arrays(voxel, energy))
    assert result.status == status
    assert (result.motif != UNKNOWN).sum() == seen


@pytest.mark.parametrize(
    ("position", "energy"),
    [([1, 2, 3], float("nan")), ([1, 2, 3], -1.0), ([1.5, 2, 3], 1.0), ([1, 2, 768], 1.0), ([1, 2, float("inf")], 1.0)],
)
def test_bad_input_is_a_status_and_for_numbers_an_error(model, position, energy):
    none = torch.full((1,), UNKNOWN)
    event = Event(torch.tensor([position]).float(), torch.tensor([energy]), none, none, none, none)
    result = model.reconstruct(event)
    assert result.status == Status.BAD_INPUT
    assert result.n_merged is None
    assert "row 0" in result.reason
    with pytest.raises(ValueError, match="row 0"):
        model.semantic(event)


def test_heads_that_are_not_there(model, tmp_path, make_cloud):
    with pytest.raises(ValueError, match="bundle bundle has no particle head"):
        model.instances(make_cloud(5), "particle")
    with pytest.raises(ValueError, match="'muon' are not known"):
        model.instances(make_cloud(5), "muon")


@pytest.mark.skipif(torch.cuda.is_available(), reason="it asks for CUDA where there is none, and here there is")
def test_a_device_that_is_not_there(tmp_path, model):
    with pytest.raises(ValueError, match="no CUDA device here"):
        larpanda.load(tmp_path / "bundle", device="cuda")


def test_the_reference_file(model, tmp_path):
    """20 events of Geant4: as many rows as the file has events and points, in order, and all of the energy."""
    manifest = reconstruct_file(str(GEANT4), tmp_path / "out", model)
    assert manifest.statuses == {"ok": 20}
    events = pq.read_table(tmp_path / "out" / "geant4_20_v3extra_events.parquet")
    voxels = pq.read_table(tmp_path / "out" / "geant4_20_v3extra_voxels.parquet")
    with h5py.File(GEANT4) as file:
        points = [row.reshape(-1, 8) for row in file["point"][:]]
    assert events["entry"].to_pylist() == list(range(20))
    assert events["n_voxels"].to_pylist() == [len(p) for p in points]
    everything = np.concatenate(points)
    assert len(voxels) == len(everything)
    assert voxels["entry"].to_pylist() == np.repeat(np.arange(20), [len(p) for p in points]).tolist()
    total = everything[:, 3].sum(dtype=np.float64)
    assert np.sum(events["energy_mev"].to_numpy()) == pytest.approx(total, rel=1e-6)
    assert voxels["energy_mev"].to_numpy().sum(dtype=np.float64) == pytest.approx(total, rel=1e-6)
    assert np.allclose(voxels["x"].to_numpy(), (everything[:, 0] + 0.5) * 0.3)
    below = voxels["below_threshold"].to_numpy()
    assert np.array_equal(below, everything[:, 3] <= 0.13)
    assert np.array_equal(voxels["motif"].to_numpy() == -1, below)


def write_file(path, points):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("point", (len(points),), h5py.vlen_dtype(np.float32))
        for i, rows in enumerate(points):
            data[i] = np.ravel(rows).astype(np.float32)


def row(x, y, z, energy):
    return [x, y, z, energy, energy, 0, 0, 0]


def test_a_file_with_everything_in_it(model, tmp_path):
    """Bad rows get their status; good ones beside them are as they are alone."""
    good = [row(10 + i, 20, 30, 1.0) for i in range(40)]
    contents = {
        "ok": good,
        "empty": [],
        "too_small": [row(1, 2, 3, 1.0)],
        "bad_input": [row(1, 2, 3, float("nan")), row(2, 2, 3, 1.0)],
    }
    write_file(tmp_path / "mixed.h5", [*contents.values(), [1.0, 2.0, 3.0], good])
    with h5py.File(tmp_path / "mixed.h5", "r+") as file:
        file["run"], file["event"] = [12] * 6, [70, 71, 72, -1, 74, 75]
    manifest = reconstruct_file(str(tmp_path / "mixed.h5"), tmp_path / "out", model)
    assert manifest.events == 6
    events = pq.read_table(tmp_path / "out/mixed_events.parquet").to_pylist()
    assert [e["status"] for e in events] == [*contents, "bad_input", "ok"]
    assert [e["n_voxels"] for e in events] == [40, 0, 1, 2, None, 40]
    assert [e["event"] for e in events] == [70, 71, 72, None, 74, 75]  # also of the one that could not be read
    assert {(e["run"], e["subrun"]) for e in events} == {(12, None)}
    assert "mixed.h5: event 4: 'point'" in events[4]["reason"].replace(str(tmp_path), "")
    assert str(tmp_path) not in json.dumps(events)
    voxels = pq.read_table(tmp_path / "out/mixed_voxels.parquet").to_pylist()
    assert len(voxels) == 40 + 1 + 2 + 40
    first, last = (
        [(v["x"], v["motif"], v["motif_probability"]) for v in voxels if v["entry"] == entry] for entry in (0, 5)
    )
    assert first == last


def test_same_input_same_bytes(model, tmp_path):
    write_file(tmp_path / "a.h5", [[row(i, i, i, 0.5 + i) for i in range(30)]])
    for out in ("first", "second"):
        reconstruct_file(str(tmp_path / "a.h5"), tmp_path / out, model)
    for name in ("a_events.parquet", "a_voxels.parquet"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_selected_events_keep_their_entry(model, tmp_path):
    reconstruct_file(str(GEANT4), tmp_path / "out", model, FileConfig(events="3,7"))
    assert pq.read_table(tmp_path / "out/geant4_20_v3extra_events.parquet")["entry"].to_pylist() == [3, 7]


@pytest.fixture
def panoptic(tiny_model) -> Reconstructor:
    """A model with all three heads, of random weights, made to call half of the points deposits."""
    torch.manual_seed(5)
    heads = (PanopticConfig(queries=6, classes=5, channels=16), PanopticConfig(queries=4, classes=1, channels=16))
    config = replace(tiny_model.config, particle=heads[0], interaction=heads[1])
    model = Model(config).requires_grad_(False)
    model.load_state_dict(tiny_model.state_dict(), strict=False)
    for head in (model.particle, model.interaction):
        for parameter in head.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5)
        head.led_out.bias -= 0.5
        head.class_out.bias[-1] += 0.5  # now and then no object
    return Reconstructor(Bundle(model, "random", {}, ""))


def test_particles_and_interactions_are_what_their_rows_say(panoptic, make_cloud):
    found_any = 0
    for seed in range(6):
        event = make_cloud(150, seed=seed)
        rows = [*event.position.long().tolist(), event.position[3].long().tolist(), [1, 1, 1]]
        whole = Event.from_arrays(rows, [*event.energy.tolist(), 0.5, 0.05])
        result = panoptic.reconstruct(whole)
        assert result.particle[150] == result.particle[3]  # two rows of one voxel
        assert result.particle[151] == result.interaction[151] == UNKNOWN  # not seen
        for label, instances in ((result.particle, result.particles), (result.interaction, result.interactions)):
            assert (
                sorted(set(label.tolist()) - {UNKNOWN}) == [one.id for one in instances] == list(range(len(instances)))
            )
            for one in instances:
                mine = label == one.id
                assert one.energy_mev == pytest.approx(whole.energy[mine].double().sum().item())
                assert one.n_voxels == len(torch.unique(whole.position[mine], dim=0)) >= 2
                assert 0 < one.score <= 1
        for one in result.particles:
            assert sum(one.species_probability) == pytest.approx(1.0)
            assert int(np.argmax(one.species_probability)) == one.species
            mine = result.particle == one.id
            energies = {
                i: whole.energy[mine & (result.interaction == i)].sum().item() for i in range(len(result.interactions))
            }
            best = max(energies, key=energies.get, default=UNKNOWN)
            assert one.interaction == (best if energies and energies[best] > 0 else UNKNOWN)
        found_any += len(result.particles) * len(result.interactions)
    assert found_any


def test_an_event_that_uses_all_queries_says_so(panoptic, make_cloud, monkeypatch):
    event = make_cloud(150)

    def used(found, what, points):
        return [replace(one, all_used=what == "particle") for one in select_all(found, what, points)]

    monkeypatch.setattr("larpanda.reconstruct.select_all", used)
    result = panoptic.reconstruct(event)
    assert result.status == Status.TRUNCATED_QUERIES
    assert result.reason == "all queries for particles are used; there may be more"


def test_an_event_in_tiles_that_uses_all_queries_says_both(panoptic, make_cloud, monkeypatch):
    def used(found, what, points):
        return [replace(one, all_used=True) for one in select_all(found, what, points)]

    monkeypatch.setattr("larpanda.reconstruct.select_all", used)
    monkeypatch.setattr(panoptic, "max_points", 100)
    result = panoptic.reconstruct(make_cloud(300, side=150))
    assert result.status == Status.TOO_LARGE
    assert "overlapping tiles, and stitched; all queries for particles, interactions are used" in result.reason


@pytest.mark.parametrize("error", [np.linalg.LinAlgError("singular"), IndexError("out of range"), AssertionError()])
def test_an_event_at_which_the_program_fails_has_its_row_and_the_others_theirs(
    panoptic, make_cloud, tmp_path, monkeypatch, error
):
    twice = np.array([[5, 5, 5], [5, 5, 5], [6, 5, 5]])
    events = [make_cloud(40), Event.from_arrays(twice, [1.0, 2.0, 3.0]), make_cloud(30)]
    larpanda.write_events(tmp_path / "in.h5", events)
    real = larpanda.reconstruct.measure_event

    def failing(event, *rest):
        if len(event) == 3:
            raise error
        return real(event, *rest)

    monkeypatch.setattr("larpanda.reconstruct.measure_event", failing)
    reconstruct_file(str(tmp_path / "in.h5"), tmp_path / "out", panoptic)
    rows = pq.read_table(tmp_path / "out/in_events.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert rows[1]["reason"] == (str(error) or "AssertionError")
    assert rows[1]["n_merged"] == 1


def test_events_without_points_have_no_particles(panoptic):
    for event in (Event.from_arrays(np.zeros((0, 3), int), []), Event.from_arrays([[5, 5, 5]], [0.05])):
        result = panoptic.reconstruct(event)
        assert result.particles == result.interactions == ()
        assert (result.particle == UNKNOWN).all()


def test_tables_count_particles(panoptic, tmp_path, make_cloud):
    larpanda.write_events(str(tmp_path / "clouds.h5"), [make_cloud(100, seed=s) for s in range(3)])
    reconstruct_file(str(tmp_path / "clouds.h5"), tmp_path / "out", panoptic)
    events = pq.read_table(tmp_path / "out/clouds_events.parquet").to_pylist()
    voxels = pq.read_table(tmp_path / "out/clouds_voxels.parquet")
    for event in events:
        rows = voxels.filter(compute.equal(voxels["entry"], event["entry"]))
        for name in ("particle", "interaction"):
            ids = set(rows[f"{name}_id"].to_pylist()) - {UNKNOWN}
            assert len(ids) == event[f"n_{name}s"]
        tables = [pq.read_table(tmp_path / f"out/clouds_{name}.parquet") for name in ("particles", "interactions")]
        particles, interactions = (
            table.filter(compute.equal(table["entry"], event["entry"])).to_pylist() for table in tables
        )
        assert [row["particle_id"] for row in particles] == list(range(event["n_particles"]))
        assert [row["interaction_id"] for row in interactions] == list(range(event["n_interactions"]))
        for row in particles:
            mine = rows.filter(compute.equal(rows["particle_id"], row["particle_id"]))
            assert row["deposited_mev"] == pytest.approx(compute.sum(mine["energy_mev"]).as_py(), rel=1e-6)
            assert row["energy_mev"] >= row["calo_energy_mev"] or row["energy_mev"] == row["range_energy_mev"]
            xyz = np.stack([mine[axis].to_numpy() for axis in "xyz"], 1)
            for end in ("start", "end"):
                assert np.abs(xyz - [row[f"{end}_{axis}"] for axis in "xyz"]).sum(1).min() < 1e-3
            assert np.hypot.reduce([row[f"direction_{axis}"] for axis in "xyz"]) == pytest.approx(1.0, rel=1e-5)
            assert row["contained"] == bool(((xyz >= 5) & (xyz <= 225.4)).all())
        for row in interactions:
            members = [one for one in particles if one["interaction_id"] == row["interaction_id"]]
            assert row["n_particles"] == len(members)
            assert (row["topology"] is None) == (row["vertex_x"] is None) == (not members)
            if members:
                assert row["n_primaries"] == sum(one["primary"] for one in members)
                assert row["contained"] == all(one["contained"] for one in members)


def test_a_model_without_such_heads_leaves_no_tables_of_them(model, panoptic, tmp_path, make_cloud):
    larpanda.write_events(str(tmp_path / "clouds.h5"), [make_cloud(60)])
    names = lambda: sorted(path.name for path in (tmp_path / "out").iterdir())  # noqa: E731
    reconstruct_file(str(tmp_path / "clouds.h5"), tmp_path / "out", panoptic)
    tables = [f"clouds_{name}.parquet" for name in ("events", "interactions", "particles", "voxels")]
    assert names() == sorted([*tables, "clouds_manifest.json"])
    reconstruct_file(str(tmp_path / "clouds.h5"), tmp_path / "out", model, FileConfig(voxels=False))
    assert names() == [
        "clouds_events.parquet",
        "clouds_manifest.json",
    ]
