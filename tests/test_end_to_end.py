"""The whole way on real shapes: events are made, written, learnt by heart, reconstructed and counted."""

import pyarrow.parquet as pq

import larpanda
from larpanda.cli import main

SETTINGS = (
    "steps=40",
    "batch_events=2",
    "validation_events=1",
    "save_every=40",
    "evaluate_every=40",
    "optim.lr=1e-2",
    "augmentation.symmetry=false",
    "augmentation.charge_scale=0",
    "augmentation.charge_jitter=0",
    "model.encoder.channels=16,32,32",
    "model.encoder.depths=1,1,1",
    "model.encoder.layer_scale=0.5",
    "model.semantic.decoder=null",
)


def test_events_learnt_by_heart_are_reconstructed(tmp_path, capsys):
    """Three generated events, two of them learnt: most of their voxels get their motif back, in the tables."""
    file = tmp_path / "events.h5"
    assert main(["generate", str(file), "--events", "3", "--seed", "101", "--quiet"]) == 0
    run = [f"--set={setting}" for setting in SETTINGS]
    arguments = ["finetune", "semantic", str(file), "--from", "scratch", "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*arguments, *run]) == 0
    model = str(tmp_path / "run")
    assert main(["reconstruct", str(file), "--model", model, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    voxels = pq.read_table(tmp_path / "out" / "events_voxels.parquet")
    events = larpanda.open_events(file)
    right = seen = 0
    for entry, event in enumerate(events):
        rows = voxels.filter([entry == e for e in voxels["entry"].to_pylist()])
        assert len(rows) == len(event)
        for motif, truth in zip(rows["motif"].to_pylist(), event.motif.tolist(), strict=True):
            seen += motif >= 0
            right += motif == truth
    assert right / seen > 0.8  # the largest class alone would give about a half
