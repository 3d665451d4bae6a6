"""What show says of a run: alive, resumed, cut short, damaged, ended."""

import json
import math
import os
import re
from collections.abc import Mapping

import pytest

from larpanda.publish import LOCK
from larpanda.runs import PAGE, Log, describe_run, is_run, read_log

MOTIFS = ("shower", "track", "michel", "delta", "led")
FLAT = math.log(4096)


def step(n, **changes):
    """The line of a step of a healthy pre-training."""
    record = {"step": n, "loss": 7.5 - 0.001 * n, "local": 7.4, "mask": 7.6, "entropy": 0.89 * FLAT, "kl": 0.12}
    record |= {"matched_local": 0.97, "matched_mask": 0.93, "usage": 0.4, "perplexity": 415.0, "temperature": 0.07}
    record |= {f"spread_{level}": 1.0 - 0.1 * level for level in range(5)}
    record |= {"lr": 1e-3, "weight_decay": 0.04, "gradient": 2.3, "skipped": 0, "seconds": 1.5, "waited": 0.02}
    return {**record, "events_per_s": 20.5, "points_per_s": 40123.4, "eta_s": 2.0 * (1000 - n), **changes}


def validation(n, score):
    return {"step": n, "validation_macro_f1": score, **{f"validation_f1_{m}": score / 2 for m in MOTIFS}}


@pytest.fixture
def run(tmp_path):
    """A folder in which lines can be laid down."""
    (tmp_path / "checkpoints" / "step-00000100").mkdir(parents=True)
    config = {"steps": 1000, "distill": {"prototypes": 4096, "sinkhorn": 3}}
    (tmp_path / "config.json").write_text(json.dumps({"task": "pretrain", "config": config, "data": ["x.h5"]}))
    return tmp_path


def write(run, records, end=""):
    lines = [json.dumps(record) if isinstance(record, Mapping) else record for record in records]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n" + end)


def test_the_state_of_a_pre_training_run(run):
    write(run, [*map(step, range(1, 101)), validation(50, 0.42), validation(100, 0.4)])
    text = describe_run(run)
    state, config = text.split("\n{", 1)
    assert json.loads("{" + config)["config"]["steps"] == 1000
    for words in (
        "run of pretrain, not ended: step 100 of 1000 (10 %)",
        "0:30:00 left",
        "loss         7.4, local 7.4, masked 7.6",
        "h(q) 7.403 nats, 89 % of log P = 8.32, KL 0.12 nats",
        "40 % nearest to any cell, perplexity 415 of 4096",
        "level 0 1, level 1 0.9, level 2 0.8",
        "norm 2.3",
        "97 % local, 93 % masked",
        "1.5 s a step, 20.5 events/s, 40123 points/s, 2 % waiting for data",
        "macro F1 0.400 at step 100, best 0.420 at step 50",
        "michel 0.2",
        "step-00000100",
        f"curves: {run / PAGE}",
    ):
        assert words in state
    for nothing in ("alarm", "skipped", "swapped", "log  ", "stopped?"):
        assert nothing not in state
    page = (run / PAGE).read_text()
    assert state.rsplit("\n", 1)[0] in page
    assert ">log P, P = 4096<" in page


def test_the_state_of_a_fine_tuning_run(run):
    (run / "config.json").write_text(json.dumps({"task": "semantic", "config": {"steps": 4}}))
    (run / "bundle").mkdir()
    write(run, [{"step": n, "loss": 1 / n, "accuracy": 0.9, "lr": 0.1, "seconds": 0.2} for n in range(1, 5)])
    state = describe_run(run).partition("\n{")[0]
    assert "run of semantic, ended: step 4 of 4 (100 %)" in state
    assert "loss         0.25, accuracy 0.9" in state
    for nothing in ("targets", "prototypes", "spread", "validation", "left", "None"):
        assert nothing not in state


def test_a_last_line_cut_by_a_kill_is_ignored(run):
    write(run, map(step, range(1, 11)), end='{"step": 11, "lo')
    state = describe_run(run).partition("\n{")[0]
    assert "step 10 of 1000" in state
    assert "not records" not in state


