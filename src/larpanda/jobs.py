"""Text for batch systems. Pure functions: what they return is to be read, kept with the run, and submitted by hand."""

import shlex
from collections.abc import Mapping, Sequence

WARNING_SECONDS = 120  # before the time limit; a step and a checkpoint of 2 GB take a tenth of that


def slurm_script(
    command: Sequence[str],
    *,
    name: str = "larpanda",
    nodes: int = 1,
    gpus: int = 1,
    cpus_per_gpu: int = 8,
    time_limit: str = "24:00:00",
    options: Sequence[str] = (),
    setup: Sequence[str] = (),
) -> str:
    """A Slurm job that trains, and puts itself in the queue again until the run is complete.

    Two minutes before the time limit Slurm sends SIGUSR1 to the script, which passes it to the training processes;
    they save and end, and the job is requeued with the same number. So a run of weeks goes through queues of a day.

    Args:
        command: of larpanda and what follows, e.g. ``["pretrain", "events/", "--out", "run"]``; the run folder must be
            on a file system that all nodes see.
        name: of the job.
        nodes: machines.
        gpus: on each node; 0 trains on CPUs, one process a node.
        cpus_per_gpu: cores for each process.
        time_limit: of one stay in the queue, in Slurm's form (``hours:minutes:seconds``).
        options: further lines for Slurm without ``#SBATCH``, e.g. ``["--partition=gpu", "--account=lartpc"]``.
        setup: lines of shell that come first, e.g. ``["source .venv/bin/activate"]``.

    Returns:
        The script. Give it to ``sbatch``.

    Raises:
        ValueError: a number that cannot be, or text with a line break.
    """
    if nodes < 1 or gpus < 0 or cpus_per_gpu < 1:
        raise ValueError(f"{nodes} nodes, {gpus} gpus, {cpus_per_gpu} cpus_per_gpu; expected at least 1, 0 and 1")
    if broken := [text for text in (name, time_limit, *options) if "\n" in text]:
        raise ValueError(f"{broken[0]!r} has a line break, which would end the line for Slurm")
    processes = max(gpus, 1)
    wanted = [
        f"--job-name={name}",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",  # a torchrun, which starts the processes of its node
        f"--cpus-per-task={processes * cpus_per_gpu}",
        *([f"--gpus-per-node={gpus}"] if gpus else []),
        f"--time={time_limit}",
        f"--signal=B:USR1@{WARNING_SECONDS}",
        "--requeue",
        "--open-mode=append",  # one log for all stays in the queue
        *options,
    ]
    header = "\n".join(f"#SBATCH {line}" for line in wanted)
    begin = "".join(f"{line}\n" for line in setup)
    return f"""#!/bin/bash
{header}
{begin}
# Slurm sends SIGUSR1 to this script alone; scancel sends it on to all processes of the job's steps.
warnings=0
trap 'warnings=$((warnings + 1)); scancel --signal=USR1 "$SLURM_JOB_ID"' USR1

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD="$head:$((20000 + SLURM_JOB_ID % 20000))"

# torchrun would die of SIGUSR1: it ignores it, and the training processes below it listen for themselves.
srun --kill-on-bad-exit=1 bash -c 'trap "" USR1; exec torchrun --nnodes={nodes} --nproc-per-node={processes} \\
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$HEAD" -m larpanda "$@"' \\
    torchrun {shlex.join(command)} &
step=$!
seen=none
while [ "$seen" != "$warnings" ]; do # a warning ends the wait, not the step
    seen=$warnings
    wait "$step"
    code=$?
done

if [ "$warnings" -gt 0 ] && [ "$code" = 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def slurm_script_of(command: Sequence[str], settings: str) -> str:
    """A Slurm job with settings as the command line takes them: ``nodes=2,gpus=8,cpus=8,time=24:00:00,partition=gpu``.

    What is not nodes, gpus, cpus (of each GPU) or time goes to Slurm as it is.

    Raises:
        ValueError: a setting that is not NAME=VALUE, or a number that is none.
    """
    numbers, others = _settings("--slurm", settings, {"nodes": 1, "gpus": 1, "cpus": 8})
    time_limit = others.pop("time", "24:00:00")
    return slurm_script(
        command,
        nodes=numbers["nodes"],
        gpus=numbers["gpus"],
        cpus_per_gpu=numbers["cpus"],
        time_limit=time_limit,
        options=[f"--{name}={value}" for name, value in others.items()],
    )


def slurm_array(command: Sequence[str], settings: str) -> str:
    """A Slurm job array of a command that takes ``--shard I/N``: one task for each share.

    A task that is pre-empted or fails with its node is queued again; what it had done stays done.

    Args:
        command: of larpanda and what follows, e.g. ``["reconstruct", "events/", "--out", "tables"]``; all nodes see
            the files.
        settings: ``tasks=64,cpus=2,time=8:00:00,partition=NAME``; what is not tasks, cpus or time goes to Slurm.

    Raises:
        ValueError: a setting that is not NAME=VALUE, or a number that is none.
    """
    numbers, others = _settings("--slurm", settings, {"tasks": 16, "cpus": 1})
    time_limit, tasks = others.pop("time", "24:00:00"), numbers["tasks"]
    wanted = [
        f"--job-name=larpanda-{command[0]}",
        f"--array=0-{tasks - 1}",
        "--ntasks=1",
        f"--cpus-per-task={numbers['cpus']}",
        f"--time={time_limit}",
        "--requeue",
        "--open-mode=append",  # one log for all stays in the queue
        *(f"--{name}={value}" for name, value in others.items()),
    ]
    header = "\n".join(f"#SBATCH {line}" for line in wanted)
    return f"""#!/bin/bash
{header}

