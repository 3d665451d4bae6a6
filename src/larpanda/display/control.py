"""The figure of control samples (``analysis.control``), from the numbers that an evaluation keeps of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from larpanda.analysis.ranges import loss_mev_per_cm
from larpanda.display.figures import INSTANCE_COLORS, svg_text
from larpanda.event import Species

MICHEL_END_MEV, PI0_MEV, LEAST_DEDX = 52.8, 135.0, 2.1
STOPPING = (Species.MUON, Species.PROTON)
MOST_DEDX = 25.0  # MeV/cm that are shown


def control_svg(samples: Mapping[str, Any]) -> str:
    """Draw four panels: Michel spectrum, loss of muons that go through, loss of stopping particles, pion mass.

    Args:
        samples: as ``analysis.control.samples_as_json`` gives them.

    Returns:
        One ``<svg>`` element.

    Raises:
        KeyError: some of them are not there.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 6.0), layout="constrained")
    (michel, through), (stopping, pion) = figure.subplots(2, 2)
    for panel, values, top, bins, line, x in (
        (michel, samples["michel_mev"], 80.0, 20, MICHEL_END_MEV, "Michel electrons, energy in MeV"),
        (through, samples["through_dedx"], 5.0, 40, LEAST_DEDX, "muons that go through, mean loss in MeV/cm"),
        (pion, samples["pi0_mass_mev"], 400.0, 20, PI0_MEV, "two photons, mass in MeV"),
    ):
        panel.hist(np.clip(values, 0, top), bins=np.linspace(0, top, bins + 1).tolist(), color=INSTANCE_COLORS[0])
        panel.axvline(line, color="#555555", linestyle="--", linewidth=0.8)
        panel.set_xlabel(f"{x} ({len(values)})", fontsize=8)
    for color, species in zip(INSTANCE_COLORS[1:], STOPPING, strict=False):
        found = samples["stopping"][species.name.lower()]
        name = f"{species.name.lower()}s, {len(found['dedx'])} steps of 1 cm"
        stopping.plot(found["residual_cm"], found["dedx"], ".", color=color, markersize=2.5, alpha=0.5, label=name)
        way = np.linspace(0.5, 30.0, 120)
        stopping.plot(way, loss_mev_per_cm(way, species), "-", color=color, linewidth=1.2)
    stopping.set_ylim(0, MOST_DEDX)
    stopping.set_xlabel("residual range in cm", fontsize=8)
    stopping.set_ylabel("loss in MeV/cm", fontsize=8)
    stopping.legend(fontsize=7, frameon=False)
    for panel in (michel, through, stopping, pion):
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    return svg_text(figure)
