"""From tracks to labels: which voxel belongs to which cluster, particle and interaction.

The rules are those of LArSoft's Supera of 2020 (DeepLearnPhysics/Supera, SuperaMCParticleCluster), which labelled
PILArNet-M. Every track of the simulation begins as a group of its own; then groups join:

1. an electron knocked out by an electron joins it;
2. a low-energy group joins the nearest of its ancestors that it touches;
3. each group loses its voxels below 0.01 MeV; Compton (and rarer) electrons of more than 10 voxels become showers;
4. the electron and positron of a conversion join their photon;
5. a shower joins its parent if that is a shower, a Michel electron or a delta ray, and they touch;
6. two touching showers with a common shower, Michel or delta ancestor join, the smaller the larger;
7. a delta ray joins its parent if fewer than 10 of its voxels are its own;
8. rule 2 again;
9. what has fewer than 10 voxels now, of whatever kind, is low-energy;
10. the low-energy groups of an event make one cluster, LED, which belongs to no particle and no interaction.

Voxels touch if they are neighbours (26). A voxel claimed by several clusters goes to the first of track, Michel,
shower, delta, LED, and there to the older track; its energy is the sum over all.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from larpanda.data.physics.image import Image
from larpanda.data.physics.kernel import (
    CONVERSION,
    DECAY,
    IONISATION,
    KNOCK_ON,
    PHOTO_ELECTRIC,
    PRIMARY,
    Floats,
    Ints,
    kernel,
)
from larpanda.data.physics.touching import neighbours, sum_up
from larpanda.data.physics.transport import Truth
from larpanda.event import MOTIF_PRIORITY, UNKNOWN, Motif

MIN_VOXEL_MEV = 0.01
MIN_VOXELS = 10
SHOWER, TRACK, MICHEL, DELTA, LED = (int(motif) for motif in Motif)
PLAIN, RARE, CONVERTED, KNOCKED = range(4)  # what a track was at birth, where a rule asks for it


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The V voxels of an event in C clusters. Voxels are ordered by cluster; cluster 0 is the LED."""

    key: Ints  # [V] see `cells`
    energy: Floats  # [V] MeV
    cluster: Ints  # [V]
    fragment: Ints  # [C] oldest track of the cluster, UNKNOWN for LED; so below
    particle: Ints  # [C] track id of the particle it belongs to
    motif: Ints  # [C]
    of_track: Ints  # [T + 1] the particle that the deposits of each track went to, UNKNOWN for LED


class _Groups(NamedTuple):
    """Tracks that have joined, T + 1 rows. A group is known by the track that the others joined: its host is itself."""

    parent: Ints  # track id, 0 for a primary
    kind: Ints  # PLAIN, RARE, ...
    motif: Ints  # of the group, in the row of its host
    host: Ints  # the group that a track is in now
    following: Ints  # the next track of the same group, -1 at the end
    last: Ints  # the last track of a group, in the row of its host


def label(truth: Truth, image: Image) -> Labels:
    """Cluster the deposits inside the image. The result may be empty: no voxel above threshold."""
    groups = _first_groups(truth)
    n = len(groups.host)
    _join_parents(groups, KNOCKED)  # rule 1

    owner, deposit = truth.owner[image.inside], truth.deposit[image.inside]
    key, group, energy = sum_up(image.key, groups.host[owner], deposit)
    _join_touching(groups, *neighbours(key, group, n))  # rule 2

    key, group, energy = sum_up(key, groups.host[group], energy)  # rule 3
    keep = energy >= MIN_VOXEL_MEV
    key, group, energy = key[keep], group[keep], energy[keep]
    size = np.bincount(group, minlength=n)
    groups.motif[(groups.host == np.arange(n)) & (groups.kind == RARE) & (size > MIN_VOXELS)] = SHOWER

    _join_parents(groups, CONVERTED)  # rule 4
    start, other = neighbours(key, group, n)
    _join_showers(groups, size, start, other)  # rules 5 and 6
    entry = np.argsort(group, kind="stable")
    _join_deltas(groups, key, group, entry, np.searchsorted(group[entry], np.arange(n + 1)))  # rule 7
    _join_touching(groups, start, other)  # rule 8
    return _voxels(groups, key, groups.host[group], energy)


def interaction_of(track: Ints, truth: Truth) -> Ints:
    """[N] track ids -> [N] the interactions of the primaries that they descend from."""
    while (older := truth.parent[track]).any():
        track = np.where(older > 0, older, track)
    return np.array([truth.primaries[t - 1].interaction for t in track], np.int64)


