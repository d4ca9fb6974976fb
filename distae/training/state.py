"""The state of a run: collected at a save, loaded at a resume."""

import functools
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn

from distae import distributed as dist
from distae.checkpoint import CheckpointReader
from distae.checkpoint.retention import STATE
from distae.config import TrainConfig
from distae.config.check import identity_settings
from distae.config.optim import CosineConfig
from distae.data import Identity, Transform
from distae.data.bad_rows import State
from distae.distributed.shards import is_sharded, like, local
from distae.errors import TrainingError, UserError
from distae.noise import ORDER
from distae.runtime.files import decode
from distae.runtime.run_dir import differences
from distae.tracking import Extent
from distae.training.accumulator import AccumulatorState
from distae.training.optim import Plateau, load_optimizer_tensors, optimizer_tensors
from distae.training.step import TrainStep


@dataclass
class TrainState:
    """Progress of a run, apart from tensors."""

    step: int = 0
    best_value: float | None = None
    best_step: int | None = None
    bad_evals: int = 0
    evaluated_step: int = 0
    """Newest step whose evaluation is done: a stop may come before one that is due."""

    def assign(self, other: "TrainState") -> None:
        """Copy the values of `other` in place: other objects hold this one."""
        vars(self).update(vars(other))


@dataclass(frozen=True)
class CheckpointMetadata:
    """state.json of a checkpoint: everything but tensors."""

    state: TrainState
    plateau: Plateau
    window: AccumulatorState
    scaler: dict[str, int | float] | None
    samples_seen: int
    total_steps: int
    metrics_bytes: Annotated[int, Meta(ge=0)]
    """Size of metrics.jsonl at the save; later rows are cut on a resume."""
    settings: dict[str, Any]
    """The settings that define the result."""
    world_size: int
    threads: int
    torch: str
    transform: Transform | None = None
    """Transform from stored values to the model's; None in older checkpoints."""
    metrics_xxh3: str | None = None
    """Checksum of these bytes of metrics.jsonl; None in older checkpoints."""
    order: int = 1
    """`noise.ORDER` of the version that saved it; 1 if missing."""
    data: Identity | None = None
    """Identity of the training data; None in older checkpoints."""
    parallel: str = "ddp"
    """--parallel of the save; older checkpoints are of ddp."""
    bad_rows: State | None = None
    """Samples that could not be read; None if there were none."""


def state_dict(train_step: TrainStep) -> dict[str, Tensor]:
    """`model.*`, `ema.*` and `optim.PHASE.*`: references, not copies; spread over the ranks like the parameters."""
    tensors = {f"model.{k}": v for k, v in train_step.model.state_dict().items()}
    if train_step.ema:
        tensors |= {f"ema.{k}": v for k, v in train_step.ema.model.state_dict().items()}
    layout = dict(train_step.model.named_parameters())
    for phase, optimizer in train_step.optimizers.items():
        for name, value in optimizer_tensors(optimizer, train_step.names).items():
            parameter, _, key = name.rpartition(".")
            tensors[f"optim.{phase}.{name}"] = value if key == "step" else like(value, layout[parameter])
    return tensors


