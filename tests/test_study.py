"""Studies: every cell once, the same events for all methods, resumed; table and ratios against hand-made results."""

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import larpanda
from larpanda import study
from larpanda.cli import main
from larpanda.data.views import ViewConfig
from larpanda.efficiency import crossing, label_efficiency, pooled, table, told, transfer, write_labels, write_transfer
from larpanda.model.backbone import DecoderConfig, EncoderConfig
from larpanda.model.bundle import Model, ModelConfig, save_bundle
from larpanda.model.distill import DistillConfig
from larpanda.model.panoptic import PanopticConfig
from larpanda.model.semantic import SemanticConfig
from larpanda.model.unet import UResNetConfig
from larpanda.results import CellResult, Judged, Score, Validation, read_result, write_result
from larpanda.study import Cell, StudyConfig, run_study, stages
from larpanda.train.probing import ProbeConfig
from larpanda.train.recipes import nano_interaction, nano_particle, nano_pretrain, nano_semantic, nano_uresnet

ENCODER = EncoderConfig((16, 16), (1, 1), window=32, layer_scale=0.5, drop_path=0.0)


@pytest.fixture
def small(tmp_path, make_cloud, monkeypatch):
    """A study of tiny models on small clouds, and its folder."""
    files = []
    for number, (name, n) in enumerate((("train", 6), ("select", 3), ("test", 2))):
        files.append(str(tmp_path / f"{name}.h5"))
        larpanda.write_events(files[-1], [make_cloud(60, seed=100 * number + i) for i in range(n)])
    model = ModelConfig(ENCODER, SemanticConfig(DecoderConfig((16,), (1,))))
    unet = ModelConfig(UResNetConfig((4, 6), 1), SemanticConfig(None))
    pre = replace(
        nano_pretrain(),
        encoder=replace(ENCODER, mask_token=True),
        batch_events=2,
        views=ViewConfig(n_local=1, mask_voxels=(5.0, 8.0)),
        distill=DistillConfig(prototypes=16, width=8, hidden=16, level=1),
        probe=ProbeConfig(1, 1, 1, 100),
    )
    monkeypatch.setitem(study.FINETUNE, "nano_semantic", lambda: replace(nano_semantic(), model=model, batch_events=2))
    monkeypatch.setitem(study.FINETUNE, "nano_uresnet", lambda: replace(nano_uresnet(), model=unet, batch_events=2))
    for what, made in (("particle", nano_particle), ("interaction", nano_interaction)):
        head = PanopticConfig(queries=4, classes=5 if what == "particle" else 1, channels=16, blocks=1)
        tiny = replace(made(), model=ModelConfig(ENCODER, **{what: head}), batch_events=2)
        monkeypatch.setitem(study.FINETUNE, f"nano_{what}", lambda tiny=tiny: tiny)
    monkeypatch.setitem(study.PRETRAIN, "nano_pretrain", lambda: pre)
    save_bundle(tmp_path / "encoder", Model(ModelConfig(ENCODER)), {}, "card")
    config = StudyConfig(
        (files[0],),
        (files[1],),
        (files[2],),
        encoder=str(tmp_path / "encoder"),
        labels=(2, 4),
        paired=(2,),
        seeds=(0, 1),
        samples=8,
    )
    return config, tmp_path / "out"


