"""Many files to tables: shares for many machines, workers that may die, what is done, what is missing, one table.

The unit of work is a file. Each is done when its manifest is there (``analysis.manifest``); what any process does of it
before does not show. So whatever stops a run, the same command goes on.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from larpanda.analysis.manifest import TABLES, InputFile, Manifest, path_of, read_manifest
from larpanda.crew import outcomes
from larpanda.event import MAX_POINTS
from larpanda.parallel import limit_threads
from larpanda.publish import publish_text, publishing
from larpanda.reconstruct import FileConfig, Reconstructor, load, provenance_of, reconstruct_file

TRIES = 3
RETRY = "retry.txt"
MERGED = "merged"
Executor = Literal["process", "dask"]


@dataclass(frozen=True)
class ArchiveConfig:
    """What is done with each file, and by whom. Can be sent to processes."""

    out: Path
    """Folder for the tables."""
    bundle: str = "nano"
    """The model, as ``larpanda.load`` takes it."""
    device: str = "auto"
    dtype: str = "float32"
    max_points: int = MAX_POINTS
    """Of an event in one pass, as ``larpanda.load`` takes it."""
    files: FileConfig = field(default_factory=FileConfig)
    workers: int = 1
    """Processes; 1: this one, which nothing watches."""
    executor: Executor = "process"
    scheduler: str | None = None
    """Address of a Dask scheduler; None: one of our own on this machine."""
    shard: tuple[int, int] = (0, 1)
    """Share i of n: every n-th file from the i-th."""
    patience_s: float = 600.0
    """A worker from which nothing is heard for so long, an event takes a second, is ended and its file tried again."""

    def __post_init__(self) -> None:
        i, n = self.shard
        if not 0 <= i < n:
            raise ValueError(f"shard {i}/{n}: expected 0/{n} to {n - 1}/{n}" if n > 0 else f"shard {i}/{n}: no shards")
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}; expected 1 or more")


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of one input file."""

    file: str
    manifest: Manifest | None  # None: it has no tables
    error: str  # why, one line; empty if it has
    before: bool = False  # it was done already


def reconstruct_files(
    files: Sequence[str],
    config: ArchiveConfig,
    told: Callable[[str, int, int], None] = lambda file, done, n: None,
) -> Iterator[FileReport]:
    """Reconstruct files: tables and manifest for each, in the folder. What is done already is not done again.

    At the end ``retry.txt`` (of a shard ``retry-I-of-N.txt``) in the folder has the files without tables, a line each;
    if there are none it is removed.

    Args:
        files: event files (see ``data.event_files`` for folders and globs); truth in them is not read.
        config: what is done, and by whom.
        told: takes a file, the events of it that are done, and all of them.

    Yields:
        A report for each file of the shard, as it ends: first those that were done before.

    Raises:
        ValueError: two files would write the same tables; one is done by another model or with other settings; or the
            bundle has no head for motifs.
        OSError: the folder cannot be written.
    """
    _check_stems(files)
    i, n = config.shard
    mine = list(dict.fromkeys(files))[i::n]
    model = _model(config.bundle, config.device, config.dtype, config.max_points)
    model.require("semantic")
    provenance = json.loads(json.dumps(provenance_of(model, config.files)))
    config.out.mkdir(parents=True, exist_ok=True)
    reports = {}
    for file in mine:
        if (manifest := _done(file, config.out, provenance)) is not None:
            reports[file] = FileReport(file, manifest, "", before=True)
            yield reports[file]
    left = [file for file in mine if file not in reports]
    for report in _reports(left, config, model, told):
        reports[report.file] = report
        yield report
    name = RETRY if n == 1 else f"retry-{i}-of-{n}.txt"
    again = [file for file in mine if reports[file].manifest is None]
    if again:
        publish_text(config.out / name, "".join(f"{file}\n" for file in again))
    else:
        (config.out / name).unlink(missing_ok=True)


