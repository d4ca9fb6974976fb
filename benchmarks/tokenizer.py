"""The tokenizer around its discriminator's start: PSNR of held-out images, with a KL and a VQ bottleneck.

    python benchmarks/tokenizer.py --images cifar10_batch_1.npy --curves curves      # [N, 3, 32, 32], bytes: codes of 8x8 (f4)
    python benchmarks/tokenizer.py --folder photos --curves curves                   # random crops of 64x64: codes of 16x16
    python benchmarks/tokenizer.py --draw curves --out curves.png                    # plot and table of the files in `curves`

Each run writes a JSON file. Runs that exist are resumed, or only read.
"""

import argparse
import contextlib
import io
import json
import math
import statistics
from pathlib import Path
from typing import Any

from distae.commands import train
from distae.config import TrainConfig, build, check
from distae.runtime.environment import Environment

BOTTLENECKS = ("kl", "vq")


def settings(bottleneck: str, args: argparse.Namespace) -> TrainConfig:
    if args.folder:
        source = {"name": "image_folder", "path": str(args.folder), "size": 64, "crop": "random", "val_fraction": 0.2}
    else:
        source = {"name": "array", "path": str(args.images), "val_fraction": 0.02}
    table = {
        "model": {
            "name": "tokenizer", "bottleneck": bottleneck, "codebook_size": 512, "discriminator_start": args.start,
            "discriminator_channels": args.width,
        },
        "net": {"name": "image", "channels": args.width, "multipliers": [1, 2, 2], "blocks": 1},
        "data": source | {"test_fraction": 0.0},
        "optim": {"lr": args.lr, "betas": [0.5, 0.9]}, "steps": args.steps, "global_batch_size": args.batch, "threads": 1,
        "eval_every": args.every, "log_every": args.every, "save_every": args.steps, "tracking": "none", "device": args.device,
        "seed": args.seed, "export": "last", "report": False, "run_dir": str(args.runs / name(bottleneck, args)),
    }  # fmt: skip
    return check(build(TrainConfig, table), 1)


def name(bottleneck: str, args: argparse.Namespace) -> str:
    return f"{bottleneck}_{'photos' if args.folder else 'array'}_{args.seed}"


def curves(run_dir: str) -> dict[str, list[tuple[int, float]]]:
    """PSNR of evaluations in dB, and the training terms around the start, by step."""
    rows = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    psnr = [(r["step"], -10 * math.log10(r["val/mse"])) for r in rows if "val/mse" in r]
    others = ("adaptive_weight", "critic_accuracy", "recon_grad_norm", "adversarial_grad_norm")
    return {"psnr": psnr} | {k: [(r["step"], r[f"train/{k}"]) for r in rows if f"train/{k}" in r] for k in others}


def around(psnr: list[tuple[int, float]], start: int) -> dict[str, Any]:
    """PSNR before the start (mean of the last 5 evaluations), the lowest after it and its step, and that of the last 5.

    None are those that a run stopped early does not have.
    """
    before, after = [p for p in psnr if p[0] <= start], [p for p in psnr if p[0] > start]
    step, low = min(after, key=lambda p: p[1], default=(None, None))
    ends = [statistics.mean(p[1] for p in part[-5:]) if part else None for part in (before, after)]
    return {"before": ends[0], "lowest": low, "at_step": step, "last": ends[1]}


def train_and_write(bottleneck: str, args: argparse.Namespace) -> None:
    cfg = settings(bottleneck, args)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        outcome = train.run(cfg, Environment()).outcome
    args.curves.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"outcome": outcome, "start": args.start, "curves": curves(str(cfg.run_dir))}
    (args.curves / f"{name(bottleneck, args)}.json").write_text(json.dumps(found))
    print(f"{name(bottleneck, args)}, {outcome}: {json.dumps(around(found['curves']['psnr'], args.start))}", flush=True)


def draw(folder: Path, out: Path) -> None:
    """The plot, and a table in Markdown."""
    from matplotlib.figure import Figure

    found: dict[str, Any] = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    print("| run | PSNR before the start, dB | lowest after it | at step | at the end |\n|---|---|---|---|---|")
    figure = Figure((9, 3.2), layout="constrained")
    panels = {"PSNR of held-out images, dB": "psnr", "accuracy of the discriminator": "critic_accuracy"}
    for axes, (title, what) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for run, of in found.items():
            points = [p for p in of["curves"][what] if what == "psnr" or p[0] > of["start"]]
            axes.plot([p[0] for p in points], [p[1] for p in points], label=run.rsplit("_", 1)[0].replace("_", ", "))
        for start in {of["start"] for of in found.values()}:
            axes.axvline(start, color="grey", linestyle=":", label="start")
        axes.set(title=title, xlabel="step")
        axes.legend()
    figure.savefig(out, dpi=110)
    for run, of in found.items():
        low = {key: "" if x is None else f"{x:.4g}" for key, x in around(of["curves"]["psnr"], of["start"]).items()}
        print(f"| {run} | {low['before']} | {low['lowest']} | {low['at_step']} | {low['last']} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="array of images")
    parser.add_argument("--folder", type=Path, help="folder of photographs, instead of --images")
    parser.add_argument("--draw", type=Path, help="draw the curves of this folder, and train nothing")
    parser.add_argument("--runs", type=Path, default=Path("runs/tokenizer"))
    parser.add_argument("--curves", type=Path, default=Path("runs/tokenizer/curves"))
    parser.add_argument("--out", type=Path, default=Path("tokenizer.png"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--start", type=int, default=1500, help="step at which the discriminator starts")
    parser.add_argument("--every", type=int, default=100, help="steps between two evaluations")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bottlenecks", nargs="+", default=BOTTLENECKS, choices=BOTTLENECKS)
    args = parser.parse_args()
    if args.draw:
        draw(args.draw, args.out)
    elif not args.images and not args.folder:
        parser.error("--images, --folder or --draw is needed")
    else:
        for bottleneck in args.bottlenecks:
            train_and_write(bottleneck, args)


if __name__ == "__main__":
    main()