def _first_groups(truth: Truth) -> _Groups:
    """Every track a group of its own, with the motif that its birth suggests."""
    pdg, process, parent = truth.pdg, truth.process, truth.parent
    n = len(pdg)
    electron = np.abs(pdg) == 11
    motif, kind = np.full(n, TRACK), np.full(n, PLAIN)
    motif[pdg == 2112] = LED
    motif[pdg == 22] = SHOWER
    motif[electron], kind[electron] = LED, RARE
    for made_by, its_motif, its_kind in (
        (PRIMARY, SHOWER, PLAIN),
        (KNOCK_ON, DELTA, PLAIN),
        (IONISATION, LED, KNOCKED),
        (CONVERSION, SHOWER, CONVERTED),
        (PHOTO_ELECTRIC, LED, PLAIN),
        (DECAY, SHOWER, PLAIN),
    ):
        motif[electron & (process == made_by)] = its_motif
        kind[electron & (process == made_by)] = its_kind
    motif[electron & (process == DECAY) & (np.abs(pdg[parent]) == 13)] = MICHEL
    motif[0] = LED  # nobody: recoiling nuclei and light ions
    return _Groups(parent, kind, motif, np.arange(n), np.full(n, -1), np.arange(n))


@kernel
def _join(groups: _Groups, host: int, other: int) -> None:
    """All tracks of one group become part of another."""
    groups.following[groups.last[host]] = other
    groups.last[host] = groups.last[other]
    member = other
    while member >= 0:
        groups.host[member] = host
        member = groups.following[member]


@kernel
def _join_parents(groups: _Groups, kind: int) -> None:
    """Rules 1 and 4: groups of one kind join what their parent is part of; older ones first."""
    for track in range(1, len(groups.host)):
        if groups.kind[track] == kind and groups.host[track] == track and groups.parent[track] > 0:
            _join(groups, groups.host[groups.parent[track]], track)


@kernel
def _join_touching(groups: _Groups, start: Ints, other: Ints) -> None:
    """Rule 2: low-energy groups join the nearest whole ancestor that they touch, until nothing changes."""
    mark = np.zeros(len(groups.host), np.int64)
    stamp = 0
    changed = True
    while changed:
        changed = False
        for track in range(1, len(groups.host)):
            if groups.host[track] != track or groups.motif[track] != LED or groups.parent[track] == 0:
                continue
            stamp += 1
            member = track
            while member >= 0:
                for i in range(start[member], start[member + 1]):
                    mark[groups.host[other[i]]] = stamp
                member = groups.following[member]
            ancestor = groups.parent[track]
            while ancestor > 0:
                if groups.host[ancestor] == ancestor and mark[ancestor] == stamp:
                    _join(groups, ancestor, track)
                    changed = True
                    break
                ancestor = groups.parent[ancestor]


@kernel
def _join_showers(groups: _Groups, voxels: Ints, start: Ints, other: Ints) -> None:
    """Rules 5 and 6; `voxels` is the size of each group before."""
    motif, host = groups.motif, groups.host
    size = np.zeros(len(host), np.int64)
    for track in range(len(host)):
        size[host[track]] += voxels[track]
    changed = True
    while changed:
        changed = False
        for track in range(1, len(host)):
            if host[track] != track or motif[track] != SHOWER or groups.parent[track] == 0:
                continue
            to = host[groups.parent[track]]
            if to == track or not (motif[to] == SHOWER or motif[to] == DELTA or motif[to] == MICHEL):
                continue
            if _touch(groups, start, other, track, to):
                _join(groups, to, track)
                size[to] += size[track]
                changed = True
    changed = True
    while changed:
        changed = False
        for track in range(1, len(host)):
            if host[track] != track or motif[track] != SHOWER or size[track] == 0:
                continue
            near = _nearby_relative(groups, start, other, track)
            if near > 0:
                small, large = (track, near) if size[track] < size[near] else (near, track)
                _join(groups, large, small)
                size[large] += size[small]
                changed = True
                break


@kernel
def _touch(groups: _Groups, start: Ints, other: Ints, a: int, b: int) -> bool:
    member = a
    while member >= 0:
        for i in range(start[member], start[member + 1]):
            if groups.host[other[i]] == b:
                return True
        member = groups.following[member]
    return False


