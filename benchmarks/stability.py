"""Every variant's recipe on MNIST with an outlier and a constant image among the training data: does it stay finite?

    python benchmarks/stability.py --root data                          # 2,000 steps of each of recipes/variants: a table
    python benchmarks/stability.py --root data --steps 200 --recipes vae vq_vae factor_vae

The outlier has values a hundred times too large where the likelihood allows it, else a checkerboard of 0 and 1.
"""

import argparse
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from distae import data
from distae import distributed as dist
from distae.commands import session
from distae.config import TrainConfig, check, parse
from distae.data import Loader, Split
from distae.noise import Noise, Rows
from distae.runtime.environment import Environment
from distae.runtime.signals import StopRequest

FOLDER = Path(__file__).parent.parent / "recipes/variants"


def names() -> list[str]:
    return sorted(p.stem for p in FOLDER.glob("*.toml"))


def recipe(name: str, root: str, steps: int, run_dir: Path) -> TrainConfig:
    changes = ["--data.root", root, "--steps", str(steps), "--run-dir", str(run_dir), "--tracking", "none", "--device", "cpu"]
    cfg = parse(TrainConfig, ["--config", str(FOLDER / f"{name}.toml"), *changes], {}, "stability").settings
    cfg = replace(cfg, log_every=10, eval_every=steps, save_every=steps, data=replace(cfg.data, limit=2000))
    return check(cfg, 1)


def with_outliers(split: Split, large: bool) -> Split:
    """The samples as numbers, the first one constant and the second one extreme."""
    unused = Noise(0, ("stability",), Rows(len(split)), torch.device("cpu"))  # nothing is binarised
    x, _ = Loader(split, "none", torch.device("cpu"), torch.float32).batch(torch.arange(len(split)), unused)
    x[0] = 1.0
    x[1] = (torch.arange(x[1].numel()).view(x[1].shape) % 2) * (100.0 if large else 1.0)
    return Split.of(x, split.label)


def measure(cfg: TrainConfig, splits: dict[str, Split]) -> dict[str, Any]:
    """Outcome of a run with the two images in its data, its first and last training loss and its largest gradient norm."""
    run_dir = Path(cfg.run_dir or "")
    run_dir.mkdir()
    splits = splits | {"train": with_outliers(splits["train"], cfg.model.likelihood != "bernoulli")}
    end = session.train_run(cfg, splits, StopRequest(), 1)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses, norms = ([r[k] for r in rows if k in r] or [math.nan] for k in ("train/loss", "train/grad_norm"))
    return {
        "outcome": end.outcome, "steps": end.step, "reason": end.reason,
        "first_loss": losses[0], "last_loss": losses[-1], "largest_grad_norm": max(norms),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder with MNIST")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--recipes", nargs="*", default=names())
    args = parser.parse_args()
    dist.set_threads(1, Environment())
    print("| recipe | outcome | loss at step 10 | loss at the end | largest gradient norm |\n|---|---|---|---|---|", flush=True)
    for name in args.recipes:
        with tempfile.TemporaryDirectory() as folder:
            cfg = recipe(name, args.root, args.steps, Path(folder) / "run")
            found = measure(cfg, data.load(cfg.data))
        outcome = f"finite, {found['steps']} steps" if found["outcome"] == "done" else found["reason"]
        print(
            f"| {name} | {outcome} | {found['first_loss']:.1f} | {found['last_loss']:.1f} | {found['largest_grad_norm']:.3g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
