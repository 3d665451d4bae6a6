"""Who may import whom, how long a file may get, and what an import may do."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "larpanda"
FILES = sorted(SRC.rglob("*.py"))
PARTS = {path.relative_to(SRC).parts[0].removesuffix(".py") for path in FILES}
MAX_LINES = 500
HEAVY = {"torch", "numba", "matplotlib", "pyarrow", "scipy", "h5py"}

# A part is a top-level module or package; it may always import itself, and those named here.
BASE = frozenset({"config", "crew", "event", "sparse", "parallel", "publish"})
LIBRARY = BASE | {"data", "model", "train", "evaluate", "reconstruct", "analysis", "display"}
PROGRAMS = frozenset(
    {"archive", "bench", "doctor", "efficiency", "gallery", "jobs", "options", "progress", "report", "results", "runs"}
    | {"atlas", "findings", "plates", "study", "verbs"}
)
MAY_IMPORT = {
    **dict.fromkeys(BASE, frozenset()),
    **dict.fromkeys(("data", "model"), BASE),
    "evaluate": {"event"},
    "analysis": {"event", "publish", "sparse"},
    "display": {"event", "analysis"},
    "train": {"event", "parallel", "publish", "data", "model", "evaluate"},
    "reconstruct": {"event", "parallel", "publish", "data", "model", "analysis"},
    **dict.fromkeys(PROGRAMS, LIBRARY | PROGRAMS),
    "cli": LIBRARY | PROGRAMS | {"__init__"},
    "__init__": LIBRARY,  # the public names, looked up when they are asked for
    "__main__": {"cli"},
}
CONSTANTS = {"__version__", "CITATION"}  # of larpanda itself: anyone may have them


def part_of(path):
    """The part of the architecture that a file belongs to."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imported_parts(source, package):
    """Parts that a source imports, anywhere in it: also inside functions, and for type checking only.

    ``package`` is the dotted name of the package that the source lies in; the public face counts as "__init__".
    """
    parts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: 1 - node.level or None] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{a.name}" for a in node.names] if module == "larpanda" else [module]
            names = [name for name in names if name.removeprefix("larpanda.") not in CONSTANTS]
        else:
            continue
        for root, _, rest in (name.partition(".") for name in names):
            if root == "larpanda":
                part = rest.split(".")[0]
                parts.add(part if part in PARTS else "__init__")
    return parts


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from larpanda.event import Event", {"event"}),
        ("import larpanda.sparse.grid, numpy", {"sparse"}),
        ("def f():\n    from larpanda import data, __version__", {"data"}),
        ("from larpanda import load", {"__init__"}),
        ("import larpanda", {"__init__"}),
        ("from larpanda import __version__", set()),
        ("from . import views", {"data"}),
        ("from ..model.backbone import Encoder", {"model"}),
        ("from .. import model", {"model"}),
        ("import torch\nfrom larpandas.event import x", set()),
    ],
)
def test_the_reading_of_imports(source, expected):
    assert imported_parts(source, "larpanda.data") == expected


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_go_one_way(path):
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} is not in the architecture: give it a place in MAY_IMPORT, or move it"
    package = ".".join(["larpanda", *path.relative_to(SRC).parts[:-1]])
    forbidden = imported_parts(path.read_text(), package) - MAY_IMPORT[part] - {part}
    assert not forbidden, f"{part} may import {sorted(MAY_IMPORT[part]) or 'nothing'}, not {sorted(forbidden)}"


def test_the_rules_have_no_cycle():
    """Apart from the programs, which may use one another, every part can be understood after those below it."""
    rest = {
        part: set(below) for part, below in MAY_IMPORT.items() if part not in PROGRAMS | {"cli", "__main__", "__init__"}
    }
    while rest:
        lowest = [part for part, below in rest.items() if not below & rest.keys()]
        assert lowest, f"a cycle among {sorted(rest)}"
        for part in lowest:
            del rest[part]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_a_file_can_be_read_in_one_sitting(path):
    lines = path.read_text().count("\n")
    assert lines <= MAX_LINES, f"{lines} lines: which second subject has moved in?"


@pytest.mark.parametrize("module", ["larpanda", "larpanda.cli"])
def test_import_is_light_and_without_side_effects(module, tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    code = f"import sys, {module}; print(*sorted({HEAVY} & sys.modules.keys()), end='')"
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "", f"import {module} prints, or loads: {done.stdout}"
    assert list(home.iterdir()) == list(here.iterdir()) == []
