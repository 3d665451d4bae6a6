"""The installation that runs these tests works, and a broken one is told."""

import importlib.metadata

import larpanda
from larpanda import doctor
from larpanda.cli import main


def test_all_is_well_here(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("all is well\n")
    for name in (*doctor.PACKAGES, "processor", "GPU", "disk", "self-test"):
        assert f"\n{name:<16} " in out
    assert f"torch            {importlib.metadata.version('torch')}\n" in out


def test_what_is_broken_is_said_and_the_rest_is_looked_at(capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("no\nmodel")

    monkeypatch.setattr("larpanda.reconstruct.load", broken)
    monkeypatch.setattr(doctor, "LEAST_FREE_GB", 1e9)
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert "self-test        RuntimeError: no model  <- not good" in lines
    assert sum(line.endswith("<- not good") for line in lines) == 3
    assert captured.err == "something is not well\n"


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package"))
    found = {one.name: one for one in doctor.findings() if one.name in ("numpy", "no-such-package")}
    assert found["numpy"].is_good
    assert not found["no-such-package"].is_good
    assert larpanda.__version__
