"""Bundles: what is saved comes back; what does not fit is named; nothing is loaded by halves."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from larpanda.model.bundle import load_bundle, save_bundle


@pytest.fixture
def folder(tmp_path, tiny_model):
    save_bundle(tmp_path / "mine", tiny_model, {"seed": 3}, "# A model\n")
    return tmp_path / "mine"


def test_it_comes_back(folder, tiny_model):
    bundle = load_bundle(folder)
    assert bundle.model.config == tiny_model.config
    assert bundle.provenance == {"seed": 3}
    for name, value in tiny_model.state_dict().items():
        assert torch.equal(bundle.model.state_dict()[name], value)
    assert (folder / "README.md").read_text() == "# A model\n"


def test_half_precision_is_half_the_size_and_opens_as_float32(tmp_path, folder, tiny_model):
    save_bundle(tmp_path / "half", tiny_model, {}, "", half=True)
    full, half = ((f / "model.safetensors").stat().st_size for f in (folder, tmp_path / "half"))
    assert half < 0.6 * full
    for name, value in load_bundle(tmp_path / "half").model.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, tiny_model.state_dict()[name], rtol=1e-3, atol=1e-6)


def test_an_existing_folder_is_not_overwritten(folder, tiny_model):
    with pytest.raises(FileExistsError, match="exists already"):
        save_bundle(folder, tiny_model, {}, "")


def test_weights_that_do_not_fit_are_listed(folder):
    weights = load_file(folder / "model.safetensors")
    weights["extra"] = weights.pop("encoder.embed.bias")
    weights["encoder.embed.weight"] = torch.zeros(2, 2)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"embed\.weight has shape \[2, 2\].*embed\.bias is missing.*extra is not of"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"not json", r"config\.json: not JSON"),
        ("config.json", b"{}", "not the config of a bundle"),
        ("config.json", json.dumps({"format": 1, "model": {"encoder": {"dephts": []}}}).encode(), "dephts"),
        ("model.safetensors", b"garbage", r"model\.safetensors: cannot be read"),
    ],
)
def test_damaged_files_are_named(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_bundle(folder)


def test_no_such_bundle(tmp_path):
    with pytest.raises(ValueError, match="no model there; expected a shipped name"):
        load_bundle(tmp_path / "nothing")
