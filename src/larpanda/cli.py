"""The command line: its words. What they do is in ``verbs``.

Results go to stdout, progress to stderr. Exit 0: done; 2: the caller's mistake, in one line; 1: a failure;
3: a run to go on with has checkpoints, but none is whole.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import larpanda
from larpanda import verbs
from larpanda.options import Parser, Version, heads, number, numbers, one_line, positive, shard


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.verb(arguments))
    except (ValueError, IndexError) as error:
        return _complain(arguments.name, error, getattr(error, "exit_code", 2))
    except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        return _complain(arguments.name, error, 2)
    except (OSError, FloatingPointError) as error:
        return _complain(arguments.name, error, 1)
    except KeyboardInterrupt:
        return _complain(arguments.name, "stopped", 130)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="larpanda", description="Raw 3D images of liquid-argon detectors to particles.")
    version = f"larpanda {larpanda.__version__}\nplease cite: {larpanda.CITATION}"
    parser.add_argument("--version", action=Version, text=version)
    words = parser.add_subparsers(metavar="VERB", required=True, dest="name")

    def verb(name: str, function: Callable[[argparse.Namespace], int], example: str) -> argparse.ArgumentParser:
        summary = (function.__doc__ or "").strip()
        added: argparse.ArgumentParser = words.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(verb=function)
        added.add_argument("--quiet", action="store_true", help="no progress")
        return added

    def device(one: argparse.ArgumentParser) -> None:
        one.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="where to compute (auto)")

    def dtype(one: argparse.ArgumentParser) -> None:
        one.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of features (float32)")

    def reading(one: argparse.ArgumentParser) -> None:
        one.add_argument("--energy-scale", type=positive, default=1.0, help="MeV per unit of the file's values (1)")
        one.add_argument("--voxel-mm", type=positive, default=3.0, help="voxel pitch of the file (3)")

    def selection(one: argparse.ArgumentParser) -> None:
        one.add_argument("--events", metavar="SPEC", help="which events, e.g. 10:20,37 (all)")

    one = verb("demo", verbs.demo, "larpanda demo --out demo")
    one.add_argument("--out", type=Path, default=Path("demo"), help="folder to write (demo)")
    one.add_argument("--seed", type=int, help=f"of the generated events ({verbs.DEMO_SEED})")
    device(one)

    one = verb("generate", verbs.generate, "larpanda generate events.h5 --events 10000 --seed 3 --workers 4")
    one.add_argument("out", type=Path, metavar="OUT", help="file to write, .h5 or .parquet (PILArNet v3_extra)")
    one.add_argument("--events", type=int, default=100, help="how many (100)")
    one.add_argument("--seed", type=int, default=0, help="event i depends on this and i only (0)")
    one.add_argument("--start", type=int, default=0, help="number of the first event (0)")
    one.add_argument("--preset", default="pilarnet", help="what is in an event: a name, or a YAML file (pilarnet)")
    one.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="e.g. rain.particles=4,8")
    one.add_argument("--workers", type=number, default=1, help="processes; the events do not depend on them (1)")

    one = verb(
        "pretrain",
        verbs.pretrain,
        "larpanda pretrain events.h5 --out run --probe labelled.h5\n  torchrun --nproc-per-node 8 "
        "-m larpanda pretrain train/ --recipe panda_pretrain --out run",
    )
    one.add_argument("data", nargs="+", metavar="DATA", help="event files, folders, globs, or generate:PRESET")
    one.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder; goes on if it has checkpoints")
    one.add_argument("--recipe", default="nano_pretrain", help="nano_pretrain (default) or panda_pretrain")
    one.add_argument(
        "--probe", nargs="+", default=[], metavar="DATA", help="events with truth for a linear probe (none)"
    )
    one.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="e.g. optim.lr=1e-3, steps=500")
    one.add_argument("--seed", type=int, help="of the weights, the order of events and the views (0)")
    one.add_argument(
        "--slurm", nargs="?", const="", metavar="SETTINGS", help="print a job script, e.g. nodes=2,gpus=8,partition=gpu"
    )
    device(one)
    reading(one)

    one = verb(
        "finetune",
        verbs.finetune,
        "larpanda finetune semantic labelled.h5 --from nano_encoder --mode decoder --labels 100 --out run",
    )
    one.add_argument("heads", type=heads, metavar="HEADS", help="semantic, particle, interaction, or several: a,b,c")
    one.add_argument("data", nargs="+", metavar="DATA", help="event files, folders, globs, or generate:PRESET")
    one.add_argument("--from", dest="start", required=True, metavar="BUNDLE|scratch", help="first weights")
    one.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder; goes on if it has checkpoints")
    one.add_argument("--mode", choices=["linear", "decoder", "full"], help="what trains; the rest stays frozen (full)")
    one.add_argument("--labels", type=number, metavar="K", help="train on K events, drawn with the seed (all)")
    one.add_argument("--recipe", help="nano_HEAD, for several nano (default); panda_HEAD; nano_uresnet, panda_uresnet")
    one.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="e.g. optim.lr=1e-3, steps=500")
    one.add_argument("--seed", type=int, help="of the weights, the order of events and the views (0)")
    device(one)
    reading(one)

    one = verb("study", verbs.study, "larpanda study labels --out labels --workers 2")
    what = "F1 against labels; or against events seen; or the paper's Figures 2, 5 and 11 to 15"
    one.add_argument("what", choices=["labels", "transfer", "figures"], help=what)
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder; goes on where it was stopped")
    for name, what in (("train", "to draw from"), ("select", "to choose by"), ("test", "to judge")):
        one.add_argument(f"--{name}", nargs="+", metavar="DATA", help=f"labelled events {what} (generated ones)")
    one.add_argument("--encoder", default="nano_encoder", metavar="BUNDLE", help="pre-trained (nano_encoder)")
    one.add_argument("--size", default="nano", help="of the models: nano (default) or panda")
    one.add_argument("--workers", type=number, default=1, help="runs at a time (1)")
    one.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="e.g. labels=100,10 or seeds=0")
    one.add_argument("--redraw", action="store_true", help="tables and figures from the results alone")

    one = verb("evaluate", verbs.evaluate, "larpanda evaluate nano events.h5 --out evaluation")
    one.add_argument("bundle", metavar="BUNDLE", help="shipped name (nano), bundle folder or run folder")
    one.add_argument("data", nargs="+", metavar="DATA", help="events with truth")
    one.add_argument("--out", type=Path, required=True, help="folder for metrics.json and index.html")
    one.add_argument("--seed", type=int, default=0, help="of the bootstrap intervals (0)")
    selection(one)
    device(one)
    dtype(one)
    reading(one)

    one = verb("reconstruct", verbs.reconstruct, "larpanda reconstruct events.h5 --out tables")
    one.add_argument("files", nargs="*", metavar="FILE", help="event files, folders or globs")
    one.add_argument("--out", type=Path, required=True, help="folder for the tables; what is done there stays")
    one.add_argument("--workers", type=number, default=1, help="processes; one that dies or hangs is replaced (1)")
    one.add_argument("--shard", type=shard, default=(0, 1), metavar="I/N", help="of N shares the I-th, from 0 (0/1)")
    one.add_argument("--executor", default="process", choices=["process", "dask"], help="who works (process)")
    one.add_argument("--scheduler", metavar="ADDRESS", help="of Dask, with --executor dask (one of our own)")
    one.add_argument("--patience", type=positive, default=600.0, help="seconds an event may take a worker (600)")
    one.add_argument("--max-points", type=number, default=200_000, help="of an event in one pass; more: tiles (200000)")
    one.add_argument("--check", action="store_true", help="say what is missing or broken in --out")
    one.add_argument("--merge", action="store_true", help="one table of each kind from all files, in OUT/merged")
    for system, example in (("slurm", "tasks=64,cpus=2,time=8:00:00,partition=p"), ("htcondor", "tasks=64,cpus=2")):
        one.add_argument(f"--{system}", nargs="?", const="", metavar="SETTINGS", help=f"print a job, e.g. {example}")
    one.add_argument("--detector", type=Path, metavar="FILE.yaml", help="walls and margins in cm (the image's, 5)")
    one.add_argument("--no-voxels", action="store_true", help="leave out the largest of the tables")
    one.add_argument("--hdf5", action="store_true", help="the same tables also as one HDF5 file")
    one.add_argument("--model", default="nano", metavar="BUNDLE", help="shipped name or folder (nano)")
    selection(one)
    device(one)
    dtype(one)
    reading(one)

    one = verb("validate", verbs.validate, "larpanda validate events.h5 --out events.html")
    one.add_argument("files", nargs="+", metavar="FILE", help="event files, folders or globs")
    one.add_argument("--out", type=Path, metavar="PAGE.html", help="page to write (none)")
    one.add_argument("--workers", type=number, default=1, help="processes that read (1)")
    one.add_argument("--limit", type=positive, default=60.0, metavar="SECONDS", help="for one event (60)")
    reading(one)

    one = verb("view", verbs.view, "larpanda view events.h5 --event 3 --out event.html")
    one.add_argument("file", metavar="FILE", help="event file, or generate:PRESET")
    one.add_argument("--event", type=int, metavar="N", help="one event")
    one.add_argument("--out", type=Path, metavar="PAGE.html", help="page to write (FILE's name with .html)")
    one.add_argument("--png", type=Path, metavar="FILE.png", help="a picture of the first event, for a terminal")
    one.add_argument(
        "--model", default="nano", metavar="BUNDLE", help="shipped name or folder (nano); none: truth only"
    )
    selection(one)
    device(one)
    reading(one)

    one = verb("import", verbs.import_, "larpanda import panda_base.pth --out panda_base")
    one.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a .pth file, or a folder with safetensors")
    one.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="folder to write")

    one = verb("bench", verbs.bench, "larpanda bench forward --size nano --voxels 1000,5000 --threads 1")
    one.add_argument("what", choices=["forward", "backward", "parts", "heads"], help="backward: both ways")
    one.add_argument("--size", default="panda", help="panda (default, 91 M weights) or nano")
    one.add_argument("--voxels", type=numbers, default=[1000, 5000, 20000], help="of an event (1000,5000,20000)")
    one.add_argument("--batch", type=numbers, default=[1], help="events at a time, e.g. 1,4,16 (1)")
    one.add_argument("--repeats", type=number, default=5, help="batches to time, each of another size (5)")
    one.add_argument("--threads", type=number, help="of the CPU (PyTorch's default)")
    device(one)
    dtype(one)

    verb("doctor", verbs.doctor, "larpanda doctor")

    one = verb("show", verbs.show, "larpanda show nano")
    one.add_argument("what", metavar="BUNDLE|RUN|FILE", help="what to describe")
    return parser


def _complain(name: str, error: object, code: int) -> int:
    print(f"larpanda {name}: {one_line(error)}", file=sys.stderr)
    return code
