"""Workers that die, hang or refuse: every task has its outcome."""

import os
import time

import pytest

from larpanda.crew import Outcome, outcomes


def work(task, tell):
    """What the task says: a word and a number or file."""
    word, value = task
    tell(f"{word} begun")
    if word == "die":
        os._exit(value)
    if word == "die once" and not os.path.exists(value):
        open(value, "w").close()
        os.kill(os.getpid(), 9)
    if word == "hang":
        time.sleep(value)
    if word == "refuse":
        raise ValueError(f"{value} is\nnot good")
    return value


def run(tasks, workers=2, **how):
    return {outcome.task: outcome for outcome in outcomes(tasks, work, workers, patience_s=30.0, **how)}


def test_each_task_has_its_outcome(tmp_path):
    tasks = [("do", 1), ("die", 7), ("refuse", 3), ("die once", str(tmp_path / "died")), ("do", 2), ("do", 3)]
    told = []
    found = run(tasks, told=lambda task, what: told.append(what))
    assert found.keys() == set(tasks)
    assert found["do", 1] == Outcome(("do", 1), 1, "", 1)
    assert found["do", 3].result == 3
    assert found["refuse", 3] == Outcome(("refuse", 3), None, "3 is not good", 1)
    died = found["die", 7]
    assert (died.result, died.tries) == (None, 3)
    assert died.error == "its process ended with exit code 7 after die begun (3 tries)"
    once = found[tasks[3]]
    assert (once.result, once.error, once.tries) == (tasks[3][1], "", 2)
    assert told.count("die begun") == 3


def test_a_task_that_hangs_is_ended():
    begun = time.monotonic()
    found = {one.task: one for one in outcomes([("hang", 600), ("do", 1)], work, 2, patience_s=6.0, tries=1)}
    assert found["hang", 600].error == "its process hung (nothing was heard of it for 6 s) after hang begun (1 try)"
    assert found["do", 1].result == 1
    assert time.monotonic() - begun < 300


def test_nothing_to_do_starts_nobody():
    assert list(outcomes([], work, 2, patience_s=1.0)) == []


def test_a_caller_that_turns_away_leaves_no_process():
    made = outcomes([("do", 1), ("hang", 600)], work, 2, patience_s=600.0)
    assert next(made).result == 1
    made.close()
    import multiprocessing

    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers):
    assert [run([("do", i) for i in range(5)], workers)["do", i].result for i in range(5)] == list(range(5))
