"""What the commands over a run cost: encode and evaluate beside loops that only call the model.

    python benchmarks/use.py --rounds 5

The loops hold the samples in memory, as floating point, and keep nothing: no reading, no sums, no file. The commands read a mapped
array of bytes from disk. CPU time of one thread; rounds interleave, figures are [median, smallest, largest] over all but the first.
The last line is one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distae.commands import train
from distae.commands.encode import _encoded, _save
from distae.commands.trained import Trained
from distae.config import TrainConfig, build
from distae.evaluation.exact import evaluate
from distae.models import Batch
from distae.models.serialization import load_saved
from distae.noise import Noise, Rows

CHUNK = 512


def trained(folder: Path, samples: int) -> Trained:
    """A run of one step on a mapped array of images 28x28."""
    np.save(folder / "x.npy", np.random.default_rng(0).integers(0, 256, (samples, 28, 28), dtype=np.uint8))
    data = f"--data array --data.path {folder / 'x.npy'} --data.test-fraction 0 --data.val-fraction 0"
    options = f"--model vae --net.hidden 512 256 --steps 1 --run-dir {folder / 'run'} --tracking none --device cpu --threads 1"
    assert train.main([*data.split(), *options.split(), "--progress", "none"]) == 0
    saved = load_saved(folder / "run")
    cfg = build(TrainConfig, {"data": saved.about.data or {}})
    run = Trained([str(folder / "run")], argparse.Namespace(split="train"), saved, cfg)
    run.device = torch.device("cpu")
    return run


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.no_grad()
def forward_only(run: Trained, x: Tensor) -> None:
    for part in x.split(CHUNK):
        run.model.module.encode(part)


@torch.no_grad()
def objective_only(run: Trained, x: Tensor) -> None:
    for i, part in enumerate(x.split(CHUNK)):
        noise = Noise(0, ("eval", i), Rows(len(part)), torch.device("cpu"))
        run.model.module(Batch(part, None, None, None, len(x)), "autoencoder", noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=60_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = trained(folder, args.samples)
        x = torch.from_numpy(np.load(folder / "x.npy")).unsqueeze(1).float() / 255
        pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "encode": (
                lambda: forward_only(run, x),
                lambda: _save(folder / "codes.npz", _encoded(run, range(args.samples))),
            ),
            "evaluate": (
                lambda: objective_only(run, x),
                lambda: evaluate(run.model.module, run.loader, CHUNK, 0),
            ),
        }
        ratios: dict[str, list[float]] = {name: [] for name in pairs}
        for _ in range(args.rounds + 1):
            for name, (loop, command) in pairs.items():
                ratios[name].append(seconds(loop) / seconds(command))
    found = {k: [round(f(v[1:]), 3) for f in (statistics.median, min, max)] for k, v in ratios.items()}
    for name, values in found.items():
        print(f"{name}: {values[0]} of the loop's samples per second ({values[1]} to {values[2]})")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