def _optimizer_target(parameters: dict[str, nn.Parameter], name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
    """A new tensor to load `optim.PHASE.PARAMETER.KEY` into: this rank's part, or a whole one on the CPU."""
    parameter, _, key = name.removeprefix("optim.").partition(".")[2].rpartition(".")
    p = parameters.get(parameter)
    if p is None or key == "step" or not is_sharded(p) or p.shape != size:
        return torch.empty(size, dtype=dtype)
    return like(torch.empty_like(local(p), dtype=dtype), p)


def checkpoint_metadata(
    cfg: TrainConfig,
    state: TrainState,
    train_step: TrainStep,
    rows: Extent,
    total_steps: int,
    threads: int,
    data: Identity,
    bad_rows: State | None,
) -> CheckpointMetadata:
    """Non-tensor state. Collective: called on all ranks together."""
    return CheckpointMetadata(
        state=state,
        plateau=train_step.schedule.plateau,
        window=train_step.window.state(),
        scaler=train_step.scaler.state_dict() if train_step.scaler else None,
        samples_seen=state.step * cfg.global_batch_size,
        total_steps=total_steps,
        metrics_bytes=rows.size,
        metrics_xxh3=rows.xxh3,
        settings=identity_settings(cfg),
        world_size=dist.world().world_size,
        threads=threads,
        torch=str(torch.__version__),
        transform=train_step.loader.split.transform,
        order=ORDER,
        parallel=cfg.parallel.name,
        data=data,
        bad_rows=bad_rows,
    )


def load_state_dict(store: CheckpointReader, step: int, train_step: TrainStep) -> CheckpointMetadata:
    """Load tensors, loss scale and open log window of a checkpoint into `train_step`; returns its metadata.

    Raises TrainingError if it cannot be read, or is of another model.
    """
    try:
        saved = decode(store.state(step), CheckpointMetadata)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{STATE} of the checkpoint at step {step} cannot be read: {error}") from error
    if saved.state.step != step or (saved.scaler and not saved.scaler.keys() >= _SCALER):
        raise TrainingError(f"{STATE} of the checkpoint at step {step} is of another step, or incomplete")
    into = {k: v for k, v in state_dict(train_step).items() if not k.startswith("optim.")}
    parameters = dict(train_step.model.named_parameters())
    loaded = store.load(step, into, "optim.", functools.partial(_optimizer_target, parameters))
    for phase, optimizer in train_step.optimizers.items():
        prefix = f"optim.{phase}."
        mine = {k.removeprefix(prefix): v for k, v in loaded.items() if k.startswith(prefix)}
        load_optimizer_tensors(optimizer, train_step.names, mine, parameters)
    if train_step.scaler and saved.scaler:
        train_step.scaler.load_state_dict(saved.scaler)
    train_step.window.load(saved.window)
    return saved


_SCALER = set(torch.amp.GradScaler("cpu").state_dict())


def check_order(saved: CheckpointMetadata, run_dir: str | None) -> None:
    """Raises UserError if it was saved by a version with a different order of rows and noise: it would continue differently."""
    if saved.order != ORDER:
        raise UserError(
            f"--run-dir: the run in {run_dir} is of another version of distae (order {saved.order}, here {ORDER}), with other "
            "noise and rows per rank: resuming it would continue it differently.\n"
            "Give --fresh to start a new run, or another --run-dir with --fork-from (full state) or --init-from (weights of a "
            "finished run); distae.load and `python -m distae.checkpoint RUN --export` still read it"
        )


def compare(saved: CheckpointMetadata, cfg: TrainConfig, total_steps: int, threads: int) -> list[str]:
    """Notes on what differs from the run that saved, and on the consequences."""
    notes = []
    then = (saved.world_size, saved.threads, saved.parallel if saved.world_size > 1 else "ddp")
    now = (dist.world().world_size, threads, cfg.parallel.name if dist.world().world_size > 1 else "ddp")
    if then != now:
        kinds = ("", "") if then[2] == now[2] else (f" ({then[2]})", f" ({now[2]})")
        notes.append(
            f"saved by {then[0]} processes of {then[1]} threads{kinds[0]}, resumed by {now[0]} of {now[1]}{kinds[1]}: "
            "results agree up to rounding, not bit for bit"
        )
    if saved.total_steps != total_steps and isinstance(cfg.schedule, CosineConfig):
        notes.append(
            f"the run is {total_steps} steps long now, not {saved.total_steps}: the cosine schedule's remaining rates are those "
            "of the new length"
        )
    return notes


def changed_data(saved: CheckpointMetadata, cfg: TrainConfig, data: Identity) -> str | None:
    """How the data differ from those at the save, as text; None if they are equal or the checkpoint does not record them."""
    differ = differences(saved.data, data, "there") if saved.data else ""
    return f"{_source(cfg)}: the data differ from those of the checkpoint at step {saved.state.step}: {differ}" if differ else None


def _source(cfg: TrainConfig) -> str:
    path, root = getattr(cfg.data, "path", None), getattr(cfg.data, "root", None)
    return f"--data.path {path}" if path else f"--data {cfg.data.name}" + (f" in {root}" if root else "")
