"""What a classifier gets to see of an event and of its particles: numbers that say how it looks, one name each.

Fixed before the generator is tuned, so that the judge is not chosen by the judged. Nothing depends on the order of the
rows, and nothing is read of the truth but labels, starts and vertices, to a tenth of a voxel: no momenta, no ids.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from larpanda.event import IMAGE_VOXELS, MIN_ENERGY_MEV, VOXEL_CM, Event, Motif, Species

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MIN_PARTICLE = 10  # voxels; smaller ones are what an image's edge left
WIDE = 5.0  # voxels, radius of the wider neighbourhood
ENDS = (4.0, 15.0)  # voxels from either end of a particle in which dE/dx is taken: 1.2 and 4.5 cm
QUANTILES = (5, 25, 50, 75, 95)
_HALF_OF_26 = [(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)][14:]


@dataclass(frozen=True, slots=True, eq=False)
class _Voxels:
    """An event of N voxels, sorted, each voxel once, and the M pairs of voxels that touch (26 neighbours)."""

    cell: Ints  # [N, 3]
    energy: Floats  # [N] MeV
    motif: Ints  # [N]
    species: Ints  # [N]
    particle: Ints  # [N], -1 for none
    interaction: Ints  # [N], -1 for none
    pair: Ints  # [M, 2] rows
    near: Ints  # [N] how many neighbours
    near_other: Ints  # [N] how many of another particle, or of none

    def __len__(self) -> int:
        return len(self.energy)


def event_features(event: Event) -> dict[str, float]:
    """Name -> value, NaN where an event has nothing to measure. The event needs truth."""
    return features(event)[0]


def particle_features(event: Event) -> dict[str, Floats]:
    """Name -> [R], one entry for each of the R particles of at least MIN_PARTICLE voxels, by particle id."""
    return features(event)[1]


def features(event: Event) -> tuple[dict[str, float], dict[str, Floats]]:
    """`event_features` and `particle_features` at the cost of one, some 15 ms."""
    v = _voxels(event)
    particles = _particles(v, event)
    return _counts(v) | _energies(v) | _neighbourhood(v) | _extents(v) | _pieces(v) | _of_particles(v, particles), (
        particles
    )


def _voxels(event: Event) -> _Voxels:
    one = event.visible(0.0)[0]  # merges what shares a voxel, and sorts
    cell = one.position.numpy().astype(np.int64)
    base = IMAGE_VOXELS + 2
    key = ((cell[:, 0] + 1) * base + cell[:, 1] + 1) * base + cell[:, 2] + 1
    first, second = [], []
    for i, j, k in _HALF_OF_26:
        wanted = key + (i * base + j) * base + k
        at = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
        rows = np.flatnonzero(key[at] == wanted)
        first.append(rows)
        second.append(at[rows])
    pair = np.stack([np.concatenate(first), np.concatenate(second)], 1)
    particle = one.particle.numpy()
    both = np.concatenate([pair, pair[:, ::-1]])
    other = particle[both[:, 0]] != particle[both[:, 1]]
    return _Voxels(
        cell,
        one.energy.numpy().astype(np.float64),
        one.motif.numpy(),
        one.species.numpy(),
        particle,
        one.interaction.numpy(),
        pair,
        np.bincount(both[:, 0], minlength=len(cell)),
        np.bincount(both[other, 0], minlength=len(cell)),
    )


def _quantiles(name: str, value: npt.NDArray[np.generic], at: tuple[int, ...] = QUANTILES) -> dict[str, float]:
    if not len(value):
        return {f"{name}, {q} %": np.nan for q in at}
    ordered = np.sort(value)  # np.quantile takes six times as long for as few values as these
    found = np.interp(np.array(at) / 100 * (len(value) - 1), np.arange(len(value)), ordered)
    return {f"{name}, {q} %": x for q, x in zip(at, found.tolist(), strict=True)}


def _mean(value: npt.NDArray[np.generic]) -> float:
    return float(value.mean()) if len(value) else np.nan


def _counts(v: _Voxels) -> dict[str, float]:
    seen = v.energy > MIN_ENERGY_MEV
    result = {
        "voxels": float(len(v)),
        f"voxels > {MIN_ENERGY_MEV} MeV": float(seen.sum()),
        f"share of voxels > {MIN_ENERGY_MEV} MeV": _mean(seen),
        "energy, MeV": v.energy.sum(),
        f"share of energy in voxels <= {MIN_ENERGY_MEV} MeV": v.energy[~seen].sum() / v.energy.sum(),
        "interactions": float(len(np.unique(v.interaction[v.interaction >= 0]))),
    }
    for m in Motif:
        of = v.motif == m
        result[f"{m.name}: share of voxels"] = _mean(of)
        result[f"{m.name}: share of voxels > {MIN_ENERGY_MEV} MeV"] = _mean(of[seen])
        result[f"{m.name}: share of energy"] = v.energy[of].sum() / v.energy.sum()
        result[f"{m.name}: survive {MIN_ENERGY_MEV} MeV"] = _mean(seen[of])
    for s in Species:
        result[f"{s.name}: energy, MeV"] = v.energy[v.species == s].sum()
    shower = v.energy[v.motif == Motif.SHOWER].sum()
    result["LED voxels per MeV of showers"] = (v.motif == Motif.LED).sum() / shower if shower > 0 else np.nan
    return result


def _energies(v: _Voxels) -> dict[str, float]:
    result = _quantiles("MeV a voxel", v.energy, (1, 5, 10, 25, 50, 75, 90, 95, 99))
    for m in Motif:
        of = v.energy[v.motif == m]
        result |= _quantiles(f"{m.name}: MeV a voxel", of)
        result |= _quantiles(f"{m.name}: MeV a voxel > {MIN_ENERGY_MEV}", of[of > MIN_ENERGY_MEV], (25, 75))
        result[f"{m.name}: mean MeV a voxel"] = _mean(of)
    return result


def _neighbourhood(v: _Voxels) -> dict[str, float]:
    some = slice(None, None, 3)  # every third voxel is enough for a mean, and a third of the time
    wide = cKDTree(v.cell).query_ball_point(v.cell[some], WIDE, return_length=True)
    result = _quantiles(f"voxels within {WIDE:g}", wide, (10, 50, 90))
    result["neighbours"] = _mean(v.near)
    for m in Motif:
        of = v.motif == m
        near = v.near[of]
        result |= _quantiles(f"{m.name}: neighbours", near, (25, 75))
        result[f"{m.name}: neighbours"] = _mean(near)
        result[f"{m.name}: share with fewer than 2 neighbours"] = _mean(near < 2)
        result[f"{m.name}: share with more than 7 neighbours"] = _mean(near > 7)
        result[f"{m.name}: neighbours of another particle"] = _mean(v.near_other[of])
        result[f"{m.name}: voxels within {WIDE:g}"] = _mean(wide[of[some]])
    led = v.motif == Motif.LED
    result["LED: share alone"] = _mean(v.near[led] == 0)
    result["LED: mean MeV alone"] = _mean(v.energy[led & (v.near == 0)])
    if led.any() and not led.all():
        distance = cKDTree(v.cell[~led]).query(v.cell[led])[0]
        result |= _quantiles("LED: voxels to the nearest other", distance)
    else:
        result |= _quantiles("LED: voxels to the nearest other", np.empty(0))
    return result


def _extents(v: _Voxels) -> dict[str, float]:
    result = {"share of voxels on a face": _mean(_on_face(v.cell))}
    for axis, name in enumerate("xyz"):
        result[f"extent in {name}"] = float(np.ptp(v.cell[:, axis]))
        result[f"spread in {name}"] = float(v.cell[:, axis].std())
        result[f"middle in {name}"] = float(v.cell[:, axis].mean())
    return result


def _on_face(cell: Ints) -> Bools:
    return np.asarray(((cell == 0) | (cell == IMAGE_VOXELS - 1)).any(1))


def _connected(v: _Voxels, label: Ints) -> Ints:
    """[N] number of the connected piece of each voxel; voxels of different labels are never connected."""
    i, j = v.pair[label[v.pair[:, 0]] == label[v.pair[:, 1]]].T
    graph = coo_array((np.ones(len(i), np.int8), (i, j)), shape=(len(v), len(v)))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _pieces(v: _Voxels) -> dict[str, float]:
    size_all = np.bincount(_connected(v, np.zeros(len(v), np.int64)))
    result = {"pieces": float(len(size_all)), "voxels of the largest piece": float(size_all.max())}
    piece = _connected(v, v.motif)
    size, energy = np.bincount(piece), np.bincount(piece, v.energy)
    motif = np.zeros(len(size), np.int64)
    motif[piece] = v.motif
    for m in Motif:
        of = size[motif == m]
        result[f"{m.name}: pieces"] = float(len(of))
        result |= _quantiles(f"{m.name}: voxels of a piece", of, (50, 75, 90))
        result[f"{m.name}: voxels of the largest piece"] = float(of.max(initial=0))
        result[f"{m.name}: mean MeV of a piece"] = _mean(energy[motif == m])
        result[f"{m.name}: share of pieces of one voxel"] = _mean(of == 1)
    return result


def _of_particles(v: _Voxels, particles: dict[str, Floats]) -> dict[str, float]:
    """What an event's particles, those in the table of particles, are together."""
    motif, species = particles["motif"], particles["species"]
    result = {"particles": float(len(np.unique(v.particle[v.particle >= 0])))}
    for s in Species:
        result[f"{s.name}: particles"] = float((species == s).sum())
    kinds: dict[str, Bools] = {m.name: motif == m for m in Motif if m != Motif.LED}
    kinds |= {f"{s.name} track": (motif == Motif.TRACK) & (species == s) for s in Species if s >= Species.MUON}
    kinds |= {f"{s.name} shower": (motif == Motif.SHOWER) & (species == s) for s in Species if s < Species.MUON}
    for kind, of in kinds.items():
        result[f"{kind}: number"] = float(of.sum())
        for name in ("voxels", "energy, MeV", "MeV/cm", "voxels a voxel of length", "pieces", "rms width"):
            result[f"{kind}: median {name}"] = float(np.median(particles[name][of])) if of.any() else np.nan
    return result


