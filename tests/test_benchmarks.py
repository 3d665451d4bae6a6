"""The judges of the generator: what they say does not depend on the order of rows, and controls come out as known."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import larpanda
from larpanda.event import Event, Motif, PointBatch

EVENTS = "tests/data/geant4_20_v3extra.h5"


@pytest.fixture(scope="module", autouse=True)
def _benchmarks_can_be_imported():
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


def reordered(event, order):
    columns = (event.position, event.energy, event.motif, event.species, event.particle, event.interaction)
    return Event(*(column[order] for column in columns), event.particles, event.vertex, event.key)


@pytest.mark.parametrize("entry", [0, 7, 13])
def test_features_do_not_depend_on_the_order_of_rows(entry):
    from event_features import features

    event = larpanda.open_events(EVENTS)[entry]
    order = torch.randperm(len(event), generator=torch.Generator().manual_seed(entry))
    for kept, moved in zip(features(event), features(reordered(event, order)), strict=True):
        assert list(kept) == list(moved)
        for name, value in kept.items():
            np.testing.assert_array_equal(value, moved[name], err_msg=name)


def test_features_do_not_depend_on_the_file_that_an_event_went_through(tmp_path):
    from event_features import features

    events = larpanda.open_events("generate:pilarnet?events=2&seed=3")
    larpanda.write_events(tmp_path / "same.parquet", events)
    for event, read in zip(events, larpanda.open_events(tmp_path / "same.parquet"), strict=True):
        for kept, found in zip(features(event), features(read), strict=True):
            for name, value in kept.items():
                np.testing.assert_array_equal(value, found[name], err_msg=name)


def test_features_of_a_straight_track_are_what_can_be_counted():
    """Forty voxels in a row of 0.6 MeV, but 3 MeV in the last four; two LEDs, one alone and one beside the track."""
    from event_features import features

    voxel = [(100, 100, z) for z in range(40)] + [(101, 101, 20), (100, 110, 10)]
    energy = [0.6] * 36 + [3.0] * 4 + [0.05, 0.05]
    track = [1] * 40
    event, particles = features(
        Event.from_arrays(voxel, energy, track + [4, 4], [2] * 40 + [-1] * 2, [0] * 40 + [-1] * 2, [0] * 40 + [-1] * 2)
    )
    assert event["voxels"] == 42
    assert event["voxels > 0.13 MeV"] == 40
    assert event["TRACK: share of voxels"] == pytest.approx(40 / 42)
    assert event["LED: share alone"] == 0.5
    assert event["LED: voxels to the nearest other, 95 %"] == pytest.approx(0.05 * 2**0.5 + 0.95 * 10)
    assert event["share of voxels on a face"] == pytest.approx(1 / 42)
    assert (event["pieces"], event["TRACK: pieces"], event["LED: pieces"]) == (2, 1, 2)
    assert np.isnan(event["DELTA: mean MeV a voxel"])
    assert particles["voxels"].tolist() == [40]
    assert particles["length, voxels"][0] == pytest.approx(40)
    assert particles["linearity"][0] == pytest.approx(1)
    assert particles["MeV/cm"][0] == pytest.approx((36 * 0.6 + 4 * 3) / 12)
    assert particles["MeV/cm, lower end, 4"][0] == pytest.approx(2)
    assert particles["MeV/cm, higher end, 4"][0] == pytest.approx(10)
    assert particles["MeV a voxel, 50 %"][0] == pytest.approx(0.6)


def test_events_without_particles_have_features_too():
    from event_features import features

    event, particles = features(Event.from_arrays([[0, 0, 0]], [0.1], [4], [-1], [-1], [-1]))
    assert event["particles"] == 0
    assert all(len(column) == 0 for column in particles.values())


def test_area_under_the_curve_is_that_of_scikit_learn():
    from classify_generator import _weighted_auc, auc
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    second = rng.random(300) < 0.4
    score = rng.normal(size=300) + second
    assert auc(score.round(1), second) == pytest.approx(roc_auc_score(second, score.round(1)))
    weight, order = rng.integers(0, 4, 300), np.argsort(score)
    expected = roc_auc_score(second, score, sample_weight=weight)
    assert _weighted_auc(weight[order], second[order]) == pytest.approx(expected)


def test_a_twin_is_not_told_apart_and_missing_deltas_are(tmp_path, monkeypatch):
    """Events against those of another seed, then against the same of the other seed without their delta rays."""
    import classify_generator as judge

    monkeypatch.setattr(judge, "CACHE", tmp_path)
    n = 40
    first = judge.tables("generate:pilarnet?events=40&seed=101", n, False, 1)[0]
    twin = judge.tables("generate:pilarnet?events=40&seed=102", n, False, 1)[0]
    bare = judge.tables("generate:pilarnet?events=40&seed=102", n, True, 1)[0]
    assert len(list(tmp_path.iterdir())) == 3
    assert len(first.names) >= 40
    verdicts = [judge.classify(first, other, n, shuffle=False) for other in (twin, bare)]
    same, without = (judge.overall(verdict, np.ones(2 * n, bool)) for verdict in verdicts)
    assert same == pytest.approx(0.5, abs=4 * (1 / (6 * n)) ** 0.5)  # of a coin: s.e. of the AUC is 1 / sqrt(6 n)
    assert without > 0.8
    low, high, low95, high95 = judge.intervals(verdicts[1])
    assert low95 < low < without < high < high95


def test_a_cache_does_not_outlive_the_file_it_is_of(tmp_path):
    from classify_generator import _key

    path = tmp_path / "events.h5"
    path.write_bytes(b"1")
    before = _key(str(path), 20, False)
    assert _key(str(path), 20, True) != before
    path.write_bytes(b"22")
    assert _key(str(path), 20, False) != before


def test_without_deltas_the_rest_is_as_it_was():
    from classify_generator import without_deltas

    event = larpanda.open_events(EVENTS)[0]
    bare = without_deltas(event)
    assert len(event) - len(bare) == (event.motif == Motif.DELTA).sum() > 0
    assert torch.equal(bare.energy, event.energy[event.motif != Motif.DELTA])


@pytest.mark.parametrize(
    ("first", "second", "failed"),
    [
        ((100, 0.1), (107.9, 0.1), 0),  # within 8 %
        ((100, 0.1), (108.1, 0.1), 1),
        ((100, 3.0), (112.0, 4.0), 0),  # within 2.5 standard errors of 5
        ((100, 3.0), (113.0, 4.0), 1),
        ((100, 0.1), (np.nan, np.nan), 1),
    ],
)
def test_a_quantity_passes_within_its_tolerance_or_two_and_a_half_standard_errors(first, second, failed, capsys):
    from compare_singles import Scores

    scores = Scores()
    scores.compare("something", first, second, 0.08)
    assert (scores.failed, scores.made) == (failed, 1)
    assert ("FAIL" in capsys.readouterr().out) == failed


def test_ranges_leave_out_what_decayed_on_the_way():
    from compare_singles import Sample, mean, spread, stopped

    rng = np.random.default_rng(2)
    path = np.concatenate([rng.normal(100, 2, 500), rng.uniform(0, 100, 200), rng.uniform(0, 100, 300)])
    rested = np.arange(1000) < 700  # the last 300 reacted; the 200 before decayed, which the file does not tell
    sample = Sample(np.zeros((1000, 0)), np.zeros((1000, 0)), path, rested, path)
    assert mean(stopped(sample))[0] == pytest.approx(100, abs=0.4)
    assert spread(stopped(sample))[0] == pytest.approx(2, rel=0.2)


def test_shape_and_peak_of_a_made_up_shower():
    from compare_singles import BINS, SHAPE, peak, shape_of

    cell, energy = np.array([[0, 0, 50], [0, 0, 150], [9, 0, 350]]), np.array([0.1, 0.6, 0.3])
    shape = dict(zip(SHAPE, shape_of(cell, energy)[0], strict=True))
    assert shape["voxels > 0.13 MeV"] == 2
    assert shape["energy within 30 cm of depth, share"] == pytest.approx(0.1)
    assert shape["energy within 60 cm of depth, share"] == pytest.approx(0.7)
    assert shape["r50, cm"] == pytest.approx(0.15 * 2**0.5)
    assert shape["r90, cm"] == pytest.approx(np.hypot(2.85, 0.15))
    assert shape["depth of the first voxel, cm"] == pytest.approx(150.5 * 0.3)
    depth = (np.arange(BINS) + 0.5) * 5
    profile = np.tile(40 - 0.01 * (depth - 63) ** 2, (30, 1))
    (at, _), (height, _) = peak(profile, np.random.default_rng(0))
    assert (at, height) == (pytest.approx(63), pytest.approx(40 / 5))


FOREIGN = {"geant4_reactions", "compare_released", "released_peer"}  # these need Geant4 or the released code


@pytest.mark.parametrize("path", sorted(Path("benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_find_what_they_import(path):
    """They are not run by CI: at least a name that has moved is noticed."""
    source = path.read_text()
    compile(source, path, "exec")
    if path.stem not in FOREIGN:
        __import__(path.stem)


def test_clusters_of_voxels_and_what_they_are_judged_by():
    import instances

    line = np.array([[x, 0, 0] for x in range(10)] + [[x, 0, 0] for x in range(20, 25)] + [[50, 0, 0]], np.float32)
    motif = np.array([1] * 5 + [0] * 10 + [4])
    truth = np.array([0] * 10 + [1] * 5 + [-1])
    species = np.array([2] * 10 + [0] * 6)
    seen = instances.Seen(line, motif, np.ones(16, np.float32), {"particle": truth}, species, motif)
    apart = instances.clusters(seen, instances.TOUCHING, 1, True)
    assert apart.tolist() == [2] * 5 + [0] * 5 + [1] * 5 + [-1]
    together = instances.clusters(seen, instances.TOUCHING, 1, False)
    assert together.tolist() == truth.tolist()
    assert instances.clusters(seen, 11.5, 1, False).max() == 0
    assert instances.clusters(seen, instances.TOUCHING, 5, False).max() == -1  # nothing has four neighbours
    kinds = instances.species_of_motifs([seen])
    assert kinds[0] == 0
    table = instances.judge(seen, "particle", together, kinds)
    assert instances.numbers([table], 5)["ari"][0] == 1.0
    assert instances.numbers([table], 5)["pq_any_class"][0] == 1.0
    assert instances.tuned([seen], "particle")[2] is False


@pytest.mark.parametrize("target", ["config", "rows"])
def test_any_bytes_are_taken_or_refused(target):
    import fuzz

    rng = np.random.default_rng(0)
    taken = sum(fuzz.TARGETS[target](rng.bytes(int(rng.integers(0, 600)))) for _ in range(150))
    assert 0 < taken < 150


def test_the_bare_model_runs_all_heads(monkeypatch):
    import reconstruct_speed

    model = larpanda.load("nano")
    batch = PointBatch.pack([larpanda.generate(1, seed=100)[0].visible()[0]])
    calls = []
    model.model.interaction.register_forward_hook(lambda *_: calls.append(1))
    reconstruct_speed.bare(model, [batch, batch])
    assert len(calls) == 2


def test_variants_of_batches_and_blocks_differ_from_the_default_in_what_they_say():
    import ablations

    from larpanda.data.views import Augmentation
    from larpanda.model import backbone
    from larpanda.model.backbone import Encoder
    from larpanda.train.recipes import NANO_ENCODER
    from larpanda.train.tasks import LabelledBatches

    event = larpanda.open_events(EVENTS)[3]
    changes = Augmentation(charge_jitter=0.05)
    usual, late = (
        kind(changes, 0.13, 2)([event], [np.random.default_rng(1)], 0.0).points
        for kind in (LabelledBatches, ablations.TurnedLate)
    )
    visible = event.visible()[0]
    assert torch.equal(late.position, visible.position)
    assert not torch.equal(late.to("cpu").told, visible.position)
    assert not torch.equal(usual.position, visible.position)
    cell = torch.arange(len(visible))
    told = ablations.told_features(late.to("cpu"), cell, len(cell))
    assert torch.equal(told[:, :3], backbone.centred(late.told))
    assert not torch.equal(told[:, :3], backbone.input_features(late, cell, len(cell))[:, :3])

    jittered = ablations.jitter_logarithm(event, 0.05, np.random.default_rng(1))
    ratio = (jittered.energy / event.energy).log().abs()
    zero, high = (event.energy - 0.4373).abs() < 0.01, event.energy > 5
    assert ratio[zero].max() < 0.02 < ratio[high].mean()
    assert torch.equal(ablations.jitter_logarithm(event, 0.0, np.random.default_rng(1)).energy, event.energy)

    encoder = Encoder(NANO_ENCODER)
    full, block = sum(p.numel() for p in encoder.parameters()), encoder.blocks[2][0]
    level = encoder(PointBatch.pack([visible])).levels[2]
    x, neighbors = torch.randn(level.rows, 64, generator=torch.Generator().manual_seed(0)), level.neighbors
    with torch.no_grad():
        before = block.conv_linear(block.conv(x, neighbors)).std().item()
        ablations.narrow(encoder, 4)
        after = block.conv_linear(block.conv(x, neighbors)).std().item()
    assert after == pytest.approx(before, rel=0.3)  # 3 % from one choice of weights to another
    assert sum(p.numel() for p in encoder.parameters()) < 0.6 * full


def test_the_table_of_ablations_comes_from_the_results_alone(tmp_path, capsys):
    import ablations

    from larpanda.results import Score

    def put(side, seed, value, samples=5000):
        settings = ablations.Settings("train.h5", "test.h5", "probe.h5", 1000, samples, 2000, 100)
        made = ablations.Made((Score("macro_f1", value, value - 0.01, None),), 200, 10, 625, 312.5)
        ablations.write_result(tmp_path, ablations.Result(*side, seed, settings, None, made))

    put(ablations.BASELINE, 0, 0.7)
    put(ablations.BASELINE, 1, 0.72)
    put(("window", "64"), 0, 0.65)
    put(("window", "256"), 0, 0.69)
    put(("window", "256"), 1, 0.73)
    assert ablations.main(["--redraw", "--out", str(tmp_path)]) == 0
    made = capsys.readouterr().out
    assert made == (tmp_path / "table.md").read_text()
    assert "| attention windows of 128 | 64 | 0 | 200 | macro F1 | 0.700 | 0.650 | +0.050 | 10 |" in made
    mean = "0.710 | 0.710 | +0.000 ± 0.010 (+0.010, -0.010) | 10 |"
    assert f"| attention windows of 128 | 256 (paper) | 0, 1 | 200 | macro F1 | {mean}" in made
    assert "cells of one voxel" not in made  # there is only one side of it
    put(("cells", "0.665"), 0, 0.6, samples=4000)
    with pytest.raises(ValueError, match="same events and budgets"):
        ablations.table(tmp_path)
