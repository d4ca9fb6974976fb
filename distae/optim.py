"""Optimizers, parameter groups and the learning rate over time."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distae.config.optim import (
    CosineConfig,
    ExponentialConfig,
    OptimConfig,
    PlateauConfig,
    ScheduleConfig,
    StepConfig,
)
from distae.errors import TrainingError


def make_optimizer(cfg: OptimConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """A fused optimizer. With weight decay in two groups: weights, and vectors (biases, norms, scales), which do not decay.

    A second group costs a tiny model's step 3 percent.
    """
    decayed = weights(parameters) if cfg.weight_decay else []
    groups = [
        {"params": decayed, "weight_decay": cfg.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2] if decayed else parameters, "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if cfg.name == "sgd":
        return torch.optim.SGD(groups, cfg.lr, momentum=cfg.momentum, fused=True)
    kind = torch.optim.Adam if cfg.name == "adam" else torch.optim.AdamW
    return kind(groups, cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)


def weights(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters that penalties apply to: matrices and kernels."""
    return [p for p in parameters if p.ndim >= 2]


@torch.no_grad()
def add_l1(parameters: list[nn.Parameter], l1: float) -> None:
    """Add the subgradient of l1 * sum |w| to the gradients of the weights."""
    decayed: list[Tensor] = [p for p in weights(parameters) if p.grad is not None]
    grads = [p.grad for p in decayed if p.grad is not None]
    torch._foreach_add_(grads, torch._foreach_sign(decayed), alpha=l1)


@dataclass
class Plateau:
    """ReduceLROnPlateau's state: decided on reduced metrics, so the same on every rank."""

    scale: float = 1.0
    best: float | None = None
    bad: int = 0

    def observe(self, value: float, cfg: PlateauConfig) -> None:
        if self.best is None or value < self.best:
            self.best, self.bad = value, 0
            return
        self.bad += 1
        if self.bad > cfg.patience:
            self.scale, self.bad = max(self.scale * cfg.factor, cfg.min_factor), 0


class Schedule:
    """The learning rate of a step, as a factor on the peak: warm-up times decay."""

    def __init__(self, cfg: ScheduleConfig, total_steps: int, steps_per_epoch: int) -> None:
        self.cfg, self.total_steps, self.steps_per_epoch = cfg, total_steps, steps_per_epoch
        self.plateau = Plateau()

    def factor(self, step: int) -> float:
        """Factor for the update that makes `step` (from 0) into step + 1."""
        warmup = self.cfg.warmup_steps
        return min(1.0, (step + 1) / warmup if warmup else 1.0) * self._decay(step)

    def _decay(self, step: int) -> float:
        cfg, epoch = self.cfg, step // self.steps_per_epoch
        if isinstance(cfg, CosineConfig):
            span = max(1, self.total_steps - cfg.warmup_steps)
            done = min(max(step - cfg.warmup_steps, 0) / span, 1.0)
            return cfg.final_factor + (1 - cfg.final_factor) * 0.5 * (1 + math.cos(math.pi * done))
        if isinstance(cfg, StepConfig):
            return float(cfg.gamma ** (epoch // cfg.step_size))
        if isinstance(cfg, ExponentialConfig):
            return float(cfg.gamma**epoch)
        return self.plateau.scale

    def observe(self, value: float) -> None:
        """Tell the schedule the value of the best-metric at an evaluation."""
        if isinstance(self.cfg, PlateauConfig):
            self.plateau.observe(value, self.cfg)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[Tensor, str]) -> dict[str, Tensor]:
    """The optimizer's state by name: `PARAMETER.exp_avg` and so on."""
    return {
        f"{names[p]}.{key}": value
        for p, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[Tensor, str], tensors: dict[str, Tensor]) -> None:
    """Give the optimizer the state that `optimizer_tensors` took. Raises TrainingError on any that it cannot have."""
    parameters = {name: p for p, name in names.items()}
    optimizer.state.clear()
    for dotted, value in tensors.items():
        name, _, key = dotted.rpartition(".")
        p = parameters.get(name)
        # Fused optimizers do not compare sizes: a forged one would have them write past a tensor's end.
        if p is None or (value.shape, value.dtype) != (((), torch.float32) if key == "step" else (p.shape, p.dtype)):
            raise TrainingError(f"the optimizer state of the checkpoint has {dotted}, {value.dtype} {list(value.shape)}")
        # In the parameter's own memory format, which a fused optimizer takes for granted.
        optimizer.state[p][key] = value.to(p.device) if key == "step" else torch.empty_like(p).copy_(value)
    kept = _KEPT[type(optimizer)]
    if any(set(state) != kept for state in optimizer.state.values()):
        raise TrainingError(
            f"the optimizer state of the checkpoint is not that of {type(optimizer).__name__}: {', '.join(sorted(kept))}"
        )


_KEPT = {
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
}
