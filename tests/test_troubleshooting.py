"""The page of troubles quotes messages as the source has them, and knows every status and exit code."""

import ast
import re
from pathlib import Path

import pytest

from larpanda.event import Status
from larpanda.train.checkpoint import NoCheckpointError

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "troubleshooting.md").read_text()
GAP = "\0"  # what a message fills in


def strings(source):
    """Every text of a source: parts that are written side by side are one, what is filled in is a gap."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


CORPUS = [text for path in (ROOT / "src" / "larpanda").rglob("*.py") for text in strings(path.read_text())]
CORPUS += [(ROOT / name).read_text() for name in ("Makefile", "src/larpanda/display/viewer.js")]


def section(title):
    return re.split(r"^## ", TEXT.partition(f"## {title}\n")[2], flags=re.M)[0]


def first_cells(text):
    rows = [re.split(r"(?<!\\)\|", line)[1].strip() for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


TITLES = [title for title in re.findall(r"^## (.*)$", TEXT, re.M) if section(title).count("|---")]
QUOTED = [
    message
    for title in TITLES
    if title not in ("Exit codes", "Statuses of events")
    for cell in first_cells(section(title))
    for message in re.findall(r"`([^`]+)`", cell)
    if " " in message  # one word is the name of a file
]


def is_said(message):
    """Whether some text of the source has the fixed words of a message, in their order, with gaps between."""
    words = [part.strip() for part in message.split("...")]
    pattern = re.compile(f".*{GAP}.*".join(re.escape(part) for part in words if part), re.S)
    return any(pattern.search(text) for text in CORPUS)


def test_many_messages_are_quoted():
    assert len(QUOTED) > 45


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_in_the_source(message):
    assert is_said(message)


def test_a_changed_message_would_be_found():
    assert is_said("...: no such file or folder; check the name")
    assert not is_said("...: no such file nor folder; check the name")
    assert is_said("bundle ... has no ... head (its heads: ...); fine-tune one with larpanda finetune")
    assert not is_said("bundle ... has no head (its heads: ...)")
    assert not is_said("fine-tune one with larpanda finetune ... bundle")


def test_every_status_is_there():
    assert first_cells(section("Statuses of events")) == [f"`{status}`" for status in Status]


def test_exit_codes_are_those_of_the_command_line():
    source = (ROOT / "src/larpanda/cli.py").read_text()
    codes = {int(code) for code in re.findall(r"_complain\(.*, (\d+)\)$", source, re.M)}
    codes |= {int(code) for code in re.findall(r'"exit_code", (\d+)\)', source)} | {NoCheckpointError.exit_code}
    said = [int(cell) for cell in first_cells(section("Exit codes"))]
    assert codes | {0} == set(said)
