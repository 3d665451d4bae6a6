"""A linear probe: what multinomial logistic regression can read off features (paper section 3.5).

Takes arrays, knows no model. Its one setting, the penalty, is chosen on events that neither train it nor judge it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)  # from strong to weak: each fit begins where the last one ended
ITERATIONS = 200


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A fitted regression: logits = x @ weight + bias."""

    weight: Tensor  # [C, K] float32, for features as they are given
    bias: Tensor  # [K] float32
    penalty: float

    def predict(self, x: Tensor) -> Tensor:
        """The likeliest class of each row: [N, C] float32 -> [N] int64."""
        return torch.addmm(self.bias, x, self.weight).argmax(1)


def fit_probes(
    x: Tensor,
    label: Tensor,
    n_classes: int,
    penalties: Sequence[float] = PENALTIES,
    iterations: int = ITERATIONS,
    first: Probe | None = None,
) -> list[Probe]:
    """Fit a regression for each penalty.

    Minimises the mean of -log p(label) plus penalty / 2 times the sum of squared weights of features scaled to unit
    variance, by L-BFGS.

    Args:
        x: [N, C] float32 features.
        label: [N] int64 in 0..n_classes - 1.
        n_classes: K.
        penalties: in the order of fitting.
        iterations: at most, for each.
        first: where the first fit begins, e.g. what a part of the rows gave; None: at zero.

    Raises:
        ValueError: no rows, or values that are not finite.

    Cost: two passes over x an iteration.
    """
    from scipy.optimize import minimize

    if not len(x):
        raise ValueError("a probe needs at least one labelled point")
    mean, deviation = x.mean(0), x.std(0, correction=0)
    if not torch.isfinite(mean).all() or not torch.isfinite(deviation).all():
        raise ValueError("features are not finite; a probe cannot be fitted")
    scale = torch.where(deviation > 1e-6 * deviation.max(), 1.0 / deviation, 0.0)  # constant features say nothing
    one_hot = torch.nn.functional.one_hot(label, n_classes).float()
    n, channels = x.shape
    share = one_hot.mean(0)
    spread = (share * (1.0 - share)).clamp(min=1.0 / n)  # what the curvature of a class's weights is in proportion to
    correlation = (x.t() @ x / n - torch.outer(mean, mean)) * torch.outer(scale, scale)
    variance, axes = torch.linalg.eigh(correlation.double())
    variance, axes = variance.clamp(min=0.0).float(), axes.float()

    def steps(penalty: float) -> Tensor:
        """[C + 1, K]: the length of a step along each axis, and of the bias, after which curvatures are alike."""
        return torch.cat([torch.outer(variance, spread) + penalty, spread[None]]).rsqrt()

    def unfold(flat: npt.NDArray[np.float64], step: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [C, K] for scaled features, and bias [K] at their mean."""
        theta = torch.from_numpy(flat).float().view(channels + 1, n_classes) * step
        return axes @ theta[:-1], theta[-1]

    def value(flat: npt.NDArray[np.float64], penalty: float, step: Tensor) -> tuple[float, npt.NDArray[np.float64]]:
        scaled, bias = unfold(flat, step)
        weight = scaled * scale[:, None]
        log_p = torch.addmm(bias - mean @ weight, x, weight).log_softmax(1)
        loss = -log_p.gather(1, label[:, None]).double().mean().item()
        error = (log_p.exp_() - one_hot) / n
        grad = (x.t() @ error - torch.outer(mean, error.sum(0))) * scale[:, None] + penalty * scaled
        grad = torch.cat([axes.t() @ grad, error.sum(0)[None]]) * step
        return loss + penalty / 2 * scaled.square().sum().item(), grad.double().flatten().numpy()

    scaled, bias = torch.zeros(channels, n_classes), torch.zeros(n_classes)
    if first is not None:
        scaled = first.weight / scale.where(scale > 0, torch.inf)[:, None]
        bias = first.bias + mean @ first.weight
    probes = []
    for penalty in penalties:
        step = steps(penalty)
        start = (torch.cat([axes.t() @ scaled, bias[None]]) / step).double().flatten().numpy()
        done = minimize(
            value,
            start,
            (penalty, step),
            "L-BFGS-B",
            jac=True,
            options={"maxiter": iterations, "ftol": 1e-7, "gtol": 1e-6},
        )
        scaled, bias = unfold(done.x, step)
        weight = scaled * scale[:, None]
        probes.append(Probe(weight, bias - mean @ weight, penalty))
    return probes
