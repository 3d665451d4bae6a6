"""What each verb of the command line does: one function. PyTorch is imported inside, so that --help is quick."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from larpanda.options import one_line

if TYPE_CHECKING:
    from larpanda.analysis.manifest import Manifest
    from larpanda.reconstruct import FileConfig, Reconstructor


Item = TypeVar("Item")
DEMO_EVENTS, DEMO_SEED = 8, 100  # seeds from 100 up are for tests: no shipped model was trained on them
PAGE_EVENTS = 12  # on one page: it stays under a few MB


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
    from larpanda.archive import ArchiveConfig, check, merge, reconstruct_files
    from larpanda.data import event_files, median_energy_warning, open_events
    from larpanda.jobs import condor_submit, slurm_array
    from larpanda.progress import FilesMeter

    files = list(dict.fromkeys(str(path) for source in arguments.files for path in event_files(source)))
    if arguments.check:
        problems = check(files, arguments.out)
        print("\n".join(problems) if problems else f"{arguments.out}: nothing is missing or broken")
        return 1 if problems else 0
    if arguments.merge:
        print("\n".join(map(str, merge(files, arguments.out))))
        return 0
    if not files:
        raise ValueError("no files to reconstruct were given")
    if arguments.slurm is not None or arguments.htcondor is not None:
        text = slurm_array if arguments.slurm is not None else condor_submit
        settings = arguments.slurm if arguments.slurm is not None else arguments.htcondor
        print(text(_reconstruct_command(arguments), settings), end="")
        return 0
    _check_entries(arguments.events, files)
    config = ArchiveConfig(
        out=arguments.out,
        bundle=arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        max_points=arguments.max_points,
        files=_file_config(arguments),
        workers=arguments.workers,
        executor=arguments.executor,
        scheduler=arguments.scheduler,
        shard=arguments.shard,
        patience_s=arguments.patience,
    )
    total: Counter[str] = Counter()
    reports = []
    n_files = len(files[arguments.shard[0] :: arguments.shard[1]])
    with closing(FilesMeter("larpanda reconstruct", n_files, arguments.quiet)) as meter:
        for report in reconstruct_files(files, config, meter.tell):
            meter.ended(report.file)
            reports.append(report)
            if report.manifest is None:
                print(f"larpanda reconstruct: {one_line(report.error)}", file=sys.stderr)
                continue
            total.update(report.manifest.statuses)
            where = "done before" if report.before else _tables(report.manifest, arguments.out)
            print(f"{report.file}: {_counts(report.manifest.statuses)} -> {where}", flush=True)
            scale = {"energy_scale": arguments.energy_scale, "voxel_mm": arguments.voxel_mm}
            if not report.before and (warning := median_energy_warning(open_events(report.file, truth=False, **scale))):
                print(f"larpanda reconstruct: warning: {report.file}: {warning}", file=sys.stderr)
    if len(reports) > 1:
        print(f"{len(reports)} files, {total.total()} events: {_counts(total)}")
    return 1 if any(report.manifest is None or report.manifest.failed for report in reports) else 0


def _check_entries(spec: str | None, files: Sequence[str]) -> None:
    """Raise ValueError for entries that the first file that can be read has not: the caller's mistake, not a file's."""
    from larpanda.data import entries_of, open_events

    for file in files:
        try:
            n_events = len(open_events(file, truth=False))
        except (ValueError, OSError):  # said when its turn comes
            continue
        entries_of(spec, n_events)
        return


def _counts(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {status}" for status, n in sorted(statuses.items())) or "no events"


def _tables(manifest: "Manifest", out: Path) -> str:
    """``tables/x_events.parquet, _voxels.parquet``."""
    first, *others = (table.file for table in manifest.tables)
    return ", ".join([str(out / first), *(other.removeprefix(manifest.stem) for other in others)])


def _file_config(arguments: argparse.Namespace) -> "FileConfig":
    from larpanda.analysis.kinematics import Detector
    from larpanda.config import config_from_yaml
    from larpanda.reconstruct import FileConfig

    return FileConfig(
        detector=config_from_yaml(Detector, arguments.detector) if arguments.detector else Detector(),
        voxels=not arguments.no_voxels,
        hdf5=arguments.hdf5,
        events=arguments.events,
        energy_scale=arguments.energy_scale,
        voxel_mm=arguments.voxel_mm,
    )


def evaluate(arguments: argparse.Namespace) -> int:
    """Compare a model with the truth in files."""
    from larpanda.data import entries_of, median_energy_warning, open_events
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


def validate(arguments: argparse.Namespace) -> int:
    """Say what is wrong with files of events, event by event."""
    from larpanda.data import event_files
    from larpanda.data.validate import check_files
    from larpanda.findings import page, text
    from larpanda.progress import FilesMeter
    from larpanda.publish import publish_text

    files = list(dict.fromkeys(path for source in arguments.files for path in event_files(source)))
    checks = []
    with closing(FilesMeter("larpanda validate", len(files), arguments.quiet)) as meter:
        for check in check_files(
            files,
            energy_scale=arguments.energy_scale,
            voxel_mm=arguments.voxel_mm,
            workers=arguments.workers,
            limit_s=arguments.limit,
            progress=meter.tell,
        ):
            meter.ended(check.file)
            checks.append(check)
    if arguments.out:  # first: who reads the lines may stop (head)
        publish_text(arguments.out, page(checks))
    print(text(checks), *([arguments.out] if arguments.out else []), sep="\n")
    return 0 if all(check.is_good for check in checks) else 1


def view(arguments: argparse.Namespace) -> int:
    """Show events."""
    from larpanda.data import entries_of, open_events
    from larpanda.display.lists import Shown
    from larpanda.display.scene import page, picture
    from larpanda.publish import publish_text
    from larpanda.report import shown

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
    events = []
    for entry in _progress(entries, len(entries), "events", arguments):
        event = source[entry]
        events.append(shown(model, event) if model else Shown(event))
    out = arguments.out or Path(Path(arguments.file.partition("?")[0].replace(":", "-")).stem + ".html")
    publish_text(out, page(events, f"larpanda: {Path(arguments.file).name}"))
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
    """Train heads on labels, with the encoder or on it."""
    from larpanda.config import override
    from larpanda.data import open_events
    from larpanda.parallel import joined, rank
    from larpanda.progress import Progress
    from larpanda.train.finetune import finetune as learn
    from larpanda.train.recipes import FINETUNE

    heads = arguments.heads
    arguments.recipe = arguments.recipe or (f"nano_{heads[0]}" if len(heads) == 1 else "nano")
    settings = [f"{name}={getattr(arguments, name)}" for name in ("mode", "labels") if getattr(arguments, name)]
    config = override(_recipe(FINETUNE, arguments)(), [*_settings(arguments), *settings])
    scale = {"energy_scale": arguments.energy_scale, "voxel_mm": arguments.voxel_mm}
    events = open_events(arguments.data, **scale)
    with joined(arguments.device), closing(Progress(arguments.quiet)) as progress:
        bundle = learn(
            heads,
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
    """What labels and pre-training are worth: the runs of a whole table, and its figure; or the other figures."""
    if arguments.what == "figures":
        return _figures(arguments)
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


def _figures(arguments: argparse.Namespace) -> int:
    """The paper's figures that need no training of ours."""
    from larpanda.atlas import write_atlas
    from larpanda.config import override
    from larpanda.plates import FiguresConfig, make_figures
    from larpanda.progress import Progress

    if arguments.train or arguments.select or arguments.test:
        raise ValueError("study figures generates its events; leave --train, --select and --test out")
    config = override(FiguresConfig(encoder=arguments.encoder), arguments.set)
    if not arguments.redraw:
        with closing(Progress(arguments.quiet)) as progress:
            make_figures(config, arguments.out, progress.say)
    print(write_atlas(arguments.out, config.figures))
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


