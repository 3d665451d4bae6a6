"""Write the tables of README.md, docs/results.md and the model card anew from the files in docs/results/nano/.

    python benchmarks/result_tables.py [--check]

A table follows a line ``<!-- table: NAME -->``; the names are those of ``TABLES``. ``--check``: only say which page is
not what its files say (exit code 1). What stands in sentences is written by hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from larpanda.event import Motif, Species
from larpanda.publish import publish_text

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/results.md", "src/larpanda/models/nano/README.md")
EVALUATED = {
    "geant4_3001/metrics": "1,000 of Geant4, seed 3001",
    "geant4_val": "100 of Geant4 (val)",
    "generated": "1,000 generated, seed 103",
    "geant4_20": "20 of Geant4 in `tests/data`",
}
SMALL = "geant4_20"  # motifs alone: 20 events say little of particles
COMPARED = {
    "generate:pilarnet?events=200&seed=103": "200 generated, seed 103",
    "geant4_val.parquet": "100 of Geant4 (val)",
}
METHODS = ("head", "head, as published", "components", "DBSCAN")
SCORES = ("ari", "pq", "purity", "efficiency")
WAYS = {"reco_on_truth": "true voxels", "reco": "as found"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args(arguments).check
    stale = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        made = filled(text, ROOT / "docs/results/nano")
        if made != text:
            stale.append(page)
            if not check:
                publish_text(ROOT / page, made)
    said = "not what the files say" if check else "written"
    print(f"{', '.join(stale)}: {said}" if stale else "all as the files say")
    return 1 if check and stale else 0


def filled(text: str, results: Path) -> str:
    """A page with its tables made of the files in a folder. Raises ValueError if it names a table that is not known."""

    def made(found: re.Match[str]) -> str:
        name = found[2]
        if name not in TABLES:
            raise ValueError(f"table {name!r} is not known; there are {', '.join(TABLES)}")
        return found[1] + "\n".join(TABLES[name](results)) + "\n"

    return re.sub(r"(<!-- table: (.*) -->\n\n)((?:\|.*\n)*)", made, text)


def motifs(results: Path) -> list[str]:
    rows = []
    for name, title in EVALUATED.items():
        found = _read(results, name)["semantic"]
        each = [f"{found['f1'][motif.name.lower()]:.3f}".lstrip("0") for motif in Motif]
        rows.append([title, _interval(found, "macro_f1"), *each])
    return _table(["events", "macro F1", "shower", "track", "Michel", "delta", "LED"], rows)


def instances(results: Path) -> list[str]:
    rows = []
    for name, title in EVALUATED.items():
        if name != SMALL:
            for what in ("particle", "interaction"):
                found = _read(results, name)[what]
                scores = [_interval(found, key) for key in SCORES]
                rows.append([title, f"{what}s", *scores, f"{found['fraction_unassigned']:.3f}"])
    return _table(["events", "", "ARI", "PQ", "purity", "efficiency", "unassigned"], rows)


def baselines(results: Path) -> list[str]:
    found = _read(results, "instances")["results"]
    there = {(one["source"], one["level"], one["method"]): one["numbers"] for one in found}
    rows = []
    for source, title in COMPARED.items():
        for what in ("particle", "interaction"):
            for method in METHODS:
                scores = [there[source, what, method][key] for key in SCORES]
                told = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in scores]
                rows.append([title, f"{what}s", method, *told])
    return _table(["events", "", "method", "ARI", "PQ", "purity", "efficiency"], rows)


def energies(results: Path) -> list[str]:
    rows = []
    for title, one in _measured(results):
        spread = [_spread(one[key]) for key in ("energy", "energy_at_rest", "calo_uncontained")]
        angle, flipped = _value(one["angle_degrees"], 1), _value(one["flipped"], 3)
        rows.append([title, str(one["energy"]["n"]), *spread, angle, _spread(one["length"]), flipped])
    return _table(["", "n", "energy", "at rest", "not contained", "angle, degrees", "length", "flipped"], rows)


def energies_by_energy(results: Path) -> list[str]:
    measured = _measured(results)
    bins = [(one["low_mev"], one["high_mev"]) for one in measured[0][1]["energy_by_kinetic"]]
    header = [f"above {low:.0f}" if high is None else f"{low:.0f} to {high:.0f} MeV" for low, high in bins]
    rows = [[title, *(_spread(part, 2) for part in one["energy_by_kinetic"])] for title, one in measured]
    return _table(["", *header], rows)


TABLES: Mapping[str, Callable[[Path], list[str]]] = {
    "motifs": motifs,
    "particles and interactions": instances,
    "heads and baselines": baselines,
    "energies": energies,
    "energies by energy": energies_by_energy,
}


def _measured(results: Path) -> list[tuple[str, Any]]:
    found = _read(results, "generated")["kinematics"]
    names = [species.name.lower() for species in Species]
    return [(f"{name}, {said}", found[way][name]) for way, said in WAYS.items() for name in names]


def _read(results: Path, name: str) -> Any:
    return json.loads((results / f"{name}.json").read_text())


def _interval(found: Mapping[str, float], key: str) -> str:
    return f"{found[key]:.3f} [{found[f'{key}_low']:.3f}, {found[f'{key}_high']:.3f}]"


def _value(one: Mapping[str, Any], digits: int) -> str:
    return "" if one["middle"] is None else f"{one['middle']:.{digits}f}"


def _spread(one: Mapping[str, Any], digits: int = 3) -> str:
    return "" if one["middle"] is None else f"{one['middle']:.{digits}f} ± {one['half_width']:.{digits}f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return [lines[0].replace("|  |", "| |"), "|---" * len(header) + "|", *lines[1:]]


if __name__ == "__main__":
    sys.exit(main())
