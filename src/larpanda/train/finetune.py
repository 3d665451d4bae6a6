"""A fine-tuning run: its folder, its first weights, and the bundle and card it ends with."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from larpanda import __version__
from larpanda.data.stream import drawn
from larpanda.event import UNKNOWN, Event, Motif
from larpanda.model.bundle import Model, load_bundle, save_bundle
from larpanda.model.semantic import SemanticConfig
from larpanda.parallel import rank
from larpanda.train.loop import train
from larpanda.train.recipes import FinetuneConfig
from larpanda.train.tasks import FrozenEvents, LinearSemantic, Semantic, SemanticLoss

ENOUGH_EVENTS = 10  # of a motif: a bootstrap over fewer says little


def finetune_semantic(
    events: Sequence[Event],
    config: FinetuneConfig,
    run: Path,
    *,
    sources: Sequence[str],
    start: str | None,
    scale: Mapping[str, float] = MappingProxyType({}),
    device: str = "auto",
    say: Callable[[str], None],
    live: Callable[[str], None] | None = None,
) -> Path | None:
    """Train a semantic head on labels, with or without its encoder, from random weights or from a bundle.

    Started by torchrun, the processes share the work. ``config.mode`` says what trains (paper section 3.5): ``full``,
    all; ``decoder``, the head on a frozen encoder; ``linear``, a linear layer on frozen up-cast features, made once.
    Layer-wise decay of the learning rate is for weights that were trained before: from random ones there is none.

    Args:
        events: with truth; the last ``config.validation_events`` are for validation. Of the others
            ``config.labels`` are drawn, if it is set.
        config: of the whole run.
        run: folder for config.json, metrics.jsonl, checkpoints/ and bundle/. If it has checkpoints of the same
            configuration the run goes on from the newest.
        sources: where the events come from, for the record.
        start: a bundle whose encoder (and semantic head, if it has one) to begin with; None: random weights.
        scale: how they were read, ``energy_scale`` and ``voxel_mm`` of ``open_events``, for the record.
        device: ``auto``, ``cpu`` or ``cuda``.
        say: takes one line of progress.
        live: takes one line after each step, to show until the next.

    Returns:
        The folder of the bundle; None if a signal asked the run to stop, which is saved and can go on.

    Raises:
        ValueError: too few events, events without truth, a frozen encoder of random weights, or a run folder of
            another configuration.
    """
    n_train = len(events) - config.validation_events
    if n_train < 1:
        raise ValueError(
            f"{len(events)} events, of which {config.validation_events} are for validation: none to train on; "
            "give more data or --set validation_events=N"
        )
    if not any(events[i].has_truth for i in range(min(n_train, 20))):
        raise ValueError(f"{', '.join(sources)}: the first events have no motif labels; training needs truth")
    if config.mode != "full" and start is None:
        raise ValueError(f"--mode {config.mode} keeps the encoder as it is, and --from scratch has none; give --from")
    model, config = _first_model(config, start)
    chosen: Sequence[Event] = events[:n_train]
    if config.labels is not None:
        chosen = drawn(chosen, config.labels, config.seed)
    validation = events[n_train:]
    if rank() == 0 and (weak := _weak_motifs(validation)):
        say(f"{len(validation)} validation events are few, {weak}: macro F1 is chance. --set validation_events=N")
    record = {
        "task": "semantic",
        "config": asdict(config),
        "data": list(sources),
        "scale": dict(scale),
        "events": len(chosen),
        "from": start or "scratch",
        "larpanda": __version__,
    }

    loss = SemanticLoss(config.lovasz_weight, config.class_weights)

    def end(task: Semantic | LinearSemantic, bundle: Path) -> None:
        scores = task.evaluate()
        provenance = {**record, "validation": dict(scores)}
        save_bundle(bundle, model, provenance, _card(record, scores), half=True)

    how: dict[str, Any] = {"device": device, "say": say, "live": live}
    if config.mode == "linear":
        threshold = model.config.min_energy_mev
        frozen, judged = (FrozenEvents(model.encoder, part, threshold) for part in (chosen, validation))
        return train(
            frozen, config, run, record, lambda where: LinearSemantic(model.to(where), loss, judged), end, **how
        )
    return train(
        chosen,
        config,
        run,
        record,
        lambda where: Semantic(model.to(where), config.augmentation, loss, validation),
        end,
        **how,
    )


def _weak_motifs(validation: Sequence[Event]) -> str:
    """Which motifs occur in few of the events that are to judge them; none if all occur in enough, or in none."""
    count = dict.fromkeys(Motif, 0)
    for event in validation:
        for motif in torch.unique(event.motif[event.motif != UNKNOWN]).tolist():
            count[Motif(motif)] += 1
    return ", ".join(f"{motif.name.lower()} in {n}" for motif, n in count.items() if 0 < n < ENOUGH_EVENTS)


def _first_model(config: FinetuneConfig, start: str | None) -> tuple[Model, FinetuneConfig]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if start is None:  # the released baseline keeps it, and so trains an encoder of random weights at 1e-5
            config = replace(config, optim=replace(config.optim, layer_decay=1.0))
            return Model(config.model), config
        bundle = load_bundle(start)
        there = bundle.model.config.semantic
        semantic = SemanticConfig(None) if config.mode == "linear" else there or config.model.semantic
        config = replace(config, model=replace(bundle.model.config, semantic=semantic))
        model = Model(config.model)
        kept = bundle.model if semantic == there else bundle.model.encoder
        (model if semantic == there else model.encoder).load_state_dict(kept.state_dict())
        model.encoder.requires_grad_(config.mode == "full")
        return model, config


def _card(record: dict[str, Any], validation: Any) -> str:
    config = record["config"]
    decoder = (config["model"]["semantic"] or {}).get("decoder")
    what = "a U-ResNet" if "blocks" in config["model"]["encoder"] else "Point Transformer V3"
    what += " with a decoder" if decoder else ""
    trained = {
        "full": "all weights",
        "decoder": "the head, its encoder frozen",
        "linear": "a linear layer on frozen features",
    }
    scores = "\n".join(f"| {name} | {value:.3f} |" for name, value in validation.items())
    return f"""# A larpanda model

Motifs (shower, track, Michel, delta, LED) of the points of a liquid-argon image: {what}.

- Made by `larpanda finetune semantic` of larpanda {record["larpanda"]}, PyTorch {torch.__version__}, Python
  {platform.python_version()}, from {record["from"]}, seed {config["seed"]}; trained: {trained[config["mode"]]}.
- Data: {record["events"]} events of {", ".join(record["data"])}; {config["steps"]} steps of {config["batch_events"]}
  events.
- The model sees voxels of 3 mm above {config["model"]["min_energy_mev"]} MeV.

Validation ({config["validation_events"]} events of the same source, not trained on; the {config["keep"]} weights):

| | |
|---|---|
{scores}

The complete configuration is in config.json.
"""
