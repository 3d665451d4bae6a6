"""Bombs against the settings that they were taken from, and what is said of a preset that cannot be."""

import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from larpanda.data.physics.presets import PRESETS, Bomb, Preset, Source, draw, find_preset

N = 3000
LEPTON, MUON, PION = (11, -11, 13, -13), (13, -13), (211, -211)

# As the MPV and MPR settings state them: how many; then PDG codes, how many of these, weight, GeV (momentum in C).
VERTEX = {
    "pilarnet": ((2, 5), [(MUON, 0, 1, 1, 0.05, 0.6), ((22, 11), 0, 1, 1.5, 0.05, 2.0), ((111,), 0, 2, 1.2, 0.05, 1.0),
                          (PION, 0, 2, 1, 0.05, 0.4), ((2212,), 0, 3, 1, 0.05, 0.4)]),
    "config_a": ((2, 5), [(MUON, 0, 1, 1, 0.05, 1.0), ((22, 11), 0, 1, 1, 0.05, 1.0), ((111,), 0, 2, 1, 0.05, 0.5),
                          (PION, 0, 2, 1, 0.05, 0.8), ((2212,), 0, 3, 1, 0.05, 0.4)]),
    "config_b": ((2, 6), [(LEPTON, 1, 1, 1, 0.05, 0.8), ((111,), 0, 2, 1, 0.05, 0.4), (PION, 0, 2, 1, 0.05, 0.4),
                          ((2212,), 0, 4, 3, 0.05, 0.4)]),
    "config_c": ((2, 6), [(LEPTON, 1, 1, 1, 0.05, 2.0), ((111,), 0, 1, 1, 0.005, 0.5), (PION, 0, 2, 1, 0.05, 0.7),
                          ((2212,), 0, 4, 2, 0.05, 0.7)]),
    "config_e": ((2, 7), [(LEPTON, 0, 1, 3, 0, 3.0), ((111,), 0, 2, 1, 0, 1.0), (PION, 0, 2, 1, 0, 1.0),
                          ((2212,), 0, 4, 3, 0, 1.0), ((22,), 0, 2, 1, 0, 1.0)]),
}  # fmt: skip
RAIN = {
    "config_a": ((3, 8), [(MUON, 0, 30, 5, 0.2, 1.0), ((22, 11), 0, 30, 1, 0.1, 0.6), ((2212,), 0, 30, 1, 0.05, 0.4)]),
    "config_b": ((3, 6), [(MUON, 0, 30, 5, 0.05, 1.0), ((22, 11), 0, 2, 1, 0.05, 0.1), ((2212,), 0, 30, 1, 0.05, 0.4)]),
    "config_c": ((4, 6), [(MUON, 0, 30, 5, 0.05, 2.0), ((22, 11), 0, 2, 1, 0.1, 0.2), ((2212,), 0, 30, 2, 0.05, 0.7)]),
}  # fmt: skip
VERTEX["config_d"], RAIN["config_d"] = VERTEX["config_b"], ((8, 15), RAIN["config_b"][1])
MASS = {11: 0.000511, 13: 0.105658, 22: 0.0, 111: 0.134977, 211: 0.13957, 2212: 0.938272}
BOMBS = sorted([(name, "vertex") for name in VERTEX] + [(name, "rain") for name in RAIN])


def bombs(name):
    rng = np.random.default_rng(list(name.encode()))
    drawn = [draw(PRESETS[name], rng) for _ in range(N)]
    return {
        "vertex": [[p for p in bomb if p.interaction == 0] for bomb in drawn],
        "rain": [[p for p in bomb if p.interaction > 0] for bomb in drawn],
    }


@pytest.fixture(scope="module")
def drawn():
    return {name: bombs(name) for name in VERTEX}


def p_value(found, expected):
    """Of Pearson's chi-square, cells of fewer than 10 expected left out. Both are counts by cell."""
    cells = [cell for cell in expected if expected[cell] >= 10]
    square = sum((found[cell] - expected[cell]) ** 2 / expected[cell] for cell in cells)
    return chi2.sf(square, len(cells) - 1)


def compositions(counts, sources):
    """Probability of each numbers of particles of each source: by going through all orders of drawing."""
    result = Counter()
    for total in range(counts[0], counts[1] + 1):
        state = {tuple(s[1] for s in sources): 1 / (counts[1] - counts[0] + 1)}
        for _ in range(total - sum(s[1] for s in sources)):
            new = Counter()
            for taken, p in state.items():
                weights = [s[3] if taken[i] < s[2] else 0 for i, s in enumerate(sources)]
                for i, weight in enumerate(weights):
                    if weight:
                        one_more = taken[:i] + (taken[i] + 1,) + taken[i + 1 :]
                        new[one_more] += p * weight / sum(weights)
            state = new
        result.update(state)
    return result


