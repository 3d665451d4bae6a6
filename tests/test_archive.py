"""Many files to tables: nothing lost, doubled or half written, whoever works and whatever happens."""

import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import larpanda
from larpanda.archive import ArchiveConfig, check, merge, reconstruct_files
from larpanda.cli import main
from larpanda.event import Event
from larpanda.jobs import condor_submit, slurm_array
from larpanda.model.backbone import EncoderConfig
from larpanda.model.bundle import Model, ModelConfig, save_bundle
from larpanda.model.panoptic import PanopticConfig
from larpanda.model.semantic import SemanticConfig
from larpanda.reconstruct import FileConfig

STATUS = {0: "empty", 1: "too_small", 5: "ok", 60: "ok", 20_000: "ok"}  # by number of voxels
TABLES = ("events", "particles", "interactions", "voxels")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A model with three heads and random weights."""
    torch.manual_seed(0)
    heads = {"particle": PanopticConfig(6, 5, 16, blocks=1), "interaction": PanopticConfig(4, 1, 16, blocks=1)}
    model = Model(ModelConfig(EncoderConfig((16, 16), (1, 1), window=32), SemanticConfig(None), **heads))
    save_bundle(tmp_path_factory.mktemp("model") / "tiny", model, {}, "card")
    return str(next(tmp_path_factory.getbasetemp().glob("model*/tiny")))


@pytest.fixture(scope="module")
def files(tmp_path_factory, make_cloud):
    """Three files of 20 events, some of them empty, tiny or large."""
    folder = tmp_path_factory.mktemp("events")
    none = Event.from_arrays(np.zeros((0, 3), int), [])
    for f in range(3):
        special = {3: none, 7: make_cloud(1, seed=f), 11: make_cloud(5, seed=f), 15: make_cloud(20_000, f, 40)}
        events = [special.get(i, make_cloud(60, seed=100 * f + i)) for i in range(20)]
        larpanda.write_events(folder / f"part{f}.h5", events)
    return [str(folder / f"part{f}.h5") for f in range(3)]


def run(files, config, told=None):
    return {report.file: report for report in reconstruct_files(files, config, *([told] if told else []))}


def contents(folder):
    """All that is there, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.fixture(scope="module")
def whole(files, bundle, tmp_path_factory):
    """The folder that one process makes."""
    out = tmp_path_factory.mktemp("whole")
    reports = run(files, ArchiveConfig(out, bundle))
    assert all(report.manifest and not report.error for report in reports.values())
    return out


def test_every_event_is_one_row_in_order_and_its_energy_stays(whole, files):
    assert sorted(contents(whole)) == sorted(
        [f"part{f}_{name}.parquet" for f in range(3) for name in TABLES] + [f"part{f}_manifest.json" for f in range(3)]
    )
    for file in files:
        stem = Path(file).stem
        events = pq.read_table(whole / f"{stem}_events.parquet").to_pylist()
        source = larpanda.open_events(file)
        assert [row["entry"] for row in events] == list(range(20))
        assert [row["status"].replace("truncated_queries", "ok") for row in events] == [
            STATUS[len(event)] for event in source
        ]
        table = pq.read_table(whole / f"{stem}_voxels.parquet")
        entry, energy = table["entry"].to_numpy(), table["energy_mev"].to_numpy()
        assert np.array_equal(np.bincount(entry, minlength=20), [len(event) for event in source])
        for i, event in enumerate(source):
            assert np.array_equal(energy[entry == i], event.energy.numpy())
        manifest = json.loads((whole / f"{stem}_manifest.json").read_text())
        assert manifest["events"] == 20 == sum(manifest["statuses"].values())
        assert {one["file"]: one["rows"] for one in manifest["tables"]}[f"{stem}_voxels.parquet"] == len(entry)


