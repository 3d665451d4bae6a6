"""The command line as users and their scripts meet it: output, exit codes, one line for a mistake."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

import larpanda
import larpanda.progress
from larpanda.cli import main

GEANT4 = Path(__file__).parent / "data" / "geant4_20_v3extra.h5"
VERBS = ("demo", "generate", "finetune", "evaluate", "reconstruct", "validate", "view", "import", "bench", "show")
RELEASED = Path(__file__).parent / "data" / "released"


@pytest.fixture
def small(tmp_path, make_cloud):
    """A file of three small events with truth."""
    larpanda.write_events(tmp_path / "small.h5", [make_cloud(60, seed=s) for s in range(3)])
    return tmp_path / "small.h5"


def run(*arguments):
    return main([str(a) for a in arguments])


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb, capsys):
    with pytest.raises(SystemExit) as end:
        run(verb, "--help")
    assert end.value.code == 0
    assert f"example:\n  larpanda {verb}" in capsys.readouterr().out


def test_help_does_not_wait_for_pytorch():
    code = "import sys\ntry:\n import larpanda.cli; larpanda.cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules or 'numba' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_version_says_how_to_cite(capsys):
    with pytest.raises(SystemExit):
        run("--version")
    assert "arXiv:2512.01324" in capsys.readouterr().out


def test_import(tmp_path, capsys):
    assert run("import", RELEASED / "tiny_semantic.pth", "--out", tmp_path / "panda") == 0
    out = capsys.readouterr().out
    assert re.search(r"panda: \d+ tensors, [\d,]+ weights; heads: semantic", out)
    assert run("show", tmp_path / "panda") == 0
    assert run("evaluate", tmp_path / "panda", GEANT4, "--out", tmp_path / "numbers", "--events", "0:2") == 0
    capsys.readouterr()
    for arguments, line in (
        ((RELEASED / "tiny_semantic.pth", "--out", tmp_path / "panda"), "exists already"),
        ((GEANT4, "--out", tmp_path / "other"), "not a released checkpoint"),
        ((tmp_path / "none.pth", "--out", tmp_path / "other"), "no such file"),
    ):
        assert run("import", *arguments) == 2
        error = capsys.readouterr().err
        assert line in error
        assert error.count("\n") == 1
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("what", ["forward", "backward", "parts", "heads"])
def test_bench(what, capsys):
    arguments = ("--size", "nano", "--voxels", "300,900", "--batch", "1,2", "--repeats", "2", "--threads", "1")
    assert run("bench", what, *arguments) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4 * {"parts": 7, "heads": 2}.get(what, 1)
    voxels = [int(row.split("|")[2].replace(",", "")) for row in table[2:]]
    assert 270 <= voxels[0] <= 330
    assert run("bench", what, "--size", "huge") == 2
    assert "no such size; there are panda, nano" in capsys.readouterr().err


def test_reconstruct_with_walls_and_without_voxels(tmp_path, capsys):
    walls = tmp_path / "walls.yaml"
    walls.write_text("low_cm: [0, 0, 0]\nhigh_cm: [100, 100, 100]\ncontainment_cm: 2\n")
    words = ("reconstruct", GEANT4, "--events", "0:2", "--out", tmp_path / "out", "--no-voxels", "--detector", walls)
    assert run(*words) == 0
    out = capsys.readouterr().out.rstrip()
    assert out.endswith("geant4_20_v3extra_events.parquet, _particles.parquet, _interactions.parquet")
    names = {path.name.removeprefix("geant4_20_v3extra_") for path in (tmp_path / "out").iterdir()}
    assert names == {"events.parquet", "particles.parquet", "interactions.parquet", "manifest.json"}
    provenance = json.loads(pq.read_schema(tmp_path / "out/geant4_20_v3extra_events.parquet").metadata[b"provenance"])
    assert provenance["detector"]["high_cm"] == [100.0, 100.0, 100.0]
    assert provenance["detector"]["fiducial_cm"] == 5.0
    for text, message in (("high_cm: [1, 2]", "high_cm is"), ("walls: 3", "nearest is low_cm"), ("- [", "not YAML")):
        walls.write_text(text)
        assert run(*words) == 2
        error = capsys.readouterr().err
        assert "walls.yaml" in error
        assert error.count("\n") == 1
        assert message in error or "nearest" in error


def test_reconstruct(tmp_path, capsys):
    assert run("reconstruct", GEANT4, "--out", tmp_path, "--events", "0:3,7") == 0
    out = capsys.readouterr().out
    assert "4 ok" in out
    events = pq.read_table(tmp_path / "geant4_20_v3extra_events.parquet")
    assert events["entry"].to_pylist() == [0, 1, 2, 7]


def test_evaluate(tmp_path, capsys):
    assert run("evaluate", "nano", GEANT4, "--out", tmp_path, "--events", "0:4") == 0
    out = capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["events"] == 4
    assert f"macro F1  {metrics['semantic']['macro_f1']:.3f}" in out
    assert metrics["semantic"]["macro_f1_low"] <= metrics["semantic"]["macro_f1"]
    assert set(metrics["semantic"]["f1"]) == {"shower", "track", "michel", "delta", "led"}
    assert metrics["conventions"]
    page = (tmp_path / "index.html").read_text()
    assert "<svg" in page
    accuracies = re.findall(r'href="events.html#event=(\d)">(\d)</a> \((\d\.\d\d)\)', page)[:4]
    assert [place for place, _, _ in accuracies] == ["0", "1", "2", "3"]
    assert [float(share) for _, _, share in accuracies] == sorted(float(share) for _, _, share in accuracies)
    for name in ("n_voxels", "energy_mev"):
        parts = metrics["semantic_by"][name]
        assert sum(part["events"] for part in parts) == 4
        assert all(a["high"] <= b["low"] for a, b in pairwise(parts))
    assert (tmp_path / "events.html").exists()
    first = (tmp_path / "metrics.json").read_bytes()
    assert run("evaluate", "nano", GEANT4, "--out", tmp_path, "--events", "0:4", "--quiet") == 0
    assert (tmp_path / "metrics.json").read_bytes() == first


def test_view(tmp_path, small, capsys):
    assert run("view", small, "--event", 1, "--out", tmp_path / "page.html", "--png", tmp_path / "p.png") == 0
    assert (tmp_path / "page.html").read_text().startswith("<!")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert run("view", small, "--model", "none", "--png", tmp_path / "truth.png") == 0
    assert capsys.readouterr().out.split()[-1] == str(tmp_path / "truth.png")


def test_generate_is_a_function_of_the_seed(tmp_path, capsys):
    for name in ("a.h5", "b.h5"):
        assert run("generate", tmp_path / name, "--events", 2, "--seed", 100, "--quiet") == 0
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines()[0] == f"{tmp_path / 'a.h5'}: 2 events of preset pilarnet, seed 100"
    assert run("generate", tmp_path / "c.parquet", "--events", 1, "--seed", 100, "--start", 1) == 0
    assert re.search(r"^larpanda generate: making: 1 of 1 events, [\d.]+ events/s$", capsys.readouterr().err, re.M)
    a, c = (larpanda.open_events(tmp_path / name) for name in ("a.h5", "c.parquet"))
    for left, made in zip([*a, c[0]], [*larpanda.generate(2, seed=100), a[1]], strict=True):
        assert left.energy.tolist() == made.energy.tolist()


def test_generate_from_a_file_of_ones_own_in_processes_after_a_stop(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = "{pdg: [13], energy_mev: [50, 100]}"
    Path("mine.yaml").write_text(f"vertex: {{particles: [1, 1], half_mm: [0, 0, 0], sources: [{source}]}}")
    made = larpanda.progress.Meter.tell

    def stop(meter, stage, done, total):
        made(meter, stage, done, total)
        if done == 20:
            raise KeyboardInterrupt

    command = ["generate", "out.h5", "--events", 40, "--preset", "mine.yaml", "--set", "min_voxels=20"]
    monkeypatch.setattr(larpanda.progress.Meter, "tell", stop)
    assert run(*command) == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert run(*command, "--seed", 1) == 2
    assert "holds events of another run (seed 0 there, 1 here)" in capsys.readouterr().err
    assert run(*command, "--workers", 2) == 0
    captured = capsys.readouterr()
    assert "larpanda generate: out.h5.partial: going on with an earlier run, 16 of 40 events are there" in captured.err
    assert re.search(r"out\.h5: 40 events of preset mine\.yaml#[0-9a-f]{12}, seed 0", captured.out)
    run("show", "out.h5")
    assert '"min_voxels": 20' in capsys.readouterr().out
    resumed = Path("out.h5").read_bytes()
    assert run(*command) == 0
    assert Path("out.h5").read_bytes() == resumed


def test_generate_on_a_terminal_shows_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("generate", tmp_path / "a.h5", "--events", 20, "--preset", "single:proton") == 0
    err = capsys.readouterr().err
    assert "making:   0%" in err
    assert "joining: 20 of 20 events" in err


def test_finetune_and_what_show_says_of_it(tmp_path, small, capsys):
    settings = ["steps=3", "batch_events=1", "validation_events=1", "model.encoder.channels=16,16"]
    settings += ["model.encoder.depths=1,1", "model.semantic.decoder=null"]
    arguments = ["finetune", "semantic", small, "--from", "scratch", "--out", tmp_path / "run", "--quiet"]
    for setting in settings:
        arguments += ["--set", setting]
    assert run(*arguments) == 0
    bundle = capsys.readouterr().out.strip()
    assert Path(bundle) == tmp_path / "run" / "bundle"
    assert run("show", tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "run of semantic, ended: step 3 of 3" in out
    assert f"curves: {tmp_path / 'run' / 'curves.html'}" in out
    assert "accuracy of the batch" in (tmp_path / "run" / "curves.html").read_text()
    assert run("show", bundle) == 0
    assert '"channels": [' in capsys.readouterr().out
    assert run("evaluate", tmp_path / "run", small, "--out", tmp_path / "evaluation") == 0


def test_show(tmp_path, small, capsys):
    assert run("show", "nano") == 0
    assert "min_energy_mev" in capsys.readouterr().out
    assert run("show", GEANT4) == 0
    out = capsys.readouterr().out
    assert "20 events" in out
    assert "Michel" in out
    run("reconstruct", small, "--out", tmp_path / "out")
    capsys.readouterr()
    assert run("show", tmp_path / "out" / "small_events.parquet") == 0
    assert "weights_sha256" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reconstruct", "no/such.h5", "--out", "out"], r"no/such\.h5: no such file"),
        (["reconstruct", "nothing*.h5", "--out", "out"], r"nothing\*\.h5: no file of events matches"),
        (["reconstruct", "small.h5", "--out", "out", "--model", "mega"], "mega: no model there"),
        (["reconstruct", "small.h5", "--out", "out", "--events", "2:9"], "there are 3 events, 0 to 2"),
        (["reconstruct", "small.h5", "--out", "out", "--events", "first"], "expected numbers and ranges"),
        (["reconstruct", "small.h5", "--out", "small.h5"], r"small\.h5"),
        (["reconstruct", "small.h5"], "required: --out"),
        (["reconstruct", "small.h5", "--out", "out", "--energy-scale", "-1"], "-1 is not a positive number"),
        (["validate", "no/such.h5"], r"no/such\.h5: no such file"),
        (["validate", "small.h5", "--limit", "0"], "0 is not a positive number"),
        (["evaluate", "nano", "generate:jupiter", "--out", "out"], "jupiter"),
        (["evaluate", "nano", "bare.h5", "--out", "out"], "no event with truth"),
        (["view", "text.h5"], r"text\.h5"),
        (["view", "small.h5", "--event", "3"], "there are 3 events"),
        (["generate", "out.root", "--events", "1"], r"out\.root"),
        (["generate", "events.h5", "--preset", "jupiter"], "unknown preset 'jupiter'.*known are pilarnet"),
        (["generate", "events.h5", "--preset", "jupiter.yaml"], r"jupiter\.yaml: no such file"),
        (["generate", "events.h5", "--preset", "wrong.yaml"], r"wrong\.yaml: rian: no such field; the nearest is rain"),
        (["generate", "events.h5", "--set", "rain.particle=4,8"], "no such setting; the nearest is rain.particles"),
        (["generate", "events.h5", "--set", "rain.particles=many"], r"rain\.particles is \['many'\]; expected tuple"),
        (["generate", "events.h5", "--workers", "0"], "0 is not a positive whole number"),
        (["generate", "events.h5", "--start", "-1"], "start = -1"),
        (["view", "generate:wrong.yaml?events=3"], r"wrong\.yaml: rian"),
        (["finetune", "semantic", "small.h5", "--from", "scratch", "--out", "r", "--recipe", "x"], "no such recipe"),
        (["finetune", "semantic", "small.h5", "--from", "scratch", "--out", "r", "--set", "lr=1"], "nearest is"),
        (["show", "nothing"], "no model there"),
        (["show", "broken"], r"broken/config\.json: not JSON"),
        (["reconstruct", "small.h5", "--out", "out", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["fly"], "invalid choice: 'fly'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.h5").write_text("hello\n")
    (tmp_path / "wrong.yaml").write_text("rian: {}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metrics.jsonl").touch()
    (tmp_path / "broken" / "config.json").write_text("{")
    bare = larpanda.Event.from_arrays([[1, 2, 3], [2, 2, 3]], [1.0, 1.0])
    larpanda.write_events(tmp_path / "bare.h5", [bare])
    try:
        code = run(*arguments)
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert code == 2
    assert re.search(message, last)
    assert last.startswith("larpanda")
    assert captured.out == ""


def test_cuda_that_is_not_there(small, tmp_path, capsys):
    import torch

    if torch.cuda.is_available():
        assert run("reconstruct", small, "--out", tmp_path / "out", "--device", "cuda") == 0
        return
    assert run("reconstruct", small, "--out", tmp_path / "out", "--device", "cuda") == 2
    assert capsys.readouterr().err == "larpanda reconstruct: no CUDA device here, or a CPU build of PyTorch; " + (
        "use --device cpu or auto\n"
    )


def test_a_file_that_cannot_be_read_is_exit_code_1_and_the_others_are_done(small, tmp_path, capsys):
    broken = tmp_path / "broken.h5"
    broken.write_bytes(GEANT4.read_bytes()[:100_000])
    assert run("reconstruct", broken, small, "--out", tmp_path / "out", "--quiet") == 1
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1
    assert "broken.h5" in captured.err
    assert "3 ok" in captured.out


def test_validate(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("validate", small.name, small.name) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "file      events  good  problems",
        "small.h5       3     3",
        "1 files, 0 with problems; 3 events, 3 good",
    ]
    hostile = "<img src=x onerror=alert(1)>\n.h5"
    Path(hostile).write_bytes(GEANT4.read_bytes()[:100_000])
    larpanda.write_events("bad.h5", [larpanda.Event.from_arrays([[1, 2, 3]] * 3, [1.0, 1.0, 0.0])])
    assert run("validate", "bad.h5", hostile, small.name, "--out", "pages/bad.html", "--workers", 2) == 1
    out = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in out[:5]] == [
        "file events good problems",
        "bad.h5 1 0 too_small 1, zero_energy 1, duplicates 1",
        "<img src=x onerror=alert(1)>?.h5 - - cannot be read",
        "small.h5 3 3",
        "3 files, 2 with problems; 4 events, 3 good",
    ]
    assert "bad.h5: event 0: duplicates: 2 of 3 rows lie in the voxel of another row" in out
    assert any(line.startswith("<img src=x onerror=alert(1)>?.h5: this HDF5 file is truncated") for line in out)
    assert out[-1] == "pages/bad.html"
    page = Path("pages/bad.html").read_text()
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;?.h5" in page


def test_energies_in_other_units_are_noticed_and_scaled(tmp_path, capsys):
    with h5py.File(GEANT4) as file:
        points = [file["point"][i].reshape(-1, 8) for i in range(2)]
    with h5py.File(tmp_path / "charge.h5", "w") as file:
        data = file.create_dataset("point", (2,), h5py.vlen_dtype(np.float32))
        for i, rows in enumerate(points):
            scaled = rows.copy()
            scaled[:, 3] *= 40_000
            data[i] = scaled.ravel()
    assert run("reconstruct", tmp_path / "charge.h5", "--out", tmp_path / "a", "--quiet") == 0
    assert "--energy-scale" in capsys.readouterr().err
    scale = ["--energy-scale", str(1 / 40_000)]
    assert run("reconstruct", tmp_path / "charge.h5", "--out", tmp_path / "b", "--quiet", *scale) == 0
    assert capsys.readouterr().err == ""
    run("reconstruct", GEANT4, "--out", tmp_path / "c", "--quiet", "--events", "0:2")
    scaled = pq.read_table(tmp_path / "b/charge_voxels.parquet")
    true = pq.read_table(tmp_path / "c/geant4_20_v3extra_voxels.parquet")
    assert np.allclose(scaled["energy_mev"].to_numpy(), true["energy_mev"].to_numpy(), rtol=1e-5)
    assert np.mean(scaled["motif"].to_numpy() == true["motif"].to_numpy()) > 0.999


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root can write anywhere")
def test_a_folder_that_cannot_be_written_to(small, tmp_path):
    """As a user without rights: root is let down to one."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    command = [sys.executable, "-m", "larpanda", "reconstruct", str(small), "--out", str(locked / "out")]
    if os.geteuid() == 0:
        for folder in [tmp_path, *list(tmp_path.parents)[:2]]:
            folder.chmod(folder.stat().st_mode | 0o055)
        locked.chmod(0o555)
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
        if subprocess.run([*command[:4], sys.executable, "-c", "import larpanda"], capture_output=True).returncode:
            pytest.skip("the interpreter lies where another user, as whom the command is run, may not read")
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "permission denied" in result.stderr.lower()


