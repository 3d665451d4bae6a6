"""From events to what is in them: the Reconstructor, and the way from files to tables."""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import torch
from torch import Tensor

from larpanda import __version__
from larpanda.analysis.frames import to_hdf5
from larpanda.analysis.kinematics import Detector, measure_event
from larpanda.analysis.manifest import InputFile, Manifest, hdf5_path, undone
from larpanda.analysis.tables import TableWriter
from larpanda.data import Events, entries_of, open_events
from larpanda.event import (
    MAX_POINTS,
    UNKNOWN,
    VOXEL_MM,
    Event,
    Interaction,
    Motif,
    Particle,
    PointBatch,
    Reconstruction,
    Species,
    Status,
)
from larpanda.model.backbone import Pyramid, for_inference
from larpanda.model.bundle import Bundle, What, load_bundle
from larpanda.model.panoptic import Instances
from larpanda.model.selection import Selected, select_all
from larpanda.model.tiles import cut, stitch
from larpanda.parallel import pick_device
from larpanda.publish import publishing

Result = TypeVar("Result")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DETECTOR = Detector()
MIN_POINTS = 2  # fewer above threshold, and an event is too small for particles


class Reconstructor:
    """An encoder and the heads that its bundle has. Its methods take one event, or a list and give a list.

    Events are taken one at a time, so that a result never depends on the others of a list. Rows of results are those
    of the event as it was given; those that the model does not see (see ``Event.visible``) are NaN.
    """

    def __init__(
        self, bundle: Bundle, device: str = "auto", dtype: str = "float32", max_points: int = MAX_POINTS
    ) -> None:
        if max_points < 1:
            raise ValueError(f"max_points is {max_points}; expected 1 or more")
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is not known; expected {' or '.join(DTYPES)}")
        self.device, self.dtype = pick_device(device), DTYPES[dtype]
        self.n_weights = sum(parameter.numel() for parameter in bundle.model.parameters())
        self.model = copy.deepcopy(bundle.model).to(self.device)
        for_inference(self.model, self.dtype)
        self.max_points = max_points
        self.name, self.provenance, self.weights_sha256 = bundle.name, bundle.provenance, bundle.weights_sha256

    @overload
    def features(self, event: Event) -> Tensor: ...
    @overload
    def features(self, event: Sequence[Event]) -> list[Tensor]: ...
    def features(self, event: Event | Sequence[Event]) -> Tensor | list[Tensor]:
        """Up-cast features (paper section 3.1.2): [N, C] float32, finest level first.

        Raises:
            ValueError: the event has impossible energies or positions.
        """
        width = sum(self.model.config.encoder.channels)

        def upcast(points: PointBatch) -> Tensor:
            pyramid: Pyramid = self.model.encoder(points)
            return pyramid.at_points(pyramid.upcast())

        return _each(event, lambda e: self._rows(e, width, upcast))

    @overload
    def semantic(self, event: Event) -> Tensor: ...
    @overload
    def semantic(self, event: Sequence[Event]) -> list[Tensor]: ...
    def semantic(self, event: Event | Sequence[Event]) -> Tensor | list[Tensor]:
        """Motif logits: [N, 5] float32, in the order of Motif.

        Raises:
            ValueError: the event has impossible energies or positions, or the bundle no semantic head.
        """
        self.require("semantic")

        def see(points: PointBatch) -> Tensor:
            logits = self.model.find(points, ()).logits
            assert logits is not None
            return logits

        return _each(event, lambda e: self._rows(e, len(Motif), see))

    @overload
    def instances(self, event: Event, what: str) -> Instances: ...
    @overload
    def instances(self, event: Sequence[Event], what: str) -> list[Instances]: ...
    def instances(self, event: Event | Sequence[Event], what: str) -> Instances | list[Instances]:
        """Masks and classes of the queries for ``"particle"`` or ``"interaction"`` (paper section 3.2.2).

        Points that the model does not see are NaN; of an event that has no others, so are the classes.

        Raises:
            ValueError: another word, no such head, or the event has impossible energies or positions.
        """
        if what not in ("particle", "interaction"):
            raise ValueError(f"instances of {what!r} are not known; expected 'particle' or 'interaction'")
        self.require(what)
        return _each(event, lambda e: self._instances(e, cast(What, what)))

    @overload
    def reconstruct(self, event: Event) -> Reconstruction: ...
    @overload
    def reconstruct(self, event: Sequence[Event]) -> list[Reconstruction]: ...
    def reconstruct(self, event: Event | Sequence[Event]) -> Reconstruction | list[Reconstruction]:
        """What is in an event, every row accounted for. An unusable event gets a status, not an error."""
        self.require("semantic")
        return _each(event, self._reconstruct)

    def _reconstruct(self, event: Event) -> Reconstruction:
        if not len(event):
            return replace(
                unseen(event, Status.EMPTY, ""),
                particles=() if self.model.particle else None,
                interactions=() if self.model.interaction else None,
            )
        if problem := event.problem():
            return unseen(event, Status.BAD_INPUT, problem)
        visible, row_point = event.visible(self.model.config.min_energy_mev)
        seen, n_points = row_point >= 0, len(visible)
        found, n_tiles = self._find(visible) if n_points else (None, 0)
        status, reason = Status.OK, ""
        truncated = f"all queries for {found.all_used} are used; there may be more" if found and found.all_used else ""
        if n_tiles > 1:
            status = Status.TOO_LARGE
            tiles = f"{n_points} voxels, more than {self.max_points}: seen in {n_tiles} overlapping tiles, and stitched"
            reason = f"{tiles}; {truncated}" if truncated else tiles
        elif n_points < MIN_POINTS:
            status = Status.TOO_SMALL
            reason = f"{n_points} voxels above {self.model.config.min_energy_mev:g} MeV"
        elif truncated:
            status, reason = Status.TRUNCATED_QUERIES, truncated
        logits = _spread(None if found is None else found.logits, row_point, len(Motif))
        interaction, interactions = self._interactions(found, event, row_point)
        particle, particles = self._particles(found, event, row_point, interaction)
        return Reconstruction(
            status,
            reason,
            ~seen,
            torch.where(seen, logits.nan_to_num().argmax(1), UNKNOWN),
            logits.softmax(1),
            particle,
            interaction,
            particles,
            interactions,
            event.n_merged(),
        )

    @torch.no_grad()
    def _find(self, visible: Event) -> tuple["_Found", int]:
        """What is in the points that the model sees, and in how many tiles it was looked for."""
        tiles = cut(visible.position, self.max_points)
        parts = [self._heads(PointBatch.of(visible, tile.rows).to(self.device)) for tile in tiles]
        if len(tiles) == 1:
            return parts[0], 1
        logits = torch.empty(len(visible), len(Motif))
        for tile, part in zip(tiles, parts, strict=True):
            logits[tile.rows[tile.own]] = part.logits.float().cpu()[tile.own]
        particle, interaction = (
            None if None in found else stitch(tiles, [one.cpu() for one in found if one is not None], len(visible))
            for found in ([part.particle for part in parts], [part.interaction for part in parts])
        )
        return _Found(logits, particle, interaction), len(tiles)

    def _heads(self, points: PointBatch) -> "_Found":
        """What every head says of one event: one encoder pass for all of them."""
        found = self.model.find(points)
        assert found.logits is not None
        particle = None if found.particle is None else select_all(found, "particle", points)[0]
        interaction = None if found.interaction is None else select_all(found, "interaction", points)[0]
        return _Found(found.logits, particle, interaction)

    def _interactions(
        self, found: "_Found | None", event: Event, row_point: Tensor
    ) -> tuple[Tensor, tuple[Interaction, ...] | None]:
        """The interaction of each row, and what they are."""
        if self.model.interaction is None:
            return torch.full((len(event),), UNKNOWN), None
        chosen = found.interaction if found else None
        owner, sizes = _rows_of(chosen, event, row_point)
        score = chosen.score.tolist() if chosen else []
        return owner, tuple(Interaction(i, score[i], *one) for i, one in enumerate(sizes))

    def _particles(
        self, found: "_Found | None", event: Event, row_point: Tensor, interaction: Tensor
    ) -> tuple[Tensor, tuple[Particle, ...] | None]:
        """The particle of each row, and what they are; its interaction is that of most of its energy."""
        if self.model.particle is None:
            return torch.full((len(event),), UNKNOWN), None
        chosen = found.particle if found else None
        owner, sizes = _rows_of(chosen, event, row_point)
        particles = []
        for i, (n_voxels, energy) in enumerate(sizes):
            assert chosen is not None
            of_class = chosen.class_probability[i]
            mine = owner == i
            share = torch.bincount(interaction[mine] + 1, event.energy[mine].double())[1:]
            particles.append(
                Particle(
                    i,
                    Species(int(chosen.kind[i])),
                    float(chosen.score[i]),
                    tuple((of_class / of_class.sum()).tolist()),
                    int(share.argmax()) if len(share) and share.any() else UNKNOWN,
                    n_voxels,
                    energy,
                )
            )
        return owner, tuple(particles)

    def _rows(self, event: Event, width: int, see: Callable[[PointBatch], Tensor]) -> Tensor:
        """Spread what is seen in an event's points over its rows: [N, width], NaN where unseen."""
        points, row_point = self._seen(event, see)
        return _spread(points, row_point, width)

    def _instances(self, event: Event, what: What) -> Instances:
        def see(points: PointBatch) -> Instances:
            seen = self.model.find(points, (what,))
            instances = seen.particle if what == "particle" else seen.interaction
            assert instances is not None
            return instances[0]

        found, row_point = self._seen(event, see)
        config = getattr(self.model.config, what)
        queries, classes = config.queries, config.classes + 1
        if found is None:
            nothing = torch.full((queries, classes), torch.nan)
            return Instances(_spread(None, row_point, queries).t(), nothing, _spread(None, row_point, 1)[:, 0])
        return Instances(
            _spread(found.mask_logits.t(), row_point, queries).t(),
            found.class_logits.float().cpu(),
            _spread(found.led_probability[:, None], row_point, 1)[:, 0],
        )

    @torch.no_grad()
    def _seen(self, event: Event, see: Callable[[PointBatch], Result]) -> tuple[Result | None, Tensor]:
        """What is seen in an event's points, None if there are none, and the point of each of its rows."""
        if problem := event.problem():
            raise ValueError(f"{event.key}: {problem}" if event.key else problem)
        visible, row_point = event.visible(self.model.config.min_energy_mev)
        if not len(visible):
            return None, row_point
        return see(PointBatch.pack([visible]).to(self.device)), row_point

    def require(self, what: str) -> None:
        """Raises ValueError if the model has no such head."""
        if getattr(self.model, what) is not None:
            return
        heads = [name for name in ("semantic", "particle", "interaction") if getattr(self.model, name) is not None]
        raise ValueError(
            f"bundle {self.name} has no {what} head (its heads: {', '.join(heads) or 'none'}); "
            "fine-tune one with larpanda finetune"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What the heads say of the points of one event."""

    logits: Tensor  # [M, 5]
    particle: Selected | None  # None: no such head
    interaction: Selected | None

    @property
    def all_used(self) -> str:
        """The heads that may have missed some."""
        used = {"particles": self.particle, "interactions": self.interaction}
        return ", ".join(name for name, one in used.items() if one is not None and one.all_used)


def load(
    bundle: str | os.PathLike[str], device: str = "auto", dtype: str = "float32", max_points: int = MAX_POINTS
) -> Reconstructor:
    """Open a shipped model by its name, a bundle folder, or a released Panda checkpoint.

    Args:
        bundle: ``"nano"``, a folder with config.json and model.safetensors, or a ``.pth`` file of released weights.
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: of weights and features: ``float32``, or ``bfloat16``, which large models compute 1.5 times as fast on
            CPUs that have it (AMX, AVX512-BF16); features then differ by 2 %. Results are float32 all the same.
        max_points: an event of more voxels above threshold is reconstructed in tiles that overlap, and has a status
            that says so. Memory grows with it: 1 kB a point for ``nano``, 15 kB for the paper's size.

    Raises:
        ValueError: no such bundle, a damaged one, a device that is not there, another dtype, or no points.
    """
    return Reconstructor(load_bundle(bundle), device, dtype, max_points)


def unseen(event: Event, status: Status, reason: str) -> Reconstruction:
    """The reconstruction of an event that no model has seen."""
    n = len(event)
    nothing = torch.full((n,), UNKNOWN)
    probability = torch.full((n, len(Motif)), torch.nan)
    merged = None if status is Status.BAD_INPUT else event.n_merged()
    return Reconstruction(
        status, reason, torch.ones(n, dtype=torch.bool), nothing, probability, nothing, nothing, None, None, merged
    )


@dataclass(frozen=True)
class FileConfig:
    """How files are read, and which tables they become."""

    detector: Detector = DETECTOR
    """Walls and margins for what is contained and fiducial."""
    voxels: bool = True
    """Write the table of voxels as well."""
    hdf5: bool = False
    """Write the same tables once more, as one HDF5 file (``STEM_tables.h5``)."""
    events: str | None = None
    """Which events of each file, e.g. ``10:20,37``; None: all."""
    energy_scale: float = 1.0
    """Factor from the file's energies to MeV."""
    voxel_mm: float = VOXEL_MM
    """The file's voxel pitch."""


def provenance_of(reconstructor: Reconstructor, config: FileConfig) -> dict[str, Any]:
    """All but the input that decides what is in the tables, as JSON values."""
    return {
        "larpanda": __version__,
        "model": reconstructor.name,
        "weights_sha256": reconstructor.weights_sha256,
        "dtype": str(reconstructor.dtype).removeprefix("torch."),
        "min_energy_mev": reconstructor.model.config.min_energy_mev,
        "max_points": reconstructor.max_points,
        "calorimetry": asdict(reconstructor.model.config.energy_scale),
        **asdict(config),
    }


def reconstruct_file(
    path: str,
    out: Path,
    reconstructor: Reconstructor,
    config: FileConfig = FileConfig(),
    tell: Callable[[int, int], None] = lambda done, n: None,
) -> Manifest:
    """Reconstruct every event of a file: tables of events, particles, interactions, voxels, and their manifest.

    Args:
        path: an event file; truth in it is not read.
        out: folder, made if missing.
        reconstructor: the model; there are tables of particles and interactions if it has such heads.
        config: which events and tables.
        tell: called with the number of events done, and of all of them.

    Returns:
        What is in the manifest, which is there when all is written: ``FOLDER/STEM_manifest.json``.

    Raises:
        ValueError: the file cannot be read, or has not the events that are asked for; it leaves no tables.
        OSError: likewise, or ``out`` cannot be written.
    """
    events = open_events(path, truth=False, energy_scale=config.energy_scale, voxel_mm=config.voxel_mm)
    entries = entries_of(config.events, len(events))
    model, stem = reconstructor.model, Path(path).stem
    wanted = {
        "particles": model.particle is not None,
        "interactions": model.interaction is not None,
        "voxels": config.voxels,
    }
    provenance = provenance_of(reconstructor, config)
    counts: dict[str, int] = {}
    out.mkdir(parents=True, exist_ok=True)
    with undone(out, stem):
        source = InputFile.of(Path(path))
        with TableWriter(out, stem, {**provenance, "input_sha256": source.sha256}, **wanted) as writer:
            for done, entry in enumerate(entries):
                tell(done, len(entries))
                status = _one(events, entry, reconstructor, config.detector, writer)
                counts[status.value] = counts.get(status.value, 0) + 1
        if config.hdf5:
            with publishing(hdf5_path(out, stem)) as part:
                part.write_bytes(to_hdf5(out, stem))
        manifest = Manifest.of(out, stem, source, provenance, len(entries), counts)
        manifest.publish(out)
    return manifest


def _one(
    events: Events,
    entry: int,
    reconstructor: Reconstructor,
    detector: Detector,
    writer: TableWriter,
) -> Status:
    """Reconstruct and write one event; whatever happens to it, it gets its row."""
    try:
        event = events[entry]
    except (ValueError, OSError) as error:
        writer.write_failed(events.key(entry), Status.BAD_INPUT, str(error))
        return Status.BAD_INPUT
    try:
        result = reconstructor.reconstruct(event)
        measured = measure_event(event, result, detector, reconstructor.model.config.energy_scale)
    except Exception as error:  # out of memory, mostly; none is worth the rows of all other events
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        result, measured = unseen(event, Status.FAILED, reason), None
    writer.write(event, result, measured)
    return result.status


def _spread(points: Tensor | None, row_point: Tensor, width: int) -> Tensor:
    """Values of points [M, width] -> values of the rows that became them: [N, width] float32, NaN for other rows."""
    result = torch.full((len(row_point), width), torch.nan)
    if points is not None:
        seen = row_point >= 0
        result[seen] = points.float().cpu()[row_point[seen]]
    return result


def _rows_of(chosen: Selected | None, event: Event, row_point: Tensor) -> tuple[Tensor, list[tuple[int, float]]]:
    """The instance of each row, and voxels and energy (MeV) of each instance."""
    owner = torch.full((len(event),), UNKNOWN)
    if chosen is None:
        return owner, []
    seen = row_point >= 0
    of_point = chosen.owner.cpu()
    owner[seen] = of_point[row_point[seen]]
    n, mine = len(chosen.query), owner >= 0
    voxels = torch.bincount(of_point[of_point >= 0], minlength=n).tolist()
    energy = torch.bincount(owner[mine], event.energy[mine].double(), minlength=n).tolist()
    return owner, list(zip(voxels, energy, strict=True))


def _each(event: Event | Sequence[Event], function: Callable[[Event], Result]) -> Result | list[Result]:
    return function(event) if isinstance(event, Event) else [function(one) for one in event]
