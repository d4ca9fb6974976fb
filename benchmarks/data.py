"""The cost of data: mapped files against memory, the waiting of a training step, and a windowed shuffle against a full one.

    python benchmarks/data.py                          # all parts
    python benchmarks/data.py mapped wait --rounds 9   # some
    python benchmarks/data.py shuffle --root ../shared/data

A part is a function in PARTS; add others there. Rounds interleave what is compared; each figure is [median, smallest, largest] over
the rounds, and ratios are within a round. The last line is one JSON object.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from data_memory import memory
from torch import Tensor

from distae.commands.session import train_run
from distae.config import TrainConfig, build, check
from distae.config.data import ArrayConfig, FashionMNISTConfig
from distae.data import GlobalBatchSampler, Loader, Split, Tensors, Transform, UnitSource, load
from distae.data.sampler import FullOrder, Order
from distae.data.windowed import WindowedOrder
from distae.errors import UserError
from distae.runtime.signals import StopRequest

CPU = torch.device("cpu")
Figures = dict[str, Any]


def spread(values: list[float]) -> list[float]:
    """Median, smallest and largest of the rounds without the first, which warms up, unless it is the only one."""
    return [round(f(values[1:] or values), 4) for f in (statistics.median, min, max)]


def settings(folder: Path, **changes: Any) -> TrainConfig:
    """A VAE on images 28x28, on one thread."""
    fixed = {"data": {"name": "fashion_mnist"}, "tracking": "none", "device": "cpu", "threads": 1, "model": {"name": "vae"}}
    return check(build(TrainConfig, fixed | {"run_dir": str(folder)} | changes), 1)


def run(cfg: TrainConfig, splits: dict[str, Split]) -> list[dict[str, float]]:
    """The rows of metrics of a run in a new folder."""
    run_dir = Path(str(cfg.run_dir))
    run_dir.mkdir()
    end = train_run(cfg, splits, StopRequest(), 1)
    assert end.outcome == "done", end.reason
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def train(split: Split, folder: Path, args: argparse.Namespace, **data: Any) -> list[dict[str, float]]:
    """Rows of training metrics of `args.steps` steps on these samples, without the first row."""
    table, net = {"name": "fashion_mnist"} | data, {"name": "mlp", "hidden": [512, 256]}
    cfg = settings(folder, steps=args.steps, log_every=args.steps // 3, net=net, data=table)
    none = split.take(slice(0))
    return [row for row in run(cfg, {"train": split, "val": none, "test": none}) if "train/loss" in row][1:]


def random_images(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 28, 28), dtype=np.uint8)


def mapped(args: argparse.Namespace, folder: Path) -> Figures:
    """Batches per second of CPU time from a mapped .npy file, in the page cache, over those from memory: of the loader alone,
    and of a run that trains."""
    n = int(200_000 * args.scale)
    np.save(folder / "x.npy", random_images(n))
    split = load(ArrayConfig(path=str(folder / "x.npy"), test_fraction=0, val_fraction=0, scale=255.0))["train"]
    assert split.source.origin
    in_memory = Tensors(torch.from_numpy(np.load(folder / "x.npy")))
    splits = {"mapped": split, "memory": dataclasses.replace(split, source=in_memory)}
    found: dict[str, list[float]] = {"loader": [], "training": []}
    for number in range(args.rounds + 1):
        seconds: dict[str, list[float]] = {}
        for name in sorted(splits, reverse=number % 2 == 1):
            loader, started = Loader(splits[name], "none", CPU, torch.float32), time.process_time()
            for rows in GlobalBatchSampler(n, 128, 0, 1, 1, 0):
                loader.batch(rows[0], None)  # type: ignore[arg-type]
            loaded = time.process_time()
            train(splits[name], folder / f"{name}{number}", args)
            seconds[name] = [loaded - started, time.process_time() - loaded]
        for what, resident, file in zip(found, seconds["memory"], seconds["mapped"], strict=True):
            found[what].append(resident / file)
    return {name: spread(values) for name, values in found.items()}


class InMemoryUnits(UnitSource):
    """Rows of a tensor in units, each of which takes `seconds` to read, as from a disk or a network."""

    def __init__(self, x: Tensor, size: int, seconds: float = 0.0) -> None:
        self.x, self.seconds, self.shape, self.dtype, self.decodes = x, seconds, tuple(x.shape[1:]), x.dtype, True
        self.units = torch.full((len(x) // size,), size)

    def read_unit(self, number: int) -> Tensor:
        time.sleep(self.seconds)
        size = int(self.units[0])
        return self.x[number * size : (number + 1) * size]

    def decode(self, unit: Tensor, rows: Tensor) -> Tensor:
        return unit[rows]


def wait(args: argparse.Namespace, folder: Path) -> Figures:
    """`train/data_wait_fraction` of training on units that take 20 ms each to read, without and with threads that read ahead, and
    from memory; and the rates relative to that from memory."""
    n = int(100_000 * args.scale) // 100 * 100
    x = torch.from_numpy(random_images(n))
    found: dict[str, list[float]] = {}
    for number in range(args.rounds + 1):
        rates = {}
        for name, workers in {"memory": 0, "units": 0, "units, 4 threads": 4}.items():
            source = Tensors(x) if name == "memory" else InMemoryUnits(x, 100, 0.02)
            data = {"workers": workers, "prefetch": 8, "shuffle": "full" if name == "memory" else "windowed"}
            rows = train(Split(source, Transform(255.0, "no_channel")), folder / f"{name}{number}", args, **data)
            found.setdefault(f"wait, {name}", []).append(statistics.mean(r["train/data_wait_fraction"] for r in rows))
            rates[name] = statistics.harmonic_mean([row["train/samples_per_second"] for row in rows])
        for name in ("units", "units, 4 threads"):
            found.setdefault(f"rate, {name}", []).append(rates[name] / rates["memory"])
    return {name: spread(values) for name, values in found.items()}


def shuffle(args: argparse.Namespace, folder: Path) -> Figures:
    """Validation loss in nats after an epoch on Fashion-MNIST sorted by class, in units of 100 images, a new seed each round:
    shuffled in full, in windows with our number of lanes, and in windows with one lane, like a shuffle buffer."""
    ordered, val = sorted_by_class(args)
    sizes, n = torch.full((len(ordered) // 100,), 100), len(ordered)
    found: dict[str, list[float]] = {}
    for seed in range(args.rounds + 1):
        orders: dict[str, Order] = {"full": FullOrder(n, 128, seed), "windowed": WindowedOrder(sizes, 128, seed, 4)}
        with mock.patch("distae.data.windowed.MOST_LANES", 1):
            orders["one lane"] = WindowedOrder(sizes, 128, seed, 4)
        for name, order in orders.items():
            with mock.patch("distae.data.order_of", return_value=order):
                cfg = settings(folder / f"{name}{seed}", epochs=1, seed=seed, log_every=1000)
                rows = run(cfg, {"train": ordered, "val": val, "test": val.take(slice(0))})
            found.setdefault(name, []).append(next(row["val/loss"] for row in reversed(rows) if "val/loss" in row))
    ratios = {f"{k} over full": [a / b for a, b in zip(v, found["full"], strict=True)] for k, v in found.items() if k != "full"}
    return {name: spread(values) for name, values in (found | ratios).items()}


def sorted_by_class(args: argparse.Namespace) -> tuple[Split, Split]:
    """Training images in the order of their classes, a multiple of 100, and validation images as they are."""
    try:
        splits = load(FashionMNISTConfig(root=args.root))
    except UserError as error:
        raise SystemExit(str(error)) from error
    some = splits["train"].take(slice(max(1000, int(54_000 * args.scale) // 100 * 100)))
    assert some.label is not None
    return some.take(some.label.argsort(stable=True)), splits["val"].take(slice(max(200, int(6000 * args.scale))))


PARTS: dict[str, Callable[[argparse.Namespace, Path], Figures]] = {
    "mapped": mapped, "wait": wait, "shuffle": shuffle, "memory": memory,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"what to measure, by default all: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count; 0: one that tells whether everything runs")
    parser.add_argument("--steps", type=int, default=300, help="training steps of a measurement")
    parser.add_argument("--scale", type=float, default=1.0, help="of the sizes of the data sets")
    parser.add_argument("--root", default="data", help="folder of torchvision's sets (shuffle)")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown {', '.join(unknown)}; valid: {', '.join(PARTS)}")
    torch.set_num_threads(1)
    found = {}
    for part in args.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            found[part] = PARTS[part](args, Path(folder))
        for name, value in found[part].items():
            print(f"{part:10}{name:26}{value[0]:g} ({value[1]:g} to {value[2]:g})")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
