"""The cost of noise: a rank's time and memory from 1 to 1,024 ranks and over accumulation, and blocks against one draw.

    python benchmarks/noise.py                  # three tables, then one JSON object

The ranks are simulated: what one rank draws depends on its rows alone, so only the last of N ranks draws its share of a global
batch of N times as many rows. Time is CPU time on one thread, the median over interleaved rounds; memory of a draw is what it
allocates. Memory of training is the resident set of our trainer on `denoising_ae`, whose noise is as wide as the images, in a
process of its own: its peak, and its growth since the first step. The micro-batch is always the same.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from distae.data import Transform
from distae.noise import Noise, Rows

RANKS = (1, 4, 16, 64, 256, 1024)
SHARE, WIDTH = 128, 3072
"""Rows of a rank, and values per row: a 3-channel image of 32x32 pixels."""
SHAPES = ((128, 16), (128, 784), (512, 3072))
SIDE, MICRO, STEPS = 64, 512, 2
"""The training whose peak is measured: images of SIDE x SIDE, so a micro-batch is 8 MiB."""


def draw(rows: Rows, width: int) -> Tensor:
    return Noise(0, ("train", 1, "autoencoder"), rows, torch.device("cpu")).normal(torch.empty(1, width))


def whole(rows: Rows, width: int) -> Tensor:
    """The same as one draw, without blocks."""
    return torch.randn(rows.count, width, generator=torch.Generator().manual_seed(1))


def milliseconds(calls: Sequence[Callable[[], Tensor]], rounds: int) -> list[float]:
    """Median CPU milliseconds of each call; the calls alternate."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, spent in zip(calls, times, strict=True):
            started = time.process_time()
            call()
            spent.append(1e3 * (time.process_time() - started))
    return [statistics.median(spent[1:]) for spent in times]


def over_ranks(rounds: int) -> list[dict[str, float]]:
    """The last rank's time and MiB for a draw of its rows."""
    shares = [Rows(SHARE, (n - 1) * SHARE) for n in RANKS]
    times = milliseconds([partial(draw, rows, WIDTH) for rows in shares], rounds)
    memory = [draw(rows, WIDTH).untyped_storage().nbytes() / 2**20 for rows in shares]
    return [{"ranks": n, "ms": ms, "mib": mib} for n, ms, mib in zip(RANKS, times, memory, strict=True)]


def against_one_draw(rounds: int) -> list[dict[str, float]]:
    """Milliseconds by shape, as one draw and in blocks."""
    calls = [partial(f, Rows(n), w) for n, w in SHAPES for f in (whole, draw)]
    times = milliseconds(calls, rounds)
    return [{"rows": n, "width": w, "one_ms": times[2 * i], "blocks_ms": times[2 * i + 1]} for i, (n, w) in enumerate(SHAPES)]


def _train(accum: int, results: "multiprocessing.Queue[tuple[int, int]]") -> None:
    """Bytes of the resident set before the first step, and at its peak."""
    from distae.config import TrainConfig, build, check
    from distae.config.data import ArrayConfig
    from distae.data import Split
    from distae.runtime.signals import StopRequest
    from distae.training.trainer import Trainer

    torch.set_num_threads(1)
    table = {
        "model": {"name": "denoising_ae", "likelihood": "gaussian"}, "net": {"name": "mlp", "hidden": [64]},
        "data": {"name": "array", "path": "unused"}, "global_batch_size": MICRO * accum, "grad_accum_steps": accum,
        "steps": STEPS, "tracking": "none", "device": "cpu", "threads": 1,
    }  # fmt: skip
    images = torch.zeros(MICRO * accum, 1, SIDE, SIDE, dtype=torch.uint8)
    with tempfile.TemporaryDirectory(prefix="distae-noise-") as folder:
        ArrayConfig.shape = lambda self: (1, SIDE, SIDE)  # type: ignore[method-assign]
        cfg = check(build(TrainConfig, table | {"run_dir": str(Path(folder) / "run")}), 1)
        empty = Split.of(images[:0], None)
        trainer = Trainer(cfg, {"train": Split.of(images, None, Transform(255.0)), "val": empty, "test": empty}, StopRequest(), 1)
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        for step, rows in zip(range(STEPS), trainer.sampler, strict=False):
            trainer.train_step(step, rows)
        trainer.close()
    results.put((before, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def over_accumulation(counts: tuple[int, ...]) -> list[dict[str, float]]:
    """MiB at the peak of a process that trains, and above what it had before, by accumulation."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)  # freed tensors are returned to the system, else holes in the heap count too
    spawn = multiprocessing.get_context("spawn")
    found: list[dict[str, float]] = []
    for accum in counts:
        results = spawn.Queue()
        process = spawn.Process(target=_train, args=(accum, results))
        process.start()
        before, peak = results.get(timeout=300)
        found.append({"accumulation": accum, "peak_mib": peak / 2**20, "above_mib": (peak - before) / 2**20})
        process.join()
    return found


def table(rows: list[dict[str, float]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([f"{v:.4g}" for v in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--accumulation", type=int, nargs="*", default=[1, 4, 16])
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = {"over_ranks": over_ranks(args.rounds), "against_one_draw": against_one_draw(args.rounds)}
    if args.accumulation:
        result["over_accumulation"] = over_accumulation(tuple(args.accumulation))
    for name, rows in result.items():
        print(f"{name.replace('_', ' ')}\n{table(rows)}\n")
    print(json.dumps({"torch": str(torch.__version__), **result}))


if __name__ == "__main__":
    main()
