"""The wheel: what is in it, and (slow) that it runs in an empty environment."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_what_runs_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "larpanda/py.typed",
        "larpanda/models/nano/config.json",
        "larpanda/models/nano/model.safetensors",
        "larpanda/models/nano/README.md",
        "larpanda/models/nano_encoder/config.json",
        "larpanda/models/nano_encoder/model.safetensors",
        "larpanda/models/nano_encoder/README.md",
        "larpanda/models/nano_encoder/curves.html",
        "larpanda/display/viewer.js",
        "larpanda/display/three.bundle.js",
        "larpanda/display/three.LICENSE",
    ):
        assert needed in names
    assert all(name.startswith(("larpanda/", "larpanda-")) for name in names)
    assert wheel.stat().st_size < 20e6


@pytest.mark.slow
def test_the_demo_runs_from_an_empty_environment(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel)]
    subprocess.run(install, check=True, cwd=tmp_path)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python.with_name("larpanda")), "demo", "--out", "demo", "--quiet"]
    result = subprocess.run(command, check=True, cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert result.stdout.strip().splitlines()[-1].endswith("demo/index.html")
    assert (tmp_path / "demo" / "index.html").stat().st_size > 500_000