exec larpanda {shlex.join(command)} --shard "$SLURM_ARRAY_TASK_ID/{tasks}"
"""


def condor_submit(command: Sequence[str], settings: str) -> str:
    """The same for HTCondor: a description for ``condor_submit``; a task that fails is tried three times.

    Args:
        command: as in ``slurm_array``.
        settings: ``tasks=64,cpus=2,memory=4GB``; what is not tasks or cpus becomes ``request_NAME = VALUE``.

    Raises:
        ValueError: a setting that is not NAME=VALUE, a number that is none, or a word with a quote or a line break,
            for which HTCondor has other rules.
    """
    numbers, others = _settings("--htcondor", settings, {"tasks": 16, "cpus": 1})
    if broken := [word for word in command if {"'", '"', "\n"} & set(word)]:
        raise ValueError(f"--htcondor: {broken[0]!r} has a quote or line break; use other names")
    shared = [*command, "--shard", f"$(Process)/{numbers['tasks']}"]
    words = " ".join(f"'{word}'" if " " in word else word for word in shared)
    requests = "".join(f"request_{name} = {value}\n" for name, value in others.items())
    name = f"larpanda-{command[0]}"
    return f"""universe = vanilla
executable = larpanda
transfer_executable = false
getenv = true
arguments = "{words}"
request_cpus = {numbers["cpus"]}
{requests}max_retries = 3
log = {name}.log
output = {name}-$(Process).out
error = {name}-$(Process).err
queue {numbers["tasks"]}
"""


def _settings(word: str, settings: str, defaults: Mapping[str, int]) -> tuple[dict[str, int], dict[str, str]]:
    """``a=1,b=x`` -> the numbers among ``defaults``, and the others."""
    numbers, others = dict(defaults), {}
    for setting in filter(None, settings.split(",")):
        name, _, value = setting.partition("=")
        known = name in numbers
        wrong = known and (not value.isdecimal() or (int(value) == 0 and name != "gpus"))
        if not (name and value) or "\n" in setting or wrong:
            example = ",".join(f"{key}={number}" for key, number in defaults.items())
            raise ValueError(f"{word} {setting}: expected e.g. {example},time=24:00:00,partition=NAME")
        if known:
            numbers[name] = int(value)
        else:
            others[name] = value
    return numbers, others