def _particles(v: _Voxels, event: Event) -> dict[str, Floats]:
    id_of = np.flatnonzero(np.bincount(v.particle[v.particle >= 0]) >= MIN_PARTICLE)
    rows = np.flatnonzero(np.isin(v.particle, id_of))
    group = np.searchsorted(id_of, v.particle[rows])  # [K] of the K voxels, 0..R - 1
    n = len(id_of)
    size = np.bincount(group, minlength=n).astype(np.float64)
    energy, cell = v.energy[rows], v.cell[rows].astype(np.float64)

    def total(value: npt.NDArray[np.generic]) -> Floats:
        return np.bincount(group, value, minlength=n).astype(np.float64)

    motifs = np.stack([total(v.motif[rows] == m) for m in Motif], 1)
    species = np.zeros(n)
    species[group] = v.species[rows]
    result = {
        "species": species,
        "motif": motifs.argmax(1).astype(np.float64),
        "voxels": size,
        "energy, MeV": total(energy),
        "MeV a voxel, spread": np.sqrt(total((energy - (total(energy) / size)[group]) ** 2) / size),
        f"share of voxels <= {MIN_ENERGY_MEV} MeV": total(energy <= MIN_ENERGY_MEV) / size,
        "neighbours": total(v.near[rows]) / size,
        "neighbours of another particle": total(v.near_other[rows]) / size,
        "share with fewer than 2 neighbours": total(v.near[rows] < 2) / size,
        "share of voxels on a face": total(_on_face(v.cell[rows])) / size,
    }
    for q, value in zip((10, 25, 50, 75, 90, 98), _grouped_quantiles(energy, group, size), strict=True):
        result[f"MeV a voxel, {q} %"] = value
    result |= _shapes(cell, energy, group, size)
    piece = np.unique(_connected(v, v.particle)[rows], return_inverse=True)[1]
    of_piece = np.zeros(piece.max(initial=-1) + 1, np.int64)
    of_piece[piece] = group
    largest = np.zeros(n)
    np.maximum.at(largest, of_piece, np.bincount(piece).astype(np.float64))
    result["pieces"] = np.bincount(of_piece, minlength=n).astype(np.float64)
    result["share in the largest piece"] = largest / size
    return result | _starts(cell, group, id_of, v, event)


