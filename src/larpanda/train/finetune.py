"""A fine-tuning run: its folder, its first weights, and the bundle and card it ends with."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from larpanda import __version__
from larpanda.event import Event
from larpanda.model.bundle import Model, load_bundle, save_bundle
from larpanda.train.loop import train
from larpanda.train.recipes import FinetuneConfig
from larpanda.train.tasks import Semantic


def finetune_semantic(
    events: Sequence[Event],
    config: FinetuneConfig,
    run: Path,
    *,
    sources: Sequence[str],
    start: str | None,
    device: str = "auto",
    say: Callable[[str], None],
    live: Callable[[str], None] | None = None,
) -> Path | None:
    """Train the encoder and a semantic head on labels, from random weights or from a bundle.

    Started by torchrun, the processes share the work.

    Args:
        events: with truth; the last ``config.validation_events`` are for validation.
        config: of the whole run.
        run: folder for config.json, metrics.jsonl, checkpoints/ and bundle/. If it has checkpoints of the same
            configuration the run goes on from the newest.
        sources: where the events come from, for the record.
        start: a bundle whose encoder (and semantic head, if it has one) to begin with; None: random weights.
        device: ``auto``, ``cpu`` or ``cuda``.
        say: takes one line of progress.
        live: takes one line after each step, to show until the next.

    Returns:
        The folder of the bundle; None if a signal asked the run to stop, which is saved and can go on.

    Raises:
        ValueError: too few events, events without truth, or a run folder of another configuration.
    """
    n_train = len(events) - config.validation_events
    if n_train < 1:
        raise ValueError(
            f"{len(events)} events, of which {config.validation_events} are for validation: none to train on; "
            "give more data or --set validation_events=N"
        )
    if not any(events[i].has_truth for i in range(min(n_train, 20))):
        raise ValueError(f"{', '.join(sources)}: the first events have no motif labels; training needs truth")
    model, config = _first_model(config, start)
    record = {
        "task": "semantic",
        "config": asdict(config),
        "data": list(sources),
        "events": n_train,
        "from": start or "scratch",
        "larpanda": __version__,
    }

    def begin(where: torch.device) -> Semantic:
        return Semantic(model.to(where), config.augmentation, config.lovasz_weight, events[n_train:])

    def end(task: Semantic, bundle: Path) -> None:
        validation = task.evaluate()
        provenance = {**record, "validation": dict(validation)}
        save_bundle(bundle, model, provenance, _card(record, validation), half=True)

    return train(events[:n_train], config, run, record, begin, end, device=device, say=say, live=live)


def _first_model(config: FinetuneConfig, start: str | None) -> tuple[Model, FinetuneConfig]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if start is None:
            return Model(config.model), config
        bundle = load_bundle(start)
        semantic = bundle.model.config.semantic or config.model.semantic
        config = replace(config, model=replace(bundle.model.config, semantic=semantic))
        model = Model(config.model)
        model.load_state_dict(bundle.model.state_dict(), strict=bundle.model.semantic is not None)
        return model, config


def _card(record: dict[str, Any], validation: Any) -> str:
    config = record["config"]
    scores = "\n".join(f"| {name} | {value:.3f} |" for name, value in validation.items())
    return f"""# A larpanda model

Motifs (shower, track, Michel, delta, LED) of the points of a liquid-argon image: Point Transformer V3 with a decoder.

- Made by `larpanda finetune semantic` of larpanda {record["larpanda"]}, PyTorch {torch.__version__}, Python
  {platform.python_version()}, from {record["from"]}, seed {config["seed"]}.
- Data: {record["events"]} events of {", ".join(record["data"])}; {config["steps"]} steps of {config["batch_events"]}
  events.
- The model sees voxels of 3 mm above {config["model"]["min_energy_mev"]} MeV.

Validation ({config["validation_events"]} events of the same source, not trained on):

| | |
|---|---|
{scores}

The complete configuration is in config.json.
"""
