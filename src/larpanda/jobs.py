"""Text for batch systems. Pure functions: what they return is to be read, kept with the run, and submitted by hand."""

import shlex
from collections.abc import Sequence

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
    numbers, time_limit, options = {"nodes": 1, "gpus": 1, "cpus": 8}, "24:00:00", []
    for setting in filter(None, settings.split(",")):
        name, _, value = setting.partition("=")
        if not (name and value) or (name in numbers and not value.isdecimal()):
            raise ValueError(f"--slurm {setting}: expected e.g. nodes=2,gpus=8,cpus=8,time=24:00:00,partition=NAME")
        if name in numbers:
            numbers[name] = int(value)
        elif name == "time":
            time_limit = value
        else:
            options.append(f"--{name}={value}")
    nodes, gpus, cpus = numbers.values()
    return slurm_script(command, nodes=nodes, gpus=gpus, cpus_per_gpu=cpus, time_limit=time_limit, options=options)
