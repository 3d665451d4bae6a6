"""Make the tables of ``larpanda.analysis.ranges`` from the generator's stopping power.

python benchmarks/range_tables.py
"""

import numpy as np

from larpanda.analysis.ranges import HIGHEST_MEV, LOWEST_MEV, RANGE_CM
from larpanda.data.physics.material import MUON_MASS, PION_MASS, PROTON_MASS, bethe
from larpanda.event import Species

MASSES = {Species.MUON: MUON_MASS, Species.PION: PION_MASS, Species.PROTON: PROTON_MASS}


def table(species: Species) -> np.ndarray:
    """CSDA ranges in cm at the energies of the tables."""
    energy = np.geomspace(1e-2, HIGHEST_MEV, 20_001)
    inverse = 0.1 / bethe(energy, MASSES[species])  # cm/MeV
    inner = np.cumsum(np.diff(energy) * (inverse[1:] + inverse[:-1]) / 2)
    way = np.concatenate([[0.0], inner]) + energy[0] * inverse[0]
    nodes = np.geomspace(LOWEST_MEV, HIGHEST_MEV, len(RANGE_CM[species]))
    return np.exp(np.interp(np.log(nodes), np.log(energy), np.log(way)))


if __name__ == "__main__":
    for species in MASSES:
        print(f"{species.name}: {', '.join(f'{way:.4g}' for way in table(species))}")