def test_lines_in_the_middle_that_are_no_records_are_counted(run):
    write(
        run,
        [step(1), '{"step": 2, "lo{"step": 3}', "[1]", '"x"', "{}", '{"step": "many"}', step(4), '\x00\x00{"a": 1}'],
    )
    assert "6 lines of metrics.jsonl are not records" in describe_run(run)


def test_numbers_that_are_missing_or_not_finite_are_passed_over(run):
    write(run, [step(1), step(2, loss=None, gradient=float("nan"), kl=float("inf"), usage=None, eta_s="soon")])
    state = describe_run(run).partition("\n{")[0]
    assert "step 2 of 1000" in state
    assert "loss         7.499" in state
    assert "nan" not in state


def test_steps_taken_again_replace_the_first_ones(tmp_path):
    records = [*(step(n, loss=1.0) for n in range(1, 21)), validation(20, 0.9), {"step": 20, "alarm": "old"}]
    records += [step(n, loss=2.0) for n in range(11, 31)]
    write(tmp_path, records)
    log = read_log(tmp_path / "metrics.jsonl")
    curve = log.curves()["loss"]
    assert curve.step.tolist() == list(range(1, 31))
    assert curve.value.tolist() == [1.0] * 10 + [2.0] * 20
    assert "validation_macro_f1" not in log.columns
    assert log.alarms == []


def test_skipped_steps_and_alarms_are_told(run):
    records = [step(1), {**step(2, loss=None, skipped=1), "events": [3, 14]}, step(3, skipped=1)]
    records += [{"step": 4, "skipped_events": [15]}]
    records += [{"step": n, "alarm": f"uniform collapse number {n}"} for n in range(5, 12)]
    write(run, records)
    state = describe_run(run).partition("\n{")[0]
    assert "2 steps that were not finite, step 2: events 3, 14; step 4: events 15" in state
    assert re.findall(r"alarm +step (\d+): uniform", state) == ["7", "8", "9", "10", "11"]
    assert "2 earlier ones" in state


def test_a_log_without_alarms_is_judged(run):
    write(run, [*map(step, range(1, 200)), *(step(n, entropy=0.999 * FLAT) for n in range(200, 300))])
    assert "alarm        step 225: uniform collapse: h(q) 8.31 nats" in describe_run(run)


def test_a_run_without_lines_for_an_hour_seems_to_have_stopped(run):
    write(run, [step(1)])
    then = (run / "metrics.jsonl").stat().st_mtime - 3600
    os.utime(run / "metrics.jsonl", (then, then))
    state = describe_run(run)
    assert re.search(r"stopped\? +the last line was written 1:00:0\d ago", state)
    assert "left\n" not in state


@pytest.mark.parametrize("empty", [True, False])
def test_no_step_yet(run, empty):
    if empty:
        (run / "metrics.jsonl").touch()
    assert is_run(run)
    first, rest = describe_run(run).split("\n", 1)
    assert first == "run of pretrain, not ended: no step of 1000 yet, metrics.jsonl is empty or missing"
    assert json.loads(rest)["task"] == "pretrain"
    assert not (run / PAGE).exists()


def test_what_is_a_run(tmp_path):
    assert not is_run(tmp_path)
    (tmp_path / "config.json").touch()
    assert not is_run(tmp_path)  # a bundle has one too
    (tmp_path / LOCK).touch()
    assert is_run(tmp_path)
    assert not is_run(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{'task'", r"config\.json: not JSON \(Expecting"),
        ("", r"config\.json: not JSON"),
        ("[1]", "not the record of a run; expected task and config with steps"),
        ("{}", "not the record of a run"),
        ('{"task": "x", "config": {"steps": null}}', "not the record of a run"),
        ('{"task": "x", "config": {"steps": 0}}', "not the record of a run"),
    ],
)
def test_a_damaged_record_is_one_clear_line(run, content, message):
    write(run, [step(1)])
    (run / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        describe_run(run)
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_to(run):
    """A folder in the place of the page stands for it: whoever is root may write everywhere."""
    write(run, [step(1), step(2)])
    (run / PAGE).mkdir()
    (run / PAGE / "x").touch()
    state = describe_run(run)
    assert "step 2 of 1000" in state
    assert re.search(r"curves\.html could not be written \(.+\)\n\{", state)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.json", PAGE, "metrics.jsonl"]


def test_an_empty_log_has_nothing():
    assert Log().last("loss") is None
    assert Log().curves() == {}
