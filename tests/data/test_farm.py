"""Files of generated events: the same bytes however they were made, and what is left of a run that was stopped."""

import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from larpanda import __version__
from larpanda.data import open_events, write_events
from larpanda.data.farm import generate_file
from larpanda.data.generate import generate
from larpanda.data.rows import open_rows

SUFFIXES = (".h5", ".parquet")
MUON = "single:muon"


def digest(path):
    """Of a file, with the index that lies beside HDF5."""
    files = [path, path.with_name(f"{path.stem}_points.npy")] if path.suffix == ".h5" else [path]
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in files]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def stop_at(number, error):
    """A progress function that stops the run when so many events are made."""

    def progress(stage, done, total):
        if (stage, done) == ("making", number):
            raise error

    return progress


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Suffix -> what 40 events come to, without a stop and in one process."""
    folder = tmp_path_factory.mktemp("whole")
    for suffix in SUFFIXES:
        generate_file(folder / f"out{suffix}", generate(40, 7, MUON, start=3))
    return {suffix: digest(folder / f"out{suffix}") for suffix in SUFFIXES}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_file_holds_the_events_in_order_and_how_they_were_made(tmp_path, suffix, whole):
    path, told = tmp_path / f"out{suffix}", []
    events = generate(40, 7, MUON, start=3)
    generate_file(path, events, chunk_events=9, progress=lambda *now: told.append(now))
    assert digest(path) == whole[suffix]
    assert names(tmp_path) == ["out.h5", "out_points.npy"] if suffix == ".h5" else ["out.parquet"]
    assert told == [(stage, i, 40) for stage in ("making", "joining") for i in range(1, 41)]
    back = open_events(path)
    assert len(back) == 40
    for a, b in zip(events, back, strict=True):
        assert torch.equal(a.position, b.position)
        assert torch.equal(a.energy, b.energy)
        assert torch.equal(a.particles.momentum_vector, b.particles.momentum_vector)
    provenance = json.loads(open_rows(path, "it").provenance)
    assert provenance["larpanda"] == __version__
    assert (provenance["preset"], provenance["seed"]) == (MUON, 7)
    assert provenance["event_numbers"] == {"start": 3, "stop": 43, "step": 1}
    assert provenance["settings"]["vertex"]["sources"][0]["pdg"] == [13, -13]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_events_written_otherwise_differ_in_provenance_only(tmp_path, suffix):
    path, plain = tmp_path / f"out{suffix}", tmp_path / f"plain{suffix}"
    generate_file(path, generate(5, 7, MUON))
    write_events(plain, generate(5, 7, MUON))
    made, written = open_rows(path, "made"), open_rows(plain, "plain")
    assert written.provenance is None
    assert made.lengths == written.lengths
    for key in made.lengths:
        for i in range(5):
            assert made.read(key, i).tobytes() == written.read(key, i).tobytes()


def test_no_events(tmp_path):
    generate_file(tmp_path / "out.h5", generate(0), workers=3)
    assert len(open_events(tmp_path / "out.h5")) == 0
    assert names(tmp_path) == ["out.h5", "out_points.npy"]


def test_workers_give_the_same_bytes_and_a_dead_one_is_an_error_not_a_hang(tmp_path, whole):
    events, said = generate(40, 7, MUON, start=3), []

    def kill_one(stage, done, total):
        if done == 12:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with pytest.raises(ChildProcessError, match=r"a worker was ended by signal 9; .*the same command goes on there"):
        generate_file(tmp_path / "out.h5", events, workers=2, chunk_events=5, progress=kill_one)
    assert multiprocessing.active_children() == []
    assert names(tmp_path) == ["out.h5.partial"]
    generate_file(tmp_path / "out.h5", events, workers=2, chunk_events=5, say=said.append)
    assert digest(tmp_path / "out.h5") == whole[".h5"]
    assert len(said) == 1
    assert "going on with an earlier run, " in said[0]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_killed_run_goes_on(tmp_path, suffix, whole):
    """Killed while it makes events (two workers, which end by themselves), and again while it joins them."""
    path = tmp_path / f"out{suffix}"
    code = """if True:
        import os, pathlib, signal, sys
        from larpanda.data.farm import generate_file
        from larpanda.data.generate import generate
        path, workers, stage, number = sys.argv[1:]
        def progress(*now):
            if now[:2] == (stage, int(number)):
                # not ru_maxrss, which begins with what the process that began this one had
                status = pathlib.Path("/proc/self/status")
                print(status.read_text().split("VmHWM:")[1].split()[0] if status.exists() else 0, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        events = generate(40, 7, "single:muon", start=3)
        generate_file(pathlib.Path(path), events, int(workers), chunk_events=5, progress=progress, say=print)
    """
    for workers, stage, number in (("2", "making", "23"), ("1", "making", "31"), ("1", "joining", "20")):
        command = [sys.executable, "-c", code, str(path), workers, stage, number]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        out = process.communicate()[0].splitlines()
        assert process.returncode == -signal.SIGKILL
        assert int(out[-1]) < 1e6, "kB of memory"
        wait_for(lambda group=process.pid: not is_alive(group))
        assert not path.exists()
    assert "going on with an earlier run, 40 of 40" not in out[0]
    assert any(name.startswith(f".out{suffix}.") for name in names(tmp_path)), "what was joined so far"
    generate_file(path, generate(40, 7, MUON, start=3), chunk_events=5)
    assert digest(path) == whole[suffix]
    assert names(tmp_path) == ["out.h5", "out_points.npy"] if suffix == ".h5" else ["out.parquet"]


def is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited for two minutes"
        time.sleep(0.05)


def test_ctrl_c_ends_every_process(tmp_path):
    """As a terminal sends it: to all processes of the command."""
    path = tmp_path / "out.parquet"
    command = [sys.executable, "-m", "larpanda", "generate", str(path), "--events", "1000000", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--preset", "single:proton"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background of a shell ignore it
    )
    wait_for(lambda: list(tmp_path.glob("out.parquet.partial/*.parquet")) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate()[1] == "larpanda generate: stopped\n"
    assert process.returncode == 130
    wait_for(lambda: not is_alive(process.pid))
    assert names(tmp_path) == ["out.parquet.partial"]


@pytest.mark.parametrize(
    ("events", "difference"),
    [
        (generate(20, 8, MUON), "seed 7 there, 8 here"),
        (generate(21, 7, MUON), r'event_numbers \{.*"stop": 20.* there, \{.*"stop": 21'),
        (generate(20, 7, "single:pion"), 'preset "single:muon" there, "single:pion" here'),
        (generate(20, 7, MUON, settings=["min_voxels=12"]), r'preset "single:muon" there, "single:muon#'),
    ],
)
def test_the_beginning_of_another_run_is_not_touched(tmp_path, events, difference):
    path = tmp_path / "out.h5"
    with pytest.raises(KeyboardInterrupt):
        generate_file(path, generate(20, 7, MUON), chunk_events=4, progress=stop_at(10, KeyboardInterrupt))
    before = digest(tmp_path / "out.h5.partial" / "from-000000004.parquet")
    with pytest.raises(ValueError, match=rf"out\.h5\.partial: holds events of another run \({difference}") as error:
        generate_file(path, events, chunk_events=4)
    assert "\n" not in str(error.value)
    assert "delete this folder to start over" in str(error.value)
    assert digest(tmp_path / "out.h5.partial" / "from-000000004.parquet") == before


def test_another_version_does_not_go_on(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        generate_file(tmp_path / "out.h5", generate(20), chunk_events=1, progress=stop_at(2, KeyboardInterrupt))
    monkeypatch.setattr("larpanda.data.generate.__version__", "9.9")
    with pytest.raises(ValueError, match=rf'larpanda "{__version__}" there, "9.9" here'):
        generate_file(tmp_path / "out.h5", generate(20), chunk_events=1)


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "out.h5.partial").mkdir()
    (tmp_path / "out.h5.partial" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"out\.h5\.partial: holds events of another run \(it has no run\.json"):
        generate_file(tmp_path / "out.h5", generate(1, preset=MUON))
    assert names(tmp_path / "out.h5.partial") == ["lock", "thesis.tex"]
    (tmp_path / "b.h5.partial").write_text("a file")
    with pytest.raises(FileExistsError):
        generate_file(tmp_path / "b.h5", generate(1, preset=MUON))


def test_two_runs_do_not_write_one_file(tmp_path):
    folder = tmp_path / "out.h5.partial"
    folder.mkdir()
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"out\.h5\.partial: another process is at work here"):
            generate_file(tmp_path / "out.h5", generate(1, preset=MUON))
    generate_file(tmp_path / "out.h5", generate(1, preset=MUON))
    assert not folder.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_preset_that_cannot_be_fulfilled_leaves_nothing(tmp_path, workers):
    events = generate(40, preset="single:proton", settings=["min_voxels=100000", "vertex.half_mm=0,0,0"])
    with pytest.raises(ValueError, match=r"event \d+: the largest of 1000 draws"):
        generate_file(tmp_path / "out.h5", events, workers)
    assert names(tmp_path) == []


def test_an_old_file_stays_until_the_new_one_is_there(tmp_path):
    path = tmp_path / "out.h5"
    generate_file(path, generate(2, preset=MUON))
    before = digest(path)
    with pytest.raises(KeyboardInterrupt):
        generate_file(path, generate(3, preset=MUON), progress=stop_at(3, KeyboardInterrupt))
    assert digest(path) == before
    generate_file(path, generate(3, preset=MUON))
    assert len(open_events(path)) == 3


@pytest.mark.parametrize(("name", "error"), [("out.root", ValueError), ("no/out.h5", FileNotFoundError)])
def test_a_name_that_cannot_be_written_is_said_before_anything_is_made(tmp_path, name, error):
    with pytest.raises(error):
        generate_file(tmp_path / name, generate(10**9))
    assert names(tmp_path) == []
