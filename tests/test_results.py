"""The tables of docs/results.md, README and the model card are those of the result files beside them."""

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from larpanda.efficiency import write_labels
from larpanda.gallery import draw_figures
from larpanda.results import read_grid, read_results

ROOT = Path(__file__).parents[1]
STUDIES = sorted(path.parent for path in (ROOT / "docs/results").glob("*/labels.md"))


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
    assert {result.samples for result in read_grid(study)} <= {results[0].samples // 4}
    for result in results:
        for judged in result.tests:
            assert not Path(judged.source).is_absolute()
            assert all(0 <= score.value <= 1 for score in judged.scores if score.value is not None)


def benchmark(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def result_tables():
    return benchmark("result_tables")


def test_table_of_comparisons_is_that_of_the_runs():
    made = ROOT / "docs/results/ablations"
    assert benchmark("ablations").table(made) == (made / "table.md").read_text()


def test_pages_have_the_tables_that_the_result_files_make(result_tables, tmp_path):
    assert result_tables.main(["--check"]) == 0
    results = tmp_path / "nano"
    shutil.copytree(ROOT / "docs/results/nano", results)
    path = results / "geant4_val.json"
    metrics = json.loads(path.read_text())
    metrics["particle"]["pq"] = 0.123456
    path.write_text(json.dumps(metrics))
    for page in result_tables.PAGES:
        text = (ROOT / page).read_text()
        assert "<!-- table: motifs -->" in text
        assert "| particles |" in text
        assert result_tables.filled(text, results) != text
    with pytest.raises(ValueError, match="there are motifs, particles"):
        result_tables.filled("<!-- table: moods -->\n\n", results)


@pytest.mark.parametrize("name", ["geant4_3001/metrics", "geant4_val", "generated", "geant4_20"])
def test_results_of_nano_are_of_the_weights_that_are_shipped(name):
    metrics = json.loads((ROOT / f"docs/results/nano/{name}.json").read_text())
    weights = (ROOT / "src/larpanda/models/nano/model.safetensors").read_bytes()
    assert metrics["weights_sha256"] == hashlib.sha256(weights).hexdigest()


def test_figures_7_to_9_are_drawn_again_from_the_evaluation_alone(tmp_path):
    made = ROOT / "docs/results/nano/geant4_3001"
    for name in ("metrics.json", "per_event.json"):
        shutil.copy(made / name, tmp_path)
    drawn = {figure.name for figure in draw_figures(tmp_path)}
    assert {path.stem for path in (made / "figures").iterdir()} <= drawn


def test_single_particles_are_told_as_in_their_file():
    text = (ROOT / "docs/results.md").read_text()
    for one in json.loads((ROOT / "docs/results/nano/geant4_singles.json").read_text())["sets"].values():
        energy = one["energy"]
        assert f"{energy['middle']:.3f} ± {energy['half_width']:.3f}" in text
