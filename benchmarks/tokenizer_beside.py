"""Our tokenizer beside diffusers' training logic: equal networks, batches, learning rate and steps; quality of held-out images.

    python benchmarks/tokenizer_beside.py --images cifar10_batch_1.npy --out beside      # 3 seeds of both, with KL and VQ: hours
    python benchmarks/tokenizer_beside.py --table beside

A JSON file for each run. Perceptual term: none with KL, 1 - MS-SSIM with VQ, for both. PSNR in dB; distances are 1 - MS-SSIM and an
LPIPS whose AlexNet has random weights.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.diffusers_tokenizer import KL, VQ, epochs
from torch import Tensor
from workloads import silence

from distae import distributed as dist
from distae import load
from distae.commands import train
from distae.config import TrainConfig, build, check
from distae.losses.similarity import ms_ssim
from distae.models import build as build_model
from distae.nn.perceptual import LPIPS
from distae.runtime.environment import Environment

OURS: dict[str, dict[str, Any]] = {
    "kl": {"scale": 0.5**1.5, "discriminator_weight": 1.0},
    "vq": {"scale": 0.5**0.5, "perceptual": "msssim", "commitment": 3.0, "codebook_size": 512},
}
"""The weights of diffusers' logic, in sums over an image of 32x32: squared errors of [-1, 1] with KL, of [0, 1] with VQ."""


def settings(bottleneck: str, path: Path, args: argparse.Namespace) -> TrainConfig:
    table = {
        "model": {
            "name": "tokenizer", "bottleneck": bottleneck, "likelihood": "gaussian", "discriminator_channels": args.width,
            "discriminator_start": args.start if bottleneck == "kl" else 0, **OURS[bottleneck],
        },
        "net": {"name": "image", "channels": args.width, "multipliers": [1, 2, 2], "blocks": 1},
        "data": {"name": "array", "path": str(path / "images.npy"), "val_fraction": 0.0, "test_fraction": 0.0},
        "optim": {"lr": args.lr, "betas": [0.5, 0.9]}, "steps": args.steps, "global_batch_size": args.batch, "threads": 1,
        "save_every": args.steps, "tracking": "none", "device": "cpu", "seed": args.seed, "export": "last", "report": False,
        "run_dir": str(path / "run"),
    }  # fmt: skip
    return check(build(TrainConfig, table), 1)


def ours(cfg: TrainConfig, x: Tensor, args: argparse.Namespace) -> Any:
    with silence():
        assert train.run(cfg, Environment()).outcome == "done"
    return load(str(cfg.run_dir)).module


def diffusers(cfg: TrainConfig, x: Tensor, args: argparse.Namespace) -> Any:
    torch.manual_seed(args.seed)
    model: Any = build_model(cfg.model, cfg.net, (3, 32, 32), args.seed)
    if model.cfg.bottleneck == "vq":
        size, dim = model.codec.codebook.codes.shape
        model.codec.codebook.codes = torch.nn.Parameter(torch.empty(size, dim).uniform_(-1 / size, 1 / size))
    kind = KL if model.cfg.bottleneck == "kl" else VQ
    kind(model, args.lr, model.cfg.discriminator_start).train(epochs(x, args.batch, args.seed), args.steps)
    return model


@torch.no_grad()
def quality(model: Any, held: Tensor) -> dict[str, float]:
    """Of reconstructions of `held` `[N, 3, H, W]`."""
    import torchvision.models as tv

    rng = torch.Generator().manual_seed(0)
    scales = [torch.rand(n, generator=rng) for n in (64, 192, 384, 256, 256)]
    torch.manual_seed(0)
    lpips = LPIPS("alexnet", tv.alexnet(weights=None).features.eval(), scales, "")
    model.eval()
    y = torch.cat([model.reconstruct(part).clamp(0, 1) for part in held.split(100)])
    distances = [(1 - ms_ssim(a, b, 7), lpips(a, b)) for a, b in zip(held.split(100), y.split(100), strict=True)]
    msssim, random = (torch.cat(part).mean().item() for part in zip(*distances, strict=True))
    return {"psnr": -10 * (held - y).square().mean().log10().item(), "msssim": msssim, "random_lpips": random}


CONTESTANTS: dict[str, Callable[[TrainConfig, Tensor, argparse.Namespace], Any]] = {"ours": ours, "diffusers": diffusers}


def measure(who: str, bottleneck: str, args: argparse.Namespace) -> None:
    stored = np.load(args.images)
    held, x = (torch.from_numpy(part).float() / 255 for part in (stored[-args.held :], stored[: -args.held]))
    with tempfile.TemporaryDirectory(prefix="distae-beside-") as path:
        np.save(Path(path) / "images.npy", stored[: -args.held])
        found = quality(CONTESTANTS[who](settings(bottleneck, Path(path), args), x, args), held)
    args.out.mkdir(parents=True, exist_ok=True)
    row = {"who": who, "bottleneck": bottleneck, "seed": args.seed, "steps": args.steps, **found}
    (args.out / f"{bottleneck}_{who}_{args.seed}.json").write_text(json.dumps(row))
    print(json.dumps(row), flush=True)


def table(folder: Path) -> str:
    """Means over seeds with the smallest and the largest, in Markdown."""
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    lines = ["| run | seeds | PSNR, dB | 1 - MS-SSIM | random LPIPS |", "|---|---|---|---|---|"]
    for key in sorted({(r["bottleneck"], r["who"]) for r in rows}):
        of = [r for r in rows if (r["bottleneck"], r["who"]) == key]
        cells = []
        for name, digits in (("psnr", 2), ("msssim", 4), ("random_lpips", 5)):
            values = [r[name] for r in of]
            cells.append("{:.{d}f} ({:.{d}f} to {:.{d}f})".format(statistics.mean(values), min(values), max(values), d=digits))
        lines.append(f"| {key[0]}, {key[1]} | {len(of)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="[N, 3, 32, 32], bytes")
    parser.add_argument("--table", type=Path, help="print the table of this folder, and train nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/beside"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--start", type=int, default=500, help="step at which the discriminator starts, with KL")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--held", type=int, default=500, help="images at the end of the array that are held out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bottlenecks", nargs="+", default=["kl", "vq"], choices=["kl", "vq"])
    parser.add_argument("--who", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    args = parser.parse_args()
    if args.table:
        print(table(args.table))
        return
    dist.set_threads(1, Environment())
    for seed, bottleneck, who in product(args.seeds, args.bottlenecks, args.who):
        args.seed = seed
        measure(who, bottleneck, args)


if __name__ == "__main__":
    main()
