"""What --compile gives each variant: seconds at the start, speed of a step, and how far its losses are from eager ones.

    python benchmarks/compile.py --root data                          # each of recipes/variants that compiles: a table
    python benchmarks/compile.py --root data --recipes vae vq_vae

A recipe's training runs eagerly and compiled in turns, on one thread. Speed is eager over compiled CPU time of a window, the
median over rounds with the smallest and the largest; the losses are those of the first steps, before rounding is amplified by
training. The last line is one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from stability import names, recipe
from torch import Tensor

from distae import data, dist
from distae.config import TrainConfig
from distae.environment import Environment
from distae.stop import StopRequest
from distae.trainer import Trainer

COMPARED, WINDOW = 5, 20


class Run:
    """A training that can be taken further, a window at a time."""

    def __init__(self, cfg: TrainConfig, splits: Any) -> None:
        Path(str(cfg.run_dir)).mkdir()
        self.trainer = Trainer(cfg, splits, StopRequest(), 1)
        rows = data.steps(self.trainer.sampler, 0, self.trainer.loaders["train"].home)
        started = time.perf_counter()
        self.trainer.stepper.prime(next(rows))
        self.seconds_to_compile = time.perf_counter() - started
        self.rows = data.steps(self.trainer.sampler, 0, self.trainer.loaders["train"].home)

    def steps(self, n: int) -> float:
        """CPU seconds of n steps."""
        started = time.process_time()
        for _ in range(n):
            self.trainer.stepper(self.trainer.state.step, next(self.rows))
            self.trainer.state.step += 1
        return time.process_time() - started

    def mean_terms(self) -> Tensor:
        """Means of all terms over the steps since the last call."""
        means, _ = self.trainer.stepper.window.read()
        self.trainer.stepper.window.clear()
        return torch.tensor(list(means.values()))


def measure(cfg: TrainConfig, rounds: int) -> dict[str, Any]:
    """Figures of one recipe."""
    splits = data.load(cfg.data)
    eager, compiled = (Run(replace(cfg, run_dir=f"{cfg.run_dir}_{c}", compile=c), splits) for c in (False, True))
    differences = []
    for _ in range(COMPARED):
        eager.steps(1), compiled.steps(1)
        a, b = eager.mean_terms(), compiled.mean_terms()
        differences.append(float(((a - b).abs() / a.abs().clamp_min(1e-6)).max()))
    speeds = [eager.steps(WINDOW) / compiled.steps(WINDOW) for _ in range(rounds + 1)][1:]
    for run in (eager, compiled):
        run.trainer.close()
    return {
        "seconds": compiled.seconds_to_compile, "speed": [statistics.median(speeds), min(speeds), max(speeds)],
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
    told = {}
    for name in args.recipes:
        with tempfile.TemporaryDirectory(prefix="distae-compile-") as folder:
            cfg = recipe(name, args.root, 1000, Path(folder) / "run")
            if cfg.model.compiles:
                told[name] = found = measure(cfg, args.rounds)
                speed = "{:.2f} ({:.2f} to {:.2f})".format(*found["speed"])
                print(f"| {name} | {found['seconds']:.0f} | {speed} | {found['difference']:.1g} |", flush=True)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
