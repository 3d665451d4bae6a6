"""A fine-tuning run: its folder, its first weights, and the bundle and card it ends with."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from larpanda import __version__
from larpanda.data.stream import drawn
from larpanda.event import UNKNOWN, Event, Motif
from larpanda.model.bundle import INSTANCES, Model, What, load_bundle, save_bundle
from larpanda.model.panoptic import PanopticConfig, PanopticHead
from larpanda.model.semantic import SemanticConfig
from larpanda.parallel import rank
from larpanda.train.frozen import FrozenEvents
from larpanda.train.grouping import Grouping, LabelledFragments
from larpanda.train.instances import Instances
from larpanda.train.loop import train
from larpanda.train.motifs import LabelledFeatures, LinearSemantic, Motifs
from larpanda.train.recipes import FinetuneConfig
from larpanda.train.supervised import Head, Objective, Supervised

HEADS: tuple[Head, ...] = ("semantic", *INSTANCES)
ENOUGH_EVENTS = 10  # of a motif: a bootstrap over fewer says little


def finetune(
    heads: Sequence[Head],
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
    """Train heads on labels, with or without their encoder, from random weights or from a bundle.

    Started by torchrun, the processes share the work. ``config.mode`` says what trains (paper section 3.5): ``full``,
    all; ``decoder``, the heads on a frozen encoder; ``linear``, a linear layer on frozen up-cast features, made once
    (motifs only). A frozen encoder keeps its other heads; one that trains would leave them behind, and has none.
    Layer-wise decay of the learning rate is for weights that were trained before: from random ones there is none.

    Args:
        heads: for motifs (``semantic``), particles or interactions. Several learn together, in one pass of the encoder.
        events: with truth; the last ``config.validation_events`` are for validation. Of the others
            ``config.labels`` are drawn, if it is set.
        config: of the whole run.
        run: folder for config.json, metrics.jsonl, checkpoints/ and bundle/. If it has checkpoints of the same
            configuration the run goes on from the newest.
        sources: where the events come from, for the record.
        start: a bundle whose encoder (and such heads, if it has them) to begin with; None: random weights.
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
    for head in heads:
        name = "motif" if head == "semantic" else head
        if not any((getattr(events[i], name) >= 0).any() for i in range(min(n_train, 20))):
            raise ValueError(f"{', '.join(sources)}: the first events have no {name} labels; training needs truth")
    if config.mode == "linear" and tuple(heads) != ("semantic",):
        raise ValueError(f"--mode linear is for motifs; {heads[-1]}s need a decoder: --mode decoder or full")
    if config.mode != "full" and start is None:
        raise ValueError(f"--mode {config.mode} keeps the encoder as it is, and --from scratch has none; give --from")
    _grouped(heads, config)
    model, config = _first_model(heads, config, start)
    grouped = _grouped(heads, config)
    chosen: Sequence[Event] = events[:n_train]
    if config.labels is not None:
        chosen = drawn(chosen, config.labels, config.seed)
    validation = events[n_train:]
    if "semantic" in heads and rank() == 0 and (weak := _weak_motifs(validation)):
        say(f"{len(validation)} validation events are few, {weak}: macro F1 is chance. --set validation_events=N")
    record = {
        "task": ",".join(heads),
        "config": asdict(config),
        "data": list(sources),
        "scale": dict(scale),
        "events": len(chosen),
        "from": start or "scratch",
        "larpanda": __version__,
    }

    def end(task: Supervised | LinearSemantic | Grouping, bundle: Path) -> None:
        fitted = task.calibrate()  # first: it changes which query has the best score
        scores = {**task.evaluate(), **fitted}
        provenance = {**record, "validation": scores}
        save_bundle(bundle, model, provenance, _card(record, scores), half=True)

    how: dict[str, Any] = {"device": device, "say": say, "live": live}
    if config.mode == "linear":
        make = partial(LabelledFeatures.of, model.encoder, model.config.min_energy_mev)
        frozen, judged = (FrozenEvents(make, part) for part in (chosen, validation))
        loss = config.semantic_loss
        return train(
            frozen, config, run, record, lambda where: LinearSemantic(model.to(where), loss, judged), end, **how
        )
    if grouped:
        known = FrozenEvents(partial(LabelledFragments.of, model), chosen)
        return train(
            known,
            config,
            run,
            record,
            lambda where: Grouping(model.to(where), grouped, config.set_loss, validation),
            end,
            **how,
        )

    def begin(where: torch.device) -> Supervised:
        model.to(where)
        objectives = {head: _objective(model, head, config) for head in heads}
        return Supervised(
            model, objectives, config.augmentation, validation, weights={"semantic": config.semantic_weight}
        )

    return train(chosen, config, run, record, begin, end, **how)


