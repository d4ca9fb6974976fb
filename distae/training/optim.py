"""Optimizers, parameter groups and the learning rate over time."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from distae.config.optim import (
    CosineConfig,
    ExponentialConfig,
    OptimConfig,
    PlateauConfig,
    ScheduleConfig,
    StepConfig,
)
from distae.distributed import all_reduce_, shards
from distae.distributed.parallelize import blocks_of
from distae.errors import TrainingError, UserError


def layer_scales(model: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """Share of the learning rate of the encoder's parameters (BEiT, Bao 2022): `decay` to the power of how many blocks follow.

    What comes before the first of n blocks has decay**n; what follows the last, and is not named here, has 1.
    Raises UserError where the encoder has no blocks.
    """
    if decay == 1:
        return {}
    encoder = getattr(getattr(model, "codec", model), "encoder", None)
    blocks = blocks_of(encoder) if isinstance(encoder, nn.Module) else []
    if not isinstance(encoder, nn.Module) or not blocks:
        raise UserError(f"--optim.layer-decay {decay}: the model has no encoder of several blocks; leave it out")
    number = {p: i for i, block in enumerate(blocks, 1) for p in block.parameters()}
    scales, reached = {}, 0
    for p in encoder.parameters():  # in the order of the computation
        reached = number.get(p, reached)
        scales[p] = decay ** (len(blocks) - reached)
    return scales


def make_optimizer(
    cfg: OptimConfig, parameters: list[nn.Parameter], scales: Mapping[nn.Parameter, float] | None = None
) -> torch.optim.Optimizer:
    """A fused optimizer. With weight decay it has two groups: weights, and vectors (biases, norms, scales), which do not decay.

    Without, one: a second group costs 3 percent of the step of a tiny model. Both are divided further by `scales`, the shares of
    the learning rate, which are 1 by default: `lr_scale` of each group.
    """
    decayed = weights(parameters) if cfg.weight_decay else []
    groups = [
        {"params": decayed, "weight_decay": cfg.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2] if decayed else parameters, "weight_decay": 0.0},
    ]
    groups = [part for g in groups for part in _by_scale(g, scales or {})]
    if cfg.name == "sgd":
        sgd = torch.optim.SGD(groups, cfg.lr, momentum=cfg.momentum, fused=True)
        for p in parameters if cfg.momentum else ():
            # torch does not initialise them, and they stay so if the first step is masked, as it often is with fp16.
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return sgd
    return FusedAdam(groups, cfg.lr, betas=cfg.betas, eps=cfg.eps, decoupled_weight_decay=cfg.name == "adamw", fused=True)


def _by_scale(group: dict[str, Any], scales: Mapping[nn.Parameter, float]) -> list[dict[str, Any]]:
    """The group in parts of equal share of the learning rate, without empty ones."""
    found: dict[float, list[nn.Parameter]] = {}
    for p in group["params"]:
        found.setdefault(scales.get(p, 1.0), []).append(p)
    return [{**group, "params": params, "lr_scale": scale} for scale, params in found.items()]


class _GroupTensors(NamedTuple):
    """The parameters of a group that have gradients, and their state; `steps` are views of `vector`."""

    names: tuple[int, ...]
    tensors: tuple[list[Tensor], list[Tensor], list[Tensor]]
    """Parameters, first and second moments."""
    steps: list[Tensor]
    vector: Tensor


class FusedAdam(torch.optim.Adam):
    """torch's fused Adam and AdamW (Kingma & Ba 2015; Loshchilov & Hutter 2019), bit for bit, with less overhead per step.

    At every step torch adds 1 to a step count per parameter, takes it back if the update is masked, and sorts all tensors by
    device: a tenth of a tiny model's step. Here the counts of a group are views of one vector, and the lists are kept.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group_tensors: dict[int, _GroupTensors] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update from the gradients; parameters without one are skipped, as in torch."""
        groups = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if any(p not in self.state for params in groups for p in params):
            self.group_tensors = {}
            super().step()  # makes their state
            return
        for number, (group, params) in enumerate(zip(self.param_groups, groups, strict=True)):
            names = tuple(map(id, params))
            if params and (number not in self.group_tensors or self.group_tensors[number].names != names):
                self.group_tensors[number] = self._gather(names, params)
            if params:
                self._update(group, self.group_tensors[number])

    def _gather(self, names: tuple[int, ...], params: list[Tensor]) -> _GroupTensors:
        states = [self.state[p] for p in params]
        vector = torch.stack([state["step"] for state in states])
        steps = list(vector.unbind())
        for state, own in zip(states, steps, strict=True):
            state["step"] = own
        return _GroupTensors(names, (params, [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]), steps, vector)

    def _update(self, group: dict[str, Any], of: _GroupTensors) -> None:
        params, averages, squares = of.tensors
        update = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        found_inf = getattr(self, "found_inf", None)
        of.vector.add_(1)
        grads = [p.grad for p in params if p.grad is not None]
        update(
            params, grads, averages, squares, [], of.steps,
            lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"], weight_decay=group["weight_decay"],
            amsgrad=False, maximize=False, grad_scale=getattr(self, "grad_scale", None), found_inf=found_inf,
        )  # fmt: skip
        if found_inf is not None:
            of.vector.sub_(found_inf)


