"""Can a classifier tell generated events from those of Geant4? By the event, and by the particle.

    python benchmarks/classify_generator.py geant4.parquet "generate:pilarnet?events=3000&seed=150" --drop-deltas
    python benchmarks/classify_generator.py geant4.parquet more_geant4.parquet other.h5      # each against the first

Gradient boosting on the features of `event_features.py`, five-fold: an event is judged by a classifier that saw neither
it nor its particles. AUC 0.5 is a coin, 1 a certainty; it is taken within each fold and averaged, its interval is a
bootstrap over events (of the judgements, not of the training). Features are kept in runs/features until the events, the
features or the generator change.
"""

import argparse
import hashlib
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from event_features import features
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingClassifier

from larpanda.data import event_files, open_events
from larpanda.event import Event, Motif, Species

FOLDS = 5
REPEATS = 1000  # of the bootstrap
TELLING = 15  # features to print
TASK = 250  # events that a process measures at a time
ROOT = Path(__file__).parents[1]
CACHE = ROOT / "runs" / "features"

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Features of R rows, events or particles, and the event that each row is of."""

    names: tuple[str, ...]  # [F]
    value: Floats  # [R, F], NaN where there is nothing to measure
    event: Ints  # [R], 0..E-1


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What a classifier found for two sets of rows, the first laid before the second."""

    table: Table  # of both; events of the second are numbered after those of the first
    second: npt.NDArray[np.bool_]  # [R] of the second set
    fold: Ints  # [R]
    score: npt.NDArray[np.float64]  # [R] that it is of the second set, by a classifier that did not see the event
    drop: npt.NDArray[np.float64]  # [F] what the AUC loses if a feature is shuffled; NaN: not looked at


def without_deltas(event: Event) -> Event:
    """The event without the voxels of delta rays: stands in for a generator that makes none, which costs a new run."""
    keep = event.motif != Motif.DELTA
    columns = (event.position, event.energy, event.motif, event.species, event.particle, event.interaction)
    return Event(*(column[keep] for column in columns), event.particles, event.vertex, event.key)


def tables(source: str, events: int, drop_deltas: bool, workers: int) -> tuple[Table, Table]:
    """Features of the first events of a source and of their particles, from the cache or anew."""
    path = CACHE / f"{_key(source, events, drop_deltas)}.npz"
    if not path.exists():
        found = len(open_events(source))
        if found < events:
            raise SystemExit(f"{source}: {found} events; expected at least {events} (--events)")
        starts = range(0, events, TASK)
        tasks = [(source, start, min(start + TASK, events), drop_deltas) for start in starts]
        if workers == 1:
            parts = [_measure(*task) for task in tasks]
        else:
            with ProcessPoolExecutor(workers) as pool:
                parts = list(pool.map(_measure, *zip(*tasks, strict=True)))
        made = [_join([part[i] for part in parts]) for i in range(2)]
        CACHE.mkdir(parents=True, exist_ok=True)
        arrays = {f"{name}{i}": getattr(t, name) for i, t in enumerate(made) for name in ("names", "value", "event")}
        np.savez_compressed(path, **arrays)
    with np.load(path) as file:
        event, particle = (Table(tuple(file[f"names{i}"]), file[f"value{i}"], file[f"event{i}"]) for i in range(2))
    return event, particle