def _reports(
    files: Sequence[str], config: ArchiveConfig, model: Reconstructor, told: Callable[[str, int, int], None]
) -> Iterator[FileReport]:
    if config.executor == "dask":
        yield from _by_dask(files, config)
    elif config.workers == 1 or len(files) < 2:
        for file in files:
            tell = functools.partial(told, file)
            try:
                yield FileReport(file, reconstruct_file(file, config.out, model, config.files, tell), "")
            except (ValueError, OSError) as error:
                yield FileReport(file, None, _line(error))
    else:
        tasks = [(file, config) for file in files]
        done = outcomes(
            tasks, _work, config.workers, patience_s=config.patience_s, tries=TRIES, told=lambda t, w: told(t[0], *w)
        )
        for outcome in done:
            file = outcome.task[0]  # which an error of its own names
            yield FileReport(file, outcome.result, f"{file}: {outcome.error}" if outcome.ending else outcome.error)


def _work(task: tuple[str, ArchiveConfig], tell: Callable[[Any], None]) -> Manifest:
    """One file, in a worker."""
    file, config = task
    model = _model(config.bundle, config.device, config.dtype, config.max_points)
    return reconstruct_file(file, config.out, model, config.files, lambda done, n: tell((done, n)))


@functools.cache
def _model(bundle: str, device: str, dtype: str, max_points: int) -> Reconstructor:
    """The model, opened once in a process."""
    model = load(bundle, device, dtype, max_points)
    limit_threads(model.n_weights)
    return model


def _by_dask(files: Sequence[str], config: ArchiveConfig) -> Iterator[FileReport]:
    """The same by Dask's workers, on this machine or wherever those of a scheduler are; they must see the files."""
    import distributed

    with _client(config) as client:
        futures = client.map(_work_quietly, [(file, config) for file in files], pure=False)
        of = dict(zip(futures, files, strict=True))
        for future in cast(Any, distributed.as_completed)(futures):
            if (error := future.exception()) is None:
                yield FileReport(of[future], future.result(), "")
            else:  # of a task whose workers died it is KilledWorker
                yield FileReport(of[future], None, _line(error))


def _work_quietly(task: tuple[str, ArchiveConfig]) -> Manifest:
    return _work(task, lambda what: None)


@contextmanager
def _client(config: ArchiveConfig) -> Iterator[Any]:
    try:
        import dask
        import distributed
    except ImportError:
        raise ValueError("--executor dask needs Dask: pip install distributed") from None
    connect, start = cast(Any, distributed.Client), cast(Any, distributed.LocalCluster)  # which have no types
    with dask.config.set({"distributed.scheduler.allowed-failures": TRIES - 1}):
        if config.scheduler:
            with connect(config.scheduler) as client:
                yield client
        else:
            with (
                start(
                    n_workers=config.workers, threads_per_worker=1, dashboard_address=None, memory_limit=0
                ) as cluster,
                connect(cluster) as client,
            ):
                yield client