def test_workers_and_shards_change_no_byte(whole, files, bundle, tmp_path):
    two = ArchiveConfig(tmp_path / "two", bundle, workers=2)
    seen = []
    run(files, two, lambda file, done, n: seen.append((file, done, n)))
    assert contents(tmp_path / "two") == contents(whole)
    assert {(file, 19, 20) for file in files} <= set(seen)
    for i in range(2):
        assert len(run(files, ArchiveConfig(tmp_path / "shards", bundle, shard=(i, 2)))) == 2 - i
    assert contents(tmp_path / "shards") == contents(whole)


def test_what_is_done_is_not_done_again_and_what_changed_is(whole, files, bundle, tmp_path):
    config = ArchiveConfig(tmp_path, bundle)
    run(files[:1], config)
    when = (tmp_path / "part0_events.parquet").stat().st_mtime_ns
    reports = run(files, config)
    assert [reports[file].before for file in files] == [True, False, False]
    assert (tmp_path / "part0_events.parquet").stat().st_mtime_ns == when
    assert contents(tmp_path) == contents(whole)
    (tmp_path / "part1_voxels.parquet").unlink()
    assert [report.before for report in run(files, config).values()] == [True, True, False]
    assert contents(tmp_path) == contents(whole)
    other = tmp_path / "other/part0.h5"
    other.parent.mkdir()
    other.write_bytes(Path(files[1]).read_bytes())
    (report,) = run([str(other)], config).values()  # another file of the same name
    assert not report.before


def test_another_model_or_other_settings_are_refused(files, bundle, tmp_path, capsys):
    config = ArchiveConfig(tmp_path, bundle)
    run(files[:1], config)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"done otherwise \(voxels True there, False here\); choose another --out"):
        run(files[:1], replace(config, files=FileConfig(voxels=False)))
    assert main(["reconstruct", files[0], "--out", str(tmp_path), "--quiet"]) == 2  # with nano
    assert "done otherwise (model tiny there, nano here" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_worker_that_is_killed_is_replaced(whole, files, bundle, tmp_path):
    killed = []

    def kill(file, done, n):
        if len(killed) < 2 and done >= 5:
            killed.append(file)
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

    reports = run(files, ArchiveConfig(tmp_path, bundle, workers=2), kill)
    assert killed
    assert not any(report.error for report in reports.values())
    assert contents(tmp_path) == contents(whole)


def test_a_driver_that_is_killed_leaves_nothing_half_done(whole, files, bundle, tmp_path):
    command = [sys.executable, "-m", "larpanda", "reconstruct", *files, "--out", str(tmp_path), "--model", bundle]
    process = subprocess.Popen([*command, "--workers", "2", "--device", "cpu"], stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("*.part")):  # tables under way
        time.sleep(0.05)
        assert process.poll() is None
    process.kill()
    process.wait()
    shown = {name for name in contents(tmp_path) if not name.endswith((".part", ".lock"))}
    assert all(f"{name.rpartition('_')[0]}_manifest.json" in shown or "events" in shown for name in shown)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:  # its workers see that it is gone, and end; until then their files are locked
        reports = run(files, ArchiveConfig(tmp_path, bundle))
        if not any(report.error for report in reports.values()):
            break
        time.sleep(0.5)
    assert contents(tmp_path) == contents(whole)


def test_two_at_the_same_file(files, bundle, tmp_path):
    from larpanda.analysis.manifest import undone

    tmp_path.mkdir(exist_ok=True)
    with undone(tmp_path, "part0"):
        reports = run(files[:2], ArchiveConfig(tmp_path, bundle))
    assert "another process is at work here (process" in reports[files[0]].error
    assert not reports[files[1]].error
    assert (tmp_path / "retry.txt").read_text() == f"{files[0]}\n"


