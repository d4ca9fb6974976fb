"""A step of the tokenizer with a KL bottleneck against the same two networks in a plain loop, on one thread.

    python benchmarks/tokenizer_step.py                                  # width 32, f4, 32 px, batches of 8

Steps of ours and by hand alternate, so that both have the same machine; CPU seconds, median of the ratios with the quartiles.
Before the discriminator's start the step trains the autoencoder alone, after it both networks. The last line is one JSON object.
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from workloads import Steps

from distae import data
from distae import distributed as dist
from distae.config import TrainConfig, build, check
from distae.models import build as build_model
from distae.runtime.environment import Environment

BETAS, LR = (0.5, 0.9), 1e-12


class ByHand(nn.Module):
    """The objective with a KL bottleneck and its step, by Esser et al. 2021, eq. 4-7, and Rombach et al. 2022, app. G.

    The discriminator is given the reconstructions of the autoencoder's step.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, discriminator: nn.Module, started: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.discriminator, self.started = encoder, decoder, discriminator, started
        self.last = next(p for p in reversed([*decoder.parameters()]) if p.ndim == 4)

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The reconstructions, and the means over the batch of the sums of error and KL."""
        mu, logvar = self.encoder(x, None).float().chunk(2, 1)
        y = self.decoder(mu + torch.randn_like(mu) * (0.5 * logvar).exp(), None).float()
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum() / len(x)
        return y, 2 * (x - y).abs().sum() / len(x), kl

    def forward(self, x: Tensor) -> Tensor:
        """The loss before the discriminator's start."""
        _, error, kl = self.reconstruct(x)
        return error + 1e-6 * kl

    def adversarial(self, error: Tensor, y: Tensor) -> Tensor:
        fooled = -self.discriminator(y).float().mean()
        of_error, of_fooled = (torch.autograd.grad(t, self.last, retain_graph=True)[0].norm() for t in (error, fooled))
        return 0.5 * (of_error / (of_fooled + 1e-4)).clamp_max(1e4) * fooled

    def hinge(self, x: Tensor, y: Tensor) -> Tensor:
        real, fake = self.discriminator(x).float(), self.discriminator(y).float()
        return 0.5 * ((1 - real).relu() + (1 + fake).relu()).mean()

    def training_step(self, x: Tensor, autocast: Callable[[], Any]) -> Callable[[], None]:
        """A function that makes one step on the batch `x`, at a learning rate that does not change the weights."""
        coder, critic = [*self.encoder.parameters(), *self.decoder.parameters()], [*self.discriminator.parameters()]
        optimizers = [torch.optim.Adam(parameters, LR, BETAS, fused=True) for parameters in (coder, critic)]

        def step() -> None:
            self.discriminator.requires_grad_(False)
            optimizers[0].zero_grad()
            with autocast():
                y, error, kl = self.reconstruct(x)
                loss = error + 1e-6 * kl
                if self.started:
                    loss = loss + self.adversarial(error, y)
            loss.backward()
            optimizers[0].step()
            if self.started:
                self.discriminator.requires_grad_(True)
                optimizers[1].zero_grad()
                with autocast():
                    loss = self.hinge(x, y.detach())
                loss.backward()
                optimizers[1].step()

        return step


def by_hand(cfg: TrainConfig, shape: tuple[int, ...]) -> ByHand:
    """The networks of the settings `cfg` of a tokenizer, in the loop by hand."""
    model: Any = build_model(cfg.model, cfg.net, shape)
    return ByHand(model.codec.encoder, model.codec.decoder, model.discriminator, model.cfg.discriminator_start == 0)


def settings(args: argparse.Namespace, started: bool, folder: Path) -> TrainConfig:
    table = {
        "model": {"name": "tokenizer", "discriminator_start": 0 if started else 10**6, "discriminator_channels": args.width},
        "net": {"name": "image", "channels": args.width, "multipliers": [1, 2, 2], "blocks": 1},
        "data": {"name": "array", "path": str(folder / "images.npy"), "val_fraction": 0.0, "test_fraction": 0.0},
        "optim": {"lr": LR, "betas": list(BETAS)}, "steps": 10**6, "global_batch_size": args.batch, "threads": 1,
        "tracking": "none", "device": "cpu", "export": "last", "run_dir": str(folder / f"run_{started}"),
    }  # fmt: skip
    return check(build(TrainConfig, table), 1)


def in_turns(cfg: TrainConfig, x: Tensor, rounds: int) -> dict[str, Any]:
    """Milliseconds of CPU time of both, and by hand over ours: median and quartiles."""
    steps = Steps(cfg, data.load(cfg.data))
    hand, times = by_hand(cfg, tuple(x.shape[1:])).training_step(x, contextlib.nullcontext), []
    for number in range(rounds + 3):
        own = [steps.cpu_seconds(1)] if number % 2 else []
        started = time.process_time()
        hand()
        taken = time.process_time() - started
        times.append((taken, *(own or [steps.cpu_seconds(1)])))
    steps.trainer.close()
    of = np.array(times[3:])
    ratios = np.quantile(of[:, 0] / of[:, 1], [0.5, 0.25, 0.75]).round(3).tolist()
    return {"ratio": ratios, "by_hand_ms": round(1e3 * np.median(of[:, 0]), 1), "ours_ms": round(1e3 * np.median(of[:, 1]), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--side", type=int, default=32)
    args = parser.parse_args()
    dist.set_threads(1, Environment())
    stored = np.random.default_rng(0).integers(0, 256, (64 * args.batch, 3, args.side, args.side), np.uint8)
    report: dict[str, Any] = {"torch": str(torch.__version__)}
    for started in (False, True):
        with tempfile.TemporaryDirectory(prefix="distae-tokenizer-") as path:
            np.save(Path(path) / "images.npy", stored)
            x = torch.from_numpy(stored[: args.batch]).float() / 255
            found = report["after" if started else "before"] = in_turns(settings(args, started, Path(path)), x, args.rounds)
        where = "after" if started else "before"
        print("{} the start: {:.3f} ({:.3f} to {:.3f}) of the loop by hand".format(where, *found["ratio"]), flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
