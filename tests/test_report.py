"""Evaluation of particles and interactions: what `reconstruct` gives is what is judged."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from larpanda.analysis.kinematics import Detector, measure_event
from larpanda.cli import main
from larpanda.event import UNKNOWN, EnergyScale, Event, Particle, Reconstruction, Species, Status
from larpanda.report import conventions, evaluate_events, shown, table, write_report


class Oracle:
    """Stands for a Reconstructor that knows the truth, and calls every second muon a pion."""

    name, weights_sha256 = "oracle", ""

    def __init__(self, model):
        self.model = model

    def reconstruct(self, event):
        below = event.energy <= 0.13
        particle = torch.where(below, UNKNOWN, event.particle)
        kinds = [int(event.species[event.particle == i][0]) for i in range(int(event.particle.max()) + 1)]
        particles = tuple(
            Particle(i, Species(3 if kind == 2 and i % 2 else max(kind, 0)), 1.0, (0.2,) * 5, UNKNOWN, 0, 0.0)
            for i, kind in enumerate(kinds)
            if (particle == i).any()
        )
        motif = torch.where(below, UNKNOWN, event.motif)
        probability = torch.nn.functional.one_hot(motif.clamp(min=0), 5).float()
        rows = torch.full((len(event),), UNKNOWN)
        return Reconstruction(Status.OK, "", below, motif, probability, particle, rows, particles, (), 0)


@pytest.fixture
def events(make_cloud):
    return [make_cloud(200, seed=seed) for seed in range(4)]


def test_a_perfect_reconstruction_scores_1(tiny_model, events, tmp_path):
    oracle = Oracle(tiny_model)
    result = evaluate_events(oracle, events, range(4))
    assert result.semantic.macro_f1 == 1.0
    for name in ("ari", "ari_all", "purity", "efficiency"):
        assert result.particle.found.means[name].value == pytest.approx(1.0)
    assert result.particle.found.means["fraction_unassigned"].value == 0.0
    assert result.interaction.found.means["fraction_unassigned"].value == 1.0  # it found none
    assert result.interaction.found.means["pq"].value == 0.0
    write_report(tmp_path, result, oracle, ["clouds"])
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["particle"]["ari"] == pytest.approx(1.0)
    assert written["particle"]["ari_low"] == pytest.approx(1.0)
    muon, pion = int(Species.MUON), int(Species.PION)
    confusion = np.array(written["particle"]["class_confusion"])
    assert confusion.sum() == sum(int(e.particle.max()) + 1 for e in events)
    assert confusion[muon, pion] >= 0
    assert set(written["particle"]["pq_class"]) == {"photon", "electron", "muon", "pion", "proton"}
    assert set(written["conventions"]) == set(conventions(result)) > {"ari", "f1"}
    assert "particles, 4 events" in table(result)
    each = json.loads((tmp_path / "per_event.json").read_text())
    assert each["particle"]["entry"] == [0, 1, 2, 3]
    assert each["particle"]["ari"] == [1.0] * 4
    assert each["interaction"]["true_instances"] == [int(e.interaction.max()) + 1 for e in events]
    # every particle was given 0.2 for each species: said 0.2, and right as often as photons are
    told = written["particle_calibration"]
    assert told["n"] == confusion.sum()
    assert told["said"][2] == pytest.approx(0.2)
    assert told["right"][2] == pytest.approx(confusion[0].sum() / confusion.sum())


def test_what_the_truth_does_not_say_is_in_no_number(tiny_model, events, tmp_path):
    """Species of a v1 file, and motifs of an event of which nothing is above threshold."""
    dark = replace(events[1], energy=events[1].energy * 1e-3)
    unknown = [replace(event, species=torch.full_like(event.species, -1)) for event in (events[0], dark)]
    oracle = Oracle(tiny_model)
    write_report(tmp_path, evaluate_events(oracle, unknown, range(2)), oracle, ["clouds"])
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["particle"]["ari"] == 1.0
    assert written["particle"]["pq"] is written["particle"]["class_precision"] is None
    assert np.sum(written["particle"]["class_confusion"]) == 0
    assert written["particle_calibration"]["n"] == 0
    accuracy = json.loads((tmp_path / "per_event.json").read_text())["semantic"]["accuracy"]
    assert accuracy[0] > 0.99
    assert accuracy[1] is None
    assert (
        "event=1" not in (tmp_path / "index.html").read_text().partition("accuracy of motifs")[2].partition("</li>")[0]
    )


def test_figures_are_drawn_again_from_the_numbers_alone(tiny_model, events, tmp_path, capsys):
    oracle = Oracle(tiny_model)
    write_report(tmp_path, evaluate_events(oracle, events, range(4)), oracle, ["clouds"])
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {
        *("motifs", "motif_confusion", "n_voxels", "energy_mev"),
        *("particles", "species", "interactions", "control", "calibration"),
    }
    before = {name: (tmp_path / "figures" / f"{name}.svg").read_text() for name in names}
    page = (tmp_path / "index.html").read_text()
    assert all(text.strip() in page for text in before.values())
    assert "<li>ARI of particles: " in page
    assert page.count('href="events.html#event=') == 4 + 4 + 4
    for name in names:
        (tmp_path / "figures" / f"{name}.svg").unlink()
    assert main(["show", str(tmp_path)]) == 0
    assert "particle ari  1.000" in capsys.readouterr().out
    assert before == {name: (tmp_path / "figures" / f"{name}.svg").read_text() for name in names}
    (tmp_path / "per_event.json").write_text('{"particle": {}}')
    assert main(["show", str(tmp_path)]) == 2
    assert "lacks what figure particles shows" in capsys.readouterr().err
    (tmp_path / "per_event.json").write_text("{")
    assert main(["show", str(tmp_path)]) == 2
    assert "per_event.json: not JSON" in capsys.readouterr().err


def test_duplicates_count_once_and_voxels_below_threshold_not_at_all(tiny_model, events):
    event = events[0]
    names = ("position", "energy", "motif", "species", "particle", "interaction")
    extra = [torch.cat([getattr(event, name), getattr(event, name)[:20]]) for name in names]
    extra[1][5:15] = 0.01
    doubled = Event(*extra)
    result = evaluate_events(Oracle(tiny_model), [doubled], [0])
    visible = doubled.visible(0.13)[0]
    assert result.semantic.voxels == len(visible) < len(doubled)
    assert result.particle.found.means["ari"].value == pytest.approx(1.0)
    assert adjusted_rand_score(visible.particle, visible.particle) == 1.0


def test_a_page_shows_of_an_event_what_its_evaluation_says(tiny_model, events):
    class Swapped(Oracle):
        def reconstruct(self, event):
            whole = super().reconstruct(event)
            return replace(whole, particle=torch.where(torch.arange(len(event)) % 3 == 0, 0, whole.particle))

    model = Swapped(tiny_model)
    result = evaluate_events(model, events, range(4))
    for i, event in enumerate(events):
        one = shown(model, event)
        scores = {name: values[i] for name, values in result.particle.found.each.values.items()}
        assert asdict(one.particle_scores) == scores
        assert 0 < one.particle_scores.ari < 1
        assert one.interaction_scores.efficiency == 0.0  # it found none
        measures = measure_event(event, one.reconstruction, Detector(), EnergyScale())[1]
        assert one.particles == tuple(measures[particle.id] for particle in one.reconstruction.particles)
        assert one.interactions == ()


def test_a_model_without_heads_has_no_such_part(tiny_model, events, tmp_path):
    class Bare(Oracle):
        def reconstruct(self, event):
            whole = super().reconstruct(event)
            rows = torch.full((len(event),), UNKNOWN)
            return Reconstruction(
                whole.status, "", whole.below_threshold, whole.motif, whole.motif_probability, rows, rows, None, None, 0
            )

    result = evaluate_events(Bare(tiny_model), events, range(4))
    assert result.particle is None
    one = shown(Bare(tiny_model), events[0])
    assert one.particles is one.interactions is one.particle_scores is one.interaction_scores is None
    write_report(tmp_path, result, Bare(tiny_model), ["clouds"])
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert "particle" not in written
    assert "ari" not in written["conventions"]
