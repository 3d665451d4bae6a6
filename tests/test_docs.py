"""Every example of README and docs runs, top to bottom of its page, in a folder of its own.

A block of YAML whose first line is ``# NAME.yaml`` becomes that file.
"""

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>\w[^\n`]*)\n(?P<code>.*?)^(?P=indent)``` *$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    options: tuple[str, ...]
    code: str
    line: int  # of its first line of code, from 1

    @property
    def runs(self):
        """Python always; shell where it is a larpanda command, unless its fence says no-run."""
        commands = [line for line in self.code.splitlines() if line.strip() and not line.startswith("#")]
        command = bool(commands) and commands[0].startswith("larpanda ") and "no-run" not in self.options
        return self.language == "python" or (self.language == "bash" and command)


def blocks(text):
    for match in FENCE.finditer(text):
        language, *options = match["info"].split()
        line = text.count("\n", 0, match.start("code")) + 1
        yield Block(language, tuple(options), textwrap.dedent(match["code"]), line)


def test_finds_the_blocks_that_run():
    text = textwrap.dedent("""\
        # Title
        ```python
        a = 1

        ```
        ```bash
        # a comment, then
        larpanda show nano
        ```
        ```bash no-run
        larpanda pretrain archive/*.h5
        ```
        ```bash
        pip install larpanda
        ```
        ```
        output
        ```
        1. a step
           ```python title="x"
           if a:
               b = 2
           ```
        """)
    found = list(blocks(text))
    assert [block.runs for block in found] == [True, True, False, False, True]
    assert [block.line for block in found] == [3, 7, 11, 14, 21]
    assert found[0].code == "a = 1\n\n"
    assert found[-1].code == "if a:\n    b = 2\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    text = page.read_text(encoding="utf-8")
    for folder in ("tests", "examples"):  # pages may read these, as a reader at the root of the repository would
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    namespace = {"__name__": "__main__"}
    for block in blocks(text):
        if block.language == "yaml" and (name := re.match(r"# (\w+\.yaml)\n", block.code)):
            Path(name[1]).write_text(block.code)
        if not block.runs:
            continue
        if block.language == "python":
            # Blank lines above give a failure the line number that it has in the page.
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), namespace)
        else:
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", block.code], capture_output=True, text=True)
            assert done.returncode == 0, f"{page.name}:{block.line} exits {done.returncode}:\n{done.stderr}"
