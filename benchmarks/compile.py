"""The effect of --compile on each variant: seconds at the start, speed of a step, and difference of its losses from eager ones.

    python benchmarks/compile.py --root data                          # each of recipes/variants that compiles: a table
    python benchmarks/compile.py --root data --recipes vae vq_vae

A recipe trains eagerly and compiled, alternating, on one thread. Speed is eager over compiled CPU time of a window, the median over
rounds with the smallest and the largest. Terms are compared over the first steps, before training amplifies rounding; differences
are relative to the larger of term and loss, since some terms are small differences of large numbers. The last line is one JSON
object.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from stability import names, recipe
from torch import Tensor
from workloads import Steps

from distae import data
from distae import distributed as dist
from distae.config import TrainConfig
from distae.runtime.environment import Environment

COMPARED, WINDOW = 5, 20


def mean_terms(steps: Steps) -> tuple[Tensor, float]:
    """Means of all terms over the steps since the last call, and the mean of the loss."""
    window = steps.trainer.train_step.window
    means, _ = window.read()
    window.clear()
    return torch.tensor(list(means.values())), means["loss"]


def measure(cfg: TrainConfig, rounds: int) -> dict[str, Any]:
    """Figures of one recipe."""
    splits = data.load(cfg.data)
    eager, compiled = (Steps(replace(cfg, run_dir=f"{cfg.run_dir}_{c}", compile=c), splits) for c in (False, True))
    differences = []
    for _ in range(COMPARED):
        eager.cpu_seconds(1), compiled.cpu_seconds(1)
        (a, loss), (b, _) = mean_terms(eager), mean_terms(compiled)
        differences.append(float(((a - b).abs() / a.abs().clamp_min(abs(loss))).max()))
    speeds = [eager.cpu_seconds(WINDOW) / compiled.cpu_seconds(WINDOW) for _ in range(rounds + 1)]
    speeds = speeds[1:] or speeds
    for run in (eager, compiled):
        run.trainer.close()
    return {
        "seconds": compiled.warmup_seconds, "speed": [statistics.median(speeds), min(speeds), max(speeds)],
        "difference": max(differences),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder with MNIST")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipes", nargs="*", default=names())
    args = parser.parse_args()
    dist.set_threads(1, Environment())
    print("| recipe | seconds at the start | speed | largest relative difference of a term |\n|---|---|---|---|", flush=True)
    report = {}
    for name in args.recipes:
        with tempfile.TemporaryDirectory(prefix="distae-compile-") as folder:
            cfg = recipe(name, args.root, 1000, Path(folder) / "run")
            if cfg.model.compiles:
                report[name] = found = measure(cfg, args.rounds)
                speed = "{:.2f} ({:.2f} to {:.2f})".format(*found["speed"])
                print(f"| {name} | {found['seconds']:.0f} | {speed} | {found['difference']:.1g} |", flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
