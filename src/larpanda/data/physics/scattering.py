"""How the Coulomb fields of argon turn a charged particle.

Single scatters on a screened potential (Moliere's screening, Z (Z + 1) for nucleus and electrons), none beyond the
transfer that the size of the nucleus allows. PDG's Highland formula gives the same widths, but does not add up over
steps as short as ours.
"""

import numpy as np

from larpanda.data.physics.kernel import azimuth, kernel
from larpanda.data.physics.material import ELECTRON_MASS, PER_BARN, Z

ALPHA = 1 / 137.036
RE2 = 79.4079e-3  # classical electron radius squared, barn
MUCH = 0.25  # mean of 1 - cos in a step of which single scatters are still told apart
NUCLEUS_MEV = 100.0  # momentum transfer at which argon's form factor has fallen to 1 / e (rms radius 3.43 fm)


@kernel
def turning_rate(mass: float, energy: float) -> float:
    """Mean of 1 - cos per mm of a particle of charge 1: one over its transport mean free path.

    Args:
        mass: MeV.
        energy: MeV, kinetic.
    """
    strength, s, largest = _law(mass, energy)
    return float(strength * (np.log((largest + s) / s) - largest / (largest + s)))


@kernel
def _law(mass: float, energy: float) -> tuple[float, float, float]:
    """Single scatters in x = 1 - cos have a density c / (x + s)^2 per mm: c (1/mm), s, and the largest x."""
    gamma = 1.0 + energy / mass
    beta2 = 1.0 - 1.0 / gamma**2
    momentum2 = (gamma**2 - 1.0) * mass**2
    strength = 2.0 * np.pi * PER_BARN * RE2 * Z * (Z + 1.0) * ELECTRON_MASS**2 / (momentum2 * beta2)
    screening = (ALPHA * ELECTRON_MASS * Z ** (1 / 3) / 0.885) ** 2 / (4.0 * momentum2)
    s = 2.0 * screening * (1.13 + 3.76 * (ALPHA * Z) ** 2 / beta2)
    return strength, s, min(2.0, NUCLEUS_MEV**2 / (2.0 * momentum2))


@kernel
def scatter(mass: float, energy: float, step: float, turning: float, rng: np.random.Generator) -> float:
    """Cosine of the angle by which a particle of charge 1 is turned over `step` mm.

    Single scatters in x = 1 - cos have a density c / (x + s)^2 per mm. Those above `hard` (0.4 a step on average) are
    drawn one by one; the rest act together as an exponential deviate with their mean. Slow electrons, which turn by
    more than MUCH in a step, forget all but the mean.

    Args:
        mass: MeV.
        energy: MeV, kinetic.
        step: mm.
        turning: mean of 1 - cos over the step where that may be MUCH; else 0.
        rng: consumed.
    """
    strength, s, largest = _law(mass, energy)
    strength *= step
    gamma = 1.0 + energy / mass
    beta2 = 1.0 - 1.0 / gamma**2
    if turning > MUCH:  # so often that only the mean matters: a cosine whose density rises exponentially
        mean = np.exp(-turning)
        slope = max(mean * (3.0 - mean * mean) / (1.0 - mean * mean), 1e-3)  # nearly solves coth(a) - 1 / a = mean
        u = rng.random()
        return float(1.0 + np.log(u + (1.0 - u) * np.exp(-2.0 * slope)) / slope)
    hard = min(strength / 0.4, 0.5 * largest)
    soft_mean = strength * (np.log((hard + s) / s) - hard / (hard + s))
    x = soft_mean * rng.standard_exponential()
    if x > 2.0:
        x = 2.0 * rng.random()
    cos = 1.0 - x
    width = 1.0 / (hard + s) - 1.0 / (largest + s)
    path = rng.standard_exponential()
    while path < strength * width:
        single = 1.0 / (1.0 / (hard + s) - rng.random() * width) - s
        if rng.random() < 1.0 - beta2 * single / 2.0:
            c = 1.0 - single
            cos = cos * c + np.sqrt(max(0.0, (1.0 - cos * cos) * (1.0 - c * c))) * azimuth(rng)[0]
        path += rng.standard_exponential()
    return float(min(max(cos, -1.0), 1.0))
