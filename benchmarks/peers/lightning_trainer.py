"""Lightning's trainer as a contestant, with its defaults: progress bar, logger, checkpoint at the end."""

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from workloads import Clock, Coder, Contestant, Rate, Workload, silence


class Module(pl.LightningModule):
    """As its documentation shows: a loss, logged, and an optimizer. The optimizer is kept from one fit to the next."""

    def __init__(self, coder: Coder, fused: bool) -> None:
        super().__init__()
        self.coder = coder
        self.adam = torch.optim.Adam(coder.parameters(), 1e-3, fused=fused or None)

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        loss: Tensor = self.coder(batch[0])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.adam


class Ticks(pl.Callback):
    """Ticks a clock at every step."""

    def __init__(self, warm: int) -> None:
        self.clock = Clock(warm)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.clock.tick()


def contestant(workload: Workload, x: Tensor, steps: int, folder: Path, tuned: bool) -> Contestant:
    """Each call fits `steps` batches of `x` `[N, 1, 28, 28]` with a new Trainer; weights and optimizer are kept between calls."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    module = Module(workload.by_hand(), tuned)
    loader = DataLoader(TensorDataset(x), workload.batch, shuffle=True)

    def run() -> Rate:
        ticks = Ticks(workload.warm)
        with silence():
            pl.Trainer(max_steps=steps, accelerator="cpu", default_root_dir=folder, callbacks=[ticks]).fit(module, loader)
        return ticks.clock.rate(workload.batch)

    return run
