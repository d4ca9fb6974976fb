"""Every CUDA path once, on one card: `python -m pytest -m gpu`.

Where there is none, what does not need CUDA itself runs on the CPU, to see that the tests work.
"""

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from helpers import OF_EACH_KIND, SHIPPED, fitted, fresh_trainer, metrics, settings, splits
from variants import SMALL as SMALL_VARIANTS

from benchmarks.crash import timeless
from distae import distributed as dist
from distae import load
from distae.commands.session import train_run
from distae.config import TrainConfig
from distae.config.optim import OptimConfig
from distae.config.parallel import ShardConfig
from distae.runtime.signals import StopRequest
from distae.training.optim import make_optimizer

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
ON_CARD = DEVICE.type == "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.slow]
needs_cuda = pytest.mark.skipif(not ON_CARD, reason="needs CUDA itself")


@pytest.fixture(autouse=True)
def _on_the_card() -> Any:
    with dist.use(dist.World(0, 1, DEVICE)):
        yield


def small(**changes: Any) -> TrainConfig:
    return settings(**({"device": DEVICE.type, "steps": 12, "save_every": 4} | changes))


PATHS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "tf32": {"tf32": True},
    "fp64": {"precision": "fp64"},
    "bf16": {"precision": "bf16"},
    "fp16, with loss scaling": {"precision": "fp16"},
    "accumulation and averages": {"grad_accum_steps": 2, "ema": 0.9},
    "channels last": {"net": {"name": "conv"}, "channels_last": True},
    "batch norm in bf16": {"net": {"name": "resnet", "norm": "batch"}, "precision": "bf16"},
    "sgd": {"optim": {"name": "sgd", "momentum": 0.9}},
    "clipping and l1": {"optim": {"max_grad_norm": 0.1, "l1": 1e-4}},
    "a synchronous save": {"checkpoint": {"mode": "sync"}},
    "several phases": {"model": {"name": "aae"}},
    "stochastic binarisation": {"data": {"binarize": "stochastic"}},
}


@pytest.mark.parametrize("path", PATHS if ON_CARD else ["bf16", "several phases"])
def test_a_run_trains_and_resumes(path, tmp_path):
    """Killed in the middle, it goes to the same rows; by default from pinned buffers that are written beside training."""
    cfg = small(**({"model": {"name": "vae"}} | PATHS[path]))
    whole = fitted(cfg, tmp_path / "whole")
    assert next(whole.train_step.model.parameters()).device.type == DEVICE.type
    trainer = fresh_trainer(cfg, tmp_path / "run")
    trainer.stop.request.signum = 15
    assert not trainer.fit()
    trainer.close()
    fitted(cfg, tmp_path / "run")
    ours, theirs = (timeless(metrics(tmp_path / name)[-1]) for name in ("run", "whole"))
    assert ours == pytest.approx(theirs, rel=1e-4)
    x = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert load(tmp_path / "run").reconstruct(x).shape == x.shape


@pytest.mark.parametrize("variant", SHIPPED if ON_CARD else sorted(OF_EACH_KIND))
def test_every_variant_trains(variant, tmp_path):
    trainer = fitted(small(model={"name": variant} | SMALL_VARIANTS.get(variant, {}), steps=2), tmp_path)
    assert trainer.state.step == 2


@needs_cuda
@pytest.mark.parametrize(
    "changes", [{"compile": True}, {"compile": True, "cuda_graphs": True}, {"compile": True, "precision": "bf16"}]
)
def test_a_compiled_run_is_the_eager_one(changes, tmp_path):
    eager = {k: v for k, v in changes.items() if k == "precision"}
    for name, how in (("eager", eager), ("compiled", {"compile": True} | changes)):
        fitted(small(model={"name": "vae"}, **how), tmp_path / name)
    ours, theirs = (timeless(metrics(tmp_path / name)[-1]) for name in ("compiled", "eager"))
    assert ours == pytest.approx(theirs, rel=2e-2 if eager else 1e-3)


