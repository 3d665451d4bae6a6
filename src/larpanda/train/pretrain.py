"""A pre-training run: its folder, its first weights, and the encoder it ends with."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from larpanda import __version__
from larpanda.event import Event
from larpanda.model.bundle import Model, ModelConfig, save_bundle
from larpanda.model.distill import SelfDistillation
from larpanda.train.loop import train
from larpanda.train.recipes import PretrainConfig
from larpanda.train.tasks import Pretrain


def pretrain(
    events: Sequence[Event],
    config: PretrainConfig,
    run: Path,
    *,
    sources: Sequence[str],
    probe_events: Sequence[Event] = (),
    probe_sources: Sequence[str] = (),
    scale: Mapping[str, float] = MappingProxyType({}),
    device: str = "auto",
    say: Callable[[str], None],
    live: Callable[[str], None] | None = None,
) -> Path | None:
    """Learn an encoder from charge alone (paper sections 3.3 to 3.5). Started by torchrun, processes share the work.

    Args:
        events: their truth, if they have any, is not looked at.
        config: of the whole run.
        run: folder for config.json, metrics.jsonl, checkpoints/ and bundle/. If it has checkpoints of the same
            configuration the run goes on from the newest.
        sources: where the events come from, for the record.
        probe_events: with truth, for the linear probe; none: no probe.
        probe_sources: where those come from, for the record.
        scale: how they were read, ``energy_scale`` and ``voxel_mm`` of ``open_events``, for the record.
        device: ``auto``, ``cpu`` or ``cuda``.
        say: takes one line of progress.
        live: takes one line after each step, to show until the next.

    Returns:
        The folder of the bundle, which holds the teacher's encoder; None if a signal asked the run to stop, which is
        saved and can go on.

    Raises:
        ValueError: too few events, for training or for the probe, or a run folder of another configuration.
    """
    if not len(events):
        raise ValueError(f"{', '.join(sources)}: no events to learn from")
    if probe_events and len(probe_events) < config.probe.n_events:
        raise ValueError(
            f"{', '.join(probe_sources)}: {len(probe_events)} events; the probe takes {config.probe.n_events} "
            "(probe.train_events, choose_events and test_events)"
        )
    if probe_events and not any(probe_events[i].has_truth for i in range(min(len(probe_events), 20))):
        raise ValueError(f"{', '.join(probe_sources)}: the first events have no motif labels; the probe needs truth")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = SelfDistillation(config.encoder, config.distill)
    record = {
        "task": "pretrain",
        "config": asdict(config),
        "data": list(sources),
        "scale": dict(scale),
        "events": len(events),
        "probe": list(probe_sources),
        "larpanda": __version__,
    }

    def begin(where: torch.device) -> Pretrain:
        return Pretrain(
            model.to(where),
            config.steps,
            config.views,
            config.min_energy_mev,
            config.probe,
            probe_events,
            seed=config.seed,
        )

    def end(task: Pretrain, bundle: Path) -> None:
        scores = task.evaluate() if task.scores is None or config.keep == "best" else task.scores
        save_teacher(bundle, model, config, {**record, "probe_scores": dict(scores)})

    return train(events, config, run, record, begin, end, device=device, say=say, live=live)


def save_teacher(folder: Path, model: SelfDistillation, config: PretrainConfig, record: Mapping[str, Any]) -> None:
    """Write the teacher's encoder as a bundle without heads; it has no mask vector, which only the student needs."""
    encoder = replace(config.encoder, mask_token=False)
    result = Model(ModelConfig(encoder, min_energy_mev=config.min_energy_mev))
    weights = model.teacher.encoder.state_dict()
    result.encoder.load_state_dict({name: value for name, value in weights.items() if name != "mask_token"})
    save_bundle(folder, result, record, _card(record), half=True)


def _card(record: Mapping[str, Any]) -> str:
    config, scores = record["config"], record["probe_scores"]
    probe = "\n".join(f"| {name} | {value:.3g} |" for name, value in scores.items()) or "| none | |"
    return f"""# A larpanda encoder

Features of the points of a liquid-argon image, learnt without labels by self-distillation (arXiv:2512.01324): Point
Transformer V3, the teacher's weights. It has no head; `larpanda finetune semantic DATA --from` this folder adds one.

- Made by `larpanda pretrain` of larpanda {record["larpanda"]}, PyTorch {torch.__version__}, Python
  {platform.python_version()}, seed {config["seed"]}.
- Data: {record["events"]} events of {", ".join(record["data"])}, truth not looked at; {config["steps"]} steps of
  {config["batch_events"]} events: {config["steps"] * config["batch_events"]:,} event samples.
- The model sees voxels of 3 mm above {config["min_energy_mev"]} MeV.

Linear probe ({config["probe"]["test_events"]} events of {", ".join(record["probe"]) or "no data"}, after
{config["probe"]["train_events"]} to train it and {config["probe"]["choose_events"]} to choose its penalty):

| | |
|---|---|
{probe}

The complete configuration is in config.json.
"""
