"""The page carries exactly what the events say, runs nothing but our script, and the picture needs no screen."""

import base64
import hashlib
import json
import sys
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources

import matplotlib.image
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from larpanda.analysis.kinematics import Detector, measure_event
from larpanda.data.generate import generate
from larpanda.display.figures import MOTIF_COLOR
from larpanda.display.lists import Scores, Shown, found_list, true_list
from larpanda.display.scene import page, picture
from larpanda.event import EnergyScale, Event, EventKey, Motif, Status

DTYPES = {"Int8": "<i1", "Int16": "<i2", "Int32": "<i4", "Float32": "<f4"}


class Document(HTMLParser):
    """A page as a browser reads it: its scripts, texts and all that it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.texts: dict[str, str] = {}
        self.links: list[str | None] = []
        self.policy = ""
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self._open = tag
        if tag == "script":
            self.scripts.append((named, ""))
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"]
        self.links += [named[name] for name in ("src", "href", "action", "data") if name in named]

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self._open:
            self.texts[self._open] = self.texts.get(self._open, "") + data

    @property
    def data(self):
        return json.loads(self.scripts[0][1])


def columns(event_data):
    return {
        name: np.frombuffer(base64.b64decode(text), DTYPES[kind])
        for name, (kind, text) in event_data["columns"].items()
    }


def test_the_page_carries_every_voxel_of_every_event(make_event, make_reconstruction):
    events = [make_event(300, seed) for seed in range(3)]
    pairs = [(event, make_reconstruction(event, seed)) for seed, event in enumerate(events)]
    data = Document(page([Shown(*pair) for pair in pairs], "a title")).data
    assert len(data["events"]) == 3
    for (event, found), shown in zip(pairs, data["events"], strict=True):
        got = columns(shown)
        assert np.array_equal(got["position"].reshape(-1, 3), event.position.numpy())
        assert np.array_equal(got["energy"], event.energy.numpy())
        for name in ("motif", "species", "particle", "interaction"):
            assert np.array_equal(got[f"truth_{name}"], getattr(event, name).numpy())
        for name in ("motif", "particle", "interaction"):
            assert np.array_equal(got[f"prediction_{name}"], getattr(found, name).numpy())
        assert set(got["prediction_percent"].tolist()) == {0, 80}
        assert shown["n_voxels"] == shown["n_drawn"] == 300
        assert shown["energy_mev"] == pytest.approx(event.energy.double().sum().item(), rel=1e-12)
        assert shown["reconstruction"]["n_below_threshold"] == int(found.below_threshold.sum())


def test_agreement_is_that_of_scikit_learn(make_event, make_reconstruction):
    event = make_event(500)
    found = make_reconstruction(event)
    agreement = Document(page([Shown(event, found)], "")).data["events"][0]["reconstruction"]["agreement"]
    seen = ~found.below_threshold.numpy()
    truth, predicted = event.motif.numpy()[seen], found.motif.numpy()[seen]
    assert agreement["f1"] == pytest.approx(f1_score(truth, predicted, average=None))
    assert agreement["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert agreement["accuracy"] == pytest.approx(accuracy_score(truth, predicted))


def test_a_motif_in_neither_has_no_f1_and_is_not_averaged(make_event, make_reconstruction):
    event = make_event(200)
    event = replace(event, motif=torch.where(event.motif == Motif.LED, Motif.LED, Motif.TRACK))
    found = make_reconstruction(event)
    found = replace(found, motif=torch.where(found.below_threshold, -1, event.motif))
    agreement = Document(page([Shown(event, found)], "")).data["events"][0]["reconstruction"]["agreement"]
    assert agreement == {"accuracy": 1.0, "f1": [None, 1.0, None, None, 1.0], "macro_f1": 1.0}


def test_a_particle_found_has_the_colour_of_the_true_one(make_event, make_reconstruction):
    event = make_event(400)
    found = make_reconstruction(event)  # particle p is called 100 - p
    split = torch.where((found.particle == 97) & (torch.arange(400) % 4 == 0), 200, found.particle)
    colors = Document(page([Shown(event, replace(found, particle=split))], "")).data["events"][0]["reconstruction"]
    color = dict(colors["particle_color"])
    assert {k: color[k] for k in range(93, 101)} == {100 - p: p for p in range(8)}
    assert color[200] == 8  # the lesser part of a split particle: a colour of its own
    assert dict(colors["interaction_color"]) == {0: 0, 1: 1, 2: 2}


def test_large_particle_numbers_survive(make_event):
    event = make_event(100)
    for largest, kind in ((100, "Int8"), (300, "Int16"), (70_000, "Int32")):
        moved = replace(event, particle=torch.where(event.particle == 3, largest, event.particle))
        shown = Document(page([Shown(moved)], "")).data["events"][0]
        assert shown["columns"]["truth_particle"][0] == kind
        assert np.array_equal(columns(shown)["truth_particle"], moved.particle.numpy())


def test_an_event_of_arrays_is_called_by_its_numbers(make_event):
    of_arrays = Event.from_arrays([[1, 2, 3]], [1.0], run=7, event=12)
    named = Document(page([Shown(of_arrays), Shown(make_event(10))], "")).data["events"]
    assert [event["name"] for event in named] == ["run 7, event 12", "event 1"]


def test_nothing_that_an_event_says_becomes_markup(make_event, make_refused):
    evil = "</script><script>alert(1)</script><!--<script>\u2028'\"&amp;"
    event = replace(make_event(10), key=EventKey(f"folder/{evil}.h5", 3, run=7))
    document = Document(page([Shown(event, make_refused(10, Status.FAILED, evil))], evil, f"{evil}\t{evil}\n{evil}"))
    assert len(document.scripts) == 3
    assert document.data["events"][0]["reconstruction"]["reason"] == evil
    assert document.data["events"][0]["name"].endswith(".h5: event 3 (run 7)")
    assert document.texts["title"] == document.texts["h1"] == evil
    assert document.texts["dt"] == evil
    assert evil in document.texts["dd"]


def test_only_our_script_may_run_and_nothing_is_fetched(make_event):
    document = Document(page([Shown(make_event(10))], "a title", "text"))
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for attributes, text in document.scripts
        if attributes.get("type") != "application/json"
    ]
    policy = dict(part.strip().split(" ", 1) for part in document.policy.split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"].split() == hashes
    assert len(hashes) == 2
    assert "unsafe" not in document.policy
    assert document.links == ["data:,"]


def test_the_vendored_library_is_the_one_that_is_recorded():
    folder = resources.files("larpanda.display")
    digest = hashlib.sha256(folder.joinpath("three.bundle.js").read_bytes()).hexdigest()
    assert digest in folder.joinpath("VENDORED.md").read_text(encoding="utf-8")
    assert "MIT License" in folder.joinpath("three.LICENSE").read_text(encoding="utf-8")


def test_twenty_thousand_voxels_are_under_five_megabytes(make_event, make_reconstruction):
    event = make_event(20_000, particles=60)
    text = page([Shown(event, make_reconstruction(event))], "a title")
    assert len(text.encode()) < 5_000_000
    assert text == page([Shown(event, make_reconstruction(event))], "a title")


def test_eight_events_with_all_particles_are_under_five_megabytes(make_reconstruction):
    shown = []
    for event in generate(8, seed=100):
        found = make_reconstruction(event)
        measures = measure_event(event, found, Detector(), EnergyScale())[1]
        shown.append(Shown(event, found, tuple(measures[one.id] for one in found.particles)))
    assert len(page(shown, "a title").encode()) < 5_000_000


def test_impossible_rows_are_counted_and_the_rest_is_shown(make_event, make_refused):
    event = make_event(50)
    position, energy = event.position.clone(), event.energy.clone()
    position[3], position[7, 1], position[9, 2] = float("nan"), float("inf"), 1e9
    energy[20], energy[21], energy[22] = float("nan"), float("inf"), -float("inf")
    event = replace(event, position=position, energy=energy)
    shown = Document(page([Shown(event, make_refused(50, Status.BAD_INPUT, event.problem()))], "")).data["events"][0]
    got = columns(shown)
    assert (shown["n_voxels"], shown["n_drawn"], shown["energy_mev"]) == (50, 47, None)
    assert set(range(50)) - set(got["row"].tolist()) == {3, 7, 9}
    assert np.array_equal(got["energy"], energy.numpy()[got["row"]], equal_nan=True)
    assert shown["reconstruction"]["status"] == "bad_input"
    assert "3 of 50 energies" in shown["reconstruction"]["reason"]


def test_panels_follow_what_there_is(make_event, make_reconstruction, make_refused):
    event = make_event(20)
    bare = Event.from_arrays(event.position.numpy(), event.energy.numpy())
    empty = Event.from_arrays([], [])
    pairs = [
        (event, make_reconstruction(event)),
        (event, None),
        (bare, make_reconstruction(event)),
        (bare, None),
        (empty, make_refused(0, Status.EMPTY, "")),
    ]
    shown = Document(page([Shown(*pair) for pair in pairs], "")).data["events"]
    expected = [["truth", "prediction"], ["truth"], ["prediction"], ["charge"], ["prediction"]]
    assert [event["panels"] for event in shown] == expected
    assert [event["name"] for event in shown] == [f"event {i}" for i in range(5)]
    assert (shown[4]["n_voxels"], shown[4]["energy_mev"]) == (0, 0.0)


def test_lists_and_scores_are_of_models_that_look_for_particles(make_event, make_reconstruction, make_refused):
    event = make_event(300)
    found = make_reconstruction(event)
    bare = replace(found, particles=None, interactions=None)
    shown = [
        Shown(event, found, particle_scores=Scores(0.5, 0.25, float("nan"))),
        *(Shown(event, other) for other in (bare, None, make_refused(300, Status.BAD_INPUT, ""))),
        Shown(Event.from_arrays(event.position.numpy(), event.energy.numpy()), found),
    ]
    data = Document(page(shown, "")).data["events"]
    both = {"truth": true_list(event), "prediction": found_list(shown[0])}
    lists = [both, {}, {}, {}, {"prediction": both["prediction"]}]
    assert [event["lists"] for event in data] == json.loads(json.dumps(lists))
    scores = {"particles": {"ari": 0.5, "purity": 0.25, "efficiency": None}}
    assert [event["scores"] for event in data] == [scores, {}, {}, {}, {}]


def test_mistakes_are_named(make_event, make_reconstruction, tmp_path):
    with pytest.raises(ValueError, match="no events to show"):
        page([], "")
    for call in (lambda *pair: page([Shown(*pair)], ""), lambda *pair: picture(*pair, tmp_path / "x.png")):
        with pytest.raises(ValueError, match="has 20 rows, its event event 0 30"):
            call(make_event(30), make_reconstruction(make_event(20)))


def pixels_of(image, color):
    wanted = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)])
    return int((np.abs(image[..., :3] * 255 - wanted).max(-1) < 3).sum())


def test_picture_shows_truth_above_prediction_by_motif(make_event, make_reconstruction, tmp_path):
    event = make_event(2000)
    picture(event, make_reconstruction(event), tmp_path / "both.png")
    picture(event, None, tmp_path / "truth.png", "costs $5 and $6")
    both, truth = (matplotlib.image.imread(tmp_path / name) for name in ("both.png", "truth.png"))
    assert both.shape[0] > 1.7 * truth.shape[0]
    assert all(pixels_of(both, color) > 1.4 * pixels_of(truth, color) > 0 for color in MOTIF_COLOR.values())
    first = (tmp_path / "truth.png").read_bytes()
    picture(event, None, tmp_path / "truth.png", "costs $5 and $6")
    assert (tmp_path / "truth.png").read_bytes() == first


def test_picture_of_unusable_events(make_event, make_refused, tmp_path):
    event = make_event(30)
    broken = replace(event, position=event.position * float("nan"), energy=event.energy * float("nan"))
    for i, (shown, n) in enumerate([(broken, 30), (Event.from_arrays([], []), 0)]):
        picture(shown, make_refused(n, Status.BAD_INPUT, "100 $ of <b> & $"), tmp_path / f"{i}.png")
        assert matplotlib.image.imread(tmp_path / f"{i}.png").shape[1] == 1690
    with pytest.raises(FileNotFoundError):
        picture(event, None, tmp_path / "missing" / "x.png")


def test_pictures_leave_pyplot_alone(make_event, tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    picture(make_event(30), None, tmp_path / "x.png")
    assert ("matplotlib.pyplot" in sys.modules) == before
