"""How much of the motifs a linear probe reads off frozen encoders: the number that pre-training is judged by.

    python benchmarks/probe_encoder.py TEST ENCODER... [--train SOURCE] [--choose SOURCE]

TEST: events with truth that no encoder has seen. ENCODER: ``random`` (nano's sizes, seed 0), a bundle, a run folder, or
a checkpoint folder of a pre-training run. Multinomial logistic regression on the points' up-cast features, trained on
500 generated events of seed 101, its penalty chosen on 200 of seed 102, macro F1 over five motifs on TEST with 68 %
intervals from a bootstrap over events. Prints a row of a Markdown table for each encoder.
"""

import argparse
import json
from pathlib import Path

import torch

from larpanda.config import config_from_json
from larpanda.data import open_events
from larpanda.event import MIN_ENERGY_MEV, Motif
from larpanda.model.backbone import Encoder, EncoderConfig
from larpanda.model.bundle import load_bundle
from larpanda.train.probing import probe_motifs
from larpanda.train.recipes import NANO_ENCODER

POINTS = 200_000  # of the 1.7 million, to choose the penalty; the chosen one is fitted to all


def open_encoder(name: str) -> Encoder:
    """The encoder of that name, frozen."""
    if name == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Encoder(NANO_ENCODER).requires_grad_(False)
    checkpoint = Path(name) / "model.safetensors"
    if (Path(name) / "MANIFEST.json").exists():  # RUN/checkpoints/step-XXXXXXXX
        from safetensors.torch import load_file

        prefix = "teacher.encoder."
        weights = {k.removeprefix(prefix): v for k, v in load_file(checkpoint).items() if k.startswith(prefix)}
        record = json.loads((Path(name).parents[1] / "config.json").read_text())
        encoder = Encoder(config_from_json(EncoderConfig, record["config"]["encoder"], name))
        encoder.load_state_dict(weights)
        return encoder.requires_grad_(False)
    return load_bundle(name).model.encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test")
    parser.add_argument("encoders", nargs="+")
    parser.add_argument("--train", default="generate:pilarnet?events=500&seed=101")
    parser.add_argument("--choose", default="generate:pilarnet?events=200&seed=102")
    arguments = parser.parse_args()
    train, choose, test = (list(open_events(one)) for one in (arguments.train, arguments.choose, arguments.test))
    print(f"{len(train)} events to train, {len(choose)} to choose, {len(test)} to judge: {Path(arguments.test).name}")
    print("| encoder | macro F1 | 68 % | " + " | ".join(m.name.lower() for m in Motif) + " | penalty |")
    print("|---" * (4 + len(Motif)) + "|")
    for name in arguments.encoders:
        encoder = open_encoder(name)
        result, penalty = probe_motifs(encoder, train, choose, test, MIN_ENERGY_MEV, POINTS, every_point=True)
        f1 = " | ".join(f"{value:.3f}" for value in result.f1)
        interval = f"[{result.macro_f1_low:.3f}, {result.macro_f1_high:.3f}]"
        print(f"| {Path(name).name} | {result.macro_f1:.3f} | {interval} | {f1} | {penalty:g} |", flush=True)


if __name__ == "__main__":
    main()
