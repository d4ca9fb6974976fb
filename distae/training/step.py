"""One optimizer step: forward, backward, reduction, update, in the precision asked for, without asking the device for a number."""

import contextlib
import copy
import functools
import inspect
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_

from distae import distributed as dist
from distae.config import TrainConfig
from distae.data import Loader
from distae.errors import TrainingError
from distae.models import Autoencoder, Batch, Output, Phase
from distae.noise import Noise, Rows
from distae.training.compile import Compiled
from distae.training.optim import Schedule, add_l1, make_optimizer
from distae.training.profiling import Timers

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

COMPRESSION = {"bf16": bf16_compress_hook, "fp16": fp16_compress_hook}


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The autocast region of a precision; nothing where it is full."""
    return torch.autocast(device.type, AUTOCAST[precision]) if precision in AUTOCAST else contextlib.nullcontext()


@dataclass(frozen=True)
class AccumulatorState:
    """A log window as a checkpoint holds it."""

    names: list[str]
    sums: list[list[float]]
    """Of each rank."""
    steps: int

    def __post_init__(self) -> None:
        if any(len(of_rank) != len(self.names) for of_rank in self.sums):
            raise ValueError("a rank's sums are not one per name")


class MetricAccumulator:
    """Sums of the terms since the last log, on the device, and how many steps passed before the first non-finite one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: list[str] = []
        self.clear()

    def clear(self) -> None:
        self.steps = 0
        self.open: dict[tuple[str, ...], Tensor] = {}
        self.sums = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
        self.good = torch.ones((), device=self.device)
        self.good_steps = torch.zeros((), device=self.device)

    def add(self, out: Output) -> None:
        """Add the terms of one micro-step of one phase."""
        names = (*out.per_sample, *out.per_batch)
        values = torch.stack([*out.per_sample.values()]).mean(1)
        if out.per_batch:
            values = torch.cat([values, torch.stack([*out.per_batch.values()]).to(values.dtype)])
        self.open[names] = self.open[names] + values if names in self.open else values

    def close_step(self, finite: Tensor, micro_steps: int) -> None:
        """End an optimizer step; `finite` is false where one of its updates was masked."""
        if not self.names:
            self.names = [name for names in self.open for name in names]
            self.sums = self.sums.new_zeros(len(self.names))
        phases = [*self.open.values()]
        values = phases[0] if len(phases) == 1 else torch.cat(phases)
        self.sums += values if micro_steps == 1 else values / micro_steps
        self.open = {}
        self.good *= finite
        self.good_steps += self.good
        self.steps += 1

    def state(self) -> AccumulatorState:
        """What `load` wants; asked of all ranks together."""
        return AccumulatorState(self.names, dist.gather(self.sums.tolist()), self.steps)

    def load(self, state: AccumulatorState) -> None:
        """Go on with a window that was open at a save; all its steps were finite, else it had not been saved.

        Each rank gets its own sums back, to the last bit; on another number of ranks rank 0 gets them all.
        """
        self.names = state.names
        self.clear()
        self.steps = state.steps
        self.good_steps += self.steps
        world, sums = dist.world(), torch.tensor(state.sums, dtype=self.sums.dtype, device=self.device)
        if len(sums) == world.world_size:
            self.sums += sums[world.rank]
        elif world.is_main:
            # read() divides by today's number of ranks; these are the sums of that many then.
            self.sums += sums.sum(0) * (world.world_size / len(sums))

    def read(self) -> tuple[dict[str, float], int | None]:
        """Means over the window and all ranks, and the number (from 1) of the first masked step in it. Synchronises."""
        sums = dist.all_reduce_(self.sums.clone()) / max(1, self.steps * dist.world().world_size)
        *means, good, good_steps = torch.cat([sums, torch.stack([self.good, self.good_steps])]).tolist()
        return dict(zip(self.names, means, strict=True)), None if good else int(good_steps) + 1


class EMA:
    """Exponential moving average of the parameters; buffers are copied. Starts at the model's own values."""

    def __init__(self, model: Autoencoder, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Autoencoder) -> None:
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - self.decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)