def test_every_cell_is_made_once_and_its_file_is_enough_to_draw(small, monkeypatch):
    config, out = small
    said = []
    assert run_study(config, out, 1, said.append) == []
    cells = [cell for stage in stages(config) for cell in stage]
    assert len(said) == len(cells) == len(list((out / "results").glob("*.json"))) == 5 * 3 + 2 * (1 + 2 * 5 + 2)
    assert len({cell.name for cell in cells}) == len(cells)
    result = read_result(out / "results/decoder-4-1.json")
    assert (result.row, result.labels, result.seed, result.samples) == ("decoder", 4, 1, 8)
    assert result.lr in config.grid
    assert [judged.source for judged in result.tests] == [config.tests[0]]
    assert result.tests[0].events == 2
    assert not (out / "runs/decoder-4-1/checkpoints").exists()

    monkeypatch.setattr(study, "finetune", None)  # nothing is left to run
    again = []
    assert run_study(config, out, 1, again.append) == []
    assert again == []
    text = write_labels(out)
    assert "2 labels" in text
    assert "**test.h5, 2 events**" in text
    assert "**Learning rates, 4 labels, 2 samples**" in text
    assert text.split("Learning rates")[1].count("*|") + text.split("Learning rates")[1].count("* |") == 5
    assert "pre-trained on the K events, full" in text
    drawn = (out / "labels-test.svg").read_text()
    assert write_transfer(out)
    write_labels(out)
    assert (out / "labels-test.svg").read_text() == drawn


def test_methods_share_their_labelled_events(small):
    config, out = small
    run_study(replace(config, rows=("scratch", "linear_k"), labels=(2,), seeds=(1,)), out, 1, lambda line: None)
    records = [json.loads((out / f"runs/{name}-2-1/config.json").read_text()) for name in ("scratch", "linear_k")]
    assert [record["config"]["labels"] for record in records] == [2, 2]
    assert [record["config"]["seed"] for record in records] == [1, 1]
    pre = json.loads((out / "runs/encoder_k-2-1/config.json").read_text())
    assert pre["events"] == 2
    assert pre["config"]["keep"] == "best"
    assert records[1]["from"].endswith("encoder_k-2-1")


def test_a_cell_that_fails_is_said_and_made_the_next_time(small):
    config, out = small
    config = replace(config, rows=("scratch",), labels=(2,), seeds=(0,))
    failed = run_study(replace(config, tests=("nowhere.h5",)), out, 1, lambda line: None)
    assert len(failed) == 1
    assert "nowhere.h5" in failed[0]
    assert run_study(config, out, 1, lambda line: None) == []
    assert (out / "results/scratch-2-0.json").exists()


def test_a_signal_ends_the_study_not_one_run_of_it_and_the_same_command_goes_on(small, monkeypatch):
    config, out = small
    config = replace(config, rows=("scratch",), seeds=(0,), grid=(1e-3,))
    monkeypatch.setenv("LARPANDA_FAULT", "term@step:step=2")
    said = []
    assert run_study(config, out, 1, said.append) == [f"scratch-2-0: {study.STOPPED}"]
    assert [path.name for path in (out / "runs").iterdir() if path.is_dir()] == ["scratch-2-0"]
    monkeypatch.delenv("LARPANDA_FAULT")
    assert run_study(config, out, 1, lambda line: None) == []
    assert len(list((out / "results").iterdir())) == 2


@pytest.mark.parametrize("task", ["particle", "interaction"])
def test_instances_are_studied_by_their_own_numbers(small, task, capsys):
    config, out = small
    config = replace(config, task=task, labels=(2,), seeds=(0,), grid=(1e-3,))
    assert run_study(config, out, 1, lambda line: None) == []
    assert sorted(path.stem for path in (out / "results").glob("*.json")) == ["decoder-2-0", "full-2-0", "scratch-2-0"]
    result = read_result(out / "results/full-2-0.json")
    judged = result.tests[0]
    assert judged.score("ari").value is not None
    assert (judged.score("ari_muon").name in [score.name for score in judged.scores]) == (task == "particle")
    assert [point.samples for point in result.curve] == [2, 4, 6, 8]
    text = write_labels(out)
    assert "| PQ | 2 labels |" in text
    assert "| ARI | 2 labels |" in text
    assert "| 2 labels | ARI | PQ |" in text
    assert "ARI, 2 labels" in (write_transfer(out), (out / "transfer.svg").read_text())[1]


