"""From your own points to a file of events: a CSV in cm and electrons, of a detector with 4 mm voxels.

    python examples/from_arrays.py                         # makes some points itself, in a temporary folder
    python examples/from_arrays.py points.csv mine.h5

Columns of the CSV: x_cm, y_cm, z_cm, charge (electrons), and event if it has several. Change the three constants to
your detector. Where the points are in NumPy arrays already, start at `to_events`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import larpanda

CORNER_CM = np.array([-115.2, -115.2, -115.2])  # of the cube of 230.4 cm that an event must lie in, in your frame
VOXEL_CM = 0.3  # of larpanda, whatever yours are
# 23.6 eV an ion pair in argon, and 70 % of the electrons of a minimum-ionising track escape recombination at 0.5 kV/cm.
MEV_PER_ELECTRON = 23.6e-6 / 0.70


def make_csv(path: Path) -> None:
    """Two muon-like tracks: 2.1 MeV/cm in steps of a 4 mm voxel, as electrons."""
    along_cm = np.arange(0.0, 200.0, 0.4)
    lines = ["event,x_cm,y_cm,z_cm,charge"]
    for event, direction in enumerate([(0.8, 0.6, 0.0), (0.0, 0.28, 0.96)]):
        for x, y, z in np.outer(along_cm, direction) - 100.0:
            lines.append(f"{event},{x:.2f},{y:.2f},{z:.2f},{0.4 * 2.1 / MEV_PER_ELECTRON:.0f}")
    path.write_text("\n".join(lines) + "\n")


def to_events(event_number: np.ndarray, position_cm: np.ndarray, electrons: np.ndarray) -> list[larpanda.Event]:
    """Arrays [N], [N, 3], [N] of all events -> one Event for each number."""
    voxel = np.floor((position_cm - CORNER_CM) / VOXEL_CM).astype(int)  # several points may share one
    energy = electrons * MEV_PER_ELECTRON
    # Event.from_arrays checks what it is given, and takes labels too: motif=, species=, particle=, interaction=.
    return [
        larpanda.Event.from_arrays(voxel[event_number == n], energy[event_number == n], event=int(n))
        for n in np.unique(event_number)
    ]


def main(csv: Path, out: Path) -> None:
    """Read the points, write the events, and read those back."""
    table = np.genfromtxt(csv, delimiter=",", names=True)
    position_cm = np.column_stack([table["x_cm"], table["y_cm"], table["z_cm"]])
    number = table["event"] if "event" in table.dtype.names else np.full(len(table), -1)  # -1: none

    larpanda.write_events(out, to_events(number, position_cm, table["charge"]))

    for event in larpanda.open_events(out):
        print(f"{event.key}: {len(event)} points, {event.energy.sum():.1f} MeV")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            make_csv(Path(folder) / "points.csv")
            main(Path(folder) / "points.csv", Path(folder) / "mine.h5")
