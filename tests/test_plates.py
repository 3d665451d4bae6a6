"""The paper's Figures 2, 5, 11 to 15 in tiny: made once, drawn from their files alone, and true to their events."""

import hashlib
import json
import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, f1_score

import larpanda
import larpanda.display.plates
from larpanda import atlas, plates
from larpanda.atlas import FIGURES, agreement, plate_path, read_plate, write_atlas
from larpanda.cli import main
from larpanda.event import UNKNOWN, rows_of_points
from larpanda.plates import CELL_VOXELS, FiguresConfig, Timing, chosen_rows, drawn_points, make_figures, timed
from larpanda.train.recipes import PRETRAIN

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "docs/results/figures"
TINY = FiguresConfig(events=4, judged=5, batches=(1, 2), passes=1)
AXIS = {"z": 2, "y": 1, "x": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of all figures."""
    out = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plates, "_alone", timed)  # four processes would take half a minute
        make_figures(TINY, out, lambda line: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(larpanda.display.plates, "RASTER_DPI", 40)  # for speed, to the end of the module
        write_atlas(out)
        yield out


@pytest.fixture(scope="module")
def events():
    """What a model sees of the events of these figures."""
    return [event.visible()[0] for event in larpanda.generate(6, seed=TINY.event_seed)]


@pytest.fixture(scope="module")
def found(events):
    """What the shipped model finds in the judged ones, point by point."""
    model = larpanda.load("nano", "cpu")
    result = []
    for event in larpanda.generate(TINY.judged, seed=TINY.event_seed):
        visible, row_point = event.visible()
        one, rows = model.reconstruct(event), rows_of_points(row_point, len(visible))
        result.append({name: getattr(one, name)[rows].numpy() for name in ("motif", "particle", "interaction")})
    return result


def plate(folder, number):
    return read_plate(plate_path(folder, number), FIGURES[number].kind)


def test_a_figure_whose_file_is_there_is_not_made_again(made, monkeypatch):
    monkeypatch.setattr(plates, "_made", lambda config, numbers: iter([]) if not numbers else pytest.fail("made again"))
    said = []
    make_figures(TINY, made, said.append)
    assert len(said) == len(FIGURES)
    assert all("is there already" in line for line in said)


def test_figures_are_drawn_from_their_files_alone(made, tmp_path, monkeypatch, capsys):
    for path in made.glob("*.json"):
        shutil.copy(path, tmp_path)
    for name in ("load", "load_bundle", "open_events", "Reconstructor"):
        monkeypatch.setattr(plates, name, None)
    assert main(["study", "figures", "--out", str(tmp_path), "--redraw"]) == 0
    assert capsys.readouterr().out == (made / "figures.md").read_text()
    names = {path.name for path in made.iterdir()}
    assert names == {path.name for path in tmp_path.iterdir()}
    assert names == {f"figure-{n}.{end}" for n in FIGURES for end in ("json", "svg")} | {"figures.md"}
    for name in names:
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()


def test_the_map_has_every_drawn_point_once_with_its_truth(made, events):
    one = plate(made, 2)
    pairs = list(zip(one.event, one.point, strict=True))
    assert len(set(pairs)) == len(pairs)
    for number in range(TINY.events):
        rows = [point for event, point in pairs if event == number]
        motif = events[number].motif[rows].tolist()
        assert len(set(motif)) == len(motif) == min(TINY.points, len(set(events[number].motif.tolist())))
    assert list(one.motif) == [int(events[event].motif[point]) for event, point in pairs]
    assert list(one.species) == [int(events[event].species[point]) for event, point in pairs]
    assert np.isfinite([one.x, one.y, one.random_x, one.random_y]).all()
    assert one.x != one.random_x


def test_rare_motifs_are_drawn_as_often_as_common_ones():
    motif = np.repeat([0, 1, 2, 4], [1000, 500, 2, 1])
    drawn = [drawn_points(motif, 2, np.random.default_rng((0, i))) for i in range(400)]
    count = np.bincount(motif[np.concatenate(drawn)], minlength=5)
    assert count.sum() == 800
    assert count[3] == 0
    assert (abs(count[[0, 1, 2, 4]] - 200) < 45).all()  # four deviations of a binomial of 400 and 1/2
    assert {int(row) for rows in drawn for row in rows if motif[row] == 2} == {1500, 1501}


def test_agreement_is_the_share_of_nearest_points_with_the_label():
    rng = np.random.default_rng(0)
    x, y, label = rng.normal(size=40), rng.normal(size=40), rng.integers(0, 3, 40)
    x[:15], y[:15] = 0.0, 0.0  # in one place
    label[:15] = 1
    expected = []
    for i in range(40):
        others = sorted((j for j in range(40) if j != i), key=lambda j: (x[i] - x[j]) ** 2 + (y[i] - y[j]) ** 2)
        expected.append(np.mean([label[j] == label[i] for j in others[: atlas.NEAREST]]))
    assert agreement(x, y, label) == pytest.approx(np.mean(expected))


def test_every_point_of_a_view_is_a_point_of_the_event_up_to_its_turn(made, events):
    """A view's two drawn coordinates are the event's three, turned and shifted: fitted, not taken from the code."""
    one = plate(made, 5)
    event = events[one.entry]
    place = event.position.double().numpy()
    assert [list(one.z), list(one.y)] == place.T[[2, 1]].tolist()
    for recipe in one.recipes:
        views = PRETRAIN[recipe.recipe]().views
        assert [crop.kind for crop in recipe.crops] == ["global", "global", "masked", *["local"] * 4]
        for crop in recipe.crops:
            assert len(set(crop.point)) == len(crop.point) or views.position_jitter
            origin = place[list(crop.point)]
            view = np.array([crop.z, crop.y], float).T
            if views.mask_jitter and not recipe.removed:  # of masked points the student has no good place
                kept = np.setdiff1d(np.arange(len(view)), crop.masked)
                origin, view = origin[kept], view[kept]
            middle = origin.mean(0)
            turn = np.linalg.lstsq(np.c_[origin - middle, np.ones(len(origin))], view, rcond=None)[0]
            missed = view - np.c_[origin - middle, np.ones(len(origin))] @ turn
            spread = np.linalg.svd((origin - middle) / len(origin) ** 0.5, compute_uv=False).min()
            if views.position_jitter == 0:
                assert np.abs(missed).max() < 1e-6
            assert np.sqrt((missed**2).mean()) < 1.5 * np.hypot(views.position_jitter, 0.3)  # jitter and whole voxels
            if spread > 5:
                np.testing.assert_allclose(turn[:3].T @ turn[:3], np.eye(2), atol=0.02)


def test_views_are_crops_of_the_size_that_the_recipe_says(made, events):
    one = plate(made, 5)
    place = events[one.entry].position.double().numpy()
    squared = ((place[:, None] - place[None]) ** 2).sum(2)
    (recipe,) = (recipe for recipe in one.recipes if recipe.recipe == "nano_pretrain")
    views = PRETRAIN[recipe.recipe]().views
    n = min(len(place), views.max_points)
    for crop in recipe.crops:
        low, high = views.local_share if crop.kind == "local" else views.global_share
        assert round(low * n) <= len(crop.point) <= round(high * n)
        inside = np.isin(np.arange(len(place)), crop.point)
        farthest, nearest = squared[:, inside].max(1), np.where(inside, np.inf, squared).min(1)
        assert (farthest[inside] <= nearest[inside]).any()  # the points nearest to one of them
    masked = next(crop for crop in recipe.crops if crop.kind == "masked")
    assert masked.point == recipe.crops[0].point
    assert 0 < len(masked.masked) < len(masked.point)


@pytest.mark.parametrize("number", [11, 12, 13])
def test_the_worst_are_the_worst_and_what_is_drawn_is_there(made, events, found, number):
    one = plate(made, number)
    name = {"semantic": "motif"}.get(one.task, one.task)
    truth = [getattr(event, name).numpy() for event in events[: TINY.judged]]
    mine = [event[name] for event in found]
    score = [
        f1_score(a, b, average="macro") if name == "motif" else adjusted_rand_score(a[a >= 0], b[a >= 0])
        for a, b in zip(truth, mine, strict=True)
    ]
    assert [example.entry for example in one.examples if example.chosen == "worst"] == np.argsort(score)[1::-1].tolist()
    assert len({example.entry for example in one.examples}) == len(one.examples) == 4
    assert one.judged == TINY.judged
    for example in one.examples:
        assert example.scores[0].value == pytest.approx(score[example.entry], abs=1e-4)
        place = events[example.entry].position.long().numpy()
        assert example.voxels == len(place)
        for projection in example.projections:
            across, up = (AXIS[axis] for axis in projection.axes)
            cell = place[:, [across, up]] // CELL_VOXELS
            drawn = list(zip(projection.across, projection.up, strict=True))
            assert len(set(drawn)) == len(drawn)
            assert set(drawn) == set(map(tuple, cell.tolist()))
            towards = np.cross(*np.eye(3, dtype=int)[[across, up]])  # who looks: the axes are right-handed
            height = place @ towards
            pairs = {}  # of a true number the numbers found with it, and of a colour the same
            for here, true, color in zip(drawn, projection.true, projection.found, strict=True):
                inside = np.flatnonzero((cell == here).all(1))
                front = inside[height[inside] == height[inside].max()]
                labels = {(int(truth[example.entry][row]), int(mine[example.entry][row])) for row in front}
                assert true in {label for label, _ in labels}
                if name == "motif":
                    assert (true, color) in labels
                elif len(labels) == 1:
                    pairs.setdefault(labels.pop()[1], set()).add(color)
            assert all(len(colors) == 1 for colors in pairs.values())  # one colour for one that was found
            assert pairs.get(UNKNOWN, {UNKNOWN}) == {UNKNOWN}


def test_chosen_rows():
    score = [0.5, 0.1, 0.9, 0.1, 0.7, 0.3]
    chosen = chosen_rows(score, np.random.default_rng(0))
    assert chosen == chosen_rows(score, np.random.default_rng(0))
    assert chosen[2:] == [(3, "worst"), (1, "worst")]
    assert [how for _, how in chosen[:2]] == ["random", "random"]
    drawn = {row for seed in range(50) for row, _ in chosen_rows(score, np.random.default_rng(seed))[:2]}
    assert drawn == {0, 2, 4, 5}


def test_speeds_are_of_the_same_events_for_every_batch_size(made, events):
    for number, heads in ((14, "semantic"), (15, "panoptic")):
        one = plate(made, number)
        assert (one.heads, one.events) == (heads, 2)
        assert [speed.batch for speed in one.speeds] == [1, 2]
        assert all(len(speed.events_per_s) == TINY.passes and min(speed.events_per_s) > 0 for speed in one.speeds)
        assert all(speed.peak_mb >= speed.base_mb > 100 for speed in one.speeds)
        assert one.voxels == int(np.median([len(event) for event in events[2:4]]))  # the first pass warms up
    position, energy = (np.concatenate([getattr(e, name).numpy() for e in events]) for name in ("position", "energy"))
    start = np.cumsum([0, *map(len, events)])
    for size in (1, 2, 3, 6):
        batches = Timing("nano", "semantic", size, 6, 1, position, energy, start).batches()
        assert [len(batch.start) - 1 for batch in batches] == [size] * (6 // size)
        assert np.array_equal(np.concatenate([batch.position.numpy() for batch in batches]), position)
        assert np.array_equal(np.concatenate([batch.start.diff().numpy() for batch in batches]), np.diff(start))


def test_a_batch_size_has_a_process_and_a_peak_of_its_own(events):
    event = events[4]
    position, energy = np.tile(event.position.numpy(), (2, 1)), np.tile(event.energy.numpy(), 2)
    timing = Timing("nano", "panoptic", 1, 1, 1, position, energy, np.array([0, 1, 2]) * len(event))
    ballast = np.ones(60_000_000)  # 480 MB, which a process that is started must not be charged with
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    assert ballast.sum() > 0
    speed = plates._alone(timing)
    assert len(speed.events_per_s) == 1
    assert 100 < speed.base_mb < speed.peak_mb < mine - 200


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda text: text[: len(text) // 2], "not JSON"),
        (lambda text: text.replace('"zy"', '"zz"'), "examples[0].projections[0].axes is 'zz'"),
        (lambda text: text.replace('"across": [', '"across": [1,'), "lengths differ (across"),
        (lambda text: text.replace('"judged"', '"judge"'), "judge: no such field; the nearest is judged"),
        (
            lambda text: text.replace('"true": [', '"true": [9,').replace('"across": [', '"across": [1,'),
            "lengths differ",
        ),
        (lambda text: json.dumps({**json.loads(text), "examples": []}), "examples are none"),
        (lambda text: "[]", "expected the fields made, task"),
        (lambda text: text.replace('"task": "semantic"', '"task": 3'), "task is 3"),
    ],
    ids=["cut", "word", "lengths", "field", "two", "empty", "list", "type"],
)
def test_a_damaged_file_is_one_line_with_its_name_and_what_to_do(made, tmp_path, capsys, damage, line):
    path = plate_path(tmp_path, 11)
    path.write_text(damage(plate_path(made, 11).read_text()))
    assert main(["study", "figures", "--out", str(tmp_path), "--redraw"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error
    assert line in error
    assert error.endswith("remove it, and larpanda study figures makes it again\n")
    assert len(error) < 800


def test_labels_that_do_not_exist_are_said(made, tmp_path):
    path = plate_path(tmp_path, 2)
    values = json.loads(plate_path(made, 2).read_text())
    path.write_text(json.dumps({**values, "motif": [7] * len(values["motif"])}))
    with pytest.raises(ValueError, match=r"figure-2\.json: cannot be drawn \(7 is not a valid Motif\); remove it"):
        write_atlas(tmp_path)


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    words = ["study", "figures", "--out", str(tmp_path)]
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    for arguments, line in (
        (["--redraw"], "no results of figures there; run larpanda study figures first"),
        (["--redraw", "--set", "figures=5"], "figure-5.json: no such file; larpanda study figures makes it"),
        (["--set", "figures=2"], "figure 2 needs scikit-learn: pip install scikit-learn, or leave it out (--set"),
        (["--set", "figures=11,3"], "3 not known; there are 2, 5, 11"),
        (["--set", "batches=2,3"], "expected sizes that divide 3"),
        (["--set", "judged=3"], "needs judged >= 4"),
        (["--set", "figures=12", "--set", "model=nano_encoder"], "bundle nano_encoder has no particle head"),
        (["--test", "a.h5"], "study figures generates its events"),
    ):
        assert main([*words, *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert line in error
        assert list(tmp_path.iterdir()) == []


def test_the_caption_says_how_the_figure_is_made(made):
    text = (made / "figures.md").read_text()
    assert "`larpanda study figures --out figures --set figures=2 --set events=4 --set judged=5" in text
    assert "`generate:pilarnet?events=4&seed=103`" in text
    assert text.count("The paper's Figure") == len(FIGURES)
    assert text.count(f"larpanda {larpanda.__version__}.") == len(FIGURES)
    assert text.count(plates.machine()) == len(FIGURES)


def test_the_page_of_the_docs_is_that_of_its_files(tmp_path, monkeypatch):
    """Of the figures that are there: each is made when its model is, and the page lists those."""
    monkeypatch.setattr(atlas, "plate_svg", lambda plate: "<svg/>")
    for path in SHIPPED.glob("*.json"):
        shutil.copy(path, tmp_path)
        assert path.stat().st_size < 200_000
    write_atlas(tmp_path)
    text = (SHIPPED / "figures.md").read_text()
    assert text == (tmp_path / "figures.md").read_text()
    assert {path.name for path in SHIPPED.iterdir()} == {path.name for path in tmp_path.iterdir()}
    assert all(path.read_text().startswith("<svg") for path in SHIPPED.glob("*.svg"))
    page = (ROOT / "docs/figures.md").read_text()
    assert "```{include} results/figures/figures.md\n:relative-images:\n```" in page
    assert "\nfigures\n" in (ROOT / "docs/index.md").read_text()


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda path: path.stem)
def test_figures_of_the_docs_are_of_the_shipped_weights(path):
    shown = plate(SHIPPED, int(path.stem.removeprefix("figure-"))).made
    assert shown.source.startswith("generate:pilarnet?")
    if shown.model is not None:
        weights = (ROOT / f"src/larpanda/models/{shown.model}/model.safetensors").read_bytes()
        assert shown.weights_sha256 == hashlib.sha256(weights).hexdigest(), f"remove {path.name} and make it again"
