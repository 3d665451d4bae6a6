"""The command line: one verb, one function. PyTorch is imported inside the verbs, so that --help is quick.

Results go to stdout, progress to stderr. Exit 0: done; 2: the caller's mistake, in one line; 1: a failure;
3: a run to go on with has checkpoints, but none is whole.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import larpanda
from larpanda.options import Parser, Version, entries_of, number, numbers, one_line, positive

if TYPE_CHECKING:
    from larpanda.reconstruct import Reconstructor


Item = TypeVar("Item")
DEMO_EVENTS, DEMO_SEED = 8, 100  # seeds from 100 up are for tests: no shipped model was trained on them
PAGE_EVENTS = 12  # on one page: it stays under a few MB


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


def generate(arguments: argparse.Namespace) -> int:
    """Make events with truth."""
    from larpanda.data.farm import generate_file
    from larpanda.data.generate import generate
    from larpanda.progress import Meter

    events = generate(arguments.events, arguments.seed, arguments.preset, arguments.start, arguments.set)
    meter = Meter("larpanda generate", arguments.quiet)
    generate_file(arguments.out, events, arguments.workers, progress=meter.tell, say=meter.say)
    print(f"{arguments.out}: {len(events)} events of preset {events.preset_name}, seed {arguments.seed}")
    return 0


def reconstruct(arguments: argparse.Namespace) -> int:
    """Reconstruct files into tables."""
    from larpanda.data import event_files, median_energy_warning, open_events
    from larpanda.reconstruct import reconstruct_files

    model = _load(arguments.model, arguments)
    reports = reconstruct_files(
        [str(path) for source in arguments.files for path in event_files(source)],
        arguments.out,
        model,
        select=lambda n: entries_of(arguments.events, n),
        energy_scale=arguments.energy_scale,
        voxel_mm=arguments.voxel_mm,
        progress=lambda entries, name: _progress(entries, len(entries), name, arguments),
    )
    for report in reports:
        if report.error:
            print(f"larpanda reconstruct: {one_line(report.error)}", file=sys.stderr)
            continue
        counts = ", ".join(f"{n} {status}" for status, n in report.statuses) or "no events"
        print(f"{report.file}: {counts} -> {arguments.out / Path(report.file).stem}_events.parquet, _voxels.parquet")
        scale = {"energy_scale": arguments.energy_scale, "voxel_mm": arguments.voxel_mm}
        if warning := median_energy_warning(open_events(report.file, truth=False, **scale)):
            print(f"larpanda reconstruct: warning: {report.file}: {warning}", file=sys.stderr)
    return 1 if any(report.error for report in reports) else 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Compare a model with the truth in files."""
    from larpanda.data import median_energy_warning, open_events
    from larpanda.parallel import joined, rank
    from larpanda.report import evaluate_events, table, write_report

    source = open_events(arguments.data, energy_scale=arguments.energy_scale, voxel_mm=arguments.voxel_mm)
    entries = entries_of(arguments.events, len(source))
    with joined(arguments.device):
        model = _load(arguments.bundle, arguments)
        arguments.quiet |= rank() > 0
        shown = _progress(entries, len(entries), "events", arguments)
        result = evaluate_events(model, source, shown, seed=arguments.seed)
        if rank() > 0:
            return 0
    if warning := median_energy_warning(source):
        print(f"larpanda evaluate: warning: {warning}", file=sys.stderr)
    for line in result.left_out:
        print(f"larpanda evaluate: left out: {one_line(line)}", file=sys.stderr)
    write_report(arguments.out, result, model, [str(one) for one in arguments.data])
    print(table(result))
    print(f"{arguments.out / 'metrics.json'}\n{arguments.out / 'index.html'}")
    return 0


