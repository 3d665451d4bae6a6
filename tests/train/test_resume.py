"""Runs in processes of their own: killed, signalled, on full disks, in one process or two - and the same in the end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from processes import KILLED, SETTINGS, finetune

import larpanda
from larpanda.publish import locked

POINTS = ("mkdir", "model", "optimizer", "state", "manifest", "written", "rename", "renamed")


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_cloud):
    path = tmp_path_factory.mktemp("data") / "clouds.h5"
    larpanda.write_events(path, [make_cloud(40 + 17 * s, seed=s) for s in range(9)])
    return path


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Number of processes -> the run that nothing happened to."""
    runs = {}
    for n in (1, 2):
        runs[n] = tmp_path_factory.mktemp("whole") / f"run-{n}"
        codes, said = finetune(data, runs[n], n)
        assert codes == [0] * n, said
    return runs


def weights(run):
    return (run / "bundle" / "model.safetensors").read_bytes()


def log(run):
    """Of each line, all but times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = {"seconds", "waited", "eta_s", "events_per_s", "points_per_s"}
    return [{name: value for name, value in line.items() if name not in times} for line in lines]


def losses(run):
    return [line["loss"] for line in log(run) if "loss" in line]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("point", POINTS)
def test_killed_while_saving_it_ends_as_if_it_had_not_been(data, whole, tmp_path, point, n):
    codes, _ = finetune(data, tmp_path / "run", n, f"kill@checkpoint.{point}:step=6")
    assert codes[0] == KILLED
    assert all(codes)
    codes, said = finetune(data, tmp_path / "run", n)
    assert codes == [0] * n, said
    assert f"going on from step {6 if point == 'renamed' else 3}" in said
    assert weights(tmp_path / "run") == weights(whole[n])
    assert log(tmp_path / "run") == log(whole[n])
    assert not list((tmp_path / "run/checkpoints").glob(".*"))


def test_a_process_killed_between_checkpoints_ends_the_run_which_then_goes_on(data, whole, tmp_path):
    codes, _ = finetune(data, tmp_path / "run", 2, "kill@step:step=5,rank=1")
    assert codes[1] == KILLED
    assert codes[0] not in (0, None)
    codes, said = finetune(data, tmp_path / "run", 2)
    assert codes == [0, 0], said
    assert weights(tmp_path / "run") == weights(whole[2])


def test_two_processes_train_as_one(data, tmp_path):
    for n in (1, 2):
        codes, said = finetune(data, tmp_path / f"{n}", n, steps=20, batch_events=5, save_every=20, evaluate_every=20)
        assert codes == [0] * n, said
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)
    for one, two in zip(log(tmp_path / "1")[:20], log(tmp_path / "2")[:20], strict=True):
        assert two["gradient"] == pytest.approx(one["gradient"], rel=1e-4)
        assert two["accuracy"] == pytest.approx(one["accuracy"], abs=0.02)  # of 600 points some are near a border


def test_a_run_goes_on_with_another_number_of_processes(data, whole, tmp_path):
    assert finetune(data, tmp_path / "run", 2, "kill@checkpoint.renamed:step=3")[0][0] == KILLED
    codes, said = finetune(data, tmp_path / "run", 1)
    assert codes == [0], said
    assert losses(tmp_path / "run") == pytest.approx(losses(whole[1]), rel=1e-4)


def test_fewer_events_in_a_batch_than_processes(data, tmp_path):
    codes, said = finetune(data, tmp_path / "run", 2, batch_events=1)
    assert codes == [2, 2]
    assert "batch_events is 1 and 2 processes train" in said


@pytest.mark.parametrize("n", [1, 2])
def test_workers_change_nothing_but_time(data, whole, tmp_path, n):
    codes, said = finetune(data, tmp_path / "run", n, "kill@checkpoint.renamed:step=3", workers=1)
    assert codes[0] == KILLED
    while left_of(tmp_path / "run"):  # hangs if they do
        time.sleep(0.1)
    codes, said = finetune(data, tmp_path / "run", n, workers=3 - n)  # may be changed on the way
    assert codes == [0] * n, said
    assert weights(tmp_path / "run") == weights(whole[n])
    assert log(tmp_path / "run") == log(whole[n])


def left_of(run):
    """Processes that have the standard error of a run: its own and those that they started."""
    files = [f"{run}.said-{rank}" for rank in range(2)]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            found += [process.name] if os.readlink(process / "fd/2") in files else []
    return found


@pytest.mark.parametrize(
    ("n", "fault", "saved"),
    [
        (1, "usr1@step:step=2", 3),  # the flag is read after the step that follows
        (1, "term@step:step=2", 3),
        (1, "term@begin", 1),
        (1, "term@checkpoint.model:step=3", 4),
        (2, "usr1@step:step=4,rank=1", 5),
        (2, "term@begin:rank=1", 1),
    ],
)
def test_a_signal_saves_and_stops_and_the_run_goes_on(data, whole, tmp_path, n, fault, saved):
    codes, said = finetune(data, tmp_path / "run", n, fault)
    assert codes == [0] * n, said
    assert f"step {saved}/8: stopped by a signal and saved; the same command goes on from there" in said
    assert not (tmp_path / "run/bundle").exists()
    codes, said = finetune(data, tmp_path / "run", n)
    assert codes == [0] * n, said
    assert f"going on from step {saved}" in said
    assert weights(tmp_path / "run") == weights(whole[n])


def test_a_second_sigterm_ends_the_process_at_once_but_not_its_echo():
    program = """
