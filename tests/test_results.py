"""The tables of docs/results.md are those of the result files beside them."""

import shutil
from pathlib import Path

import pytest

from larpanda.efficiency import write_labels
from larpanda.results import read_grid, read_results

STUDIES = sorted(path.parent for path in (Path(__file__).parents[1] / "docs/results").glob("*/results"))


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_tables_are_made_again_from_the_results_alone(study, tmp_path):
    shutil.copytree(study / "results", tmp_path / "results")
    text = write_labels(tmp_path)
    assert text + "\n" == (study / "labels.md").read_text()
    for figure in tmp_path.glob("*.svg"):
        assert figure.name in [path.name for path in study.glob("*.svg")]


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_results_are_of_one_budget_and_name_no_folder_of_a_machine(study):
    results = read_results(study)
    assert len({result.samples for result in results}) == 1
    assert {result.samples for result in read_grid(study)} == {results[0].samples // 4}
    for result in results:
        for judged in result.tests:
            assert not Path(judged.source).is_absolute()
            assert all(0 <= score.value <= 1 for score in judged.scores if score.value is not None)