def _key(source: str, events: int, drop_deltas: bool) -> str:
    """Of all that decides the features: where events are generated, the generator's code too."""
    parts = [source, str(events), str(drop_deltas), (Path(__file__).parent / "event_features.py").read_text()]
    if source.startswith("generate:"):
        data = ROOT / "src" / "larpanda" / "data"
        parts += [path.read_text() for path in [data / "generate.py", *sorted((data / "physics").glob("*.py"))]]
    else:
        parts += [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in event_files(source)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _measure(source: str, first: int, last: int, drop_deltas: bool) -> tuple[Table, Table]:
    """The features of events first..last - 1."""
    torch.set_num_threads(1)
    chosen: Iterable[Event] = open_events(source)[first:last]
    if drop_deltas:
        chosen = map(without_deltas, chosen)
    rows = [features(event) for event in chosen]
    number = np.arange(first, last)
    event_names, particle_names = tuple(rows[0][0]), tuple(rows[0][1])
    events = np.array([list(event.values()) for event, _ in rows], np.float32)
    particles = [np.stack(list(particle.values()), 1).astype(np.float32) for _, particle in rows]
    return (
        Table(event_names, events, number),
        Table(particle_names, np.concatenate(particles), np.repeat(number, [len(p) for p in particles])),
    )


def _join(parts: list[Table]) -> Table:
    return Table(parts[0].names, np.concatenate([p.value for p in parts]), np.concatenate([p.event for p in parts]))


def classify(first: Table, second: Table, events: int, shuffle: bool = True, seed: int = 0) -> Verdict:
    """Train and judge, fold by fold; `shuffle` features to see what they tell. `events` is their number in each set."""
    table = _join([first, Table(second.names, second.value, second.event + events)])
    label = table.event >= events
    rng = np.random.default_rng(seed)
    places = np.arange(events) % FOLDS
    fold = np.concatenate([rng.permutation(places), rng.permutation(places)])[table.event]
    score, drop = np.empty(len(label)), np.full(len(table.names), 0.0 if shuffle else np.nan)
    for k in range(FOLDS):
        held = fold == k
        measured = np.flatnonzero(np.isfinite(table.value[~held]).any(0))  # the trees refuse a column of NaN
        train, test = table.value[~held][:, measured], table.value[held][:, measured]
        # Fixed before the generator was tuned, as the features are; early stopping would depend on the number of rows.
        model = HistGradientBoostingClassifier(
            learning_rate=0.05, max_iter=300, max_leaf_nodes=15, l2_regularization=1.0, early_stopping=False,
            random_state=0,
        )  # fmt: skip
        model.fit(train, label[~held])
        score[held] = model.predict_proba(test)[:, 1]
        whole = auc(score[held], label[held])
        for column, f in enumerate(measured if shuffle else []):
            shuffled = test.copy()
            shuffled[:, column] = rng.permutation(shuffled[:, column])
            drop[f] += (whole - auc(model.predict_proba(shuffled)[:, 1], label[held])) / FOLDS
    return Verdict(table, label, fold, score, drop)


def auc(score: npt.NDArray[np.floating], second: npt.NDArray[np.bool_]) -> float:
    """How often a row of the second set scores above one of the first; ties count a half. NaN if a set is empty."""
    n = int(second.sum())
    if n in (0, len(second)):
        return float("nan")
    return float((rankdata(score)[second].sum() - n * (n + 1) / 2) / (n * (len(second) - n)))


def overall(verdict: Verdict, rows: npt.NDArray[np.bool_]) -> float:
    """The AUC among some rows, within folds: scores of two classifiers are not compared."""
    folds = [rows & (verdict.fold == k) for k in range(FOLDS)]
    return float(np.mean([auc(verdict.score[of], verdict.second[of]) for of in folds]))


def intervals(verdict: Verdict, seed: int = 0) -> npt.NDArray[np.float64]:
    """[4] lower and upper end of the 68 % interval of the AUC, then of the 95 % one.

    Events are drawn anew, as many as there are of each set in each fold, with all their rows.
    """
    rng = np.random.default_rng(seed)
    drawn = np.zeros(REPEATS)
    for k in range(FOLDS):
        rows = np.flatnonzero(verdict.fold == k)
        rows = rows[np.argsort(verdict.score[rows], kind="stable")]
        second, event = verdict.second[rows], verdict.table.event[rows]
        sets = [np.unique(event[second == side]) for side in (False, True)]
        weight = np.zeros(event.max() + 1, np.int64)
        for i in range(REPEATS):
            for events in sets:
                weight[events] = rng.multinomial(len(events), np.full(len(events), 1 / len(events)))
            drawn[i] += _weighted_auc(weight[event], second) / FOLDS
    return np.quantile(drawn, [0.16, 0.84, 0.025, 0.975])


def _weighted_auc(weight: Ints, second: npt.NDArray[np.bool_]) -> float:
    """Of rows in the order of their scores, which are taken to be different."""
    low, high = np.where(second, 0, weight), np.where(second, weight, 0)
    return float((high * np.cumsum(low)).sum() / (low.sum() * high.sum()))


def alone(verdict: Verdict) -> npt.NDArray[np.float64]:
    """[F] AUC of each feature by itself, among the rows that have it; below 0.5: the second set has less of it."""
    result = np.full(len(verdict.table.names), 0.5)
    for f, value in enumerate(verdict.table.value.T):
        known = np.isfinite(value)
        found = auc(value[known], verdict.second[known])
        result[f] = found if np.isfinite(found) else 0.5
    return result


def report(what: str, verdict: Verdict) -> None:
    """Print the AUC."""
    low, high, low95, high95 = intervals(verdict)
    value = overall(verdict, np.ones(len(verdict.second), bool))
    counts = f"{(~verdict.second).sum():,} and {verdict.second.sum():,}"
    print(f"\n{what} ({counts}): AUC {value:.3f}, 68 % {low:.3f} to {high:.3f}, 95 % {low95:.3f} to {high95:.3f}\n")


def telling(verdict: Verdict) -> None:
    """Print the features that tell most: by what shuffling them costs, then by themselves."""
    own = alone(verdict)
    print("| feature | mean, first | mean, second | standard errors apart | AUC alone | AUC lost if shuffled |")
    print("|---|---|---|---|---|---|")
    by_drop = np.argsort(-verdict.drop)[:TELLING]
    rest = [f for f in np.argsort(-np.abs(own - 0.5)) if f not in by_drop]
    for f in [*by_drop, *rest[:TELLING]]:
        column = verdict.table.value[:, f].astype(np.float64)
        a, b = (column[np.isfinite(column) & (verdict.second == side)] for side in (False, True))
        means, apart = ("", ""), ""
        if len(a) > 1 and len(b) > 1:
            means = (f"{a.mean():.4g}", f"{b.mean():.4g}")
            error = np.hypot(a.std() / len(a) ** 0.5, b.std() / len(b) ** 0.5)
            apart = f"{(b.mean() - a.mean()) / error:+.1f}" if error else "0"
        name = verdict.table.names[f]
        print(f"| {name} | {means[0]} | {means[1]} | {apart} | {own[f]:.3f} | {verdict.drop[f]:+.4f} |")


def by_kind(verdict: Verdict) -> None:
    """Print the AUC of the classifier of particles for each kind of particle."""
    names = verdict.table.names
    motif, species = (verdict.table.value[:, names.index(name)] for name in ("motif", "species"))
    print("\n| kind | first | second | AUC |\n|---|---|---|---|")
    for m in Motif:
        for s in Species:
            of = (motif == m) & (species == s)
            first, second = (of & ~verdict.second).sum(), (of & verdict.second).sum()
            if min(first, second) >= 10 * FOLDS:
                print(f"| {s.name} {m.name} | {first:,} | {second:,} | {overall(verdict, of):.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", metavar="GEANT4", help="anything that open_events takes")
    parser.add_argument("others", metavar="OTHER", nargs="+", help="likewise; each is compared with the first")
    parser.add_argument("--events", type=int, default=3000, help="of each source, from its beginning")
    parser.add_argument(
        "--drop-deltas", action="store_true", help="then again, the first OTHER without the voxels of its delta rays"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that measure events")
    options = parser.parse_args()
    if options.events < 4 * FOLDS:
        parser.error(f"--events is {options.events}; expected at least {4 * FOLDS}")
    known = tables(options.first, options.events, False, options.workers)
    runs = [(other, False) for other in options.others] + [(options.others[0], True)] * options.drop_deltas
    for other, dropped in runs:
        found = tables(other, options.events, dropped, options.workers)
        print(f"\n## {options.first} against {other}{' without delta rays' if dropped else ''}", flush=True)
        for i, what in enumerate(("events", "particles")):
            verdict = classify(known[i], found[i], options.events, shuffle=not dropped)
            report(what, verdict)
            if not dropped:
                telling(verdict)
            if what == "particles":
                by_kind(verdict)


if __name__ == "__main__":
    main()
