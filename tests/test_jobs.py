"""Job scripts: bash reads them, and run with stand-ins for Slurm's commands they do what they say."""

import os
import signal
import subprocess
import time

import pytest

from larpanda.jobs import slurm_script

COMMAND = ["pretrain", "events with spaces/*.h5", "--set", "optim.lr=1e-3", "--out", "it's a run"]

STAND_INS = {
    "scontrol": 'echo "scontrol $*" >> "$LOG"; [ "$1" = show ] && echo node7; true',
    "srun": """shift; exec "$@" """,
    "scancel": 'echo "scancel $*" >> "$LOG"; kill -USR1 "$(cat "$LOG.pid")"',
    # stands for torchrun and the training below it: ignores nothing it was not told to ignore
    "torchrun": """
trap > "$LOG.traps"
printf '%s\\n' "$@" > "$LOG.arguments"
echo "$HEAD" > "$LOG.head"
exec python3 -c '
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(int(os.environ["CODE_OF_STOP"])))
open(os.environ["LOG"] + ".pid", "w").write(str(os.getpid()))
if os.environ["HOW"] == "ends": sys.exit(int(os.environ["CODE_OF_END"]))
while True: signal.pause()
'""",
}


@pytest.fixture
def slurm(tmp_path):
    """Runs a script as Slurm would; with a warning, as Slurm does before the time limit."""

    def submit(script, warn=False, code=0):
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, body in STAND_INS.items():
            (folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / name).chmod(0o755)
        (tmp_path / "log").write_text("")
        how = {"HOW": "waits" if warn else "ends", "CODE_OF_STOP": str(code), "CODE_OF_END": str(code)}
        job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[7-8]", "LOG": str(tmp_path / "log")}
        path = {"PATH": f"{folder}:{os.environ['PATH']}"}
        process = subprocess.Popen(["bash", "-c", script], env={**os.environ, **how, **job, **path})
        while warn and not (tmp_path / "log.pid").exists():
            time.sleep(0.01)
        if warn:
            process.send_signal(signal.SIGUSR1)
        return process.wait(60), (tmp_path / "log").read_text(), tmp_path

    return submit


@pytest.mark.parametrize(
    "arguments", [{}, {"nodes": 2, "gpus": 4}, {"gpus": 0, "options": ["--partition=a b"], "setup": ["module load x"]}]
)
def test_bash_can_read_it_and_slurm_its_header(arguments):
    script = slurm_script(COMMAND, **arguments)
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    header = [line for line in lines if line.startswith("#SBATCH ")]
    assert lines[1 : 1 + len(header)] == header  # Slurm stops reading at the first command
    for expected in ("--signal=B:USR1@120", "--requeue", "--ntasks-per-node=1", *arguments.get("options", ())):
        assert f"#SBATCH {expected}" in header
    assert any("--gpus-per-node" in line for line in header) == (arguments.get("gpus") != 0)


def test_the_training_gets_its_arguments_as_they_were(slurm):
    code, log, folder = slurm(slurm_script(COMMAND, nodes=2, gpus=4))
    arguments = (folder / "log.arguments").read_text().splitlines()
    assert code == 0
    assert arguments[:2] == ["--nnodes=2", "--nproc-per-node=4"]
    assert arguments[arguments.index("-m") + 2 :] == COMMAND
    assert (folder / "log.head").read_text() == "node7:24711\n"
    assert "requeue" not in log


def test_before_the_time_limit_it_saves_and_goes_back_to_the_queue(slurm):
    code, log, folder = slurm(slurm_script(COMMAND), warn=True)
    assert code == 0
    assert log.splitlines()[-2:] == ["scancel --signal=USR1 4711", "scontrol requeue 4711"]
    assert "trap -- '' SIGUSR1" in (folder / "log.traps").read_text()  # torchrun ignores what would end it


@pytest.mark.parametrize("warn", [False, True])
def test_a_failure_is_not_put_in_the_queue_again(slurm, warn):
    code, log, _ = slurm(slurm_script(COMMAND), warn, code=1)
    assert code == 1
    assert "requeue" not in log


@pytest.mark.parametrize("arguments", [{"nodes": 0}, {"gpus": -1}, {"name": "a\nrm -rf /"}])
def test_impossible_jobs(arguments):
    with pytest.raises(ValueError, match=r"expected at least|line break"):
        slurm_script(COMMAND, **arguments)