def test_a_damaged_file_is_named_and_the_others_are_made(whole, files, bundle, tmp_path, capsys):
    half, text = tmp_path / "half.h5", tmp_path / "text.h5"
    half.write_bytes(Path(files[1]).read_bytes()[:200_000])
    text.write_text("not an event\n")
    out = tmp_path / "out"
    arguments = ["reconstruct", str(half), files[0], str(text), "--out", str(out), "--model", bundle, "--quiet"]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert f"{files[0]}: " in said.out
    assert "3 files, 20 events: " in said.out
    assert len(said.err.splitlines()) == 2
    assert all(name in said.err for name in ("half.h5", "text.h5"))
    assert (out / "retry.txt").read_text() == f"{half}\n{text}\n"
    made = contents(out)
    assert {name: made[name] for name in made if name != "retry.txt"} == {
        name: data for name, data in contents(whole).items() if name.startswith("part0")
    }
    assert main(["reconstruct", files[0], "--out", str(out), "--model", bundle, "--quiet"]) == 0
    assert not (out / "retry.txt").exists()


def test_a_full_disk_leaves_nothing_half_written(files, bundle, tmp_path):
    code = f"""
import resource, sys
from larpanda.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(main(["reconstruct", {files[0]!r}, "--out", {str(tmp_path)!r}, "--model", {bundle!r}, "--quiet"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert set(contents(tmp_path)) <= {"retry.txt"}


def test_check_finds_what_is_missing_or_broken_and_merge_refuses_it(whole, files, bundle, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    for name, data in contents(whole).items():
        (out / name).write_bytes(data)
    assert check(files, out) == check([], out) == []
    damaged = bytearray(contents(out)["part1_voxels.parquet"])
    damaged[1000] ^= 1
    (out / "part1_voxels.parquet").write_bytes(damaged)
    (out / "part2_manifest.json").unlink()
    broken = "part1_voxels.parquet differs from what was written"
    assert check(files, out) == [f"{files[2]}: not done", f"{files[1]}: {broken}"]
    assert check([], out) == [
        f"part1.h5: {broken}",
        "part2_events.parquet: has no manifest",
    ]
    assert main(["reconstruct", *files, "--out", str(out), "--check"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["reconstruct", *files, "--out", str(out), "--merge"]) == 2
    assert "not merged, 2 gaps" in capsys.readouterr().err
    assert not (out / "merged").exists()
    (out / "part0_interactions.parquet").unlink()
    (out / "part2_manifest.json").write_text("{}")
    problems = check(files, out)
    assert "part0_interactions.parquet is missing" in problems[0]
    assert "not a manifest; remove it" in problems[2]
    with pytest.raises(FileNotFoundError, match="no such folder of tables"):
        check(files, tmp_path / "nowhere")


def test_merged_tables_are_those_of_the_files_in_order(whole, files, tmp_path):
    for name, data in contents(whole).items():
        (tmp_path / name).write_bytes(data)
    order = [files[2], files[0], files[1]]
    made = merge(order, tmp_path)
    assert [path.name for path in made] == [f"{name}.parquet" for name in TABLES]
    for name in TABLES:
        parts = [pq.read_table(whole / f"{Path(file).stem}_{name}.parquet") for file in order]
        table = pq.read_table(tmp_path / f"merged/{name}.parquet")
        assert table.column_names[0] == "file"
        assert table["file"].to_pylist() == [
            Path(f).name for f, part in zip(order, parts, strict=True) for _ in range(len(part))
        ]
        for column in parts[0].column_names:
            assert table[column].to_pylist() == [value for part in parts for value in part[column].to_pylist()]
            assert table.schema.field(column).metadata == parts[0].schema.field(column).metadata
        provenance = json.loads(table.schema.metadata[b"provenance"])
        assert [one["file"] for one in provenance["inputs"]] == [Path(file).name for file in order]
        assert provenance["weights_sha256"]


def test_a_second_merging_leaves_nothing_of_the_first_and_no_file_twice(whole, files, bundle, tmp_path):
    for name, data in contents(whole).items():
        (tmp_path / name).write_bytes(data)
    once = pq.read_table(merge([files[0], files[0]], tmp_path)[0])
    assert len(once) == len(pq.read_table(whole / f"{Path(files[0]).stem}_events.parquet"))
    for path in tmp_path.glob("*_voxels.parquet"):
        path.unlink()
    for path in tmp_path.glob("*_manifest.json"):
        record = json.loads(path.read_text())
        record["tables"] = [one for one in record["tables"] if not one["file"].endswith("_voxels.parquet")]
        path.write_text(json.dumps(record))
    assert [path.stem for path in merge(files, tmp_path)] == [name for name in TABLES if name != "voxels"]
    assert not (tmp_path / "merged/voxels.parquet").exists()


def test_two_files_of_one_name_are_refused_before_anything_is_written(files, bundle, tmp_path):
    other = tmp_path / "part0.h5"
    other.write_bytes(Path(files[0]).read_bytes())
    with pytest.raises(ValueError, match=r"both write part0_events\.parquet"):
        run([files[0], str(other)], ArchiveConfig(tmp_path / "out", bundle))
    assert not (tmp_path / "out").exists()


def test_dask_makes_the_same_though_a_worker_is_killed(whole, files, bundle, tmp_path):
    killed = []

    def writes(pid):
        """Whether a process has a table open; what it has changes while we look."""
        try:
            return any(".parquet." in os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            return False

    def kill():
        """The worker that writes the first table."""
        while not killed:
            time.sleep(0.02)
            for child in multiprocessing.active_children():
                if writes(child.pid):
                    os.kill(child.pid, signal.SIGKILL)
                    killed.append(child.pid)
                    return

    threading.Thread(target=kill, daemon=True).start()
    reports = run(files, ArchiveConfig(tmp_path, bundle, workers=2, executor="dask"))
    assert killed
    assert not any(report.error for report in reports.values())
    assert contents(tmp_path) == contents(whole)


def test_shares_of_a_slurm_array_are_together_the_whole(whole, files, bundle, tmp_path):
    command = ["reconstruct", *files, "--out", str(tmp_path / "out"), "--model", bundle, "--quiet"]
    script = slurm_array(command, "tasks=2,cpus=2,partition=long")
    assert "#SBATCH --array=0-1\n" in script
    assert "#SBATCH --partition=long\n" in script
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin/larpanda"
    stand_in.write_text(f'#!/bin/bash\nexec {sys.executable} -m larpanda "$@"\n')
    stand_in.chmod(0o755)
    for task in (0, 1, 1):  # the second time as after a requeue
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(whole)


def test_job_descriptions_hold_the_whole_command(tmp_path, capsys):
    (tmp_path / "a b.h5").write_bytes(b"")
    given = [str(tmp_path / "a b.h5"), "--out", "tables", "--no-voxels", "--events", "0:5", "--patience", "60"]
    assert main(["reconstruct", *given, "--slurm", "tasks=4"]) == 0
    script = capsys.readouterr().out
    words = next(line for line in script.splitlines() if line.startswith("exec larpanda"))
    arguments = larpanda.cli._parser().parse_args(shlex.split(words)[2:-1] + ["1/4"])
    assert arguments.files == [given[0]]
    assert (arguments.no_voxels, arguments.events, arguments.patience, arguments.shard) == (True, "0:5", 60.0, (1, 4))
    assert main(["reconstruct", *given, "--htcondor", "tasks=4,memory=4GB"]) == 0
    text = capsys.readouterr().out
    assert f"arguments = \"reconstruct '{given[0]}' --out tables" in text
    assert '--shard $(Process)/4"' in text
    assert "request_memory = 4GB\n" in text
    assert text.endswith("queue 4\n")
    with pytest.raises(ValueError, match="has a quote or line break"):
        condor_submit(["reconstruct", 'a"b.h5'], "")


@pytest.mark.parametrize(
    "wrong",
    [["--shard", "2/2"], ["--shard", "1"], ["--executor", "ray"], ["--slurm", "tasks=0"], ["--workers", "0"], []],
)
def test_what_cannot_be_asked_for(files, tmp_path, capsys, wrong):
    arguments = ["reconstruct", *(files if wrong else []), "--out", str(tmp_path / "out"), *wrong]
    try:
        code = main(arguments)
    except SystemExit as left:
        code = left.code
    assert code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
