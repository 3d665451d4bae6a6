"""Checkpoints: what is damaged is noticed and kept aside, what is another run's refused, the best never removed."""

import errno
import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from larpanda.train import checkpoint
from larpanda.train.checkpoint import Checkpoints, NoCheckpointError, State, damage
from larpanda.train.optim import OptimConfig, make_optimizer

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")


def trained(width=3, seed=0):
    """A model that made a step, and its optimizer."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1, bias=False))
    optimizer = make_optimizer(model, OptimConfig())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def kept(tmp_path):
    """Checkpoints of steps 1 and 2, and what was said."""
    said = []
    checkpoints = Checkpoints(tmp_path / "checkpoints", "a configuration", said.append)
    for step in (1, 2):
        checkpoints.save(State(step, skipped=step, score=0.5), *trained(seed=step), last=False)
    return checkpoints, said


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def bits(model):
    return torch.cat([p.flatten() for p in model.parameters()])


def test_all_comes_back(kept):
    model, optimizer = trained(seed=7)
    assert kept[0].resume(model, optimizer) == State(2, skipped=2, score=0.5)
    expected, its_optimizer = trained(seed=2)
    assert torch.equal(bits(model), bits(expected))
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert optimizer.state[p].keys() == its_optimizer.state[q].keys()
        assert all(torch.equal(value, its_optimizer.state[q][kind]) for kind, value in optimizer.state[p].items())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def delete(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def of_another_step(path):
    shutil.copy(path.parent.with_name("step-00000001") / path.name, path)


def link(path):
    """To what has the right content."""
    there = path.parents[1] / "elsewhere"
    path.rename(there)
    path.symlink_to(there)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [flip, zero, truncate, delete, empty, of_another_step, link], ids=lambda f: f.__name__)
def test_damage_to_any_file_is_noticed_and_the_checkpoint_before_taken(kept, name, harm):
    checkpoints, said = kept
    newest = checkpoints.folder / "step-00000002"
    harm(newest / name)
    model, optimizer = trained()
    assert checkpoints.resume(model, optimizer).step == 1
    assert "step-00000002.damaged" in names(checkpoints)
    assert f"{newest}: " in said[-1]
    assert "set aside as step-00000002.damaged" in said[-1]


def test_damaged_again_is_set_aside_beside_the_first(kept):
    checkpoints, _ = kept
    contents = []
    for _ in range(3):
        flip(checkpoints.folder / "step-00000002/model.safetensors")
        contents.append((checkpoints.folder / "step-00000002/model.safetensors").read_bytes())
        assert checkpoints.resume(*trained()).step == 1
        checkpoints.save(State(2), *trained(seed=2 + len(contents)), last=False)
    aside = ["step-00000002.damaged", "step-00000002.damaged-2", "step-00000002.damaged-3"]
    assert names(checkpoints) == ["step-00000001", "step-00000002", *aside]
    assert [(checkpoints.folder / name / "model.safetensors").read_bytes() for name in aside] == contents


def test_nothing_whole_is_an_error_also_when_all_is_set_aside_already(kept):
    checkpoints, _ = kept
    for path in checkpoints.folder.iterdir():
        flip(path / "optimizer.safetensors")
    for _ in range(2):
        with pytest.raises(NoCheckpointError, match="none of 2 checkpoints is whole"):
            checkpoints.resume(*trained())


def test_a_whole_target_is_left_and_a_damaged_one_replaced(kept):
    checkpoints, _ = kept
    target = checkpoints.folder / "step-00000002"
    before = (target / "MANIFEST.json").stat().st_ino
    checkpoints.save(State(2), *trained(seed=2), last=False)
    assert (target / "MANIFEST.json").stat().st_ino == before
    truncate(target / "state.json")
    checkpoints.save(State(2), *trained(seed=2), last=False)
    assert damage(target) is None
    assert names(checkpoints) == ["step-00000001", "step-00000002", "step-00000002.damaged"]


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "sub/file", "link"])
def test_a_manifest_names_its_own_files_only(kept, name):
    checkpoints, _ = kept
    newest = checkpoints.folder / "step-00000002"
    (newest / "link").symlink_to("/etc/passwd")
    manifest = json.loads((newest / "MANIFEST.json").read_text())
    for files in ({**manifest["files"], name: [1, "0" * 64]}, {name: [1, "0" * 64]}, {}, [], None):
        (newest / "MANIFEST.json").write_text(json.dumps({**manifest, "files": files}))
        assert "its manifest does not name" in damage(newest)


def test_a_manifest_that_is_huge_is_not_read(kept):
    path = kept[0].folder / "step-00000002/MANIFEST.json"
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    assert "1099511627776 bytes long" in damage(path.parent)


def test_a_checkpoint_that_is_a_link_is_refused(kept):
    newest = kept[0].folder / "step-00000002"
    newest.rename(newest.with_name("elsewhere"))
    newest.symlink_to(newest.with_name("elsewhere"))
    assert "is a link" in damage(newest)


@pytest.mark.parametrize("found", [1, 3, None])
def test_another_format_is_said_and_left_where_it_is(kept, found):
    checkpoints, _ = kept
    path = checkpoints.folder / "step-00000002/MANIFEST.json"
    manifest = json.loads(path.read_text())
    if found is None:  # the first format said nothing
        manifest = manifest["files"]
    else:
        manifest["format"] = found
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=rf"step-00000002: a checkpoint of format {found or 1}; this larpanda reads 2"):
        checkpoints.resume(*trained())
    assert names(checkpoints) == ["step-00000001", "step-00000002"]


def test_a_checkpoint_of_another_configuration_is_refused(kept):
    with pytest.raises(ValueError, match="of a run of another configuration"):
        replace(kept[0], config="another").resume(*trained())


def half(model):
    return model.to(torch.bfloat16)


def frozen(model):
    return model.requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: nn.Sequential(*m, nn.Linear(1, 1)), r"2\.bias is missing; 2\.weight is missing \(2 in all\)"),
        (lambda m: m[:1], r"1\.weight is not of this model"),
        (lambda m: trained(width=4)[0], r"0\.bias is \(\[3\], 'torch.float32'\), expected \(\[4\], 'torch.float32'\)"),
        (half, r"expected \(\[3\], 'torch.bfloat16'\)"),
        (lambda m: m.requires_grad_(False) and nn.Sequential(m[0].requires_grad_(), m[1]), r"1\.weight is not trained"),
    ],
    ids=["missing", "extra", "shape", "type", "frozen"],
)
def test_a_checkpoint_that_does_not_fit_says_where(kept, change, message):
    model = change(trained()[0])
    with pytest.raises(ValueError, match=message):
        kept[0].resume(model, make_optimizer(model, OptimConfig()))


def test_the_newest_three_and_the_best_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", "c", print)
    scores = [0.1, 0.9, None, float("nan"), 0.3, 0.9, 0.2, 0.2, 0.95, 0.1, 0.1, 0.1]
    kept = {}
    for step, score in enumerate(scores, 1):
        checkpoints.save(State(step, score=score), *trained(), last=False)
        kept[step] = [int(name[-8:]) for name in names(checkpoints)]
    assert kept[2] == [1, 2]
    assert kept[7] == [2, 5, 6, 7]  # of two equal ones the first
    assert kept[9] == [7, 8, 9]
    assert kept[12] == [9, 10, 11, 12]


@pytest.mark.parametrize(("score_of_1", "goes"), [(0.1, 1), (0.9, 2)])
def test_room_is_made_of_what_is_neither_best_nor_newest(tmp_path, monkeypatch, score_of_1, goes):
    said = []
    checkpoints = Checkpoints(tmp_path / "checkpoints", "c", said.append)
    for step, score in ((1, score_of_1), (2, 0.2), (3, 0.3)):
        checkpoints.save(State(step, score=score), *trained(), last=False)
    monkeypatch.setenv("LARPANDA_FAULT", "full@checkpoint.model:step=4")
    checkpoints.save(State(4), *trained(), last=False)
    assert f"step-0000000{goes} was removed to make room; training goes on" in said[-1]
    for _ in range(4):
        checkpoints.save(State(4), *trained(), last=False)
    left = {int(name[-8:]) for name in names(checkpoints) if not name.startswith(".")}
    assert left == ({1, 3} if score_of_1 == 0.9 else {3})


def test_what_does_not_fit_the_disk_is_not_begun(kept, monkeypatch):
    checkpoints, said = kept
    usage = shutil.disk_usage(checkpoints.folder)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(OSError, match=r"No space left on device, 0\.0 MB needed") as error:
        checkpoints.save(State(3), *trained(), last=True)
    assert error.value.errno == errno.ENOSPC
    assert not list(checkpoints.folder.glob(".*/model.safetensors"))
    assert "a second attempt" in said[-1]


def test_a_folder_that_cannot_be_written_to_costs_no_old_checkpoint(kept):
    checkpoints, said = kept
    (checkpoints.folder / ".step-00000003.part").write_text("in the way")
    checkpoints.save(State(3), *trained(), last=False)
    assert "step 3 was not saved (File exists); training goes on" in said[-1]
    assert "removed" not in said[-1]
    assert {"step-00000001", "step-00000002"} < set(names(checkpoints))


def test_what_a_killed_save_left_is_swept(kept):
    checkpoints, _ = kept
    (checkpoints.folder / ".step-00000009.part").mkdir()
    assert checkpoints.resume(*trained()).step == 2
    assert names(checkpoints) == ["step-00000001", "step-00000002"]
