"""larpanda: raw 3D images of liquid-argon detectors to particles. Importing it loads nothing heavy."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from larpanda.data import open_events, write_events
    from larpanda.data.generate import generate
    from larpanda.event import (
        Event,
        Interaction,
        Motif,
        Particle,
        PointBatch,
        Reconstruction,
        Species,
        Status,
    )
    from larpanda.reconstruct import Reconstructor, load

__version__ = "0.1.0"
CITATION = (
    "S. Young and K. Terao, Panda: Self-distillation of Reusable Sensor-level Representations for High Energy Physics, "
    "arXiv:2512.01324"
)

_HOME = {
    "Event": "event",
    "Interaction": "event",
    "Motif": "event",
    "Particle": "event",
    "PointBatch": "event",
    "Reconstruction": "event",
    "Reconstructor": "reconstruct",
    "Species": "event",
    "Status": "event",
    "generate": "data.generate",
    "load": "reconstruct",
    "open_events": "data",
    "write_events": "data",
}

__all__ = [
    "CITATION",
    "Event",
    "Interaction",
    "Motif",
    "Particle",
    "PointBatch",
    "Reconstruction",
    "Reconstructor",
    "Species",
    "Status",
    "__version__",
    "generate",
    "load",
    "open_events",
    "write_events",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for: the command line's --help must not wait for PyTorch."""
    if name not in _HOME:
        raise AttributeError(f"module 'larpanda' has no attribute {name!r}")
    value = getattr(import_module(f"larpanda.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