def view(arguments: argparse.Namespace) -> int:
    """Show events."""
    from larpanda.data import open_events
    from larpanda.display.scene import page, picture
    from larpanda.publish import publish_text

    model = None if arguments.model == "none" else _load(arguments.model, arguments)
    source = open_events(arguments.file, energy_scale=arguments.energy_scale, voxel_mm=arguments.voxel_mm)
    spec = arguments.events if arguments.event is None else str(arguments.event)
    entries = entries_of(spec, len(source))
    if not entries:
        raise ValueError(f"{arguments.file}: no events to show")
    if arguments.png:
        event = source[entries[0]]
        title = f"{Path(arguments.file).name}: event {entries[0]}"
        picture(event, model.reconstruct(event) if model else None, arguments.png, title)
        print(arguments.png)
        if arguments.out is None:
            return 0
    if spec is None and len(entries) > PAGE_EVENTS:
        entries = entries[:PAGE_EVENTS]
        print(f"larpanda view: the first {PAGE_EVENTS} of {len(source)} events; choose with --events", file=sys.stderr)
    pairs = []
    for entry in _progress(entries, len(entries), "events", arguments):
        event = source[entry]
        pairs.append((event, model.reconstruct(event) if model else None))
    out = arguments.out or Path(Path(arguments.file.partition("?")[0].replace(":", "-")).stem + ".html")
    publish_text(out, page(pairs, f"larpanda: {Path(arguments.file).name}"))
    print(out)
    return 0


def pretrain(arguments: argparse.Namespace) -> int:
    """Train an encoder without labels, by self-distillation."""
    from larpanda.config import override
    from larpanda.data import open_events
    from larpanda.jobs import slurm_script_of
    from larpanda.parallel import joined, rank
    from larpanda.progress import Progress
    from larpanda.train.pretrain import pretrain as learn
    from larpanda.train.recipes import PRETRAIN

    config = override(_recipe(PRETRAIN, arguments)(), _settings(arguments))
    if arguments.slurm is not None:
        print(slurm_script_of(_pretrain_command(arguments), arguments.slurm), end="")
        return 0
    scale = {"energy_scale": arguments.energy_scale, "voxel_mm": arguments.voxel_mm}
    events = open_events(arguments.data, truth=False, **scale)
    probe_events = open_events(arguments.probe, **scale) if arguments.probe else ()
    with joined(arguments.device), closing(Progress(arguments.quiet)) as progress:
        bundle = learn(
            events,
            config,
            arguments.out,
            sources=arguments.data,
            probe_events=probe_events,
            probe_sources=arguments.probe,
            scale=scale,
            device=arguments.device,
            say=progress.say,
            live=progress.live,
        )
        if bundle is not None and rank() == 0:
            print(bundle)
    return 0


def finetune(arguments: argparse.Namespace) -> int:
    """Train a head on labels, with the encoder or on it."""
    from larpanda.config import override
    from larpanda.data import open_events
    from larpanda.parallel import joined, rank
    from larpanda.progress import Progress
    from larpanda.train.finetune import finetune as learn
    from larpanda.train.recipes import FINETUNE

    arguments.recipe = arguments.recipe or f"nano_{arguments.task}"
    settings = [f"{name}={getattr(arguments, name)}" for name in ("mode", "labels") if getattr(arguments, name)]
    config = override(_recipe(FINETUNE, arguments)(), [*_settings(arguments), *settings])
    scale = {"energy_scale": arguments.energy_scale, "voxel_mm": arguments.voxel_mm}
    events = open_events(arguments.data, **scale)
    with joined(arguments.device), closing(Progress(arguments.quiet)) as progress:
        bundle = learn(
            arguments.task,
            events,
            config,
            arguments.out,
            sources=arguments.data,
            start=None if arguments.start == "scratch" else arguments.start,
            scale=scale,
            device=arguments.device,
            say=progress.say,
            live=progress.live,
        )
        if bundle is not None and rank() == 0:
            print(bundle)
    return 0