def test_the_learning_rate_is_the_best_of_the_grid(tmp_path):
    config = StudyConfig(("a",), ("b",), ("c",), grid=(1e-4, 1e-3, 3e-3, 1e-2))
    for lr, score in zip(config.grid, (None, 0.3, 0.5, 0.4), strict=True):
        curve = () if score is None else (Validation(8, score, None, None),)  # of events without a single particle
        found = CellResult("semantic", "scratch", 2, 0, lr, 8, 0.1, curve, (), "0")
        path = tmp_path / "results" / f"{Cell('scratch', 2, 0, lr).name}.json"
        path.parent.mkdir(exist_ok=True)
        write_result(path, found)
    assert study._learning_rate(config, tmp_path, Cell("scratch", 7, 3)) == config.grid[2]
    with pytest.raises(ValueError, match="no result of the learning rates of full"):
        study._learning_rate(config, tmp_path, Cell("full_k", 7, 3))
    assert study._learning_rate(replace(config, grid=(0.5,)), tmp_path, Cell("full_k", 7, 3)) == 0.5


def test_the_first_seed_of_every_cell_comes_first():
    config = StudyConfig(("a",), ("b",), ("c",))
    seeds = [cell.seed for stage in list(stages(config))[1:] for cell in stage]
    assert seeds == sorted(seeds)
    assert [cell.lr for cell in next(stages(config))] == list(config.grid) * 5
    assert all(cell.lr is None for stage in stages(replace(config, grid=(1e-3,))) for cell in stage)


def result(row, labels, f1, seed=0, half=0.01, curve=()):
    scores = [Score(f"f1_{name}", f1, None, None) for name in ("shower", "track", "michel", "delta", "led")]
    judged = Judged("test.h5", 10, (Score("macro_f1", f1, f1 - half, f1 + half), *scores))
    return CellResult("semantic", row, labels, seed, 1e-3, 100, 1.0, curve, (judged,), "0")


def test_label_efficiency_of_made_up_scores():
    """From scratch 0.5, 0.6, 0.7 with 10, 100, 1,000 labels; pre-trained 0.65 with 10: as from scratch with 316."""
    results = [result("scratch", k, f1) for k, f1 in ((10, 0.5), (100, 0.6), (1000, 0.7))]
    results.append(result("full", 10, 0.65))
    ratio = label_efficiency(results, "test.h5", "full", 10)
    assert ratio.value == pytest.approx(10**1.5, rel=1e-6)
    # d(log10 k) = 10 dF1, and two errors of 0.01: the interval is a factor of 10 ** 0.14 both ways, roughly
    assert ratio.low == pytest.approx(ratio.value / 10**0.13, rel=0.15)
    assert ratio.high == pytest.approx(ratio.value * 10**0.13, rel=0.15)
    beyond = label_efficiency([*results[:-1], result("full", 10, 0.8)], "test.h5", "full", 10)
    assert math.isinf(beyond.value)
    assert told(beyond) == "more than 100"
    with pytest.raises(ValueError, match="needs linear with 10 labels"):
        label_efficiency(results, "test.h5", "linear", 10)


def test_a_line_is_crossed_where_it_is():
    x, y = np.array([0.0, 1.0, 2.0]), np.array([0.1, 0.3, 0.2])
    assert crossing(x, y, 0.2) == pytest.approx(0.5)
    assert crossing(x, y, 0.05) == 0.0
    assert math.isinf(crossing(x, y, 0.4))


def test_transfer_counts_measured_scores_only():
    scratch = tuple(Validation(s, f, f - 0.02, f + 0.02) for s, f in ((10, 0.1), (50, 0.4), (100, 0.6)))
    full = tuple(Validation(s, f, f - 0.02, f + 0.02) for s, f in ((10, 0.59), (50, 0.61), (100, 0.65)))
    results = [result("scratch", 5, 0.6, curve=scratch), result("full", 5, 0.65, curve=full)]
    ratio = transfer(results, "full")
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 1.0, 10.0)
    assert transfer([*results, result("decoder", 5, 0.1, curve=scratch[:2])], "decoder").value == 0.0


