"""Everything a run goes on from: taken at a save, put back at a resume."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor

from distae import distributed as dist
from distae.checkpoint import Checkpoints
from distae.checkpoint.retention import STATE
from distae.config import TrainConfig
from distae.config.check import defining
from distae.config.optim import CosineConfig
from distae.errors import TrainingError
from distae.runtime.files import decode
from distae.training.optim import Plateau, load_optimizer_tensors, optimizer_tensors
from distae.training.step import OpenWindow, Stepper


@dataclass
class TrainState:
    """Where a run stands, apart from tensors."""

    step: int = 0
    best_value: float | None = None
    best_step: int | None = None
    bad_evals: int = 0
    evaluated_step: int = 0
    """Newest step whose evaluation is done: a stop may come before a due one."""


@dataclass(frozen=True)
class Saved:
    """state.json of a checkpoint: all there is besides tensors."""

    state: TrainState
    plateau: Plateau
    window: OpenWindow
    scaler: dict[str, int | float] | None
    samples_seen: int
    total_steps: int
    metrics_bytes: Annotated[int, Meta(ge=0)]
    """Size of metrics.jsonl at the save; what is behind it is cut on a resume."""
    settings: dict[str, Any]
    """The settings that define the result."""
    world_size: int
    threads: int
    torch: str


def tensors_of(stepper: Stepper) -> dict[str, Tensor]:
    """`model.*`, `ema.*` and `optim.TURN.*`: references, not copies."""
    tensors = {f"model.{k}": v for k, v in stepper.model.state_dict().items()}
    if stepper.average:
        tensors |= {f"ema.{k}": v for k, v in stepper.average.model.state_dict().items()}
    for turn, optimizer in stepper.optimizers.items():
        tensors |= {f"optim.{turn}.{k}": v for k, v in optimizer_tensors(optimizer, stepper.names).items()}
    return tensors


def take(cfg: TrainConfig, state: TrainState, stepper: Stepper, metrics_bytes: int, total_steps: int, threads: int) -> Saved:
    """What is no tensor; asked of all ranks together."""
    return Saved(
        state=state,
        plateau=stepper.schedule.plateau,
        window=stepper.window.state(),
        scaler=stepper.scaler.state_dict() if stepper.scaler else None,
        samples_seen=state.step * cfg.global_batch_size,
        total_steps=total_steps,
        metrics_bytes=metrics_bytes,
        settings=defining(cfg),
        world_size=dist.world().world_size,
        threads=threads,
        torch=str(torch.__version__),
    )


def restore(checkpoints: Checkpoints, step: int, stepper: Stepper) -> Saved:
    """Put a checkpoint's tensors, loss scale and open window back into `stepper`; returns the rest.

    Raises TrainingError where it cannot be read, or is of another model.
    """
    try:
        saved = decode(checkpoints.state(step), Saved)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{STATE} of the checkpoint at step {step} cannot be read: {error}") from error
    if saved.state.step != step or (saved.scaler and not saved.scaler.keys() >= _SCALER):
        raise TrainingError(f"{STATE} of the checkpoint at step {step} is not of that step, or not whole")
    into = {k: v for k, v in tensors_of(stepper).items() if not k.startswith("optim.")}
    loaded = checkpoints.load(step, into, "optim.")
    for turn, optimizer in stepper.optimizers.items():
        prefix = f"optim.{turn}."
        mine = {k.removeprefix(prefix): v for k, v in loaded.items() if k.startswith(prefix)}
        load_optimizer_tensors(optimizer, stepper.names, mine)
    if stepper.scaler and saved.scaler:
        stepper.scaler.load_state_dict(saved.scaler)
    stepper.window.load(saved.window)
    return saved


_SCALER = set(torch.amp.GradScaler("cpu").state_dict())


def compare(saved: Saved, cfg: TrainConfig, total_steps: int, threads: int) -> list[str]:
    """What is other than when it was saved, and what that means."""
    notes = []
    then, now = (saved.world_size, saved.threads), (dist.world().world_size, threads)
    if then != now:
        notes.append(
            f"saved by {then[0]} processes of {then[1]} threads, resumed by {now[0]} of {now[1]}: "
            "results agree up to rounding, not bit for bit"
        )
    if saved.total_steps != total_steps and isinstance(cfg.schedule, CosineConfig):
        notes.append(
            f"the run is {total_steps} steps long now, not {saved.total_steps}: the cosine schedule's remaining rates are those "
            "of the new length"
        )
    return notes
