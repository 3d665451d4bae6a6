"""Every example runs as a user would run it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import larpanda

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(folder, script, *arguments):
    command = [sys.executable, "-W", "error", str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example_runs_and_says_something(tmp_path, script):
    assert run(tmp_path, script).strip()
    assert list(tmp_path.iterdir()) == []  # without arguments it leaves nothing behind


def test_from_arrays_keeps_the_users_points(tmp_path):
    rng = np.random.default_rng(0)
    position_cm = rng.uniform(-115, 115, (300, 3)).round(3)
    charge = rng.integers(1000, 50_000, 300)
    lines = [f"{x},{y},{z},{q}" for (x, y, z), q in zip(position_cm, charge, strict=True)]
    (tmp_path / "points.csv").write_text("\n".join(["x_cm,y_cm,z_cm,charge", *lines]))
    out = run(tmp_path, "from_arrays.py", "points.csv", "mine.h5")
    assert "300 points" in out
    (event,) = larpanda.open_events(tmp_path / "mine.h5")
    assert np.abs((event.position.numpy() + 0.5) * 0.3 - 115.2 - position_cm).max() < 0.15 + 1e-4
    np.testing.assert_allclose(event.energy.sum(), charge.sum() * 23.6e-6 / 0.7, rtol=1e-5)
