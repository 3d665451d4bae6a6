"""Weights that others released: Panda checkpoints in our terms, every tensor accounted for.

Facts about the formats come from the released files and code (github.com/DeepLearnPhysics/Panda, 2026). A checkpoint is
either a ``.pth`` file of ``{"config": ..., "state_dict": ...}``, with or without the config, or a folder with
``config.json`` and ``model.safetensors``. Nothing in it is ever run.
"""

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from larpanda.event import Species
from larpanda.model.backbone import DecoderConfig, EncoderConfig
from larpanda.model.panoptic import PanopticConfig
from larpanda.model.semantic import SemanticConfig

CELL_SIZE = 0.001  # "grid_size" with which every released model was trained
HEAD_DIM, WINDOW = 16, 256  # of every released model: what the tensors of a checkpoint without a config do not show
SUFFIXES = (".pth", ".pt", ".ckpt")
# What the code that wrote a checkpoint can do otherwise and ours cannot.
REQUIRED = {
    "in_channels": 4,
    "order": ["hilbert", "hilbert-trans", "z", "z-trans"],
    "stride": [2, 2, 2, 2],
    "qkv_bias": True,
    "qk_norm": False,
    "pre_norm": True,
    "enable_rpe": False,
}

# Our names -> theirs: the last part of a name, and what stands before it.
_BLOCK = {
    "conv": "cpe.0",
    "conv_linear": "cpe.1",
    "conv_norm": "cpe.2",
    "attention_norm": "norm1.0",
    "attention_scale": "ls1.0.gamma",
    "qkv": "attn.qkv",
    "attention_linear": "attn.proj",
    "mlp_norm": "norm2.0",
    "mlp_scale": "ls2.0.gamma",
    "mlp_in": "mlp.0.fc1",
    "mlp_out": "mlp.0.fc2",
}
_QUERY_BLOCK = {
    "point_norm": "norm_kv",
    "mask_in": "mask_mlp.fc1",
    "mask_out": "mask_mlp.fc2",
    "cross_norm": "norm1",
    "cross_query": "cross_attn.q_proj",
    "cross_key": "cross_attn.k_proj",
    "cross_value": "cross_attn.v_proj",
    "cross_linear": "cross_attn.proj",
    "self_norm": "norm2",
    "self_query": "self_attn.q",
    "self_key_value": "self_attn.kv",
    "self_linear": "self_attn.proj",
    "mlp_norm": "norm3",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
_ENCODER = {"embed": "stem.linear", "embed_norm": "stem.norm", "mask_token": "mask_token"}
_UP = {"up": "proj.0", "up_norm": "proj.1", "skip": "proj_skip.0", "skip_norm": "proj_skip.1"}
_POOL = {"pool": "proj", "pool_norm": "norm.0"}
_PANOPTIC = {
    "query": "query_feat.weight",
    "query_position": "query_embed.weight",
    "position_in": "pos_emb.0",
    "position_out": "pos_emb.2",
    "led_in": "stuff_head.0",
    "led_out": "stuff_head.2",
    "point_in": "full_point_proj.fc1",
    "point_out": "full_point_proj.fc2",
    "norm": "final_norm",
    "class_in": "cls_pred.fc1",
    "class_out": "cls_pred.fc2",
}
_SINGLE = {"full_point_proj.fc2": "full_point_proj", "cls_pred.fc2": "cls_pred"}  # where one layer projects


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A released checkpoint: which model it is of, and its tensors under their names without prefixes."""

    where: str
    encoder: EncoderConfig
    semantic: SemanticConfig | None
    particle: PanopticConfig | None
    interaction: PanopticConfig | None
    tensors: Mapping[str, Tensor]
    left_out: tuple[str, ...]  # tensors of other things: a teacher beside its student, heads of pre-training, buffers
    assumed: tuple[str, ...]  # what the checkpoint does not say, taken from the released models or its tensors

    def weights(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The checkpoint's tensors under our names, float32.

        Args:
            parameters: what the model has, for names and shapes.

        Raises:
            ValueError: lists every tensor that is missing, left over or of another shape.
        """
        problems, result = [], {}
        heads = {"particle": self.particle, "interaction": self.interaction}
        single = {name for name, head in heads.items() if head and not head.deep_projections}
        names = {ours: released_name(ours, single) for ours in parameters}
        for ours, theirs in names.items():
            tensor = self.tensors.get(theirs)
            if tensor is None:
                problems.append(f"{theirs} is missing")
                continue
            if tensor.ndim == 5:  # [C', 3, 3, 3, C], as spconv keeps it -> [27, C, C']
                tensor = tensor.flatten(1, 3).permute(1, 2, 0)
            if tensor.shape != parameters[ours].shape:
                problems.append(f"{theirs} has shape {list(tensor.shape)}, expected {list(parameters[ours].shape)}")
            result[ours] = tensor.float().contiguous()
        problems += [f"{name} is not of this model" for name in sorted(self.tensors.keys() - set(names.values()))]
        if problems:
            raise ValueError(f"{self.where}: {len(problems)} tensors do not fit its config: {'; '.join(problems)}")
        return result


def released_name(name: str, single: Iterable[str] = ()) -> str:
    """Our name of a parameter -> that of the released checkpoints, without their prefix ``backbone.``.

    Args:
        name: e.g. ``encoder.blocks.3.0.qkv.weight``.
        single: the panoptic heads that project by one layer.
    """
    part, _, rest = name.partition(".")
    if part in ("particle", "interaction"):
        rest, block = _take(rest, r"blocks\.(\d+)\.", lambda b: f"blocks.{b}.")
        theirs = _last(rest, _QUERY_BLOCK if block else _PANOPTIC)
        for deep, one in _SINGLE.items() if part in single else ():
            theirs = theirs.replace(deep, one)
        return f"decoder.{block}{theirs}"
    if part == "semantic" and rest.startswith("linear."):
        return f"seg_head.{rest.removeprefix('linear.')}"
    tower = "enc" if part == "encoder" else "dec"
    rest = rest.removeprefix("decoder.")
    rest, block = _take(rest, r"blocks\.(\d+)\.(\d+)\.", lambda s, b: f"{tower}.{tower}{s}.block{b}.")
    if block:
        return block + _last(rest, _BLOCK)
    rest, down = _take(rest, r"(?<=pool\.)(\d+)\.|(?<=pool_norm\.)(\d+)\.", lambda a, b: str(int(a or b) + 1))
    if down:
        return f"enc.enc{down}.down." + _last(rest, _POOL)
    rest, up = _take(rest, r"(?<=\w\.)(\d+)\.", lambda s: s)
    if up:
        return f"dec.dec{up}.up." + _last(rest, _UP)
    return "embedding." + _last(rest, _ENCODER)


def _take(name: str, pattern: str, form: Any) -> tuple[str, str]:
    """The name without what the pattern matches, and the form of that; the name and nothing if it does not."""
    match = re.search(pattern, name)
    return (name[: match.start()] + name[match.end() :], form(*match.groups())) if match else (name, "")


def _last(name: str, names: Mapping[str, str]) -> str:
    part, dot, kind = name.partition(".")
    return names[part] + dot + kind


def is_released(path: Path) -> bool:
    """Whether a path is a released checkpoint: a .pth file, or a folder with the config of other code."""
    if path.is_file():
        return path.suffix in SUFFIXES
    if not all((path / name).is_file() for name in ("config.json", "model.safetensors")):
        return False
    try:
        content = json.loads((path / "config.json").read_text())
    except ValueError:
        return False
    if not isinstance(content, dict) or "format" in content:
        return False
    model = content.get("model", content)
    return isinstance(model, dict) and bool({"backbone", "enc_channels", "type"} & model.keys())


def weights_file(path: Path) -> Path:
    """The file that holds a checkpoint's tensors."""
    return path / "model.safetensors" if path.is_dir() else path


def read_released(path: Path) -> Checkpoint:
    """Read a released checkpoint, or one of the training code that wrote it (then its student).

    Raises:
        ValueError: not such a checkpoint, or of a model that ours cannot be; one line.
    """
    where = str(path)
    config, tensors = _read_folder(path) if path.is_dir() else _read_pickle(path)
    tensors, left_out = _without_prefixes(tensors, where)
    backbone = config.get("backbone", config)
    if not isinstance(backbone, dict):
        raise ValueError(f"{where}: its config's backbone is a {type(backbone).__name__}; expected an object")
    assumed: list[str] = []
    encoder, decoder = _towers(backbone, tensors, where, assumed)
    semantic = particle = interaction = None
    if "seg_head.weight" in tensors:
        semantic = SemanticConfig(decoder)
    elif decoder:
        raise ValueError(f"{where}: has a decoder (dec.*) but no seg_head.weight; expected a whole semantic model")
    if "decoder.query_feat.weight" in tensors:
        head = _panoptic(config, tensors, encoder, assumed)
        if head.classes == len(Species) + 1:
            particle = head
        elif head.classes == 2:
            interaction = head
        else:
            raise ValueError(
                f"{where}: its queries have {head.classes} classes; expected {len(Species) + 1} (particles and LED) "
                "or 2 (interactions and LED)"
            )
    return Checkpoint(where, encoder, semantic, particle, interaction, tensors, tuple(sorted(left_out)), tuple(assumed))


def _read_folder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        content = json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'}: not JSON ({error})") from None
    try:
        tensors = load_file(path / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path / 'model.safetensors'}: cannot be read ({error}); copy it again") from None
    config = content.get("model", content)
    if not isinstance(config, dict):
        raise ValueError(f"{path / 'config.json'}: its model is a {type(config).__name__}; expected an object")
    return config, tensors


def _read_pickle(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: holds more than tensors and plain values, which is not opened, since it could run code ({first})"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())}); copy it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected a config and a state_dict")
    config, tensors = content.get("config", {}), content.get("state_dict", content)
    if not isinstance(config, dict) or not isinstance(tensors, dict):
        raise ValueError(f"{path}: its config and state_dict are not both objects")
    tensors = {str(name): tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    return config, tensors


def _without_prefixes(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under the names that a released base checkpoint has, and the names of those that are of other things."""
    kept: dict[str, Tensor] = {}
    left_out = []
    pretrained = any(re.match(r"(module\.|_orig_mod\.)*student\.backbone\.", name) for name in tensors)
    for name, tensor in tensors.items():
        short = re.sub(r"^(module\.|_orig_mod\.)*", "", name)
        if short.endswith(".anneal_progress") or (pretrained and not short.startswith("student.backbone.")):
            left_out.append(name)
            continue
        short = re.sub(r"^(student\.)?(backbone\.)?", "", short)
        short = re.sub(r"\b(cls_pred|stuff_head)_by_label\.\w+\.", r"\1.", short)  # as later detectors name them
        if short in kept:
            raise ValueError(f"{where}: {name} and another tensor are both {short}; which of them is meant?")
        kept[short] = tensor
    if "embedding.stem.linear.weight" not in kept:
        raise ValueError(f"{where}: not a Panda checkpoint: no tensor is named embedding.stem.linear.weight")
    return kept, left_out


def _towers(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str, assumed: list[str]
) -> tuple[EncoderConfig, DecoderConfig | None]:
    """Encoder and decoder: what the config says, and where it is silent what the tensors show."""
    for name, value in REQUIRED.items():
        found = _plain(config.get(name, value))
        if found != value and not (name == "stride" and set(found) == {2}):
            raise ValueError(f"{where}: its config has {name} = {found}; only {value} can be loaded")
    sizes: dict[str, tuple[int, ...]] = {}
    for tower in ("enc", "dec"):
        seen = _seen(tensors, tower)
        for what, values in zip(("channels", "depths"), seen, strict=True):
            name = f"{tower}_{what}"
            sizes[name] = tuple(config.get(name) or ()) if seen[0] else ()
            if seen[0] and not sizes[name]:
                sizes[name] = values
                assumed.append(f"{name} = {list(values)}, as the tensors show")
    width, head_dims, window = sizes["enc_channels"] + sizes["dec_channels"], {HEAD_DIM}, {WINDOW}
    if "enc_num_head" in config:
        heads = (*config["enc_num_head"], *(config.get("dec_num_head") or ()))
        head_dims = {c // h for c, h in zip(width, heads, strict=False)}
    else:
        assumed.append(f"{HEAD_DIM} channels an attention head")
    if "enc_patch_size" in config:
        window = {*config["enc_patch_size"], *((config.get("dec_patch_size") or ()) if sizes["dec_channels"] else ())}
    else:
        assumed.append(f"attention windows of {WINDOW}")
    if len(head_dims) != 1 or len(window) != 1:
        raise ValueError(
            f"{where}: heads of {sorted(head_dims)} channels and windows of {sorted(window)}; "
            "expected one size for all levels"
        )
    encoder = EncoderConfig(
        channels=sizes["enc_channels"],
        depths=sizes["enc_depths"],
        head_dim=head_dims.pop(),
        window=window.pop(),
        mlp_ratio=int(config.get("mlp_ratio", 4)),
        layer_scale=float(config.get("layer_scale") or 0.0),
        drop_path=float(config.get("drop_path", 0.3)),
        mask_token="embedding.mask_token" in tensors,
        cell_size=CELL_SIZE,
        fitted_curves=True,
    )
    decoder = DecoderConfig(sizes["dec_channels"], sizes["dec_depths"]) if sizes["dec_channels"] else None
    return encoder, decoder


def _seen(tensors: Mapping[str, Tensor], tower: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Width and number of blocks of each level of ``enc`` or ``dec``, as its tensors show."""
    width: dict[int, int] = {}
    depth: dict[int, int] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(rf"{tower}\.{tower}(\d+)\.block(\d+)\.cpe\.1\.weight", name):
            level, block = int(match[1]), int(match[2])
            width[level] = tensor.shape[0]
            depth[level] = max(depth.get(level, 0), block + 1)
    return tuple(width[s] for s in sorted(width)), tuple(depth[s] for s in sorted(depth))


def _panoptic(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], encoder: EncoderConfig, assumed: list[str]
) -> PanopticConfig:
    queries, channels = tensors["decoder.query_feat.weight"].shape
    deep = "decoder.full_point_proj.fc1.weight" in tensors
    logits = tensors.get("decoder.cls_pred.fc2.weight", tensors.get("decoder.cls_pred.weight", torch.empty(0)))
    blocks = {name.split(".")[2] for name in tensors if name.startswith("decoder.blocks.")}
    if "num_heads" not in config:
        assumed.append(f"{HEAD_DIM} channels a head of the queries' attention")
    return PanopticConfig(
        queries=queries,
        classes=len(logits) - 1,
        channels=channels,
        head_dim=channels // int(config.get("num_heads", channels // HEAD_DIM)),
        blocks=len(blocks),
        mlp_ratio=int(config.get("mlp_ratio", 4)),
        deep_projections=deep,
        mask_after_update=False,
        position_in_keys=False,
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
