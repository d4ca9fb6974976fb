"""One optimizer step: forward, backward, reduction, update, in the given precision, without synchronizing the device."""

import contextlib
import functools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from distae import distributed as dist
from distae.config import TrainConfig
from distae.data import Loader
from distae.distributed.parallelize import (
    accumulating,
    average_gradients,
    filled,
    hollow,
    is_sharding,
    mesh_of,
    parallelize,
    shard,
    spread_like,
)
from distae.distributed.shards import is_sharded, local, norm, own_part
from distae.errors import TrainingError
from distae.models import Autoencoder, Batch, Output, Phase
from distae.noise import Noise, Rows
from distae.training.accumulator import MetricAccumulator
from distae.training.activations import checkpoint_activations
from distae.training.compile import Compiled
from distae.training.ema import EMA
from distae.training.optim import Schedule, ShardedScaler, Update, apply_update, layer_scales, make_optimizer
from distae.training.profiling import FlopCounter, Timers

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The autocast region of a precision; none at full precision."""
    return torch.autocast(device.type, AUTOCAST[precision]) if precision in AUTOCAST else contextlib.nullcontext()


class TrainStep:
    """The optimizer step of a model: holds its wrappers, its optimizers and the loss scaler."""

    def __init__(self, cfg: TrainConfig, model: Autoencoder, loader: Loader, schedule: Schedule, compiled: bool = False) -> None:
        self.cfg, self.model, self.loader, self.schedule = cfg, model, loader, schedule
        self.world = dist.world()
        self.timers = Timers()
        self.ema = EMA(model, cfg.ema) if cfg.ema else None
        if cfg.checkpoint_activations:
            checkpoint_activations(model)
        self.sharded = is_sharding(cfg.parallel)
        self.hollow = hollow(model) if self.sharded else None
        if self.sharded:
            self._shard()
        parts = {p: own_part(p) for p in model.parameters()}
        self.names: dict[Tensor, str] = {parts[p]: name for name, p in model.named_parameters()}
        self.phases = model.phases()
        self.updated = {phase.name: [parts[p] for p in phase.parameters] for phase in self.phases}
        """What each phase's optimizer updates: its parameters, or this rank's parts of them."""
        scales = {parts[p]: scale for p, scale in layer_scales(model, cfg.optim.layer_decay).items()}
        self.optimizers = {name: make_optimizer(cfg.optim, parameters, scales) for name, parameters in self.updated.items()}
        self.scaler = self._make_scaler()
        self.window = MetricAccumulator(self.world.device)
        self.grad_norm = torch.zeros((), device=self.world.device)
        self.recons: dict[int, Tensor] | None = {} if any(phase.sees_recon for phase in self.phases) else None
        """The first phase's reconstructions of this step, by micro-step, if another phase uses them."""
        self.compiled = Compiled(model, cfg.cuda_graphs) if compiled else None
        self.wrapped = self._parallelize()
        micro = cfg.global_batch_size // cfg.grad_accum_steps
        share = micro // self.world.world_size
        self.rows = [Rows(share, m * micro + self.world.rank * share) for m in range(cfg.grad_accum_steps)]

    def _shard(self) -> None:
        shard(self.model, self.cfg.parallel, mesh_of(self.cfg.parallel), self.cfg.precision)
        if self.ema:
            spread_like(self.ema.model, self.model)

    def _make_scaler(self) -> torch.amp.GradScaler | None:
        if self.cfg.precision != "fp16":
            return None
        kind = self.world.device.type
        return ShardedScaler(kind) if self.sharded else torch.amp.GradScaler(kind)

    def _parallelize(self) -> dict[str, nn.Module]:
        """The module through which each phase's forward runs: compiled, and wrapped by DDP."""
        if self.sharded:
            return {phase.name: self.model for phase in self.phases}
        wrapped: dict[str, nn.Module] = {}
        shared = sum(len(phase.parameters) for phase in self.phases) > len(self.names)
        for phase in self.phases:
            self._train_only(phase)
            wrapped[phase.name] = parallelize(self.compiled or self.model, self.cfg.ddp, shared)
        return wrapped

    @property
    def evaluated(self) -> Autoencoder:
        """The model that evaluation and export use, while `whole` where it is sharded."""
        return self.hollow or self.weights

    @property
    def weights(self) -> Autoencoder:
        """The model whose weights evaluation and export use: perhaps in parts."""
        return self.ema.model if self.ema else self.model

    def whole(self, weights: dict[str, Tensor] | None = None) -> contextlib.AbstractContextManager[None]:
        """While entered, `evaluated` has all parameters, or these, on every rank, which may use it alone. Collective."""
        return filled(self.hollow, self.weights, weights) if self.hollow else contextlib.nullcontext()

    def warmup(self, rows: Tensor) -> None:
        """Run and discard the passes after which DDP has rebuilt its buckets and torch.compile has compiled.

        `rows` is `[micro_steps, micro_batch]`.

        Summation order follows the buckets: with 3 ranks or more a resumed run would otherwise differ in the last bit from
        one that was never interrupted. Call it before the weights are loaded.
        """
        if (self.world.group is not None and not self.sharded) or self.compiled:
            self._run_and_discard(rows, 2)

    def flops(self, rows: Tensor) -> float:
        """Floating point operations of this rank's share of a step, forward and backward, counted by torch. Changes nothing."""
        with FlopCounter() as counter:
            self._run_and_discard(rows, 1)
        return float(counter.total * len(rows))

    def _run_and_discard(self, rows: Tensor, times: int) -> None:
        """Run the first micro-step of every phase `times` times, and undo all effects."""
        buffers, batch = [b.clone() for b in self.model.buffers()], self._fetch(0, 0, rows[0])
        for _ in range(times):
            for phase in self.phases:
                self._train_only(phase)
                self.model.zero_grad()  # a CUDA graph's gradients do not outlive its next replay
                self._backward(phase, 0, 0, batch)
        self.model.zero_grad()
        if self.recons:
            self.recons.clear()
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def __call__(self, step: int, rows: Tensor) -> None:
        """Make the update after which the run has done step + 1 steps, from rows `[micro_steps, micro_batch]`."""
        batches: Iterable[Batch] = (self._fetch(step, micro, mine) for micro, mine in enumerate(rows))
        starts = step == 0 and self.cfg.init_from is None and type(self.model).start is not Autoencoder.start
        if starts or len(self.phases) > 1:
            batches = [*batches]  # each is fetched once; a phase starts after all micro-steps of the one before
            if starts:
                self._start(torch.cat([batch.x for batch in batches]))
        updates = [self._phase(phase, step, batches) for phase in self.phases]
        if self.recons:
            self.recons.clear()
        if self.scaler:
            self.scaler.update()
        self.grad_norm = updates[0].grad_norm
        self.window.close_step(functools.reduce(torch.logical_and, [u.finite for u in updates]), len(rows))
        self.model.after_step(step + 1)
        if self.ema:
            self.ema.update(self.model)

    def _start(self, x: Tensor) -> None:
        if self.hollow:
            with filled(self.hollow, self.model, changes=True), torch.no_grad():
                self.hollow.start(x)
        else:
            self.model.start(x)
        if self.ema:
            self.ema.model.load_state_dict(self.model.state_dict())

    def _phase(self, phase: Phase, step: int, batches: Iterable[Batch]) -> Update:
        self._train_only(phase)
        optimizer = self.optimizers[phase.name]
        for group in optimizer.param_groups:
            group["lr"] = (phase.lr or self.cfg.peak_lr) * self.schedule.factor(step) * group["lr_scale"]
        for p in phase.parameters:
            p.grad = None  # as zero_grad() does, at a tenth of its cost for a small model
        for micro, batch in enumerate(batches):
            open_ = micro < self.cfg.grad_accum_steps - 1
            with accumulating(self.wrapped[phase.name]) if open_ else contextlib.nullcontext():
                self.window.add(self._backward(phase, step, micro, batch))
        with self.timers["optimizer"]:
            return self._update(phase, optimizer)

    def _update(self, phase: Phase, optimizer: torch.optim.Optimizer) -> Update:
        updated, rest = self.updated[phase.name], (self.cfg.optim, self.scaler)
        if not self.sharded:
            return apply_update(optimizer, updated, *rest)
        average_gradients(self.model, phase.parameters)
        for p, part in zip(phase.parameters, updated, strict=True):
            if is_sharded(p):
                part.grad = None if p.grad is None else local(p.grad)
        update = apply_update(optimizer, updated, *rest, lambda _: norm([p.grad for p in phase.parameters if p.grad is not None]))
        return Update(*(x.to(self.world.device) for x in update))

    def _fetch(self, step: int, micro: int, rows: Tensor) -> Batch:
        """The micro-batch that all phases of the step use; its noise has a key of its own."""
        with self.timers["data"]:
            x, label = self.loader.batch(rows, self._noise(("data", step), micro), training=True)
        return Batch(x, label, step, None, len(self.loader))

    def _backward(self, phase: Phase, step: int, micro: int, batch: Batch) -> Output:
        noise = self._noise(("train", step, phase.name), micro)
        if phase.sees_recon and self.recons:
            batch = batch._replace(recon=self.recons[micro])
        with self.timers["forward"], autocast(self.cfg.precision, self.world.device):
            out: Output = self.wrapped[phase.name](batch, phase.name, noise)
        loss = out.loss if self.cfg.grad_accum_steps == 1 else out.loss / self.cfg.grad_accum_steps
        with self.timers["backward"]:
            torch.autograd.backward(self.scaler.scale(loss) if self.scaler else loss)
        if self.recons is not None and phase is self.phases[0]:
            self.recons[micro] = out.recon
        return out

    def _noise(self, key: tuple[str | int, ...], micro: int) -> Noise:
        return Noise(self.cfg.seed, key, self.rows[micro], self.world.device)

    def _train_only(self, phase: Phase) -> None:
        """Freeze the parameters that this phase does not train."""
        if len(self.phases) > 1:
            self.model.requires_grad_(False)
            for p in phase.parameters:
                p.requires_grad_(True)


@contextlib.contextmanager
def explaining_memory(cfg: TrainConfig, world_size: int) -> Iterator[None]:
    """Convert out-of-memory errors to one message that says what to change."""
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