@kernel
def _nearby_relative(groups: _Groups, start: Ints, other: Ints, track: int) -> int:
    """The oldest shower, younger than this one, that touches it and shares an ancestor with it; 0 for none."""
    best = 0
    member = track
    while member >= 0:
        for i in range(start[member], start[member + 1]):
            near = groups.host[other[i]]
            younger = near > track and (best == 0 or near < best)
            if younger and groups.motif[near] == SHOWER and _related(groups, track, near):
                best = near
        member = groups.following[member]
    return best


@kernel
def _line(groups: _Groups, track: int) -> Ints:
    """A shower and its whole ancestors that are showers, Michels or deltas, up to the first track."""
    line = np.empty(len(groups.host), np.int64)
    line[0] = track
    n = 1
    ancestor = groups.parent[track]
    while ancestor > 0:
        if groups.host[ancestor] == ancestor:
            if groups.motif[ancestor] == TRACK:
                break
            if groups.motif[ancestor] != LED:
                line[n] = ancestor
                n += 1
        ancestor = groups.parent[ancestor]
    return line[:n]


@kernel
def _related(groups: _Groups, a: int, b: int) -> bool:
    second = _line(groups, b)
    for one in _line(groups, a):  # noqa: SIM110  (compiled: a plain loop)
        if (second == one).any():
            return True
    return False


@kernel
def _join_deltas(groups: _Groups, key: Ints, group: Ints, entry: Ints, first: Ints) -> None:
    """Rule 7, older delta rays first. Track t had energy in the voxels key[entry[first[t]:first[t + 1]]] (rule 3)."""
    for track in range(1, len(groups.host)):
        if groups.host[track] != track or groups.motif[track] != DELTA:
            continue
        to = groups.parent[track]
        if to == 0 or groups.host[to] != to:
            continue
        own = 0
        member = track
        while member >= 0:
            for i in entry[first[member] : first[member + 1]]:
                own += _is_own(groups, key, group, i, to)
            member = groups.following[member]
        if own < MIN_VOXELS:
            _join(groups, to, track)


@kernel
def _is_own(groups: _Groups, key: Ints, group: Ints, i: int, other: int) -> bool:
    """True for the first entry of a group in a voxel, if the other group has nothing there."""
    host = groups.host[group[i]]
    j = i
    while j > 0 and key[j - 1] == key[i]:
        j -= 1
        if groups.host[group[j]] == host:
            return False
    while j < len(key) and key[j] == key[i]:
        if groups.host[group[j]] == other:
            return False
        j += 1
    return True


def _voxels(groups: _Groups, key: Ints, group: Ints, energy: Floats) -> Labels:
    """Rules 9 and 10, and one label a voxel."""
    key, group, energy = sum_up(key, group, energy)
    size = np.bincount(group, minlength=len(groups.host))
    motif = np.where(size >= MIN_VOXELS, groups.motif, LED)
    rank = np.empty(len(Motif), np.int64)
    rank[list(MOTIF_PRIORITY)] = np.arange(len(Motif))
    order = np.lexsort((group, rank[motif[group]], key))
    key, group, energy = key[order], group[order], energy[order]
    first = np.ones(len(key), bool)
    first[1:] = key[1:] != key[:-1]
    at = np.flatnonzero(first)
    energy = np.add.reduceat(energy, at) if len(at) else energy
    key, group = key[at], group[at]

    hosts = np.unique(np.append(np.where(motif[group] == LED, 0, group), 0))  # 0 stands for the LED
    cluster = np.searchsorted(hosts, np.where(motif[group] == LED, 0, group))
    order = np.argsort(cluster, kind="stable")
    particle = np.array([UNKNOWN] + [_particle(groups, int(host)) for host in hosts[1:]])
    of_host = np.full(len(groups.host), UNKNOWN)
    of_host[hosts[1:]] = particle[1:]
    return Labels(
        key[order],
        energy[order],
        cluster[order],
        fragment=np.append(UNKNOWN, hosts[1:]),
        particle=particle,
        motif=np.append(LED, motif[hosts[1:]]),
        of_track=of_host[groups.host],
    )


def _particle(groups: _Groups, track: int) -> int:
    """The track that a cluster belongs to: of a shower, the oldest that is reached through showers."""
    particle = track
    ancestor = int(groups.parent[track]) if groups.motif[track] == SHOWER else 0
    while ancestor:
        host = int(groups.host[ancestor])
        if groups.motif[host] == TRACK:
            break
        if groups.motif[host] != LED:
            particle = host
            if groups.motif[host] != SHOWER:
                break
        ancestor = int(groups.parent[ancestor])
    return particle
