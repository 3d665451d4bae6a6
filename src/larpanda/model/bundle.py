"""Bundles: a folder with config.json, model.safetensors and README.md (the model card).

Weights are safetensors and configs are JSON, so that opening a bundle never runs code. Released Panda checkpoints open
the same way.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from larpanda.config import config_from_json
from larpanda.event import MIN_ENERGY_MEV, EnergyScale, PointBatch
from larpanda.model.backbone import Encoder, EncoderConfig
from larpanda.model.fragments import FragmentHead, Fragments
from larpanda.model.panoptic import Instances, PanopticConfig, PanopticHead
from larpanda.model.released import SUFFIXES, is_released, read_released, weights_file
from larpanda.model.semantic import SemanticConfig, SemanticHead
from larpanda.model.unet import UResNet, UResNetConfig
from larpanda.publish import sync

What = Literal["particle", "interaction"]
INSTANCES: tuple[What, ...] = ("particle", "interaction")
FORMAT = 1
SHIPPED = Path(__file__).parent.parent / "models"


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides what a model computes, but its weights."""

    encoder: EncoderConfig | UResNetConfig = field(default_factory=EncoderConfig)
    semantic: SemanticConfig | None = None
    """The head for motifs, if there is one."""
    particle: PanopticConfig | None = None
    """The head for particles, if there is one."""
    interaction: PanopticConfig | None = None
    """The head for interactions, if there is one."""
    min_energy_mev: float = MIN_ENERGY_MEV
    """The model sees voxels above this."""
    energy_scale: EnergyScale = field(default_factory=EnergyScale)
    """For the energies of the particles that it finds."""


class Model(nn.Module):
    """An encoder and the heads that share it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder) if isinstance(config.encoder, EncoderConfig) else UResNet(config.encoder)
        self.semantic = SemanticHead(config.semantic, config.encoder) if config.semantic else None
        self.particle = self._instances(config.particle)
        self.interaction = self._instances(config.interaction)

    def _instances(self, config: PanopticConfig | None) -> PanopticHead | FragmentHead | None:
        if config is None:
            return None
        if config.fragments and self.semantic is None:
            raise ValueError("a head that looks at fragments needs one for motifs, of which fragments are made")
        return (FragmentHead if config.fragments else PanopticHead)(config, self.config.encoder)

    def find(self, points: PointBatch, what: Sequence[What] = INSTANCES) -> "Found":
        """What the heads say of a batch, in one pass of the encoder; ``what`` is asked of those that there are."""
        pyramid = self.encoder(points)
        logits = None if self.semantic is None else self.semantic(pyramid)
        found: dict[str, list[Instances]] = {}
        fragments: tuple[Fragments, Tensor] | None = None
        for name in what:
            head = getattr(self, name)
            if isinstance(head, PanopticHead):
                found[name] = head(pyramid)
            elif head is not None:
                assert logits is not None
                fragments = fragments or Fragments.of(points, pyramid, logits)
                found[name] = head(*fragments, points.start)
        of_point = None if fragments is None else fragments[1]
        return Found(logits, found.get("particle"), found.get("interaction"), of_point)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What the heads of a model say of N points of B events; None: no such head, or not asked."""

    logits: Tensor | None  # [N, 5] of motifs
    particle: list[Instances] | None  # of each event
    interaction: list[Instances] | None
    fragment: Tensor | None  # [N] int64, of each point, if a head that looks at them was asked


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    model: Model
    name: str
    provenance: Mapping[str, Any]  # how the weights were made, as written by the one who saved them
    weights_sha256: str  # of model.safetensors


def save_bundle(folder: Path, model: Model, provenance: Mapping[str, Any], card: str, half: bool = False) -> None:
    """Write a bundle, whole or not at all.

    Args:
        folder: must not exist yet.
        model: its weights and config are kept.
        provenance: JSON values: data, seeds, steps, versions.
        card: the README.md, Markdown.
        half: keep the weights in float16, half the size; they are opened as float32.

    Raises:
        FileExistsError: the folder exists.
    """
    from safetensors.torch import save_file

    if folder.exists():
        raise FileExistsError(f"{folder} exists already; remove it or choose another name")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    dtype = torch.float16 if half else torch.float32
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, part / "model.safetensors")
    config = {"format": FORMAT, "model": asdict(model.config), "provenance": dict(provenance)}
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (part / "README.md").write_text(card)
    for path in part.iterdir():
        path.chmod(0o644)  # safetensors makes files that nobody else may read
        sync(path)
    part.rename(folder)
    sync(folder.parent)