@pytest.mark.parametrize(("name", "part"), BOMBS)
def test_how_many_of_what(drawn, name, part):
    """At least, at most, multiplicity and weights together: the exact probabilities of every composition."""
    counts, sources = (VERTEX if part == "vertex" else RAIN)[name]
    of = {pdg: i for i, source in enumerate(sources) for pdg in source[0]}
    probability = compositions(counts, sources)
    assert sum(probability.values()) == pytest.approx(1)
    found = Counter()
    for bomb in drawn[name][part]:
        kinds = Counter(of[p.pdg] for p in bomb)
        found[tuple(kinds[i] for i in range(len(sources)))] += 1
    assert found.keys() <= probability.keys()
    assert p_value(found, {key: N * p for key, p in probability.items()}) > 1e-3
    pdg = Counter(p.pdg for bomb in drawn[name][part] for p in bomb)
    for source in sources:
        if len(source[0]) > 1:  # each code of a source as often as the others
            share = sum(pdg[code] for code in source[0]) / len(source[0])
            assert p_value(pdg, dict.fromkeys(source[0], share)) > 1e-3


@pytest.mark.parametrize(("name", "part"), BOMBS)
def test_energies_are_uniform_or_momenta_of_config_c(drawn, name, part):
    for pdg, _, _, _, low, high in (VERTEX if part == "vertex" else RAIN)[name][1]:
        particles = [p for bomb in drawn[name][part] for p in bomb if p.pdg in pdg]
        kinetic = np.array([p.energy_mev / 1000 for p in particles])
        mass = np.array([MASS[abs(p.pdg)] for p in particles])
        x = np.sqrt(kinetic * (kinetic + 2 * mass)) if name == "config_c" else kinetic
        assert kstest(x, "uniform", (low, high - low)).pvalue > 1e-3, pdg


def test_the_rain_of_pilarnet(drawn):
    rain = [p for bomb in drawn["pilarnet"]["rain"] for p in bomb]
    counts = Counter(len(bomb) for bomb in drawn["pilarnet"]["rain"])
    assert p_value(counts, dict.fromkeys(range(3, 8), N / 5)) > 1e-3
    kinds = Counter(
        "slow" if abs(p.pdg) == 13 and p.energy_mev < 500 else "fast" if abs(p.pdg) == 13 else p.pdg for p in rain
    )
    weights = {"slow": 1.5, "fast": 2.8, 22: 0.85, 11: 0.85, 2212: 0.8}
    assert kinds.keys() == weights.keys()
    assert p_value(kinds, {kind: len(rain) * w / 6.8 for kind, w in weights.items()}) > 1e-3


@pytest.mark.parametrize("name", VERTEX)
def test_particles_start_in_their_boxes_and_the_rain_flies_inward(drawn, name):
    preset = PRESETS[name]
    for bomb in drawn[name]["vertex"]:
        assert len({p.position_mm for p in bomb}) == 1
    for part in ("vertex", "rain"):
        half = np.array(getattr(preset, part).half_mm)
        starts = np.array([p.position_mm for bomb in drawn[name][part] for p in bomb[:1]])
        for axis in range(3) if len(starts) else ():
            assert kstest(starts[:, axis], "uniform", (-half[axis], 2 * half[axis])).pvalue > 1e-3
    assert all(np.dot(p.position_mm, p.direction) <= 0 for bomb in drawn[name]["rain"] for p in bomb)
    numbers = [[p.interaction for p in bomb] for bomb in drawn[name]["rain"]]
    assert all(n == list(range(1, len(n) + 1)) for n in numbers)


def test_the_boxes_lie_as_the_settings_say():
    """20 cm from the x and y faces of a TPC of 148.2 x 316.8 cm; rain from 30 cm outside; z to 115 and 145 cm."""
    for name in ("pilarnet", "config_a"):
        assert PRESETS[name].vertex.half_mm == (741 - 200, 1584 - 200, 1150)
        assert PRESETS[name].rain.half_mm == (741 + 300, 1584 + 300, 1450)
        assert PRESETS[name].active_half_mm[:2] == (741, 1584)
    assert PRESETS["config_e"].active_half_mm == (768 * 3 / 2,) * 3
    assert PRESETS["config_e"].rain.particles == (0, 0)


def test_directions_are_isotropic_but_those_of_config_e(drawn):
    for name in VERTEX:
        direction = np.array([p.direction for bomb in drawn[name]["vertex"] for p in bomb])
        assert np.linalg.norm(direction, axis=1) == pytest.approx(1)
        polar = np.arccos(direction[:, 2]) / np.pi if name == "config_e" else (direction[:, 2] + 1) / 2
        assert kstest(polar, "uniform").pvalue > 1e-3
        assert kstest(np.arctan2(direction[:, 1], direction[:, 0]) / (2 * np.pi) + 0.5, "uniform").pvalue > 1e-3


def test_sources_that_are_equal_are_counted_apart():
    twin = Source((2212,), (100.0, 200.0), at_most=1)
    preset = Preset(Bomb((2, 2), (0.0, 0.0, 0.0), (twin, twin)))
    assert len(draw(preset, np.random.default_rng(0))) == 2