import os, signal, time
from larpanda.train import stop
with stop.stop_signals() as asked:
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    print("asked", asked.asked, flush=True)
    time.sleep(1.5 * stop.ONE_REQUEST_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "asked True\n"), done.stderr


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint(data, whole, tmp_path):
    codes, said = finetune(data, tmp_path / "run", fault="full@checkpoint.model:step=3")
    assert codes == [0]
    assert "step 3 was not saved (No space left on device); training goes on" in said
    assert weights(tmp_path / "run") == weights(whole[1])
    assert names(tmp_path / "run") == ["step-00000006", "step-00000008"]


def test_a_disk_that_stays_full_makes_room_once_and_then_fails(data, tmp_path):
    codes, said = finetune(data, tmp_path / "run", fault="full@checkpoint.model:step=8", evaluate_every=6)
    assert codes == [1]
    room = "step-00000003 was removed to make room"
    assert f"step 8 was not saved (No space left on device), {room}; a second attempt" in said
    assert said.splitlines()[-1].startswith("larpanda finetune: checkpoint.model: no space left on device")
    assert names(tmp_path / "run") == ["step-00000006"]


def test_files_that_really_cannot_grow(data, tmp_path):
    """Checkpoints and metrics.jsonl alike; the run trains to its end and then does not say that all is well."""
    codes, said = finetune(data, tmp_path / "run", file_limit=2500)
    assert codes == [1]
    assert "metrics.jsonl: cannot be written (File too large); lines wait in memory" in said
    assert "step 3 was not saved (" in said
    assert "step 8/8" in said
    assert names(tmp_path / "run") == []
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        json.loads(line)  # none is cut short


def names(run):
    return sorted(path.name for path in (run / "checkpoints").glob("step-*"))


def test_one_run_folder_has_one_writer(data, tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        codes, said = finetune(data, tmp_path / "run")
    assert codes == [2]
    assert f"another process is at work here (process {os.getpid()} on " in said


@pytest.mark.parametrize("n", [1, 2])
def test_damaged_checkpoints_only_are_exit_code_3_each_time(data, whole, tmp_path, n):
    shutil.copytree(whole[n], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/bundle")
    for path in (tmp_path / "run/checkpoints").glob("*/state.json"):
        path.write_text("{}")
    for _ in range(2):
        codes, said = finetune(data, tmp_path / "run", n)
        assert codes == [3] * n
        assert "none of 3 checkpoints is whole; remove the folder to start over" in said


def test_torchrun_itself(data, whole, tmp_path):
    settings = [text for name, value in SETTINGS.items() for text in ("--set", f"{name}={value}")]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "larpanda",
    ]
    command += ["finetune", "semantic", str(data), "--from", "scratch", "--out", str(tmp_path / "run"), *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--device", "cpu"], env=environment, capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "run/bundle")  # said once
    assert weights(tmp_path / "run") == weights(whole[2])
