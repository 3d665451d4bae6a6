"""The command line in processes of its own, killed and signalled by LARPANDA_FAULT, alone or under torchrun."""

import multiprocessing
import os
import resource
import socket
import sys
from pathlib import Path

import torch

SETTINGS = {
    "model.encoder.channels": "16,16",
    "model.encoder.depths": "1,1",
    "model.encoder.window": "32",
    "model.encoder.layer_scale": "0.5",
    "model.semantic.decoder": "null",
    "steps": 8,
    "batch_events": 4,
    "validation_events": 2,
    "save_every": 3,
    "evaluate_every": 4,
    "optim.lr": 3e-3,
    "semantic_loss.lovasz_weight": 0.0,  # alone is no sum over points, so not the same however they are divided
}
KILLED = -9
SLOW_TO_IMPORT = [
    "torch._dynamo",
    "jsonargparse",
    "h5py",
    "safetensors.torch",
    "larpanda.cli",
    "larpanda.train.finetune",
]
SLOW_TO_IMPORT += ["larpanda.data.pilarnet", "larpanda.train.loader"]


def finetune(data, run, n=1, fault="", file_limit=None, **changes):
    """Run `larpanda finetune semantic` in n processes. Returns their exit codes, and what the first said."""
    settings = SETTINGS | changes
    arguments = ["finetune", "semantic", str(data), "--from", "scratch", "--out", str(run), "--device", "cpu"]
    arguments += [text for name, value in settings.items() for text in ("--set", f"{name}={value}")]
    codes = in_processes(_command_line, n, {"LARPANDA_FAULT": fault}, arguments, file_limit, Path(f"{run}.said"))
    return codes, Path(f"{run}.said-0").read_text()


def in_processes(target, n, environment, *arguments):
    """Call a function in n processes with torchrun's variables. Returns their exit codes."""
    context = multiprocessing.get_context("forkserver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(n)}
    processes = [
        context.Process(target=_begin, args=(environment | {"RANK": str(r), "LOCAL_RANK": str(r)}, target, *arguments))
        for r in range(n)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode is not None, "a process hangs"
    return [process.exitcode for process in processes]


def _begin(environment, target, *arguments):
    os.environ.update(environment)
    torch.set_num_threads(1)
    target(*arguments)


def _command_line(arguments, file_limit, said):
    from larpanda.cli import main

    said = said.with_name(f"{said.name}-{os.environ['RANK']}").open("w")
    os.dup2(said.fileno(), 2)
    os.dup2(said.fileno(), 1)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.exit(main(arguments))
