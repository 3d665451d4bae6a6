"""What trains and what stays: linear, decoder and full fine-tuning, few labels, and which weights are kept."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import _command_line as command_line
from processes import in_processes

import larpanda
from larpanda.cli import main
from larpanda.data.stream import drawn
from larpanda.event import Motif
from larpanda.model.backbone import DecoderConfig
from larpanda.model.bundle import Model, ModelConfig, load_bundle, save_bundle
from larpanda.model.semantic import SemanticConfig, SemanticLossConfig
from larpanda.train import frozen
from larpanda.train.finetune import finetune
from larpanda.train.frozen import FrozenEvents
from larpanda.train.motifs import LabelledFeatures, LinearSemantic, Motifs, motif_losses
from larpanda.train.supervised import Supervised


@pytest.fixture
def events(make_cloud):
    return [make_cloud(80, seed=s) for s in range(7)]


@pytest.fixture
def encoder(tmp_path, tiny_run):
    """A bundle without heads."""
    torch.manual_seed(3)
    model = Model(ModelConfig(replace(tiny_run.model.encoder, layer_scale=1.0)))
    save_bundle(tmp_path / "encoder", model, {}, "card")
    return tmp_path / "encoder"


def run(events, config, folder, start, said=None):
    say = said.append if said is not None else lambda line: None
    return finetune(
        ["semantic"],
        events,
        config,
        folder,
        sources=["clouds"],
        start=str(start) if start else None,
        device="cpu",
        say=say,
    )


@pytest.mark.parametrize("mode", ["linear", "decoder", "full"])
def test_what_is_frozen_stays_and_the_rest_learns(events, tiny_run, encoder, tmp_path, mode):
    before = load_bundle(encoder).model.encoder.state_dict()
    tiny_run = replace(tiny_run, model=replace(tiny_run.model, semantic=SemanticConfig(DecoderConfig((16,), (1,)))))
    bundle = load_bundle(run(events, replace(tiny_run, mode=mode), tmp_path / "run", encoder))
    after = bundle.model.encoder.state_dict()
    kept = [torch.equal(value, before[name].half().float()) for name, value in after.items()]
    assert all(kept) if mode != "full" else not any(kept[:3])
    assert (bundle.model.semantic.decoder is None) == (mode == "linear")
    assert bundle.model.semantic.linear.weight.std() > 0.01


def test_a_linear_layer_learns_the_same_whether_features_are_kept_or_made_again(
    events, tiny_run, encoder, tmp_path, monkeypatch
):
    config = replace(tiny_run, mode="linear")
    kept = run(events, config, tmp_path / "kept", encoder)
    monkeypatch.setattr(frozen, "KEPT_BYTES", 0)
    again = run(events, config, tmp_path / "again", encoder)
    assert (kept / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_features_are_made_once(events, encoder):
    calls = []

    def counted(module, args, output):
        calls.append(1)

    model = load_bundle(encoder).model
    model.encoder.register_forward_hook(counted)
    frozen = FrozenEvents(partial(LabelledFeatures.of, model.encoder, 0.13), events)
    for _ in range(3):
        assert [len(one) for one in frozen] == [len(event.visible(0.13)[0]) for event in events]
    assert len(calls) == len(events)


def test_a_linear_run_is_judged_as_its_bundle_is(events, encoder):
    """Frozen features in float16 and the whole way give the same scores, but for points on the border."""
    config = load_bundle(encoder).model.config
    torch.manual_seed(0)
    model = Model(replace(config, semantic=SemanticConfig(None)))
    model.encoder.load_state_dict(load_bundle(encoder).model.encoder.state_dict())
    torch.nn.init.normal_(model.semantic.linear.weight)
    model.encoder.requires_grad_(False)
    frozen = LinearSemantic(
        model, SemanticLossConfig(0.0), FrozenEvents(partial(LabelledFeatures.of, model.encoder, 0.13), events)
    ).evaluate()
    whole = Motifs(model.semantic, SemanticLossConfig(0.0)).evaluate(model, events)
    assert frozen["macro_f1"] == pytest.approx(whole["macro_f1"], abs=0.01)


def test_fewer_labels_lie_within_more(events):
    many = [event.energy.sum().item() for event in drawn(events, 6, seed=4)]
    few = [event.energy.sum().item() for event in drawn(events, 2, seed=4)]
    assert few == many[:2]
    assert len(set(many)) == 6
    assert {drawn(range(100), 1, seed)[0] for seed in range(20)} != {drawn(range(100), 1, 0)[0]}
    with pytest.raises(ValueError, match="8 labelled events are asked for; there are 7"):
        drawn(events, 8, 0)


def test_a_run_sees_its_labels_only(events, tiny_run, tmp_path):
    """Two runs whose other events differ end alike."""
    config = replace(tiny_run, labels=2)
    n = len(events) - config.validation_events
    chosen = [int(i) for i in drawn(range(n), 2, config.seed)]
    others = [event if i in chosen or i >= n else events[(i + 1) % n] for i, event in enumerate(events)]
    a, b = run(events, config, tmp_path / "a", None), run(others, config, tmp_path / "b", None)
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "a/config.json").read_text())["events"] == 2


def test_the_best_weights_are_kept_or_the_last(events, tiny_run, tmp_path, monkeypatch):
    """Validations that get worse: the first is best, and its checkpoint is what the bundle holds."""
    real, seen = Supervised.evaluate, []

    def worse(self):
        seen.append(dict(real(self)))
        return {"macro_f1": 1.0 / len(seen)}

    monkeypatch.setattr(Supervised, "evaluate", worse)
    config = replace(tiny_run, save_every=4, evaluate_every=4)
    best, last = (run(events, replace(config, keep=keep), tmp_path / keep, None) for keep in ("best", "last"))
    from safetensors.torch import load_file

    for bundle, step in ((best, 4), (last, config.steps)):
        there = load_file(tmp_path / bundle.parent.name / f"checkpoints/step-{step:08d}/model.safetensors")
        here = load_file(bundle / "model.safetensors")
        assert all(torch.equal(here[name], value.half()) for name, value in there.items())


def test_few_validation_events_are_said_early(events, tiny_run, tmp_path):
    said = []
    run(events, tiny_run, tmp_path / "run", None, said)
    assert said[0].startswith(f"{tiny_run.validation_events} validation events are few, shower in ")


def test_weights_of_motifs_are_those_of_the_mean():
    rng = torch.Generator().manual_seed(0)
    logits, motif = torch.randn(50, 5, generator=rng), torch.randint(-1, 5, (50,), generator=rng)
    weights = (1.0, 2.0, 0.0, 5.0, 0.5)
    losses = motif_losses(logits, motif, SemanticLossConfig(0.0, weights))
    known = motif >= 0
    each = F.cross_entropy(logits[known], motif[known], reduction="none")
    w = torch.tensor(weights)[motif[known]]
    torch.testing.assert_close(losses.total, (each * w).sum() / w.sum())
    assert losses.parts["accuracy"].item() == pytest.approx((logits.argmax(1) == motif)[known].float().mean().item())
    nothing = motif_losses(logits, torch.full((50,), -1), SemanticLossConfig(0.05))
    assert nothing.total.item() == 0.0


def test_a_frozen_encoder_needs_weights(events, tiny_run, tmp_path):
    with pytest.raises(ValueError, match="--mode decoder keeps the encoder as it is, and --from scratch has none"):
        run(events, replace(tiny_run, mode="decoder"), tmp_path / "run", None)


def test_impossible_settings(tiny_run):
    with pytest.raises(ValueError, match="labels is 0"):
        replace(tiny_run, labels=0)
    for weights in ((1.0, 2.0), (-1.0,) * 5):
        with pytest.raises(ValueError, match="class_weights"):
            SemanticLossConfig(class_weights=weights)


def test_the_command_line_takes_mode_and_labels(tmp_path, encoder, capsys):
    data = "generate:pilarnet?events=4&seed=9"
    words = ["finetune", "semantic", data, "--from", str(encoder), "--mode", "linear", "--labels", "2"]
    words += ["--out", str(tmp_path / "run"), "--quiet"]
    settings = [f"--set={one}" for one in ("steps=2", "batch_events=2", "validation_events=1", "evaluate_every=2")]
    assert main([*words, *settings]) == 0
    record = json.loads((tmp_path / "run/config.json").read_text())
    assert record["config"]["mode"] == "linear"
    assert record["events"] == 2
    card = (tmp_path / "run/bundle/README.md").read_text()
    assert "a linear layer on frozen features" in card
    assert main([*words[:-3], "--out", str(tmp_path / "no"), "--labels", "9", *settings]) == 2
    assert "9 labelled events are asked for; there are 3" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_events_on_another_scale(tmp_path, make_cloud, capsys):
    larpanda.write_events(str(tmp_path / "clouds.h5"), [make_cloud(60, seed=s) for s in range(3)])
    words = ["finetune", "semantic", str(tmp_path / "clouds.h5"), "--from", "scratch", "--quiet"]
    words += ["--out", str(tmp_path / "run"), "--recipe", "nano_uresnet", "--set", "validation_events=1"]
    words += ["--set", "steps=1", "--set", "batch_events=1", "--set", "model.encoder.channels=4,6"]
    assert main(words) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["scale"] == {"energy_scale": 1.0, "voxel_mm": 3.0}
    assert main([*words, "--energy-scale", "2"]) == 2
    assert "scale.energy_scale 1.0 there, 2.0 here" in capsys.readouterr().err


def test_the_u_resnet_trains_in_the_same_loop(tmp_path):
    words = ["finetune", "semantic", "generate:pilarnet?events=4&seed=9", "--from", "scratch"]
    settings = ["steps=2", "batch_events=2", "validation_events=1", "model.encoder.channels=4,6"]
    settings = ["--recipe=nano_uresnet", "--set=model.encoder.blocks=1", *(f"--set={one}" for one in settings)]
    assert main([*words, "--out", str(tmp_path / "run"), "--quiet", *settings]) == 0
    model = load_bundle(tmp_path / "run").model
    assert model.config.encoder.channels == (4, 6)
    assert np.isfinite(sum(p.sum().item() for p in model.parameters()))
    assert "a U-ResNet" in (tmp_path / "run/bundle/README.md").read_text()
    assert len(Motif) == model.semantic.linear.out_features


def test_two_processes_evaluate_to_the_same_bytes_as_one(tmp_path, make_cloud):
    data = tmp_path / "clouds.h5"
    larpanda.write_events(str(data), [make_cloud(60 + 10 * s, seed=s) for s in range(5)])
    written = []
    for n in (1, 2):
        out = tmp_path / f"{n}"
        words = ["evaluate", "nano", str(data), "--out", str(out), "--device", "cpu"]
        codes = in_processes(command_line, n, {}, words, None, tmp_path / f"said-{n}")
        assert codes == [0] * n
        written.append({path.name: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()})
    names = {"metrics.json", "per_event.json", "index.html", "events.html"}
    drawn = ("motifs", "motif_confusion", "n_voxels", "energy_mev", "particles", "species", "interactions")
    figures = {f"{name}.svg" for name in (*drawn, "control", "calibration")}
    assert set(written[0]) == names | figures
    assert written[0] == written[1]
    assert (tmp_path / "said-2-1").read_text() == ""


def test_rates_decay_by_layer_only_where_weights_were_trained_before(events, tiny_run, encoder, tmp_path):
    config = replace(tiny_run, optim=replace(tiny_run.optim, layer_decay=0.5))
    for name, start in (("scratch", None), ("from", encoder)):
        run(events, config, tmp_path / name, start)
    decays = [
        json.loads((tmp_path / n / "config.json").read_text())["config"]["optim"]["layer_decay"]
        for n in ("scratch", "from")
    ]
    assert decays == [1.0, 0.5]
