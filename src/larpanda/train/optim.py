"""AdamW with the paper's parameter groups and schedules (section 3.5), all functions of progress in [0, 1]."""

import math
import re
from dataclasses import dataclass

import torch
from torch import nn

NO_DECAY = {"mask_token", "prototypes"}  # parts of names; directions and stand-ins have no size that could overfit


@dataclass(frozen=True)
class OptimConfig:
    """How weights move. Defaults: the paper's fine-tuning (section 3.5)."""

    lr: float = 2.6e-3
    """Peak learning rate."""
    warmup: float = 0.05
    """Share of the run in which the rate rises, linearly from a tenth."""
    final_lr: float = 1e-3
    """Last learning rate over the peak; cosine decay."""
    weight_decay: float = 0.01
    """Not applied to biases, norms, layer scales, the mask token and prototypes."""
    final_weight_decay: float | None = None
    """Last weight decay, reached along a cosine; None: constant."""
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    """Largest norm of the gradient."""
    layer_decay: float = 1.0
    """Learning rate of an encoder block over that of the next; fine-tuning from scratch takes 1."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or not 0 <= self.warmup < 1 or not 0 < self.layer_decay <= 1 or self.clip <= 0:
            raise ValueError("optim: needs lr > 0, 0 <= warmup < 1, 0 < layer_decay <= 1 and clip > 0")
        if min(self.weight_decay, self.final_weight_decay or 0.0, self.final_lr) < 0:
            raise ValueError("optim: weight_decay, final_weight_decay and final_lr must not be negative")


def learning_rate(config: OptimConfig, progress: float) -> float:
    """Learning rate at ``progress`` in [0, 1]: linear warm-up, then cosine decay."""
    if progress < config.warmup:
        return config.lr * (0.1 + 0.9 * progress / config.warmup)
    done = (progress - config.warmup) / (1.0 - config.warmup)
    return _cosine(config.lr, config.lr * config.final_lr, done)


def weight_decay(config: OptimConfig, progress: float) -> float:
    """Weight decay at ``progress`` in [0, 1]: along a cosine from the first to the last value."""
    last = config.weight_decay if config.final_weight_decay is None else config.final_weight_decay
    return _cosine(config.weight_decay, last, progress)


def _cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that train. Each group has its ``scale`` of the rate, and whether it ``decays``."""
    n_blocks = len({match[0] for name, _ in model.named_parameters() if (match := _encoder_block(name))})
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    blocks: list[str] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = 1.0
        if match := _encoder_block(name):
            if match[0] not in blocks:
                blocks.append(match[0])
            scale = config.layer_decay ** (n_blocks - 1 - blocks.index(match[0]))
        decays = parameter.ndim >= 2 and not NO_DECAY & set(name.split("."))
        groups.setdefault((scale, decays), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": p, "scale": scale, "decays": decays} for (scale, decays), p in groups.items()],
        lr=config.lr,
        betas=config.betas,
    )
    set_weight_decay(optimizer, config.weight_decay)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def set_weight_decay(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Give every group that decays this decay."""
    for group in optimizer.param_groups:
        group["weight_decay"] = decay if group["decays"] else 0.0


def _encoder_block(name: str) -> re.Match[str] | None:
    """Of a fine-tuned model, or of the student within a larger one."""
    return re.search(r"\bencoder\.blocks\.\d+\.\d+\.", name)
