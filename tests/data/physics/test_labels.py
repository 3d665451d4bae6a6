"""The ten rules: on cases made by hand, and on whole events against a plain version with dictionaries."""

import itertools

import numpy as np
import pytest

from larpanda.data.physics.cells import cell_of, key_of
from larpanda.data.physics.image import Image, place_image
from larpanda.data.physics.kernel import (
    BREMSSTRAHLUNG,
    COMPTON,
    CONVERSION,
    DECAY,
    HADRONIC,
    IONISATION,
    KNOCK_ON,
    PHOTO_ELECTRIC,
    PRIMARY,
)
from larpanda.data.physics.labels import interaction_of, label
from larpanda.data.physics.presets import PRESETS, Primary, draw
from larpanda.data.physics.transport import Truth, simulate
from larpanda.event import Motif

SHOWER, TRACK, MICHEL, DELTA, LED = Motif
AROUND = np.array(list(itertools.product((-1, 0, 1), repeat=3)))


def event(*tracks, recoil=()):
    """An event of tracks (parent, PDG code, process, voxels, MeV a voxel), numbered from 1, and 0.2 MeV of recoils."""
    parent, pdg, process, cells, energies = zip(*tracks, strict=True)
    primaries = tuple(
        Primary(i, p, 100.0, (0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
        for i, p in enumerate(pdg[t] for t in range(len(pdg)) if parent[t] == 0)
    )
    owner = np.repeat(np.arange(1, len(tracks) + 1), [len(c) for c in cells])
    owner = np.append(owner, np.zeros(len(recoil), np.int64))
    energy = np.append(np.repeat(np.array(energies, float), [len(c) for c in cells]), np.full(len(recoil), 0.2))
    cell = np.concatenate([np.reshape(c, (-1, 3)) for c in (*cells, recoil)]).astype(np.int64)
    first = np.zeros(1, np.int64)
    truth = Truth(
        primaries, 3.0 * cell, energy, owner,
        np.concatenate([first, parent]), np.concatenate([first, pdg]), np.concatenate([first, process]),
        *(np.zeros((len(tracks) + 1, *more)) for more in ((7,), (3,), (), (), ())),
    )  # fmt: skip
    return truth, Image(np.zeros(3), np.ones(len(cell), bool), key_of(cell))


def line(n, x=100, y=100, z=100):
    """n voxels in a row along z."""
    return np.stack([np.full(n, x), np.full(n, y), z + np.arange(n)], 1)


def found(*tracks):
    """{voxel: (motif, track id of the fragment, of the particle)}."""
    labels = label(*event(*tracks))
    assert (np.diff(labels.cluster) >= 0).all()
    return {
        tuple(cell): (int(labels.motif[c]), int(labels.fragment[c]), int(labels.particle[c]))
        for cell, c in zip(cell_of(labels.key).tolist(), labels.cluster, strict=True)
    }


def labels_of(result, cells):
    return {result[tuple(cell)] for cell in np.asarray(cells).tolist()}


MUON = (0, 13, PRIMARY, line(40), 0.5)
NO_LABEL = (LED, -1, -1)


def test_1_an_electron_of_an_electron_joins_it_even_far_away():
    cells = line(20, x=130)
    far = line(12, x=160)
    result = found((0, 11, PRIMARY, cells, 0.5), (1, 11, IONISATION, far, 0.5))
    assert labels_of(result, np.concatenate([cells, far])) == {(SHOWER, 1, 1)}


def test_2_low_energy_joins_an_ancestor_only_if_they_touch():
    touching, apart = line(3, x=101, z=138), line(3, x=103)
    result = found(MUON, (1, 22, BREMSSTRAHLUNG, [], 0), (2, 11, PHOTO_ELECTRIC, touching, 0.5),
                   (2, 11, PHOTO_ELECTRIC, apart, 0.5))  # fmt: skip
    assert labels_of(result, touching) == {(TRACK, 1, 1)}
    assert labels_of(result, apart) == {NO_LABEL}


def test_2_a_stranger_does_not_count():
    touching = line(3, x=101)
    result = found(MUON, (0, 22, PRIMARY, [], 0), (2, 11, PHOTO_ELECTRIC, touching, 0.5))
    assert labels_of(result, touching) == {NO_LABEL}


def test_3_voxels_below_the_threshold_are_dropped():
    faint = line(5, x=101)
    result = found(MUON, (0, 2212, PRIMARY, faint, 0.009))
    assert len(result) == 40
    # Two groups that are faint on their own are not added up.
    assert len(found(MUON, (0, 2212, PRIMARY, faint, 0.009), (0, 2212, PRIMARY, faint, 0.009))) == 40


@pytest.mark.parametrize(("n", "expected"), [(11, (SHOWER, 2, 1)), (10, NO_LABEL)])
def test_3_a_large_compton_electron_is_a_shower(n, expected):
    cells = line(n)
    result = found((0, 22, PRIMARY, [], 0), (1, 11, COMPTON, cells, 0.5))
    assert labels_of(result, cells) == {expected}


def test_4_a_pair_is_its_photon():
    electron, positron = line(12), line(12, x=110)
    result = found((0, 22, PRIMARY, [], 0), (1, 11, CONVERSION, electron, 0.5), (1, -11, CONVERSION, positron, 0.5))
    assert labels_of(result, np.concatenate([electron, positron])) == {(SHOWER, 1, 1)}


@pytest.mark.parametrize(("x", "fragment"), [(101, 1), (105, 2)])
def test_5_a_shower_joins_its_parent_if_they_touch_and_is_the_same_particle_anyway(x, fragment):
    parent, child = line(30), line(15, x=x)
    result = found((0, 11, PRIMARY, parent, 0.5), (1, 22, BREMSSTRAHLUNG, [], 0), (2, 11, CONVERSION, child, 0.5))
    assert labels_of(result, child) == {(SHOWER, fragment, 1)}


def test_5_the_photon_of_a_michel_is_a_shower_of_the_michel():
    michel, far = line(15, x=102, z=140), line(12, x=130)
    result = found(MUON, (1, -11, DECAY, michel, 0.5), (2, 22, BREMSSTRAHLUNG, [], 0), (3, 11, CONVERSION, far, 0.5))
    assert labels_of(result, michel) == {(MICHEL, 2, 2)}
    assert labels_of(result, far) == {(SHOWER, 3, 2)}


@pytest.mark.parametrize("sizes", [(20, 12), (12, 20)])
def test_6_touching_photons_of_one_shower_join_the_larger(sizes):
    a, b = line(sizes[0], x=120), line(sizes[1], x=121)
    result = found((0, 11, PRIMARY, line(15), 0.5), (1, 22, BREMSSTRAHLUNG, a, 0.5), (1, 22, BREMSSTRAHLUNG, b, 0.5))
    larger = 2 if sizes[0] > sizes[1] else 3
    assert labels_of(result, np.concatenate([a, b])) == {(SHOWER, larger, 1)}


def test_6_the_photons_of_a_neutral_pion_stay_two():
    a, b = line(20, x=120), line(20, x=121)
    result = found((0, 111, PRIMARY, [], 0), (1, 22, DECAY, a, 0.5), (1, 22, DECAY, b, 0.5))
    assert labels_of(result, a) == {(SHOWER, 2, 2)}
    assert labels_of(result, b) == {(SHOWER, 3, 3)}


@pytest.mark.parametrize(("own", "motif"), [(9, TRACK), (10, DELTA)])
def test_7_a_delta_ray_needs_ten_voxels_of_its_own(own, motif):
    cells = np.concatenate([line(5), line(own, x=101)])
    result = found(MUON, (1, 11, KNOCK_ON, cells, 0.5))
    assert labels_of(result, line(own, x=101)) == {(motif, 2 if motif == DELTA else 1, 2 if motif == DELTA else 1)}
    assert labels_of(result, line(5)) == {(TRACK, 1, 1)}


def test_8_low_energy_joins_again_what_has_grown():
    delta = line(9, x=101)  # joins its muon in rule 7; then the photo-electron beside it touches its ancestor
    beside = line(2, x=102, z=104)
    result = found(MUON, (1, 11, KNOCK_ON, delta, 0.5), (1, 22, BREMSSTRAHLUNG, [], 0),
                   (3, 11, PHOTO_ELECTRIC, beside, 0.5))  # fmt: skip
    assert labels_of(result, beside) == {(TRACK, 1, 1)}


@pytest.mark.parametrize(("n", "expected"), [(9, NO_LABEL), (10, (TRACK, 1, 1))])
def test_9_a_short_proton_is_low_energy(n, expected):
    assert labels_of(found((0, 2212, PRIMARY, line(n), 3.0)), line(n)) == {expected}


def test_10_neutrons_and_nuclei_are_low_energy_and_energies_add_up():
    cells = line(12, x=101)
    neutron, proton = (0, 2112, PRIMARY, line(15, x=120), 0.3), (2, 2212, HADRONIC, cells, 0.3)
    truth, image = event(MUON, neutron, proton, recoil=np.concatenate([cells, line(15, x=140)]))
    labels = label(truth, image)
    assert labels.energy.sum() == pytest.approx(truth.deposit.sum())
    at = {tuple(c): k for k, c in enumerate(cell_of(labels.key).tolist())}
    assert labels.energy[at[101, 100, 100]] == pytest.approx(0.5)
    assert labels.motif[labels.cluster[at[101, 100, 100]]] == TRACK
    assert labels.motif[labels.cluster[at[120, 100, 100]]] == LED
    assert labels.motif[labels.cluster[at[140, 100, 100]]] == LED


def test_a_voxel_of_several_goes_to_track_then_michel_then_shower():
    cells = line(12)
    michel_first = found((0, 13, PRIMARY, line(12, x=90), 0.5), (1, 11, DECAY, cells, 0.5), (0, 11, PRIMARY, cells, 9))
    assert labels_of(michel_first, cells) == {(MICHEL, 2, 2)}
    track_first = found((0, 11, PRIMARY, cells, 9), (0, 211, PRIMARY, cells, 0.5), (0, 13, PRIMARY, cells, 0.5))
    assert labels_of(track_first, cells) == {(TRACK, 2, 2)}


def test_an_empty_image_has_an_empty_led():
    labels = label(*event((0, 13, PRIMARY, [], 0)))
    assert len(labels.key) == 0
    assert labels.motif.tolist() == [LED]


def test_interactions_are_those_of_the_primaries():
    truth, _ = event(MUON, (0, 11, PRIMARY, line(3), 1), (1, 11, DECAY, line(3), 1), (3, 22, BREMSSTRAHLUNG, [], 0))
    assert interaction_of(np.array([1, 2, 3, 4]), truth).tolist() == [0, 1, 0, 0]


class Plain:
    """The same rules, one voxel at a time."""

    def __init__(self, truth, image):
        self.truth, n = truth, len(truth.pdg)
        self.joined = list(range(n))  # what each track has joined
        self.cells = [{} for _ in range(n)]
        for track, key, mev in zip(truth.owner[image.inside], image.key, truth.deposit[image.inside], strict=True):
            self.cells[track][key] = self.cells[track].get(key, 0.0) + mev
        self.motif = [self.birth(t) for t in range(n)]
        self.step = key_of(AROUND + 500) - key_of(np.array([[500, 500, 500]]))

    def birth(self, t):
        pdg, process = abs(self.truth.pdg[t]), self.truth.process[t]
        if pdg != 11:
            return {22: SHOWER, 2112: LED}.get(int(pdg), TRACK if t else LED)
        if process == DECAY:
            return MICHEL if abs(self.truth.pdg[self.truth.parent[t]]) == 13 else SHOWER
        return {PRIMARY: SHOWER, KNOCK_ON: DELTA, CONVERSION: SHOWER}.get(int(process), LED)

    def whole(self, t):
        return self.joined[t] == t

    def host(self, t):
        while self.joined[t] != t:
            t = self.joined[t]
        return t

    def ancestors(self, t):
        while t := int(self.truth.parent[t]):
            yield t

    def all(self, motif=None, process=None):
        for t in range(1, len(self.joined)):
            is_electron = abs(self.truth.pdg[t]) == 11
            made = process is None or (is_electron and self.truth.process[t] == process)
            if self.whole(t) and made and (motif is None or self.motif[t] == motif):
                yield t

    def join(self, into, t):
        for key, mev in self.cells[t].items():
            self.cells[into][key] = self.cells[into].get(key, 0.0) + mev
        self.cells[t], self.joined[t] = {}, into

    def touch(self, a, b):
        a, b = sorted((self.cells[a], self.cells[b]), key=len)
        return bool(a) and not b.keys().isdisjoint((np.array(list(a))[:, None] + self.step).ravel().tolist())

    def to_parent(self, process):
        for t in self.all(process=process):
            self.join(self.host(int(self.truth.parent[t])), t)

    def low_energy(self):
        again = True
        while again:
            again = False
            for t in self.all(LED):
                into = next((a for a in self.ancestors(t) if self.whole(a) and self.touch(a, t)), None)
                if into:
                    self.join(into, t)
                    again = True

    def line(self, t):
        result = {t}
        for a in filter(self.whole, self.ancestors(t)):
            if self.motif[a] == TRACK:
                break
            if self.motif[a] != LED:
                result.add(a)
        return result

    def run(self):
        self.to_parent(IONISATION)
        self.low_energy()
        for t, cells in enumerate(self.cells):
            self.cells[t] = {k: e for k, e in cells.items() if e >= 0.01}
        for t in self.all(LED):
            rare = self.truth.process[t] not in (IONISATION, PHOTO_ELECTRIC) and abs(self.truth.pdg[t]) == 11
            if rare and len(self.cells[t]) > 10:
                self.motif[t] = SHOWER
        self.to_parent(CONVERSION)
        again = True
        while again:
            again = False
            for t in self.all(SHOWER):
                to = self.host(int(self.truth.parent[t]))
                if to not in (0, t) and self.motif[to] in (SHOWER, DELTA, MICHEL) and self.touch(to, t):
                    self.join(to, t)
                    again = True
        again = True
        while again:
            again = False
            for a, b in itertools.combinations([t for t in self.all(SHOWER) if self.cells[t]], 2):
                if not self.line(a).isdisjoint(self.line(b)) and self.touch(a, b):
                    small, large = (a, b) if len(self.cells[a]) < len(self.cells[b]) else (b, a)
                    self.join(large, small)
                    again = True
                    break
        for t in self.all(DELTA):
            to = int(self.truth.parent[t])
            if to and self.whole(to) and len(self.cells[t].keys() - self.cells[to].keys()) < 10:
                self.join(to, t)
        self.low_energy()
        order = (TRACK, MICHEL, SHOWER, DELTA)
        result = {}
        for t in sorted(self.all(), key=lambda t: (order.index(self.motif[t]) if self.motif[t] != LED else 9, t)):
            real = self.motif[t] != LED and len(self.cells[t]) >= 10
            for key in self.cells[t]:
                if real:
                    result.setdefault(key, (int(self.motif[t]), t))
        for cells in self.cells:
            for key in cells:
                result.setdefault(key, (int(LED), -1))
        return result


@pytest.mark.parametrize("seed", range(2))
def test_whole_events_agree_with_the_plain_version(seed):
    rng = np.random.default_rng(seed)
    truth = simulate(draw(PRESETS["pilarnet"], rng)[:5], rng)
    image = place_image(truth, rng)
    labels = label(truth, image)
    mine = {
        int(k): (int(labels.motif[c]), int(labels.fragment[c])) for k, c in zip(labels.key, labels.cluster, strict=True)
    }
    assert mine == Plain(truth, image).run()
