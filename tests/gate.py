"""The parity gate: N ranks must end where 1 rank ends. Real gloo processes, one spawn for any number of cases.

results = gate.run({"vae": settings(model={"name": "vae"}, precision="fp64")}, tmp_path)
gate.assert_parity(results["vae"], gate.EXACT)
"""

import contextlib
import dataclasses
import datetime
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
import torch.nn.functional as F
from helpers import metrics, splits
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import BatchSampler, DistributedSampler

from benchmarks.crash import timeless
from distae import distributed as dist
from distae.commands.session import train_run
from distae.config import TrainConfig
from distae.config.parallel import ParallelConfig, ReplicateConfig
from distae.data import load
from distae.distributed.parallelize import parallelize
from distae.distributed.shards import local, whole
from distae.nn.norms import BatchNorm
from distae.noise import Rows
from distae.runtime.signals import StopRequest
from distae.training.step import TrainStep

EXACT, BATCH_NORM, SINGLE = 1e-9, 1e-6, 1e-5
"""Largest difference relative to a tensor's largest value: fp64; fp64 with batch norm; fp32 with SGD."""
RANKS = {4: (0, 1, 2, 3), 3: (0, 1, 2), 1: (3,), 2: (0, 1)}
"""Which of the 4 processes make up a world. Those of 3 and of 1 run side by side."""
Plant = Callable[[], contextlib.AbstractContextManager[Any]]


class Leg(NamedTuple):
    """A first part of a run."""

    world_size: int
    ends_at: int
    parallel: ParallelConfig = ReplicateConfig()


class Case(NamedTuple):
    """Settings to run at several world sizes, perhaps with a planted bug."""

    cfg: TrainConfig
    plant: Plant = contextlib.nullcontext
    world_sizes: tuple[int, ...] = tuple(RANKS)
    ends_at: int | None = None
    """Step at which the run ends for a first time; it is then started again, and resumes."""
    begins_on: int | None = None
    """World size of that first part, where it is not the same."""
    legs: tuple[Leg, ...] = ()
    """Or several such parts, in order."""
    of_settings: bool = False
    """Whether the data is what the settings say, and not `helpers.splits`."""


class Result(NamedTuple):
    """What one run ended with."""

    tensors: dict[str, Tensor]
    """Parameters and buffers, and those of the average."""
    metrics: dict[str, float]
    """Every metric of every row that says nothing of time: `8 val/loss`."""
    order: Tensor
    """`[steps, global_batch]` int64: the samples of each step, sorted."""
    apart: list[str]
    """Tensors that are not the same, bit for bit, on every rank."""
    bytes: int
    """Parameters, gradients and optimizer state of the first rank."""
    exchanged: dict[str, int]
    """Bytes of the collectives of the second step on the first rank, by kind; of each those of its whole tensor."""


def asked_for(request: pytest.FixtureRequest, cases: dict[str, Case]) -> dict[str, Case]:
    """The cases that the chosen tests of a module look at, so that `-k vae` runs no others.

    A test looks at those that its mark `cases` names (`{name}` is its parameter), and without one at its parameter `name`.
    """
    names: set[str] = set()
    for item in request.session.items:
        if item.path == request.path and request.fixturename in getattr(item, "fixturenames", ()):
            params = item.callspec.params if hasattr(item, "callspec") else {}
            mark = item.get_closest_marker("cases")
            names |= {case.format(**params) for case in (mark.args if mark else ("{name}",))}
    return {name: case for name, case in cases.items() if name in names}


def run(cases: dict[str, Case], folder: Path) -> dict[str, dict[int, Result]]:
    """Results by case and world size."""
    (folder / "store").unlink(missing_ok=True)
    mp.start_processes(_rank, (cases, folder), nprocs=4, start_method="spawn")
    return {
        name: {n: Result(**torch.load(folder / f"{name}.{n}.pt", weights_only=True)) for n in sorted(case.world_sizes)}
        for name, case in cases.items()
    }


def differences(a: Result, b: Result) -> dict[str, float]:
    """max|a-b| / max|b| of each tensor (absolute where b is zero) and of each metric."""
    assert a.tensors.keys() == b.tensors.keys()
    assert a.metrics.keys() == b.metrics.keys()
    found = {k: float((a.tensors[k] - v).abs().max() / (v.abs().max() or 1)) for k, v in b.tensors.items()}
    return found | {k: abs(a.metrics[k] - v) / (abs(v) or 1) for k, v in b.metrics.items()}


def assert_parity(results: dict[int, Result], tolerance: float) -> None:
    """Every world size agrees with the smallest, and took its samples in the order of torch's own sampler."""
    reference = results[min(results)]
    for world_size, result in results.items():
        assert not result.apart, f"{world_size} ranks do not hold the same {result.apart[0]}"
        found = differences(result, reference)
        worst = max(found, key=lambda k: math.inf if math.isnan(found[k]) else found[k])
        assert found[worst] <= tolerance, f"{world_size} ranks against {min(results)}: {worst} differs by {found[worst]:.2g}"


