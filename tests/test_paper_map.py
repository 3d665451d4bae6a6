"""The map of the paper: every name on it exists, every section, table and figure stands on it once, in order."""

import importlib.util
import re
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from larpanda.train.recipes import FINETUNE, PRETRAIN

ROOT = Path(__file__).parents[1]
MAP = ROOT / "docs" / "paper-map.md"
SECTIONS = ["1", "2", "5", "3.1", "3.1.1", "3.1.2", "3.2", "3.2.1", "3.2.2", "3.3", "3.3.1", "3.3.2", "3.3.3"]
SECTIONS += ["3.4", "3.5", "3.6", "4"]
APPENDICES = ["A", "B.1", "B.2", "B.2.1", "B.2.2", "C"]
DOTTED = re.compile(r"`((?:[a-z_]\w*)(?:\.[A-Za-z_]\w*)+)`")
FILES = (".md", ".py", ".json", ".jsonl", ".h5", ".hdf5", ".parquet", ".html", ".svg", ".csv", ".yaml", ".txt", ".pth")
NAMES = [name for name in dict.fromkeys(DOTTED.findall(MAP.read_text())) if not name.endswith(FILES)]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def resolve(name):
    """The object of a dotted name in larpanda: its longest part that is a module, then attributes of that."""
    parts = ["larpanda", *name.split(".")]
    n = max(n for n in range(1, len(parts) + 1) if is_module(".".join(parts[:n])))
    found = importlib.import_module(".".join(parts[:n]))
    for part in parts[n:]:
        fields = getattr(found, "__dataclass_fields__", {})
        found = fields[part] if part in fields else getattr(found, part)
    return found


def is_module(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is none
        return False


def is_setting(name):
    """Whether a recipe has such a field: what --set takes."""

    def has(config, parts):
        if not parts:
            return True
        return is_dataclass(config) and hasattr(config, parts[0]) and has(getattr(config, parts[0]), parts[1:])

    return any(has(recipe(), name.split(".")) for recipe in (*PRETRAIN.values(), *FINETUNE.values()))


def first_cells():
    """What the first column of the page's tables says, from top to bottom."""
    rows = [line.split("|")[1].strip() for line in MAP.read_text().splitlines() if line.startswith("|")]
    return [cell for cell in rows if cell not in ("", "paper", "---")]


def test_the_page_names_more_than_a_few():
    assert len(NAMES) > 80


@pytest.mark.parametrize("name", NAMES)
def test_a_name_on_the_map_is_in_the_code(name):
    if not is_setting(name):
        resolve(name)


@pytest.mark.parametrize("name", ["model.distill.sinkhorm", "nothing.there", "event.Event.invisible"])
def test_a_wrong_name_would_be_found(name):
    assert not is_setting(name)
    with pytest.raises(AttributeError):
        resolve(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_full_names_on_other_pages_are_in_the_code(page):
    for name in dict.fromkeys(DOTTED.findall(page.read_text())):
        if name.startswith("larpanda.") and not name.endswith(FILES):
            resolve(name.removeprefix("larpanda."))


def test_every_section_table_and_figure_stands_on_the_map_once_in_order():
    cells = first_cells()
    numbers = [cell.split()[0] for cell in cells if not cell.startswith(("Table", "Figure"))]
    assert numbers == SECTIONS + APPENDICES
    assert [cell for cell in cells if cell.startswith("Table")] == [f"Table {n}" for n in range(1, 5)]
    assert [cell for cell in cells if cell.startswith("Figure")] == [f"Figure {n}" for n in range(1, 16)]