def test_seeds_are_averaged_and_do_not_make_the_events_more():
    scores = [result("full", 5, f1, seed).tests[0].score("macro_f1") for seed, f1 in enumerate((0.60, 0.62, 0.64))]
    one = pooled(scores)
    assert one.value == pytest.approx(0.62)
    assert (one.high - one.low) / 2 == pytest.approx(math.hypot(0.01, 0.02 / math.sqrt(3)))
    text = table([result("full", 5, 0.6, s) for s in range(3)], "test.h5", "macro_f1")
    assert "| pre-trained, full | 0.600 [0.590, 0.610] (3) |" in text


def test_the_command_line(small, capsys, tmp_path):
    config, out = small
    words = ["study", "labels", "--out", str(out), "--quiet", "--encoder", config.encoder]
    data = ["--train", config.train[0], "--select", config.select[0], "--test", config.tests[0]]
    sets = ["--set", "labels=2,4", "--set", "rows=scratch,linear", "--set", "seeds=0", "--set", "samples=8"]
    assert main([*words, *data, *sets]) == 0
    table = capsys.readouterr().out
    assert "transformer, from scratch" in table
    assert main(["study", "labels", "--out", str(out), "--redraw"]) == 0
    assert capsys.readouterr().out == table
    assert main(["study", "transfer", "--out", str(out), "--redraw"]) == 0
    assert main([*words, *data[:2]]) == 2
    assert "give --train, --select and --test" in capsys.readouterr().err
    assert main([*words, *data, "--set", "rows=magic"]) == 2
    assert "magic not known for semantic; there are uresnet" in capsys.readouterr().err
    assert main(["study", "labels", "--out", str(tmp_path / "none"), "--redraw"]) == 2


@pytest.mark.slow
def test_two_workers_make_the_same_results_as_one(tmp_path):
    """The shipped sizes, two labels, a few steps."""
    words = ["study", "labels", "--set", "labels=2,1", "--set", "seeds=0", "--set", "samples=16", "--quiet"]
    words += ["--set", "rows=linear", "--set", "paired=1", "--train", "generate:pilarnet?events=3&seed=11"]
    words += ["--select", "generate:pilarnet?events=2&seed=12", "--test", "generate:pilarnet?events=2&seed=103"]
    for workers in ("1", "2"):
        assert main([*words, "--workers", workers, "--out", str(tmp_path / workers)]) == 0
    a, b = (
        [replace(read_result(path), minutes=0.0) for path in sorted((tmp_path / n / "results").glob("*.json"))]
        for n in ("1", "2")
    )
    assert a == b
    assert len(a) == 3 + 2


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_study_which_then_goes_on(tmp_path):
    words = [sys.executable, "-m", "larpanda", "study", "labels", "--out", str(tmp_path / "out"), "--workers", "2"]
    words += ["--set", "labels=2", "--set", "rows=scratch", "--set", "seeds=0", "--set", "samples=160"]
    words += ["--train", "generate:pilarnet?events=3&seed=11", "--select", "generate:pilarnet?events=2&seed=12"]
    words += ["--test", "generate:pilarnet?events=2&seed=103"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    checkpoints = lambda: list((tmp_path / "out/runs").glob("grid-*/checkpoints/step-*"))  # noqa: E731
    while not checkpoints():
        assert process.poll() is None
        time.sleep(0.2)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert main(words[3:] + ["--quiet"]) == 0
    assert len(list((tmp_path / "out/results").glob("*.json"))) == 3 + 1


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error_and_the_study_goes_on(tmp_path, monkeypatch, capsys):
    words = ["study", "labels", "--out", str(tmp_path), "--workers", "2", "--quiet", "--set", "labels=2"]
    words += ["--set", "rows=scratch", "--set", "seeds=0", "--set", "samples=32"]
    words += ["--train", "generate:pilarnet?events=3&seed=11", "--select", "generate:pilarnet?events=2&seed=12"]
    words += ["--test", "generate:pilarnet?events=2&seed=103"]
    monkeypatch.setenv("LARPANDA_FAULT", "kill@begin:step=0")
    assert main(words) == 1
    assert "a worker died; was there memory for 2 of them" in capsys.readouterr().err
    monkeypatch.delenv("LARPANDA_FAULT")
    assert main(words) == 0
