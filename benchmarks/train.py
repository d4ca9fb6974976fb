"""Training speed against the compute limit and a tutorial's loop, side by side on one thread.

    python benchmarks/train.py --rounds 7

limit     a hand-written network on one resident batch: fused Adam, denormals flushed, no input path, no logging
ours      `distae.train.main` with metrics.jsonl, as its train/samples_per_second says: between evaluations and saves
tutorial  per-sample PIL and ToTensor through a DataLoader, Adam as it comes, loss.item() at every step

Same layers (equal parameter counts are asserted), batch, precision and thread. Rounds are interleaved; a figure is the median over
rounds of the ratio to the limit in the same round, with its smallest and largest value. Data are random bytes of MNIST's shape:
speed does not depend on them. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

from distae import load, train

N = 60_000
WORKLOADS: dict[str, tuple[int, int, list[str]]] = {
    "ae 784-256-64-20, batch 32": (32, 1500, ["--model", "ae", "--model.latent-dim", "20", "--net.hidden", "256", "64"]),
    "ae 784-256-64-20, batch 128": (128, 600, ["--model", "ae", "--model.latent-dim", "20", "--net.hidden", "256", "64"]),
    "vae 784-512-256-16, batch 128": (128, 400, ["--model", "vae", "--model.latent-dim", "16", "--net.hidden", "512", "256"]),
    "conv vae 32-64, batch 128": (
        128,
        80,
        ["--model", "vae", "--model.latent-dim", "16", "--net", "conv", "--net.channels", "32", "64"],
    ),
}
"""Batch, steps per round, settings."""


class Coder(nn.Module):
    """The same network by hand: logits and, for a VAE, the KL."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, variational: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.variational = encoder, decoder, variational

    def forward(self, x: Tensor) -> Tensor:
        z, kl = self.encoder(x), torch.zeros(())
        if self.variational:
            mu, logvar = z.chunk(2, dim=1)
            z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
            kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1).mean()
        nll = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").flatten(1).sum(1).mean()
        return nll + kl


def by_hand(name: str) -> Coder:
    """The network of a workload, from torch's own layers."""
    if name.startswith("ae"):
        return Coder(_mlp(784, 256, 64, 20), nn.Sequential(_mlp(20, 64, 256, 784), nn.Unflatten(1, (1, 28, 28))), False)
    if name.startswith("vae"):
        return Coder(_mlp(784, 512, 256, 32), nn.Sequential(_mlp(16, 256, 512, 784), nn.Unflatten(1, (1, 28, 28))), True)
    encoder = nn.Sequential(
        nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 49, 32)
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(16, 64 * 49), nn.Unflatten(1, (64, 7, 7)), nn.ReLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 4, 2, 1),
    )  # fmt: skip
    return Coder(encoder, decoder, True)


def _mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def limit(name: str, images: np.ndarray) -> Callable[[int], float]:
    """Samples per second on one resident batch; at a rate that leaves the weights where they are."""
    batch = WORKLOADS[name][0]
    model, x = by_hand(name), torch.from_numpy(images[:batch]).unsqueeze(1) / 255
    optimizer = torch.optim.Adam(model.parameters(), 1e-12, fused=True)

    def run(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).backward()
            optimizer.step()
        return steps * batch / (time.perf_counter() - started)

    return run


def tutorial(name: str, images: np.ndarray) -> Callable[[int], float]:
    """Samples per second of the loop that tutorials show."""
    batch = WORKLOADS[name][0]
    model, data = by_hand(name), [(i,) for i in range(N)]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loader = torch.utils.data.DataLoader(
        data, batch, shuffle=True, collate_fn=lambda rows: torch.stack([to_tensor(Image.fromarray(images[i])) for (i,) in rows])
    )  # type: ignore[var-annotated, arg-type]

    def run(steps: int) -> float:
        started, total = time.perf_counter(), 0.0
        for done, x in enumerate(loader):
            if done == steps:
                break
            optimizer.zero_grad()
            loss = model(x)
            loss.backward()
            optimizer.step()
            total += loss.item()
        return steps * batch / (time.perf_counter() - started)

    return run


def ours(name: str, path: Path, folder: Path) -> Callable[[int], float]:
    """Median of train/samples_per_second over the rows of one run, the first left out."""
    batch, _, argv = WORKLOADS[name]
    fixed = f"--data array --data.path {path} --tracking none --device cpu --threads 1 --fresh --data.val-fraction 0".split()

    def run(steps: int) -> float:
        run_dir = folder / f"{name.split(',', maxsplit=1)[0].replace(' ', '_')}_{batch}"
        every = max(1, steps // 10)
        sizes = f"--global-batch-size {batch} --steps {steps} --log-every {every} --save-every {10 * steps}".split()
        with open(os.devnull, "w") as silence:  # noqa: PTH123
            stderr, sys.stderr = sys.stderr, silence
            assert train.main([*argv, *fixed, *sizes, "--run-dir", str(run_dir)]) == 0
            sys.stderr = stderr
        parameters = sum(p.numel() for p in load(run_dir).parameters())
        assert parameters == sum(p.numel() for p in by_hand(name).parameters())
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        rates = [row["train/samples_per_second"] for row in rows if "train/samples_per_second" in row]
        return statistics.median(rates[1:])

    return run


def measure(name: str, rounds: int, scale: float, folder: Path, images: np.ndarray) -> dict[str, list[float]]:
    """Rates of each contestant, round by round; the first round is not counted."""
    steps = max(20, int(WORKLOADS[name][1] * scale))
    contestants = {
        "limit": limit(name, images),
        "ours": ours(name, folder / "bytes.npy", folder),
        "tutorial": tutorial(name, images),
    }
    rates = [{who: run(steps) for who, run in contestants.items()} for _ in range(rounds + 1)][1:]
    return {who: [r[who] for r in rates] for who in contestants}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="steps per round, as a share of the default")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, (N, 28, 28), dtype=np.uint8)
    result: dict[str, object] = {"torch": torch.__version__, "load_before": os.getloadavg()[0], "rounds": args.rounds}
    with tempfile.TemporaryDirectory(prefix="distae-speed-") as name:
        folder = Path(name)
        np.save(folder / "bytes.npy", images)
        for workload in WORKLOADS:
            rates = measure(workload, args.rounds, args.scale, folder, images)
            figures = {"limit_samples_per_second": round(statistics.median(rates["limit"]))}
            for who in ("ours", "tutorial"):
                ratios = [a / b for a, b in zip(rates[who], rates["limit"], strict=True)]
                figures[who] = [round(f(ratios), 3) for f in (statistics.median, min, max)]  # type: ignore[assignment]
            result[workload] = figures
            print(f"{workload:32} ours {figures['ours']} tutorial {figures['tutorial']} of the limit (median, min, max)")
    print(json.dumps(result | {"load_after": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