def weights(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters that penalties apply to: matrices and kernels."""
    return [p for p in parameters if p.ndim >= 2]


@torch.no_grad()
def add_l1(parameters: list[nn.Parameter], l1: float) -> None:
    """Add the subgradient of l1 * sum |w| to the gradients of the weights."""
    decayed: list[Tensor] = [p for p in weights(parameters) if p.grad is not None]
    grads = [p.grad for p in decayed if p.grad is not None]
    torch._foreach_add_(grads, torch._foreach_sign(decayed), alpha=l1)


class ShardedScaler(torch.amp.GradScaler):
    """torch's loss scaler where each rank has parts of the gradients: one that overflows on any rank skips the step on all."""

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        super().unscale_(optimizer)
        for found in self._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values():
            all_reduce_(found).clamp_(max=1)


class Update(NamedTuple):
    """One update: its gradient's norm, and whether it was applied. Scalars on the device."""

    grad_norm: Tensor
    finite: Tensor


def apply_update(
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    cfg: OptimConfig,
    scaler: torch.amp.GradScaler | None,
    norm: Callable[[list[Tensor]], Tensor] = shards.norm,
) -> Update:
    """Add the L1 penalty, clip and step; an update from a non-finite gradient is masked on the device.

    Gradients are already averaged over ranks, so all ranks mask the same steps. With loss scaling, the scaler skips them instead.
    `norm` computes the gradient's norm; where `parameters` are this rank's parts only, of the gradients of all ranks.
    """
    if scaler:
        scaler.unscale_(optimizer)
    if cfg.l1:
        add_l1(parameters, cfg.l1)
    grads = [p.grad for p in parameters if p.grad is not None]
    grad_norm = norm(grads)
    if cfg.max_grad_norm:
        clip_grads_with_norm_(parameters, cfg.max_grad_norm, grad_norm)
    if scaler:
        scaler.step(optimizer)
        return Update(grad_norm, torch.ones_like(grad_norm, dtype=torch.bool))
    finite = grad_norm < math.inf  # false for NaN too
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()
    return Update(grad_norm, finite)


@dataclass
class Plateau:
    """ReduceLROnPlateau's state: decided on reduced metrics, so the same on every rank."""

    scale: float = 1.0
    best: float | None = None
    bad: int = 0

    def observe(self, value: float, cfg: PlateauConfig) -> None:
        if math.isfinite(value) and (self.best is None or value < self.best):
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
        """Pass the value of --best-metric at an evaluation to the schedule."""
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


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    names: dict[Tensor, str],
    tensors: dict[str, Tensor],
    whole: Mapping[str, Tensor] | None = None,
) -> None:
    """Load the state that `optimizer_tensors` returned. Raises TrainingError on names, shapes or types that do not fit.

    Where the optimizer updates parts, `whole` are the sharded parameters by name.
    """
    parameters = {name: p for p, name in names.items()}
    optimizer.state.clear()
    if isinstance(optimizer, FusedAdam):
        optimizer.group_tensors = {}
    for dotted, value in tensors.items():
        name, _, key = dotted.rpartition(".")
        p = parameters.get(name)
        # Fused optimizers do not check sizes: with a forged one they would write past the end of a tensor.
        if p is None or (value.shape, value.dtype) != (
            ((), torch.float32) if key == "step" else ((whole or parameters)[name].shape, p.dtype)
        ):
            raise TrainingError(
                f"the optimizer state of the checkpoint does not fit the model: it has {dotted}, {value.dtype} {list(value.shape)}"
            )
        # Fused optimizers need the state in the parameter's own memory format.
        optimizer.state[p][key] = value.to(p.device) if key == "step" else torch.empty_like(p).copy_(shards.local(value))
    kept = _STATE_KEYS[type(optimizer)]
    if any(set(state) != kept for state in optimizer.state.values()):
        raise TrainingError(
            f"the optimizer state of the checkpoint is not that of {type(optimizer).__name__}; expected {', '.join(sorted(kept))}"
        )


_STATE_KEYS = {
    torch.optim.SGD: {"momentum_buffer"},
    FusedAdam: {"step", "exp_avg", "exp_avg_sq"},
}