def _grouped_quantiles(
    value: Floats, group: Ints, size: Floats, at: tuple[int, ...] = (10, 25, 50, 75, 90, 98)
) -> list[Floats]:
    """The quantiles of each group, as np.quantile has them."""
    ordered = value[np.lexsort([value, group])]
    first = np.cumsum(size) - size
    result = []
    for q in at:
        place = first + q / 100 * (size - 1)
        low = place.astype(np.int64)
        high = np.minimum(low + 1, (first + size - 1).astype(np.int64))
        result.append(ordered[low] + (place - low) * (ordered[high] - ordered[low]))
    return result


def _shapes(cell: Floats, energy: Floats, group: Ints, size: Floats) -> dict[str, Floats]:
    """Along the principal axis of each particle, and across it. Ends have no names: of two, the lower comes first."""
    n = len(size)

    def total(value: npt.NDArray[np.generic]) -> Floats:
        return np.bincount(group, value, minlength=n).astype(np.float64)

    middle = np.stack([total(x) / size for x in cell.T], 1).reshape(n, 3)
    d = cell - middle[group]
    second = np.array([[total(d[:, i] * d[:, j]) / size for j in range(3)] for i in range(3)])
    variance, axes = np.linalg.eigh(np.moveaxis(second, 2, 0))  # ascending
    variance = np.maximum(variance, 0.0)
    along = np.einsum("ni,ni->n", d, axes[group, :, 2])
    across = np.sqrt(np.maximum((d**2).sum(1) - along**2, 0.0))
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(low, group, along)
    np.maximum.at(high, group, along)
    length = high - low + 1.0  # voxels
    result = {
        "length, voxels": length,
        "rms length": np.sqrt(variance[:, 2]),
        "rms width": np.sqrt(variance[:, 1]),
        "rms thickness": np.sqrt(variance[:, 0]),
        "linearity": (variance[:, 2] - variance[:, 1]) / np.maximum(variance[:, 2], 1e-6),
        "voxels a voxel of length": size / length,
        "MeV/cm": total(energy) / (length * VOXEL_CM),
        "voxels per MeV": size / total(energy),
        "skewness": np.abs(total(along**3) / size) / np.maximum(variance[:, 2], 1e-6) ** 1.5,
        "distance from the axis, 90 %": _grouped_quantiles(across, group, size, (90,))[0],
    }
    for axis, name in enumerate("xyz"):
        corner = [np.full(n, np.inf), np.full(n, -np.inf)]
        np.minimum.at(corner[0], group, cell[:, axis])
        np.maximum.at(corner[1], group, cell[:, axis])
        result[f"extent in {name}"] = corner[1] - corner[0]
    slices = np.unique(group * 10_000 + np.floor(along - low[group]).astype(np.int64)) // 10_000
    result["share of slices that are occupied"] = np.bincount(slices, minlength=n) / np.floor(length)
    for window in ENDS:
        cm = np.minimum(window, length) * VOXEL_CM
        one = total(energy * (along - low[group] < window)) / cm
        other = total(energy * (high[group] - along < window)) / cm
        result[f"MeV/cm, lower end, {window:g}"] = np.minimum(one, other)
        result[f"MeV/cm, higher end, {window:g}"] = np.maximum(one, other)
    return result


def _starts(cell: Floats, group: Ints, id_of: Ints, v: _Voxels, event: Event) -> dict[str, Floats]:
    """Where the truth says that a particle began, from its voxels and from its interaction's vertex."""
    n = len(id_of)
    if event.particles is None or event.vertex is None:
        nothing = np.full(n, np.nan)
        return {"start to vertex": nothing, "start to nearest voxel": nothing, "start to farthest voxel": nothing}
    start = event.particles.start.numpy()[id_of].astype(np.float64)
    interaction = np.zeros(n, np.int64)
    rows = np.isin(v.particle, id_of)
    interaction[group] = v.interaction[rows]
    vertex = event.vertex.numpy()[interaction].astype(np.float64)
    away = np.linalg.norm(cell + 0.5 - start[group], axis=1)
    nearest, farthest = np.full(n, np.inf), np.zeros(n)
    np.minimum.at(nearest, group, away)
    np.maximum.at(farthest, group, away)
    return {
        "start to vertex": np.round(np.linalg.norm(start - vertex, axis=1), 1),
        "start to nearest voxel": np.round(nearest, 1),
        "start to farthest voxel": np.round(farthest, 1),
    }