def study(arguments: argparse.Namespace) -> int:
    """What labels and pre-training are worth: the runs of a whole table, and its figure."""
    from larpanda.config import override
    from larpanda.efficiency import write_labels, write_transfer
    from larpanda.progress import Progress
    from larpanda.study import StudyConfig, make_data, run_study

    out: Path = arguments.out
    with closing(Progress(arguments.quiet)) as progress:
        if not arguments.redraw:
            given = (arguments.train, arguments.select, arguments.test)
            if any(given) and not all(given):
                raise ValueError("give --train, --select and --test, or none of them: then events are generated")
            sources = (
                given if all(given) else [[file] for file in make_data(out / "data", arguments.workers, progress.say)]
            )
            train, select, test = (tuple(source) for source in sources)
            config = StudyConfig(train, select, test, encoder=arguments.encoder, size=arguments.size)
            if arguments.what == "transfer":
                config = override(config, ["rows=scratch,decoder,full", f"labels={max(config.labels)}"])
            config = override(config, arguments.set)
            failed = run_study(config, out, arguments.workers, progress.say)
            if failed:
                raise OSError(f"{len(failed)} runs have no result; the same command makes them: {failed[0]}")
    print((write_labels if arguments.what == "labels" else write_transfer)(out))
    return 0


def import_(arguments: argparse.Namespace) -> int:
    """Make a bundle of released Panda weights."""
    from larpanda.model.bundle import import_released

    bundle = import_released(arguments.checkpoint, arguments.out)
    state = bundle.model.state_dict()
    heads = [name for name in ("semantic", "particle", "interaction") if getattr(bundle.model, name) is not None]
    n_weights = sum(tensor.numel() for tensor in state.values())
    print(f"{arguments.out}: {len(state)} tensors, {n_weights:,} weights; heads: {', '.join(heads) or 'none'}")
    for line in bundle.provenance["assumed"]:
        print(f"assumed: {line}")
    for name in bundle.provenance["left_out"]:
        print(f"left out: {name}")
    return 0


