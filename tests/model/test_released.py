"""Released checkpoints: the result of the released code, every tensor accounted for, nothing ever run.

tests/data/released holds small models of random weights in the released format and what the released code makes of two
events. That code draws the order of its four curves anew at every pooling, whatever its config says, and the draws were
not recorded. They were found again: for each event the one set of permutations that gives all of its numbers to seven
digits, of some 200 that differ (the others are off by 1 % and more). Ours never draws; here it is told to.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import larpanda
from larpanda.event import Event, PointBatch
from larpanda.model.backbone import DecoderConfig, EncoderConfig
from larpanda.model.bundle import Model, ModelConfig, import_released, load_bundle
from larpanda.model.panoptic import PanopticConfig
from larpanda.model.released import read_released, released_name
from larpanda.model.semantic import SemanticConfig

DATA = Path(__file__).parents[1] / "data" / "released"
HEADS = ("base", "semantic", "particle", "interaction")
# For each event, the curves of the blocks of levels 1, 2 and 3; level 0 is not drawn, level 4 is a single window.
DRAWN = {
    "base": ([[0], [3], [0, 1]], [[2], [3], [2, 0]]),
    "semantic": ([[3], [2, 3], [0, 1]], [[2], [3, 0], [3, 2]]),
    "particle": ([[2], [1], [0, 1]], [[2], [1], [3, 0]]),
    "interaction": ([[3], [1], [0, 1]], [[2], [2], [1, 2]]),
}
LIMIT = 1e-4


def relative_error(found, expected):
    return float((found - torch.from_numpy(expected)).norm() / np.linalg.norm(expected))


def set_curves(model, drawn):
    """Let the blocks of each level follow the curves that the released code drew for this event."""
    towers = [model.encoder.blocks, *([model.semantic.decoder.blocks] if model.semantic else [])]
    for tower in towers:
        for blocks, curves in zip(tower[1:4], drawn, strict=False):
            for block, curve in zip(blocks, curves, strict=False):
                block.order = curve


@pytest.mark.parametrize("event", [0, 1])
@pytest.mark.parametrize("head", HEADS)
def test_the_result_is_that_of_the_released_code(head, event):
    expected = np.load(DATA / f"tiny_{head}_expected.npz")
    model = larpanda.load(DATA / f"tiny_{head}.pth")
    set_curves(model.model, DRAWN[head][event])
    mine = Event.from_arrays(expected[f"voxel_{event}"], expected[f"energy_{event}"])
    if head == "base":
        results = {"features": model.features(mine)}
    elif head == "semantic":
        results = {"logits": model.semantic(mine)}
    else:
        found = model.instances(mine, head)
        results = {
            "mask_logits": found.mask_logits,
            "class_logits": found.class_logits,
            "stuff_prob": found.led_probability,
        }
        in_masks = found.led_probability < 0.5  # elsewhere it is -10,000, which would hide all else
        assert 0.1 < in_masks.float().mean() < 1
        masks = expected[f"mask_logits_{event}"][:, in_masks.numpy()]
        assert relative_error(found.mask_logits[:, in_masks], masks) < LIMIT
    for name, values in results.items():
        assert values.shape == expected[f"{name}_{event}"].shape
        assert relative_error(values, expected[f"{name}_{event}"]) < LIMIT, name


def test_cells_and_features_of_the_released_grid():
    expected = np.load(DATA / "tiny_base_expected.npz")
    model = larpanda.load(DATA / "tiny_base.pth").model
    for j in range(2):
        event = Event.from_arrays(expected[f"voxel_{j}"], expected[f"energy_{j}"])
        pyramid = model.encoder(PointBatch.pack([event]))
        assert np.array_equal(pyramid.levels[0].cells.cell[pyramid.point_cell], expected[f"grid_coord_{j}"])
        np.testing.assert_allclose(pyramid.position[pyramid.point_cell], expected[f"feat_{j}"][:, :3], atol=1e-7)


def full_size(**heads):
    with torch.device("meta"):
        return Model(ModelConfig(replace(EncoderConfig(), mask_token=not heads), **heads)).state_dict()


@pytest.mark.parametrize(
    ("heads", "n_tensors", "n_weights"),
    [
        ({}, 441, 90_758_832),
        ({"semantic": SemanticConfig(DecoderConfig())}, 634, 107_093_573),
        ({"particle": PanopticConfig()}, 550, 95_164_040),
        ({"interaction": PanopticConfig(queries=12, classes=2, deep_projections=False)}, 546, 95_021_188),
    ],
    ids=HEADS,
)
def test_tensors_of_the_released_models(heads, n_tensors, n_weights):
    """Counts as published with the weights; names one to one."""
    weights = full_size(**heads)
    assert len({released_name(name, ["interaction"]) for name in weights}) == len(weights) == n_tensors
    assert sum(tensor.numel() for tensor in weights.values()) == n_weights


def released(config, heads):
    """A checkpoint in the released format, of a model of ours with random weights: what it holds, and the model."""
    model = Model(ModelConfig(config, **heads))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    tensors = {}
    for ours, tensor in model.state_dict().items():
        theirs = released_name(ours, ["interaction"])
        if theirs.endswith("cpe.0.weight"):  # [27, C, C'] -> [C', 3, 3, 3, C]
            tensor = tensor.permute(2, 0, 1).unflatten(1, (3, 3, 3)).contiguous()
        tensors[theirs if theirs.startswith(("decoder.", "seg_head.")) else f"backbone.{theirs}"] = tensor
    backbone = {
        "in_channels": 4,
        "enc_channels": list(config.channels),
        "enc_depths": list(config.depths),
        "enc_num_head": [c // config.head_dim for c in config.channels],
        "enc_patch_size": [config.window] * len(config.channels),
        "mlp_ratio": config.mlp_ratio,
        "layer_scale": config.layer_scale,
        "drop_path": config.drop_path,
    }
    return {"config": {"backbone": backbone}, "state_dict": tensors}, model


OTHER_SIZE = EncoderConfig((24, 32, 40), (2, 1, 3), 8, 64, 2, 1e-5, 0.1, cell_size=0.001, fitted_curves=True)
OTHER_HEAD = PanopticConfig(7, 2, 24, 8, 2, 2, False, mask_after_update=False, position_in_keys=False)


def test_models_of_other_widths_depths_and_windows(tmp_path, make_cloud):
    content, model = released(OTHER_SIZE, {"interaction": OTHER_HEAD})
    content["config"] |= {"num_heads": 3, "mlp_ratio": 2}
    torch.save(content, tmp_path / "other.pth")
    loaded = larpanda.load(tmp_path / "other.pth")
    assert loaded.model.config == model.config
    event = make_cloud(300).visible()[0]
    with torch.no_grad():
        (expected,) = model.interaction(model.encoder(PointBatch.pack([event])))
    found = loaded.instances(event, "interaction")
    torch.testing.assert_close(found.mask_logits, expected.mask_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.class_logits, expected.class_logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.backbone.", "module.student.backbone.", ""])
def test_prefixes_of_training_code(tmp_path, prefix):
    content = torch.load(DATA / "tiny_base.pth", weights_only=True)
    tensors = {prefix + name: tensor for name, tensor in content["state_dict"].items()}
    if "student" in prefix:
        tensors |= {name.replace("student", "teacher"): torch.zeros_like(tensor) for name, tensor in tensors.items()}
        tensors["module.student.mask_head.mlp.0.weight"] = torch.zeros(3, 3)
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "run.pth")
    checkpoint = read_released(tmp_path / "run.pth")
    assert len(checkpoint.left_out) == (len(content["state_dict"]) + 1 if "student" in prefix else 0)
    assert "attention windows of 256" in checkpoint.assumed
    whole = load_bundle(DATA / "tiny_base.pth").model.state_dict()
    loaded = load_bundle(tmp_path / "run.pth").model.state_dict()
    assert whole.keys() == loaded.keys()
    assert all(torch.equal(whole[name], loaded[name]) for name in whole)


@pytest.mark.parametrize("head", HEADS)
def test_a_folder_with_safetensors_is_the_same(tmp_path, head):
    content = torch.load(DATA / f"tiny_{head}.pth", weights_only=True)
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model": {"type": "any", **content["config"]}}))
    save_file(
        {name: tensor.contiguous() for name, tensor in content["state_dict"].items()}, folder / "model.safetensors"
    )
    ours, theirs = load_bundle(folder).model, load_bundle(DATA / f"tiny_{head}.pth").model
    assert ours.config == theirs.config
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


@pytest.mark.parametrize("head", HEADS)
def test_an_imported_bundle_is_the_checkpoint(tmp_path, head, make_cloud):
    import_released(DATA / f"tiny_{head}.pth", tmp_path / "bundle")
    bundle, checkpoint = larpanda.load(tmp_path / "bundle"), larpanda.load(DATA / f"tiny_{head}.pth")
    assert bundle.model.config == checkpoint.model.config
    event = make_cloud(200)
    assert torch.equal(bundle.features(event), checkpoint.features(event))
    assert "released" in (tmp_path / "bundle" / "README.md").read_text()
    with pytest.raises(FileExistsError):
        import_released(DATA / f"tiny_{head}.pth", tmp_path / "bundle")


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    content = torch.load(DATA / "tiny_semantic.pth", weights_only=True)
    tensors = content["state_dict"]
    tensors["backbone.enc.enc1.extra"] = tensors.pop("backbone.enc.enc0.block0.attn.qkv.bias")
    tensors["seg_head.weight"] = torch.zeros(4, 16)
    tensors["seg_head.bias"] = torch.zeros(4)
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="4 tensors do not fit") as error:
        larpanda.load(tmp_path / "odd.pth")
    for line in (
        "enc.enc0.block0.attn.qkv.bias is missing",
        "seg_head.weight has shape [4, 16], expected [5, 16]",
        "seg_head.bias has shape [4], expected [5]",
        "enc.enc1.extra is not of this model",
    ):
        assert line in str(error.value)


class _Evil:
    def __reduce__(self):
        return print, ("run!",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["config"].update(qk_norm=True), "its config has qk_norm = True; only False can be loaded"),
        (lambda c: c["config"].update(order=["z"]), r"order = \['z'\]"),
        (lambda c: c["config"].update(enc_num_head=[1, 1, 2, 2, 6]), r"heads of \[8, 16\] channels"),
        (lambda c: c["config"].update(enc_patch_size=[256, 256, 64, 64, 64]), r"windows of \[64, 256\]"),
        (lambda c: c["state_dict"].pop("embedding.stem.linear.weight"), "not a Panda checkpoint"),
        (lambda c: c["state_dict"].update({"module.enc.x": torch.ones(1), "enc.x": torch.ones(1)}), "are both enc.x"),
        (lambda c: c.update(state_dict=[1]), "not both objects"),
        (lambda c: c.update(optimizer=_Evil()), "holds more than tensors and plain values"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path, change, message, capsys):
    content = torch.load(DATA / "tiny_base.pth", weights_only=True)
    change(content)
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=message) as error:
        larpanda.load(tmp_path / "odd.pth")
    assert str(tmp_path / "odd.pth") in str(error.value)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_a_damaged_file(tmp_path):
    (tmp_path / "cut.pth").write_bytes((DATA / "tiny_base.pth").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.pth: cannot be read"):
        larpanda.load(tmp_path / "cut.pth")