class Update(NamedTuple):
    """One phase's update: its gradient's norm, and whether it was applied. On the device."""

    grad_norm: Tensor
    finite: Tensor


class TrainStep:
    """Holds the model, its wrapper, its optimizers and the loss scaler."""

    def __init__(self, cfg: TrainConfig, model: Autoencoder, loader: Loader, schedule: Schedule, compiled: bool = False) -> None:
        self.cfg, self.model, self.loader, self.schedule = cfg, model, loader, schedule
        self.world = dist.world()
        self.timers = Timers()
        self.names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        self.phases = model.phases()
        self.optimizers = {t.name: make_optimizer(cfg.optim, t.parameters) for t in self.phases}
        self.scaler = torch.amp.GradScaler(self.world.device.type) if cfg.precision == "fp16" else None
        self.ema = EMA(model, cfg.ema) if cfg.ema else None
        self.window = MetricAccumulator(self.world.device)
        self.grad_norm = torch.zeros((), device=self.world.device)
        self.compiled = Compiled(model, cfg.cuda_graphs) if compiled else None
        self.wrapped: nn.Module = self.compiled or model
        if self.world.group is not None:
            self.wrapped = self._wrap(self.wrapped)
        micro = cfg.global_batch_size // cfg.grad_accum_steps
        share = micro // self.world.world_size
        self.rows = [Rows(share, m * micro + self.world.rank * share) for m in range(cfg.grad_accum_steps)]

    def _wrap(self, model: nn.Module) -> DistributedDataParallel:
        """find_unused_parameters is paid only by variants with several phases."""
        several = len(self.phases) > 1
        devices = [self.world.device] if self.world.device.type == "cuda" else None
        renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # torch 2.15
        buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        wrapped = DistributedDataParallel(
            model, device_ids=devices, process_group=self.world.group, gradient_as_bucket_view=True,
            find_unused_parameters=several, static_graph=not several, bucket_cap_mb=self.cfg.ddp.bucket_mb,
            **buffers,
        )  # fmt: skip
        if self.cfg.ddp.compression != "none":
            wrapped.register_comm_hook(self.world.group, COMPRESSION[self.cfg.ddp.compression])
        return wrapped

    @property
    def evaluated(self) -> Autoencoder:
        """The model that evaluation and export use."""
        return self.ema.model if self.ema else self.model

    def warmup(self, rows: Tensor) -> None:
        """Run and discard the passes after which DDP has rebuilt its buckets and torch.compile has compiled.

        `rows` is `[micro_steps, micro_batch]`.

        Summation order follows the buckets: with 3 ranks or more a resumed run would else differ in the last bit from one that was
        never interrupted. Call it before the weights are loaded.
        """
        if self.world.group is not None or self.compiled:
            self._run_and_discard(rows, 2)

    def flops(self, rows: Tensor) -> float:
        """Floating point operations of this rank's share of a step, forward and backward, counted by torch. Changes nothing."""
        from torch.utils.flop_counter import FlopCounterMode  # a tenth of the start-up, for the devices whose peak is known

        with FlopCounterMode(display=False) as counter:
            self._run_and_discard(rows, 1)
        return float(counter.get_total_flops() * len(rows))

    def _run_and_discard(self, rows: Tensor, times: int) -> None:
        """Run the first micro-step of every phase so many times, and leave no trace of it."""
        buffers, batch = [b.clone() for b in self.model.buffers()], self._fetch(0, 0, rows[0])
        for _ in range(times):
            for phase in self.phases:
                self._only(phase)
                self.wrapped.zero_grad()  # a CUDA graph's gradients do not outlive its next replay
                self._backward(phase, 0, 0, batch)
        self.wrapped.zero_grad()
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def __call__(self, step: int, rows: Tensor) -> None:
        """Make the update after which the run has done step + 1 steps, from rows `[micro_steps, micro_batch]`."""
        batches: Iterable[Batch] = (self._fetch(step, micro, mine) for micro, mine in enumerate(rows))
        if len(self.phases) > 1:
            batches = [*batches]  # each is fetched once, and a phase follows on the whole step of the one before
        updates = [self._phase(phase, step, batches) for phase in self.phases]
        if self.scaler:
            self.scaler.update()
        self.grad_norm = updates[0].grad_norm
        self.window.close_step(functools.reduce(torch.logical_and, [u.finite for u in updates]), len(rows))
        self.model.after_step(step + 1)
        if self.ema:
            self.ema.update(self.model)

    def _phase(self, phase: Phase, step: int, batches: Iterable[Batch]) -> Update:
        self._only(phase)
        optimizer = self.optimizers[phase.name]
        for group in optimizer.param_groups:
            group["lr"] = (phase.lr or self.cfg.optim.lr) * self.schedule.factor(step)
        for p in phase.parameters:
            p.grad = None  # as zero_grad() does, at a tenth of its price for a small model
        for micro, batch in enumerate(batches):
            with self._no_sync() if micro < self.cfg.grad_accum_steps - 1 else contextlib.nullcontext():
                self.window.add(self._backward(phase, step, micro, batch))
        with self.timers["optimizer"]:
            return self._update(phase, optimizer)

    def _fetch(self, step: int, micro: int, rows: Tensor) -> Batch:
        """The micro-batch that all phases of the step see, its noise under a key of its own."""
        with self.timers["data"]:
            x, label = self.loader.batch(rows, self._noise(("data", step), micro))
        return Batch(x, label, step, None, len(self.loader))

    def _backward(self, phase: Phase, step: int, micro: int, batch: Batch) -> Output:
        noise = self._noise(("train", step, phase.name), micro)
        with self.timers["forward"], autocast(self.cfg.precision, self.world.device):
            out: Output = self.wrapped(batch, phase.name, noise)
        loss = out.loss if self.cfg.grad_accum_steps == 1 else out.loss / self.cfg.grad_accum_steps
        with self.timers["backward"]:
            torch.autograd.backward(self.scaler.scale(loss) if self.scaler else loss)
        return out

    def _noise(self, key: tuple[str | int, ...], micro: int) -> Noise:
        return Noise(self.cfg.seed, key, self.rows[micro], self.world.device)

    def _update(self, phase: Phase, optimizer: torch.optim.Optimizer) -> Update:
        """Clip and step; an update from a non-finite gradient is masked on the device.

        Gradients are reduced, so all ranks mask the same steps. With loss scaling a skipped step is business as usual.
        """
        if self.scaler:
            self.scaler.unscale_(optimizer)
        if self.cfg.optim.l1:
            add_l1(phase.parameters, self.cfg.optim.l1)
        grads = [p.grad for p in phase.parameters if p.grad is not None]
        grad_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        if self.cfg.optim.max_grad_norm:
            clip_grads_with_norm_(phase.parameters, self.cfg.optim.max_grad_norm, grad_norm)
        if self.scaler:
            self.scaler.step(optimizer)
            return Update(grad_norm, torch.ones_like(grad_norm, dtype=torch.bool))
        finite = grad_norm < math.inf  # false for NaN too
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
        return Update(grad_norm, finite)

    def _only(self, phase: Phase) -> None:
        """Freeze what this phase does not train."""
        if len(self.phases) > 1:
            self.model.requires_grad_(False)
            for p in phase.parameters:
                p.requires_grad_(True)

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.wrapped, DistributedDataParallel):
            return self.wrapped.no_sync()
        return contextlib.nullcontext()


@contextlib.contextmanager
def explaining_memory(cfg: TrainConfig, world_size: int) -> Iterator[None]:
    """Turn running out of memory into one message that says what to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in text:
            raise
        micro = cfg.global_batch_size // cfg.grad_accum_steps // world_size
        advice = (
            f"raise --grad-accum-steps (now {cfg.grad_accum_steps}) or the number of processes, or lower --global-batch-size"
            if micro > 1
            else "no smaller one is possible: give a smaller --net, or a lower --model.latent-dim"
        )
        raise TrainingError(
            f"out of memory with a micro-batch of {micro} samples ({text.splitlines()[0] if text else 'host memory'}); {advice}"
        ) from error