def test_a_source_without_weight_gives_its_least():
    sources = (Source((13,), (1.0, 2.0), weight=0.0, at_least=1), Source((22,), (1.0, 2.0)))
    preset = Preset(rain=Bomb((2, 4), (1.0, 1.0, 1.0), sources))
    for seed in range(20):
        assert sum(p.pdg == 13 for p in draw(preset, np.random.default_rng(seed))) == 1


MINE = "rain: {particles: [1, 2], half_mm: [1, 1, 1], sources: [{pdg: [13], energy_mev: [50, 500]}]}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rain", "rian", "rian: no such field; the nearest is rain"),
        ("energy_mev", "energy", r"rain\.sources\[0\]\.energy: no such field; .* rain\.sources\[0\]\.energy_mev"),
        ("pdg: [13], ", "", r"rain\.sources\[0\]\.pdg is missing"),
        ("[13]", "13", r"rain\.sources\[0\]\.pdg is 13; expected tuple\[int, \.\.\.\]"),
        ("[13]", "[321]", r"rain\.sources\[0\]: pdg is \[321\]; expected some of 11, -11"),
        ("[13]", "[]", r"rain\.sources\[0\]: pdg is \[\]; expected some of"),
        ("[50, 500]", "[500, 50]", r"rain\.sources\[0\]: energy_mev is 500 to 50; expected 0 <= low <= high"),
        ("[50, 500]", "[-1, 50]", r"energy_mev is -1 to 50"),
        ("[50, 500]", "[0, 0]", r"energy_mev is 0 to 0"),
        ("[50, 500]", "[50, 1000000]", r"energy_mev is 50 to 1e\+06; .* up to 20000"),
        ("[50, 500]", "[.nan, 50]", r"energy_mev is nan to 50"),
        ("[50, 500]", "[50, 500, 5]", r"rain\.sources\[0\]\.energy_mev is \[50, 500, 5\]; expected tuple"),
        ("[50, 500]", "[50, much]", r"energy_mev is \[50, 'much'\]; expected tuple\[float, float\]"),
        ("[50, 500]", "[50, 500], weight: -1", r"weight is -1; expected 0 or more"),
        ("[50, 500]", "[50, 500], at_least: 3, at_most: 2", "at_least is 3 and at_most 2"),
        ("[50, 500]", "[50, 500], at_least: 2", "particles begins at 1, but at_least .* adds up to 2"),
        ("[50, 500]", "[50, 500], at_most: 1", "particles goes up to 2, but at_most .* adds up to 1"),
        ("[50, 500]", "[50, 500], weight: 0", "particles goes up to 2, but at_most of the sources with a weight .* 0"),
        ("[1, 2]", "[2, 1]", "rain: particles is 2 to 1; expected 0 <= low <= high"),
        ("[1, 2]", "[0, 0]", "nothing would start"),
        ("[1, 2]", "[1.5, 2]", r"rain\.particles is \[1\.5, 2\]; expected tuple\[int, int\]"),
        ("[1, 1, 1]", "[1, -1, 1]", "half_mm is .*; expected three lengths in mm, 0 or more"),
        (MINE, MINE + "\nmin_voxels: -5", "min_voxels is -5; expected 0 or more"),
        (MINE, MINE + "\nactive_half_mm: [1, 1, 0]", "active_half_mm is .*; expected three lengths in mm, above 0"),
        (MINE, MINE + "\ndirection: up", r"direction is 'up'; expected Literal\['isotropic', 'flat_theta'\]"),
        (MINE, MINE + "\n" + MINE, r"rain is there twice \(line 2\); expected once"),
        ("[50, 500]", "[50, 500], pdg: [11]", r"pdg is there twice \(line 1\)"),
        (MINE, MINE + "\n[1, 2]: 3", "not YAML"),
        (MINE, MINE + "\nmomentum: 7", "momentum is 7; expected bool"),
        (MINE, "[1, 2]", r"the whole is \[1, 2\]; expected the fields vertex, rain"),
        (MINE, "rain: {", "not YAML"),
        (MINE, "", "nothing would start"),
    ],
)
def test_a_file_that_cannot_be_is_one_line_that_names_it_and_the_field(tmp_path, old, new, message):
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    assert find_preset(path)[1].rain.particles == (1, 2)
    path.write_text(MINE.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        find_preset(str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00rain")
    with pytest.raises(ValueError, match=r"mine\.yaml: not a text file"):
        find_preset(tmp_path / "mine.yaml")
    (tmp_path / "null.yaml").write_bytes(b"rain: \x00")
    with pytest.raises(ValueError, match=r"null\.yaml: not YAML"):
        find_preset(tmp_path / "null.yaml")
    with pytest.raises(FileNotFoundError):
        find_preset(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_written_to_a_file_is_that_preset(tmp_path, name):
    (tmp_path / "mine.yaml").write_text(json.dumps(asdict(PRESETS[name])))  # JSON is YAML
    assert find_preset(tmp_path / "mine.yaml")[1] == PRESETS[name]
    assert find_preset(name) == (name, PRESETS[name])