def test_without_noise_the_card_and_the_cpu_agree(tmp_path):
    runs = {}
    for device in (DEVICE, torch.device("cpu")):
        with dist.use(dist.World(0, 1, device)):
            fitted(small(model={"name": "ae"}, precision="fp64", device=device.type), tmp_path / f"{device.type}_")
        runs[device.type] = timeless(metrics(tmp_path / f"{device.type}_")[-1])
    assert runs[DEVICE.type] == pytest.approx(runs["cpu"], rel=1e-9)


@needs_cuda
def test_permutations_and_common_draws_do_not_depend_on_the_device():
    from distae.noise import Noise

    there, here = (Noise.seeded(0, 4, device) for device in ("cuda", "cpu"))
    assert torch.equal(there.permutation(1000).cpu(), here.permutation(1000))
    assert torch.equal(there.common(5, 3).cpu(), here.common(5, 3))


@needs_cuda
def test_the_fused_optimizer_is_torchs_to_the_bit():
    ours, theirs = (
        [
            torch.nn.Parameter(torch.randn(n, n, device="cuda", generator=torch.Generator("cuda").manual_seed(n)))
            for n in (3, 50, 300)
        ]
        for _ in range(2)
    )
    optimizers = make_optimizer(OptimConfig(weight_decay=0.0), ours), torch.optim.AdamW(theirs, 2e-3, weight_decay=0.0, fused=True)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
@pytest.mark.parametrize("how", [{}, {"cpu_offload": True}])
def test_a_sharded_run_is_the_whole_one(how, precision, tmp_path):
    """In one part: FSDP and its streams, NCCL, and parts in host memory."""
    cfg = small(model={"name": "vae"}, precision=precision, ema=0.9, checkpoint_activations=True)
    fitted(cfg, tmp_path / "whole")
    backend = "cpu:gloo,cuda:nccl" if ON_CARD else "gloo"
    td.init_process_group(backend, store=td.HashStore(), rank=0, world_size=1)
    try:
        background: Any = td.new_group(backend="gloo")
        with dist.use(dist.World(0, 1, DEVICE, td.group.WORLD, td.group.WORLD, background)):
            fitted(replace(cfg, parallel=ShardConfig(**how)), tmp_path / "parts")
    finally:
        td.destroy_process_group()
    ours, theirs = (timeless(metrics(tmp_path / name)[-1]) for name in ("parts", "whole"))
    assert ours == pytest.approx(theirs, rel=1e-9 if precision == "fp64" else 2e-2)


def _one_of_two(rank: int, port: int, cfg: TrainConfig) -> None:
    """A rank that shares the card: over gloo, as NCCL wants a card for each."""
    store = td.TCPStore("127.0.0.1", port, 2, rank == 0)
    td.init_process_group("gloo", store=store, rank=rank, world_size=2)
    background: Any = td.new_group(backend="gloo")
    with dist.use(dist.World(rank, 2, DEVICE, td.group.WORLD, td.group.WORLD, background)):
        assert train_run(cfg, splits(), StopRequest(), 1).outcome == "done"
    td.destroy_process_group()


@pytest.mark.parametrize("model", ["vae", "vq_vae", "info_vae"] if ON_CARD else ["vq_vae"])
def test_two_processes_on_one_card_are_one(model, tmp_path):
    cfg = small(model={"name": model}, precision="fp64")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert train_run(replace(cfg, run_dir=str(tmp_path / "one")), splits(), StopRequest(), 1).outcome == "done"
    mp.spawn(_one_of_two, (port, replace(cfg, run_dir=str(tmp_path / "two"))), nprocs=2)
    ours, theirs = (timeless(metrics(tmp_path / name)[-1]) for name in ("two", "one"))
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_a_checkpoint_of_the_card_resumes_on_the_cpu(tmp_path: Path) -> None:
    cfg = small(model={"name": "vae"}, ema=0.9)
    fitted(replace(cfg, steps=4), tmp_path)
    with dist.use(dist.World(0, 1, torch.device("cpu"))):
        trainer = fitted(replace(cfg, device="cpu"), tmp_path)
    assert trainer.state.step == 12