def test_demo(tmp_path, capsys):
    assert run("demo", "--out", tmp_path / "demo", "--quiet") == 0
    out = capsys.readouterr().out
    page = Path(out.strip().splitlines()[-1].removeprefix("open in a browser: "))
    assert page == tmp_path / "demo" / "index.html"
    assert page.stat().st_size < 5e6
    assert {p.name for p in (tmp_path / "demo").iterdir()} == {
        *("events.h5", "events_points.npy", "events_events.parquet", "events_voxels.parquet", "events_manifest.json"),
        *("events_particles.parquet", "events_interactions.parquet"),
        *("evaluation", "index.html"),
    }
    assert "macro F1" in out


def test_pretrain_prints_a_job_script_that_runs_the_same_command(tmp_path, capsys):
    data = "generate:pilarnet?events=4&seed=9"
    given = ["--set", "steps=3", "--seed", 7, "--device", "cpu", "--probe", "a b.h5", "--energy-scale", 0.5]
    assert run("pretrain", data, "--out", tmp_path / "run", *given, "--slurm", "nodes=2,gpus=4,partition=gpu") == 0
    script = capsys.readouterr().out
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "#SBATCH --nodes=2\n" in script
    assert "#SBATCH --partition=gpu\n" in script
    line = next(line for line in script.splitlines() if line.strip().startswith("torchrun pretrain"))
    words = shlex.split(line.rstrip("& "))[1:]
    assert words[:4] == ["pretrain", data, "--out", str(tmp_path / "run")]
    arguments = larpanda.cli._parser().parse_args(words)
    assert (arguments.set, arguments.probe, arguments.energy_scale) == (["steps=3", "seed=7"], ["a b.h5"], 0.5)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", ["gpus", "gpus=many", "nodes=0", "=3"])
def test_a_job_that_cannot_be(tmp_path, capsys, settings):
    assert run("pretrain", "x.h5", "--out", tmp_path / "run", "--slurm", settings) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