def _grouped(heads: Sequence[Head], config: FinetuneConfig) -> list[What]:
    """The heads to train if they look at fragments. Raises ValueError if that cannot be."""
    there = {what: getattr(config.model, what) for what in INSTANCES if what in heads}
    found = [what for what, head in there.items() if head is not None and head.fragments]
    if found and (config.mode != "decoder" or len(found) < len(heads)):
        raise ValueError(
            f"heads that look at fragments ({', '.join(found)}) learn on a frozen model, and no others beside them: "
            "--mode decoder --from a bundle with a head for motifs"
        )
    return found


def _objective(model: Model, head: Head, config: FinetuneConfig) -> Objective:
    if head == "semantic":
        assert model.semantic is not None
        return Motifs(model.semantic, config.semantic_loss)
    found = getattr(model, head)
    assert isinstance(found, PanopticHead)
    return Instances(found, head, config.set_loss)


def _weak_motifs(validation: Sequence[Event]) -> str:
    """Which motifs occur in few of the events that are to judge them; none if all occur in enough, or in none."""
    count = dict.fromkeys(Motif, 0)
    for event in validation:
        for motif in torch.unique(event.motif[event.motif != UNKNOWN]).tolist():
            count[Motif(motif)] += 1
    return ", ".join(f"{motif.name.lower()} in {n}" for motif, n in count.items() if 0 < n < ENOUGH_EVENTS)


def _first_model(heads: Sequence[Head], config: FinetuneConfig, start: str | None) -> tuple[Model, FinetuneConfig]:
    """The model to train, what is frozen without gradients, and the configuration with what the bundle decides."""
    there = None if start is None else load_bundle(start).model
    parts: dict[str, Any] = dict.fromkeys(HEADS)
    if there is not None and config.mode != "full":
        parts = {name: getattr(there.config, name) for name in HEADS}
    for name in heads:
        own = SemanticConfig(None) if config.mode == "linear" else there and getattr(there.config, name)
        wanted = getattr(config.model, name)
        if isinstance(own, PanopticConfig) and wanted and own.fragments != wanted.fragments:
            own = None  # a head of another kind is begun anew
        parts[name] = own or wanted
        if parts[name] is None:
            raise ValueError(f"this recipe is not for {name}; expected one such as nano_{name}")
    encoder = config.model if there is None else there.config
    config = replace(config, model=replace(encoder, **parts))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Model(config.model)
    if there is None:  # the released baseline keeps it, and so trains an encoder of random weights at 1e-5
        return model, replace(config, optim=replace(config.optim, layer_decay=1.0))
    for part_name in ("encoder", *HEADS):
        part = getattr(model, part_name)
        if part is None:
            continue
        if getattr(there.config, part_name) == getattr(config.model, part_name):
            part.load_state_dict(getattr(there, part_name).state_dict())
        part.requires_grad_(part_name in heads or config.mode == "full")
    return model, config


def _card(record: dict[str, Any], validation: Any) -> str:
    config = record["config"]
    task, heads = record["task"], record["task"].split(",")
    network = "a U-ResNet" if "blocks" in config["model"]["encoder"] else "Point Transformer V3"
    parts = {
        "semantic": "a decoder for motifs",
        "particle": "{queries} queries for particles",
        "interaction": "{queries} queries for interactions",
    }
    made = [parts[name].format(**config["model"][name]) for name in heads if config["model"][name].get("decoder", 1)]
    network += f" with {' and '.join(made)}" if made else ""
    words = {
        "semantic": "motifs (shower, track, Michel, delta, LED) of the points",
        "particle": "particles",
        "interaction": "interactions",
    }
    learnt = ", ".join(words[name] for name in heads)
    learnt = learnt[0].upper() + learnt[1:]
    trained = {
        "full": "all weights",
        "decoder": "the head, its encoder frozen",
        "linear": "a linear layer on frozen features",
    }
    scores = "\n".join(f"| {name} | {value:.3f} |" for name, value in validation.items())
    return f"""# A larpanda model

{learnt} of a liquid-argon image: {network}.

- Made by `larpanda finetune {task}` of larpanda {record["larpanda"]}, PyTorch {torch.__version__}, Python
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
