"""The tokenizer around its discriminator's start: PSNR of held-out images, with a KL and a VQ bottleneck.

    python benchmarks/tokenizer.py --images cifar10_batch_1.npy --out curves.png      # [N, 3, 32, 32], bytes

Codes of 8x8 (f4), the discriminator from half of the steps on. Runs that exist are resumed, or only read.
"""

import argparse
import contextlib
import io
import json
import math
from pathlib import Path

from distae.commands import train
from distae.config import TrainConfig, build, check
from distae.runtime.environment import Environment

BOTTLENECKS = ("kl", "vq")


def settings(bottleneck: str, args: argparse.Namespace) -> TrainConfig:
    table = {
        "model": {
            "name": "tokenizer", "bottleneck": bottleneck, "codebook_size": 512, "discriminator_start": args.steps // 2,
            "discriminator_channels": args.width,
        },
        "net": {"name": "image", "channels": args.width, "multipliers": [1, 2, 2], "blocks": 1},
        "data": {"name": "array", "path": str(args.images), "val_fraction": 0.02, "test_fraction": 0.0},
        "optim": {"lr": args.lr, "betas": [0.5, 0.9]}, "steps": args.steps, "global_batch_size": args.batch, "threads": 1,
        "eval_every": max(1, args.steps // 30), "log_every": max(1, args.steps // 30), "tracking": "none", "device": args.device,
        "seed": args.seed, "export": "last", "report": False, "run_dir": str(args.runs / f"{bottleneck}_{args.steps}_{args.seed}"),
    }  # fmt: skip
    return check(build(TrainConfig, table), 1)


def curves(run_dir: str) -> dict[str, list[tuple[int, float]]]:
    """PSNR of evaluations in dB, and the training terms around the start, by step."""
    rows = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    psnr = [(r["step"], -10 * math.log10(r["val/mse"])) for r in rows if "val/mse" in r]
    others = ("adaptive_weight", "critic_accuracy", "recon_grad_norm", "adversarial_grad_norm")
    return {"psnr": psnr} | {k: [(r["step"], r[f"train/{k}"]) for r in rows if f"train/{k}" in r] for k in others}


def around(psnr: list[tuple[int, float]], start: int) -> dict[str, float]:
    """PSNR at the last evaluation before the start, the lowest after it, and the last."""
    before, after = [p for p in psnr if p[0] <= start], [p for p in psnr if p[0] > start]
    lowest = min(after, key=lambda p: p[1])
    return {"before": before[-1][1], "lowest": lowest[1], "at_step": lowest[0], "last": after[-1][1]}


def plot(found: dict[str, dict[str, list[tuple[int, float]]]], start: int, out: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, series in found.items():
        left.plot(*zip(*series["psnr"], strict=True), label=name)
        right.plot(*zip(*series["critic_accuracy"], strict=True), label=name)
    for axes, title in ((left, "PSNR of held-out images, dB"), (right, "accuracy of the discriminator")):
        axes.axvline(start, color="grey", linestyle=":", label="the discriminator's start")
        axes.set(title=title, xlabel="step")
        axes.legend()
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/tokenizer"))
    parser.add_argument("--out", type=Path, default=Path("tokenizer.png"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bottlenecks", nargs="+", default=BOTTLENECKS, choices=BOTTLENECKS)
    args = parser.parse_args()
    found = {}
    for bottleneck in args.bottlenecks:
        cfg = settings(bottleneck, args)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            assert train.run(cfg, Environment()).outcome == "done"
        found[bottleneck] = curves(str(cfg.run_dir))
        print(f"{bottleneck}: {json.dumps(around(found[bottleneck]['psnr'], args.steps // 2))}", flush=True)
    plot(found, args.steps // 2, args.out)


if __name__ == "__main__":
    main()