def check(files: Sequence[str], out: Path) -> list[str]:
    """What is missing or broken in a folder of tables: a line each; every byte of the tables is read.

    Args:
        files: inputs that should be done; none given: those that have a manifest.
        out: the folder.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not out.is_dir():
        raise FileNotFoundError(f"{out}: no such folder of tables")
    _check_stems(files)
    problems = []
    for file in files:
        if not path_of(out, Path(file).stem).exists():
            problems.append(f"{file}: not done")
    found: list[Manifest] = []
    wanted = {path_of(out, Path(file).stem): file for file in files}
    for path in wanted or sorted(out.glob("*_manifest.json")):
        if not path.exists():
            continue
        try:
            manifest = read_manifest(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        found.append(manifest)
        name = wanted.get(path, manifest.input.name)
        if damage := manifest.damage(out):
            problems.append(f"{name}: {damage}")
        elif path in wanted and InputFile.of(Path(name)) != manifest.input:
            problems.append(f"{name}: is not what was reconstructed; its tables are of another version")
        elif manifest.provenance != found[0].provenance:
            problems.append(f"{name}: {_difference(found[0].provenance, manifest.provenance)}")
    known = {path_of(out, manifest.stem).name for manifest in found}
    if not files:
        for path in sorted(out.glob("*_events.parquet")):
            if f"{path.name.removesuffix('_events.parquet')}_manifest.json" not in known:
                problems.append(f"{path.name}: has no manifest")
    return problems


def merge(files: Sequence[str], out: Path) -> list[Path]:
    """One table of each kind from those of all files, in ``out/merged``; a column ``file`` says where a row is from.

    Args:
        files: inputs that must be there, in the order of their rows; none given: all with a manifest, by name.
        out: folder of the tables.

    Raises:
        ValueError: anything is missing or broken (``check``).
    """
    if problems := check(files, out):
        raise ValueError(f"{out}: not merged, {len(problems)} gaps: {'; '.join(problems[:3])}")
    paths = [path_of(out, Path(file).stem) for file in dict.fromkeys(files)] or sorted(out.glob("*_manifest.json"))
    manifests = [read_manifest(path) for path in paths]
    if not manifests:
        raise ValueError(f"{out}: no tables to merge")
    provenance = {
        **manifests[0].provenance,
        "inputs": [{"file": one.input.name, "sha256": one.input.sha256, "events": one.events} for one in manifests],
    }
    (out / MERGED).mkdir(exist_ok=True)
    for name in TABLES:  # none of a former merging is left beside new ones
        (out / MERGED / f"{name}.parquet").unlink(missing_ok=True)
    made = []
    for name in reversed(TABLES):  # that of events last: where it is, all are
        tables = [(one, out / f"{one.stem}_{name}.parquet") for one in manifests]
        if not all(path.exists() for _, path in tables):
            continue
        target = out / MERGED / f"{name}.parquet"
        _join(tables, target, json.dumps(provenance, sort_keys=True))
        made.append(target)
    return made[::-1]


def _join(tables: Sequence[tuple[Manifest, Path]], target: Path, provenance: str) -> None:
    schema = pq.read_schema(tables[0][1])
    own = "file" in schema.names
    meaning = {"unit": "", "description": "name of the input file, without its folder"}
    if not own:
        schema = pa.schema([pa.field("file", pa.string(), nullable=False, metadata=meaning), *schema], schema.metadata)
    schema = schema.with_metadata({**(schema.metadata or {}), b"provenance": provenance.encode()})
    with publishing(target) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        for manifest, path in tables:
            for batch in pq.ParquetFile(path).iter_batches():
                columns = list(batch.columns)
                if not own:
                    columns = [pa.array([manifest.input.name] * len(batch), pa.string()), *columns]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _check_stems(files: Sequence[str]) -> None:
    stems: dict[str, str] = {}
    for path in dict.fromkeys(files):
        if (stem := Path(path).stem) in stems:
            raise ValueError(f"{stems[stem]} and {path} would both write {stem}_events.parquet; use two --out folders")
        stems[stem] = path


def _done(file: str, out: Path, provenance: Mapping[str, Any]) -> Manifest | None:
    """The manifest of a file that is done, with the same input and settings. Its tables are looked for, not read."""
    path = path_of(out, Path(file).stem)
    if not path.exists():
        return None
    try:
        manifest = read_manifest(path)
        if manifest.input != InputFile.of(Path(file)):
            return None
    except (ValueError, OSError):
        return None  # it is made again, or its error is said then
    if manifest.provenance != provenance:
        raise ValueError(
            f"{path}: done otherwise ({_difference(manifest.provenance, provenance)}); choose another --out, or "
            "remove it"
        )
    there = all((out / t.file).is_file() and (out / t.file).stat().st_size == t.bytes for t in manifest.tables)
    return manifest if there else None


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return ", ".join(f"{name} {there.get(name)} there, {here.get(name)} here" for name in names)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