def load_bundle(bundle: str | os.PathLike[str]) -> Bundle:
    """Open a bundle folder, a shipped bundle by its name, or a released Panda checkpoint.

    Raises:
        ValueError: no such bundle, or it is damaged or of another kind; says what was found and expected.
    """
    if is_released(Path(bundle)):
        return _load_released(Path(bundle))
    folder = find_bundle(bundle)
    return _load_folder(folder, folder.resolve().name)


def import_released(path: Path, folder: Path) -> Bundle:
    """Make a bundle of a released Panda checkpoint, with the settings that give the released result.

    Args:
        path: a ``.pth`` file, or a folder with config.json and model.safetensors.
        folder: of the bundle; must not exist yet.

    Raises:
        ValueError: not such a checkpoint, or its tensors do not fit; lists each one.
        FileExistsError: the folder exists.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; expected a released checkpoint")
    if not is_released(path):
        raise ValueError(
            f"{path}: not a released checkpoint; expected a file ({', '.join(SUFFIXES)}) or a folder with "
            "config.json and model.safetensors as Panda's authors release them"
        )
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; remove it or choose another name")
    bundle = _load_released(path)
    save_bundle(folder, bundle.model, bundle.provenance, _released_card(bundle))
    return bundle


def find_bundle(bundle: str | os.PathLike[str]) -> Path:
    """The folder of a shipped bundle, of a bundle, or of the bundle that a run ended with.

    Raises:
        ValueError: there is none.
    """
    shipped = sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
    if str(bundle) in shipped:
        return SHIPPED / str(bundle)
    for folder in (Path(bundle), Path(bundle) / "bundle"):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    raise ValueError(
        f"{bundle}: no model there; expected a shipped name ({', '.join(shipped)}) or a folder with config.json "
        "and model.safetensors"
    )


def read_bundle_config(folder: Path) -> tuple[ModelConfig, Mapping[str, Any]]:
    """The config and provenance of a bundle, without its weights. Raises ValueError as ``load_bundle`` does."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); expected the config of a bundle") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or "model" not in content:
        raise ValueError(f"{path}: not the config of a bundle of format {FORMAT}; was it made by a newer larpanda?")
    return config_from_json(ModelConfig, content["model"], str(path)), content.get("provenance", {})


def _load_released(path: Path) -> Bundle:
    checkpoint = read_released(path)
    model = Model(ModelConfig(checkpoint.encoder, checkpoint.semantic, checkpoint.particle, checkpoint.interaction))
    model.load_state_dict(checkpoint.weights(model.state_dict()))
    digest = hashlib.sha256(weights_file(path).read_bytes()).hexdigest()
    provenance = {
        "from": path.name,
        "from_sha256": digest,
        "left_out": list(checkpoint.left_out),
        "assumed": list(checkpoint.assumed),
    }
    return Bundle(model.requires_grad_(False), path.stem, provenance, digest)


def _released_card(bundle: Bundle) -> str:
    provenance = bundle.provenance
    assumed = "; ".join(provenance["assumed"]) or "nothing"
    return f"""# {bundle.name}

A Panda model as its authors released it (arXiv:2512.01324), imported by larpanda from {provenance["from"]}
(SHA-256 {provenance["from_sha256"]}): all {len(bundle.model.state_dict())} tensors, none changed.

- It sees the detector as it was trained to: cells of 0.665 voxel, curves as deep as each event is wide, masks
  predicted from queries before their update. These settings are in config.json.
- The released code draws the order of its four curves by chance at every pooling; here they have a fixed order.
- What the checkpoint does not say and was assumed: {assumed}.
- Tensors left out, which are not of this model: {len(provenance["left_out"])}.

Licence and data of the weights: see where they came from.
"""


def _load_folder(folder: Path, name: str) -> Bundle:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, provenance = read_bundle_config(folder)
    model = Model(config)
    path = folder / "model.safetensors"
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); copy the bundle again") from None
    problems = []
    for key, parameter in model.state_dict().items():
        if key not in weights:
            problems.append(f"{key} is missing")
        elif weights[key].shape != parameter.shape:
            problems.append(f"{key} has shape {list(weights[key].shape)}, expected {list(parameter.shape)}")
    problems += [f"{key} is not of this model" for key in weights.keys() - model.state_dict().keys()]
    if problems:
        raise ValueError(f"{path}: does not fit its config.json: {'; '.join(problems[:5])} ({len(problems)} in all)")
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Bundle(model.requires_grad_(False), name, provenance, digest)
