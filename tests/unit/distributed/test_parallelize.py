"""How gradients are exchanged."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as td
from helpers import fitted, fresh_trainer
from helpers import settings as small
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from distae import distributed as dist
from distae.config.parallel import ShardConfig
from distae.distributed.parallelize import blocks_of, parallelize
from distae.distributed.shards import is_sharded, whole
from distae.models import build
from distae.models.serialization import load_weights
from distae.training import step


@pytest.fixture
def _one_rank() -> Iterator[None]:
    """A process group of one: DDP wraps and exchanges as with many, and FSDP has one part."""
    td.init_process_group("gloo", store=td.HashStore(), rank=0, world_size=1)
    try:
        with dist.use(dist.World(0, 1, torch.device("cpu"), td.group.WORLD)):
            yield
    finally:
        td.destroy_process_group()


@pytest.mark.usefixtures("_one_rank")
@pytest.mark.parametrize("variant", ["vae", "aae", "vaegan", "wae_gan", "factor_vae", "piwae"])
def test_a_phase_sends_the_gradients_of_its_own_parameters_only(variant, tmp_path, monkeypatch):
    """Bytes all-reduced, of those needed: 2 to 3 times as many where every phase sent all of them."""
    sent = 0

    def hook(group: Any, bucket: td.GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal sent
        sent += bucket.buffer().nbytes
        return allreduce_hook(group, bucket)

    def hooked(model: Any, *settings: Any) -> Any:
        wrapped: Any = parallelize(model, *settings)
        wrapped.register_comm_hook(dist.world().group, hook)
        return wrapped

    monkeypatch.setattr(step, "parallelize", hooked)
    trainer = fresh_trainer(small(model={"name": variant}), tmp_path)
    sent = 0
    trainer.train_step(0, next(iter(trainer.sampler)))
    needed = sum(p.nbytes for phase in trainer.train_step.phases for p in phase.parameters)
    assert sent <= 1.05 * needed
    trainer.close()


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, whose best step is not its last."""
    run_dir = tmp_path_factory.mktemp("best") / "run"
    assert fitted(BEST, run_dir).state.best_step not in (None, 20)
    return run_dir


BEST = small(model={"name": "vae"}, ema=0.5, optim={"lr": 0.2}, export="best", precision="fp64", best_metric="val/kl")


@pytest.mark.usefixtures("_one_rank")
@pytest.mark.parametrize("parallel", [ShardConfig(), ShardConfig(cpu_offload=True)])
def test_a_sharded_run_leaves_the_best_model_of_a_whole_one(best: Path, tmp_path: Path, parallel: ShardConfig) -> None:
    trainer = fitted(replace(BEST, parallel=parallel), tmp_path / "run")
    assert all(is_sharded(p) for p in trainer.train_step.model.parameters())
    torch.testing.assert_close(load_weights(tmp_path / "run"), load_weights(best), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("_one_rank")
def test_a_sharded_run_starts_from_whole_weights(best: Path, tmp_path: Path) -> None:
    trainer = fresh_trainer(replace(BEST, parallel=ShardConfig(), init_from=str(best)), tmp_path / "run")
    for model in (trainer.train_step.model, trainer.train_step.weights):
        torch.testing.assert_close({k: whole(v) for k, v in model.state_dict().items()}, load_weights(best), rtol=0, atol=0)
    trainer.close()


def test_blocks_are_what_is_only_called() -> None:
    """Layers of the networks, blocks of the transformer; none where an objective uses the parameters themselves."""
    cfg = small(model={"name": "vae"}, net={"name": "resnet"})
    model = build(cfg.model, cfg.net, (1, 8, 8))
    inside = [p for block in blocks_of(model) for p in block.parameters()]
    assert len(inside) == len(set(inside)) == len(list(model.parameters()))
    cfg = small(model={"name": "rae_l2"})
    model = build(cfg.model, cfg.net, (1, 8, 8))
    inside = [p for block in blocks_of(model) for p in block.parameters()]
    assert not set(inside) & set(model.decoder.parameters())  # type: ignore[union-attr, operator]
