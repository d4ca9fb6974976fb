"""How gradients are exchanged."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as td
from helpers import fresh_trainer
from helpers import settings as small
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from distae import distributed as dist
from distae.distributed.parallelize import parallelize
from distae.training import step


@pytest.fixture
def _one_rank() -> Iterator[None]:
    """A process group of one: DDP wraps and exchanges as with many."""
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