def bench(arguments: argparse.Namespace) -> int:
    """Time the encoder and its parts on generated events: throughput, peak memory, share of the machine's limit."""
    import torch

    from larpanda.bench import SIZES, Case, header, line, run

    if arguments.size not in SIZES:
        raise ValueError(f"--size {arguments.size}: no such size; there are {', '.join(SIZES)}")
    if arguments.what == "backward" and arguments.dtype != "float32":
        raise ValueError("bench backward --dtype bfloat16: training is in float32; leave --dtype out")
    threads = arguments.threads or torch.get_num_threads()
    cases = [
        Case(
            arguments.size, arguments.what, voxels, batch, threads, arguments.dtype, arguments.device, arguments.repeats
        )
        for voxels in arguments.voxels
        for batch in arguments.batch
    ]
    torch.set_num_threads(threads)
    print(header(cases[0]), flush=True)
    run(cases, lambda case, rows: print(*(line(case, row) for row in rows), sep="\n", flush=True))
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Say what a bundle, run or file holds."""
    from larpanda.report import describe

    print(describe(arguments.what))
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """The whole way in one command."""
    from larpanda.data import open_events, write_events
    from larpanda.data.generate import generate
    from larpanda.display.scene import page
    from larpanda.publish import publish_text
    from larpanda.reconstruct import reconstruct_files
    from larpanda.report import evaluate_events, summary, table, write_report

    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    seed = DEMO_SEED if arguments.seed is None else arguments.seed
    model = _load("nano", arguments)
    file = out / "events.h5"
    write_events(file, _progress(generate(DEMO_EVENTS, seed=seed), DEMO_EVENTS, "generate", arguments))
    reconstruct_files(
        [str(file)], out, model, progress=lambda rows, _: _progress(rows, len(rows), "reconstruct", arguments)
    )
    events = open_events(file)
    result = evaluate_events(model, events, _progress(range(len(events)), len(events), "evaluate", arguments))
    write_report(out / "evaluation", result, model, [file.name])
    print(table(result))
    pairs = [(event, model.reconstruct(event)) for event in events]
    where = out / "index.html"
    publish_text(where, page(pairs, "larpanda demo", summary(result, model)))
    print(f"tables: {out / 'events_events.parquet'}, {out / 'events_voxels.parquet'}")
    print(f"numbers: {out / 'evaluation' / 'metrics.json'}")
    print(f"open in a browser: {where.resolve()}")
    return 0


def _load(bundle: str, arguments: argparse.Namespace) -> "Reconstructor":
    from larpanda.parallel import limit_threads
    from larpanda.reconstruct import load

    model = load(bundle, arguments.device, getattr(arguments, "dtype", "float32"))
    limit_threads(model.n_weights)
    return model


def _pretrain_command(arguments: argparse.Namespace) -> list[str]:
    """The words of the same command, without --slurm."""
    command = ["pretrain", *arguments.data, "--out", str(arguments.out), "--recipe", arguments.recipe]
    command += ["--probe", *arguments.probe] if arguments.probe else []
    command += [text for setting in _settings(arguments) for text in ("--set", setting)]
    scale = ["--energy-scale", f"{arguments.energy_scale:g}", "--voxel-mm", f"{arguments.voxel_mm:g}"]
    return [*command, "--device", arguments.device, *scale]


def _recipe(recipes: dict[str, Callable[[], Item]], arguments: argparse.Namespace) -> Callable[[], Item]:
    if arguments.recipe not in recipes:
        raise ValueError(f"--recipe {arguments.recipe}: no such recipe; there are {', '.join(recipes)}")
    return recipes[arguments.recipe]


def _settings(arguments: argparse.Namespace) -> list[str]:
    return [*arguments.set, *([f"seed={arguments.seed}"] if arguments.seed is not None else [])]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="larpanda", description="Raw 3D images of liquid-argon detectors to particles.")
    version = f"larpanda {larpanda.__version__}\nplease cite: {larpanda.CITATION}"
    parser.add_argument("--version", action=Version, text=version)
    verbs = parser.add_subparsers(metavar="VERB", required=True, dest="name")

    def verb(name: str, function: Callable[[argparse.Namespace], int], example: str) -> argparse.ArgumentParser:
        summary = (function.__doc__ or "").strip()
        added: argparse.ArgumentParser = verbs.add_parser(
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

    one = verb("demo", demo, "larpanda demo --out demo")
    one.add_argument("--out", type=Path, default=Path("demo"), help="folder to write (demo)")
    one.add_argument("--seed", type=int, help=f"of the generated events ({DEMO_SEED})")
    device(one)

    one = verb("generate", generate, "larpanda generate events.h5 --events 10000 --seed 3 --workers 4")
    one.add_argument("out", type=Path, metavar="OUT", help="file to write, .h5 or .parquet (PILArNet v3_extra)")
    one.add_argument("--events", type=int, default=100, help="how many (100)")
    one.add_argument("--seed", type=int, default=0, help="event i depends on this and i only (0)")
    one.add_argument("--start", type=int, default=0, help="number of the first event (0)")
    one.add_argument("--preset", default="pilarnet", help="what is in an event: a name, or a YAML file (pilarnet)")
    one.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="e.g. rain.particles=4,8")
    one.add_argument("--workers", type=number, default=1, help="processes; the events do not depend on them (1)")

    one = verb(
        "pretrain",
        pretrain,
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
        finetune,
        "larpanda finetune semantic labelled.h5 --from nano_encoder --mode decoder --labels 100 --out run",
    )
    one.add_argument("task", choices=["semantic", "particle", "interaction"], help="what to learn")
    one.add_argument("data", nargs="+", metavar="DATA", help="event files, folders, globs, or generate:PRESET")
    one.add_argument("--from", dest="start", required=True, metavar="BUNDLE|scratch", help="first weights")
    one.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder; goes on if it has checkpoints")
    one.add_argument("--mode", choices=["linear", "decoder", "full"], help="what trains; the rest stays frozen (full)")
    one.add_argument("--labels", type=number, metavar="K", help="train on K events, drawn with the seed (all)")
    one.add_argument("--recipe", help="nano_TASK (default), panda_TASK; nano_uresnet, panda_uresnet for the baseline")
    one.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="e.g. optim.lr=1e-3, steps=500")
    one.add_argument("--seed", type=int, help="of the weights, the order of events and the views (0)")
    device(one)
    reading(one)

    one = verb("study", study, "larpanda study labels --out labels --workers 2")
    one.add_argument("what", choices=["labels", "transfer"], help="F1 against labels; or against events seen")
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder; goes on where it was stopped")
    for name, what in (("train", "to draw from"), ("select", "to choose by"), ("test", "to judge")):
        one.add_argument(f"--{name}", nargs="+", metavar="DATA", help=f"labelled events {what} (generated ones)")
    one.add_argument("--encoder", default="nano_encoder", metavar="BUNDLE", help="pre-trained (nano_encoder)")
    one.add_argument("--size", default="nano", help="of the models: nano (default) or panda")
    one.add_argument("--workers", type=number, default=1, help="runs at a time (1)")
    one.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="e.g. labels=100,10 or seeds=0")
    one.add_argument("--redraw", action="store_true", help="table and figure from the results alone")

    one = verb("evaluate", evaluate, "larpanda evaluate nano events.h5 --out evaluation")
    one.add_argument("bundle", metavar="BUNDLE", help="shipped name (nano), bundle folder or run folder")
    one.add_argument("data", nargs="+", metavar="DATA", help="events with truth")
    one.add_argument("--out", type=Path, required=True, help="folder for metrics.json and index.html")
    one.add_argument("--seed", type=int, default=0, help="of the bootstrap intervals (0)")
    selection(one)
    device(one)
    dtype(one)
    reading(one)

    one = verb("reconstruct", reconstruct, "larpanda reconstruct events.h5 --out tables")
    one.add_argument("files", nargs="+", metavar="FILE", help="event files, folders or globs")
    one.add_argument("--out", type=Path, required=True, help="folder for the tables")
    one.add_argument("--model", default="nano", metavar="BUNDLE", help="shipped name or folder (nano)")
    selection(one)
    device(one)
    dtype(one)
    reading(one)

    one = verb("view", view, "larpanda view events.h5 --event 3 --out event.html")
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

    one = verb("import", import_, "larpanda import panda_base.pth --out panda_base")
    one.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a .pth file, or a folder with safetensors")
    one.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="folder to write")

    one = verb("bench", bench, "larpanda bench forward --size nano --voxels 1000,5000 --threads 1")
    one.add_argument("what", choices=["forward", "backward", "parts", "heads"], help="backward: both ways")
    one.add_argument("--size", default="panda", help="panda (default, 91 M weights) or nano")
    one.add_argument("--voxels", type=numbers, default=[1000, 5000, 20000], help="of an event (1000,5000,20000)")
    one.add_argument("--batch", type=numbers, default=[1], help="events at a time, e.g. 1,4,16 (1)")
    one.add_argument("--repeats", type=number, default=5, help="batches to time, each of another size (5)")
    one.add_argument("--threads", type=number, help="of the CPU (PyTorch's default)")
    device(one)
    dtype(one)

    one = verb("show", show, "larpanda show nano")
    one.add_argument("what", metavar="BUNDLE|RUN|FILE", help="what to describe")
    return parser


def _progress(items: Iterable[Item], total: int, name: str, arguments: argparse.Namespace) -> Iterable[Item]:
    from tqdm import tqdm

    bar: Iterable[Item] = tqdm(items, name, total, disable=arguments.quiet or None, leave=False)
    return bar


def _complain(name: str, error: object, code: int) -> int:
    print(f"larpanda {name}: {one_line(error)}", file=sys.stderr)
    return code
