"""What does an encoder know that was never told a label? A linear probe on features of `nano_encoder`, and a picture.

    python examples/probe.py                    # in a temporary folder
    python examples/probe.py features.png

Every point of an event has a feature vector. Its three first principal components become red, green and blue; beside it
the true motifs, and what a linear layer reads off the features after a few labelled events.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import larpanda
from larpanda.display.figures import MOTIF_COLOR
from larpanda.evaluate.probe import fit_probes
from larpanda.event import MIN_ENERGY_MEV, Motif

N_TRAIN = 8  # labelled events


def features_of(model: larpanda.Reconstructor, event: larpanda.Event) -> torch.Tensor:
    """[N, C] of the event's voxels above threshold."""
    return model.features(event)


def colours(features: torch.Tensor) -> np.ndarray:
    """[N, C] -> [N, 3]: principal components, ranked, as colours."""
    _, _, axes = torch.pca_lowrank(features - features.mean(0), q=3)
    ranks = ((features - features.mean(0)) @ axes).argsort(0).argsort(0)
    return (ranks / len(features)).numpy()


def main(picture: Path) -> None:
    """Fit a probe and draw an event that it has not seen."""
    torch.manual_seed(0)
    model = larpanda.load("nano_encoder")
    events = [event.visible(MIN_ENERGY_MEV)[0] for event in larpanda.generate(N_TRAIN + 1, seed=100)]
    train, test = events[:-1], events[-1]
    x, label = torch.cat([features_of(model, e) for e in train]), torch.cat([e.motif for e in train])
    (probe,) = fit_probes(x, label, len(Motif), [1e-4])
    features = features_of(model, test)
    said = probe.predict(features)

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    place = test.position.numpy() * 0.3
    palette = np.array([MOTIF_COLOR[motif] for motif in Motif])
    panels = {"features": colours(features), "true motifs": palette[test.motif], "linear probe": palette[said]}
    for panel, (title, color) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        panel.scatter(place[:, 2], place[:, 1], s=1.5, c=color, linewidths=0)
        panel.set(title=title, aspect="equal", xlabel="z [cm]", ylabel="y [cm]")
    figure.savefig(picture, dpi=130)
    right = (said == test.motif).float().mean().item()
    print(f"{N_TRAIN} labelled events: {100 * right:.0f} % of the voxels of another one are right: {picture.name}")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder, "features.png"))