def doctor(arguments: argparse.Namespace) -> int:
    """Say whether this installation works: versions, devices, disk, and a self-test of ten seconds."""
    from larpanda.doctor import findings, report

    return 0 if report(findings()) else 1


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
    from larpanda.reconstruct import reconstruct_file
    from larpanda.report import evaluate_events, shown, summary, table, write_report

    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    seed = DEMO_SEED if arguments.seed is None else arguments.seed
    model = _load("nano", arguments)
    file = out / "events.h5"
    write_events(file, _progress(generate(DEMO_EVENTS, seed=seed), DEMO_EVENTS, "generate", arguments))
    reconstruct_file(str(file), out, model)
    events = open_events(file)
    result = evaluate_events(model, events, _progress(range(len(events)), len(events), "evaluate", arguments))
    write_report(out / "evaluation", result, model, [file.name])
    print(table(result))
    where = out / "index.html"
    publish_text(where, page([shown(model, event) for event in events], "larpanda demo", summary(result, model)))
    print(f"tables: {out / 'events_events.parquet'}, and of particles, interactions and voxels")
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


def _reconstruct_command(arguments: argparse.Namespace) -> list[str]:
    """The words of the same command for one of many shards, without which one."""
    config = _file_config(arguments)
    command = ["reconstruct", *arguments.files, "--out", str(arguments.out), "--model", arguments.model]
    command += ["--detector", str(arguments.detector)] if arguments.detector else []
    command += ["--events", config.events] if config.events else []
    command += ["--no-voxels"] if not config.voxels else []
    command += ["--hdf5"] if config.hdf5 else []
    scale = ["--energy-scale", f"{config.energy_scale:g}", "--voxel-mm", f"{config.voxel_mm:g}"]
    how = ["--device", arguments.device, "--dtype", arguments.dtype, "--workers", str(arguments.workers)]
    how += ["--max-points", str(arguments.max_points)]
    return [*command, *scale, *how, "--patience", f"{arguments.patience:g}", "--quiet"]


def _recipe(recipes: dict[str, Callable[[], Item]], arguments: argparse.Namespace) -> Callable[[], Item]:
    if arguments.recipe not in recipes:
        raise ValueError(f"--recipe {arguments.recipe}: no such recipe; there are {', '.join(recipes)}")
    return recipes[arguments.recipe]


def _settings(arguments: argparse.Namespace) -> list[str]:
    return [*arguments.set, *([f"seed={arguments.seed}"] if arguments.seed is not None else [])]


def _progress(items: Iterable[Item], total: int, name: str, arguments: argparse.Namespace) -> Iterable[Item]:
    from tqdm import tqdm

    bar: Iterable[Item] = tqdm(items, name, total, disable=arguments.quiet or None, leave=False)
    return bar
