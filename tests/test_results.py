"""The tables of docs/results.md, README and the model card are those of the result files beside them."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from larpanda.efficiency import write_labels
from larpanda.gallery import draw_figures
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
    assert {result.samples for result in read_grid(study)} <= {results[0].samples // 4}
    for result in results:
        for judged in result.tests:
            assert not Path(judged.source).is_absolute()
            assert all(0 <= score.value <= 1 for score in judged.scores if score.value is not None)


@pytest.mark.parametrize("name", ["geant4_3001/metrics", "geant4_val", "generated"])
def test_readme_and_model_card_say_what_the_evaluation_of_nano_says(name):
    root = Path(__file__).parents[1]
    metrics = json.loads((root / f"docs/results/nano/{name}.json").read_text())
    weights = (root / "src/larpanda/models/nano/model.safetensors").read_bytes()
    assert metrics["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    wanted = [("semantic", "macro_f1")]
    wanted += [(part, key) for part in ("particle", "interaction") for key in ("ari", "pq", "purity", "efficiency")]
    for page in ("README.md", "src/larpanda/models/nano/README.md"):
        text = (root / page).read_text()
        for part, key in wanted:
            value, low, high = (metrics[part][f"{key}{end}"] for end in ("", "_low", "_high"))
            assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in text


def test_figures_7_to_9_are_drawn_again_from_the_evaluation_alone(tmp_path):
    made = Path(__file__).parents[1] / "docs/results/nano/geant4_3001"
    for name in ("metrics.json", "per_event.json"):
        shutil.copy(made / name, tmp_path)
    drawn = {figure.name for figure in draw_figures(tmp_path)}
    assert {path.stem for path in (made / "figures").iterdir()} <= drawn


def test_the_table_of_query_heads_and_baselines_is_that_of_its_file():
    root = Path(__file__).parents[1] / "docs"
    text = (root / "results.md").read_text()
    for one in json.loads((root / "results/nano/instances.json").read_text())["results"]:
        if one["method"] != "head, all covered":
            for key in ("ari", "pq", "purity", "efficiency"):
                value, low, high = one["numbers"][key]
                assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in text


def test_the_tables_of_energies_are_those_of_the_evaluation_of_nano():
    root = Path(__file__).parents[1] / "docs"
    text = (root / "results.md").read_text()

    def said(one, digits=3):
        return "" if one["middle"] is None else f"{one['middle']:.{digits}f} ± {one['half_width']:.{digits}f}"

    found = json.loads((root / "results/nano/generated.json").read_text())["kinematics"]
    for way, title in (("reco_on_truth", "true voxels"), ("reco", "as found")):
        for species in ("photon", "electron", "muon", "pion", "proton"):
            one = found[way][species]
            energies = [said(one[key]) for key in ("energy", "energy_at_rest", "calo_uncontained")]
            assert f"| {species}, {title} | {one['energy']['n']} | {' | '.join(energies)} |" in text
            parts = [said(part, 2) for part in one["energy_by_kinetic"]]
            assert f"| {species}, {title} | {' | '.join(parts)} |" in text
    for one in json.loads((root / "results/nano/geant4_singles.json").read_text())["sets"].values():
        assert said(one["energy"]) in text
