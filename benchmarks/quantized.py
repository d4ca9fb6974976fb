"""vq_vae and rq_vae against a textbook loop: same networks, images, steps and seeds; squared error on held-out images.

    python benchmarks/quantized.py --images cifar10_batch_1.npy      # [N, 3, 32, 32], bytes; the last tenth is for the test

The loop follows van den Oord 2017 with moving averages (app. A.1, decay 0.99), for rq_vae with the depths of Lee 2022, without
restarts; its codes start at vectors of the first batch.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distae import load
from distae.commands import train
from distae.config import TrainConfig, build, check
from distae.models import build as build_model
from distae.models.quantized import VQVAE
from distae.runtime.environment import Environment

BATCH, RATE, CODES, DIM, LATENT, DEPTH, DECAY, COMMITMENT = 64, 1e-3, 256, 4, 256, 4, 0.99, 0.25
NET = {"name": "conv", "channels": [16, 32]}
SQUARES = {"likelihood": "gaussian", "scale": 0.5**0.5}
"""-log p(x|z) is then the squared error up to a constant."""


def settings(name: str, file: Path, steps: int, seed: int, run_dir: str) -> TrainConfig:
    table = {
        "model": {"name": name, "latent_dim": LATENT, "dim": DIM, "codebook_size": CODES} | SQUARES, "net": NET,
        "data": {"name": "array", "path": str(file), "val_fraction": 0.0, "test_fraction": 0.0}, "optim": {"lr": RATE},
        "steps": steps, "global_batch_size": BATCH, "seed": seed, "run_dir": run_dir, "tracking": "none", "device": "cpu",
        "threads": 1, "save_every": 10**6,
    }  # fmt: skip
    return check(build(TrainConfig, table), 1)


def ours(cfg: TrainConfig) -> Any:
    """The function that reconstructs images in [0, 1], of a model that `distae train` has trained."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        assert train.run(cfg, Environment()).outcome == "done"
    return load(str(cfg.run_dir)).module.reconstruct


class Loop:
    """The textbook algorithm: nearest codes of the residual, moving averages of the vectors assigned to them."""

    def __init__(self, cfg: TrainConfig, depth: int) -> None:
        model = build_model(cfg.model, cfg.net, cfg.data.shape(), cfg.seed)
        assert isinstance(model, VQVAE)
        self.encoder, self.decoder, self.depth = model.encoder, model.decoder, depth
        self.optimizer = torch.optim.Adam([*self.encoder.parameters(), *self.decoder.parameters()], RATE)
        self.codes = self.count = self.total = torch.empty(0)

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Codes `[V, DIM]` of `z`, the commitment, and each depth's residuals with their indices."""
        codes, commitment, seen = torch.zeros_like(z), z.new_zeros(()), []
        for _ in range(self.depth):
            residual = (z - codes).detach()
            index = torch.cdist(residual, self.codes).argmin(1)
            codes = codes + self.codes[index]
            commitment = commitment + (z - codes).square().sum()
            seen.append((residual, index))
        return codes, commitment, seen

    def step(self, x: Tensor) -> None:
        z = self.encoder(x, None).view(-1, DIM)
        if not len(self.codes):
            self.codes = z.detach()[torch.randperm(len(z))[:CODES]].clone()
            self.count, self.total = torch.ones(CODES), self.codes.clone()
        codes, commitment, seen = self.quantize(z)
        recon = self.decoder((z + (codes - z).detach()).view(len(x), -1), None)
        loss = ((recon - x).square().sum() + COMMITMENT * commitment) / len(x)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._average(torch.cat([r for r, _ in seen]), torch.cat([i for _, i in seen]))

    def _average(self, rows: Tensor, index: Tensor) -> None:
        count = torch.zeros(CODES).index_add_(0, index, torch.ones(len(rows)))
        self.count = DECAY * self.count + (1 - DECAY) * count
        self.total = DECAY * self.total + (1 - DECAY) * torch.zeros(CODES, DIM).index_add_(0, index, rows)
        smooth = (self.count + 1e-5) / (self.count.sum() + CODES * 1e-5) * self.count.sum()
        self.codes = self.total / smooth[:, None]

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.quantize(self.encoder(x, None).view(-1, DIM))[0].view(len(x), -1), None)


def theirs(cfg: TrainConfig, images: Tensor, steps: int) -> Any:
    torch.manual_seed(cfg.seed)
    loop, order = Loop(cfg, DEPTH if cfg.model.name == "rq_vae" else 1), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(images))
        loop.step(images[order[:BATCH]])
        order = order[BATCH:]
    loop.encoder.eval()
    loop.decoder.eval()
    return loop.reconstruct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--variants", nargs="+", default=["vq_vae", "rq_vae"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = np.load(args.images)
    cut = len(images) - len(images) // 10
    train_x, test_x = (torch.from_numpy(part).float() / 255 for part in (images[:cut], images[cut:]))
    errors: dict[str, dict[str, list[float]]] = {}
    for name in args.variants:
        errors[name] = {"distae": [], "the loop": []}
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                np.save(Path(folder) / "x.npy", images[:cut])
                cfg = settings(name, Path(folder) / "x.npy", args.steps, seed, f"{folder}/run")
                for who, reconstruct in (("distae", ours(cfg)), ("the loop", theirs(cfg, train_x, args.steps))):
                    with torch.no_grad():
                        errors[name][who].append((reconstruct(test_x) - test_x).square().mean().item())
                    print(f"{name}, seed {seed}, {who}: {errors[name][who][-1]:.5f}", flush=True)
    print(f"\n| | distae | the loop |  (mean of {args.seeds} seeds, {args.steps} steps)\n|---|---|---|")
    for name, by in errors.items():
        print(f"| {name} | " + " | ".join(f"{statistics.mean(v):.5f}" for v in by.values()) + " |")
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