GATES = ("{name}", "{name} resumed", "{name} fp32", "{name} bf16")


def gates(name: str, cfg: TrainConfig) -> dict[str, Case]:
    """The cases that every variant must pass, for `assert_gates` to look at; `cfg` trains in float64."""
    return {
        name: Case(cfg),
        f"{name} resumed": Case(cfg, world_sizes=(3,), ends_at=(cfg.steps or 0) // 2 + 1),
        f"{name} fp32": Case(dataclasses.replace(cfg, precision="fp32"), world_sizes=(1,)),
        f"{name} bf16": Case(dataclasses.replace(cfg, precision="bf16"), world_sizes=(1,)),
    }


def assert_gates(results: dict[str, dict[int, Result]], name: str) -> None:
    """1 to 4 ranks agree; a resumed run of 3 ends bit for bit as one that never stopped; bf16 is finite and near fp32."""
    assert_parity(results[name], BATCH_NORM)
    straight, resumed = results[name][3], results[f"{name} resumed"][3]
    differ = [k for k, v in straight.tensors.items() if not torch.equal(v, resumed.tensors[k])]
    assert not differ, f"resumed on 3 ranks: {differ[0]} differs"
    single, half = (results[f"{name} {precision}"][1].metrics for precision in ("fp32", "bf16"))
    for k, v in single.items():
        if k.endswith("/loss"):
            assert half[k] == pytest.approx(v, rel=0.03), f"bf16: {k} is {half[k]}, and {v} in fp32"
        assert math.isfinite(half[k]), f"bf16: {k} is {half[k]}"


def check(cfg: TrainConfig, folder: Path) -> None:
    """All gates on one variant, whoever's it is: `gate.check(settings(model={"name": "mine"}, precision="fp64"), tmp_path)`."""
    assert_gates(run(gates("variant", cfg), folder), "variant")


def assert_order(result: Result, cfg: TrainConfig, n: int = 197) -> None:
    """Each step's samples are those of torch's own sampler, another shuffle each epoch: N ranks alone could all be wrong alike."""
    assert torch.equal(result.order, torch_order(n, cfg.global_batch_size, cfg.seed, len(result.order)))


def torch_order(n: int, batch: int, seed: int, steps: int) -> Tensor:
    """What torch's DistributedSampler and BatchSampler give one process in `steps` steps: `[steps, batch]`, each row sorted."""
    sampler: DistributedSampler[int] = DistributedSampler(range(n), 1, 0, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
    rows: list[list[int]] = []
    while len(rows) < steps:
        sampler.set_epoch(len(rows) // (n // batch))
        rows += BatchSampler(sampler, batch, drop_last=True)
    return torch.tensor(rows[:steps]).sort(1).values


def _rank(rank: int, cases: dict[str, Case], folder: Path) -> None:
    """All cases on one of the 4 processes."""
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=120)
    td.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4, timeout=limit)
    triples = {n: [td.new_group(list(ranks), timeout=limit) for _ in range(3)] for n, ranks in RANKS.items()}

    def train(case: Case, n: int, end: int | None, run_dir: Path) -> None:
        if rank not in RANKS[n]:
            return
        groups = triples[n] if n > 1 else ()
        with dist.use(dist.World(RANKS[n].index(rank), n, torch.device("cpu"), *groups)), case.plant():
            result = _train(case, end or case.cfg.steps, run_dir)
        if rank == RANKS[n][0]:
            torch.save(result._asdict(), folder / f"{run_dir.name}.pt")

    for name, case in cases.items():
        for n in RANKS:
            if n in case.world_sizes:
                if case.ends_at:
                    train(case, case.begins_on or n, case.ends_at, folder / f"{name}.{n}")
                for leg in case.legs:
                    first = case._replace(cfg=dataclasses.replace(case.cfg, parallel=leg.parallel))
                    train(first, leg.world_size, leg.ends_at, folder / f"{name}.{n}")
                    td.barrier()
                if case.begins_on:
                    td.barrier()  # the other ranks find what these have saved
                train(case, n, None, folder / f"{name}.{n}")
    td.destroy_process_group()


def _train(case: Case, steps: int | None, run_dir: Path) -> Result:
    """The whole of a run, from initial weights, or what the folder has, to the last evaluation."""
    run_dir.mkdir(exist_ok=True)
    cfg = dataclasses.replace(case.cfg, run_dir=str(run_dir), steps=steps)
    with mock.patch("distae.training.trainer.TrainStep", Recorder):
        end = train_run(cfg, load(cfg.data) if case.of_settings else splits(), StopRequest(), 1)
    assert end.outcome == "done", end.reason
    train_step = Recorder.newest
    tensors = {k: whole(v) for k, v in train_step.model.state_dict().items()}
    if train_step.ema:
        tensors |= {f"ema.{k}": whole(v) for k, v in train_step.ema.model.state_dict().items()}
    order = torch.cat(dist.gather(torch.stack(train_step.seen)), dim=1).sort(1).values
    held = dist.gather(tensors)
    apart = [k for k, v in tensors.items() if not all(torch.equal(v, other[k]) for other in held)]
    rows = _metrics(run_dir) if dist.world().is_main else {}
    return Result(tensors, rows, order, apart, _bytes(train_step), train_step.collectives.bytes)


def _bytes(train_step: TrainStep) -> int:
    """Of this rank's parameters, gradients and optimizer state."""
    held = [local(t) for p in train_step.model.parameters() for t in (p, p.grad) if t is not None]
    states = [t for o in train_step.optimizers.values() for state in o.state.values() for t in state.values()]
    return sum(t.nbytes for t in held + states)


class Collectives(TorchDispatchMode):
    """Counts bytes that are exchanged, except those of a few numbers."""

    KINDS: ClassVar[dict[str, str]] = {
        "c10d::_allgather_base_": "all_gather", "c10d::_reduce_scatter_base_": "reduce_scatter", "c10d::allreduce_": "all_reduce"
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.bytes = dict.fromkeys(self.KINDS.values(), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kind := self.KINDS.get(func._schema.name):
            largest = max(t.nbytes for t in tree_leaves(args) if isinstance(t, Tensor))
            self.bytes[kind] += largest if largest > 128 else 0
        return func(*args, **(kwargs or {}))


class Recorder(TrainStep):
    """The stepper, which keeps the rows that it is given, and counts what its second step sends."""

    newest: "Recorder"
    counts = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[Tensor] = []
        self.collectives = Collectives()
        Recorder.newest = self

    def __call__(self, step: int, rows: Tensor) -> None:
        self.seen.append(rows.flatten())
        with self.collectives if self.counts and step == 1 else contextlib.nullcontext():
            super().__call__(step, rows)


def _metrics(run_dir: Path) -> dict[str, float]:
    return {f"{row['step']} {k}": v for row in metrics(run_dir) for k, v in timeless(row).items() if "/" in k}


# Planted bugs: each must make the gate fail.


@contextlib.contextmanager
def dropped_gradient() -> Iterator[None]:
    """Rank 1's gradient does not take part in the mean."""

    def hook(group: Any, bucket: td.GradBucket) -> torch.futures.Future[Tensor]:
        if dist.world().rank == 1:
            bucket.buffer().zero_()
        return allreduce_hook(group, bucket)

    def hooked(model: nn.Module, *settings: Any) -> nn.Module:
        ddp = parallelize(model, *settings)
        if isinstance(ddp, DistributedDataParallel):
            ddp.register_comm_hook(dist.world().group, hook)
        return ddp

    with mock.patch("distae.training.step.parallelize", hooked):
        yield


def local_batch_norm() -> contextlib.AbstractContextManager[Any]:
    """Batch norm with the statistics of each rank's own rows."""

    def forward(self: BatchNorm, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps)

    return mock.patch.object(BatchNorm, "forward", forward)


def one_shuffle() -> contextlib.AbstractContextManager[Any]:
    """Nobody tells the sampler of a new epoch."""
    return mock.patch("distae.data.sampler.GlobalBatchSampler.set_epoch", return_value=None)


def noise_per_rank() -> contextlib.AbstractContextManager[Any]:
    """Every rank draws the noise of the first rows."""
    return mock.patch("distae.training.step.Rows", lambda count, start: Rows(count))


def scalars_not_averaged() -> contextlib.AbstractContextManager[Any]:
    """Parameters that FSDP leaves whole get each rank's own gradient."""
    return mock.patch("distae.training.step.average_gradients")


def noise_drawn_on() -> contextlib.AbstractContextManager[Any]:
    """The second forward pass of a checkpointed block draws noise of its own."""
    return mock.patch("distae.training.activations._again", lambda *_: contextlib.nullcontext())  # noqa: PT008


def counted() -> contextlib.AbstractContextManager[Any]:
    """No bug: `Result.exchanged` is of the second step. It takes a second, and programs do not compile."""
    return mock.patch.object(Recorder, "counts", new=True)


def traced() -> contextlib.AbstractContextManager[Any]:
    """No bug: torch.compile without code generation, which takes seconds instead of minutes."""
    compile_ = torch.compile
    return mock.patch("torch.compile", lambda f, mode=None, **how: compile_(f, backend="aot_eager", **how))
