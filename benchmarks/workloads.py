"""Shared by the speed benchmarks: the workloads, their networks by hand, our trainer as a contestant, and paired rounds."""

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pythae_net
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae import data
from distae.commands import train
from distae.config import TrainConfig, build
from distae.runtime.signals import StopRequest
from distae.tracking import Jsonl
from distae.training.trainer import Trainer

N = 60_000


class Coder(nn.Module):
    """A network by hand and its loss, the mean over the batch of half the squared error or, with logits, nats; plus KL of a VAE."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, variational: bool, logits: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.variational, self.logits = encoder, decoder, variational, logits

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        if not self.variational:
            return self.error(self.decoder(z), x).mean()
        mu, logvar = z.float().chunk(2, dim=1)
        nll = self.error(self.decoder(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), x)
        return (nll + 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1)).mean()

    def error(self, recon: Tensor, x: Tensor) -> Tensor:
        recon = recon.float()
        each = F.binary_cross_entropy_with_logits(recon, x, reduction="none") if self.logits else 0.5 * (x - recon).square()
        return each.flatten(1).sum(1)


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def mlp_coder(variational: bool, *sizes: int) -> Coder:
    """`sizes` from the image to the code; the decoder mirrors the encoder."""
    *hidden, code = sizes
    up = nn.Sequential(mlp(*reversed(sizes)), nn.Unflatten(1, (1, 28, 28)))
    return Coder(mlp(*hidden, 2 * code if variational else code), up, variational, logits=variational)


def conv_coder(width: int = 128) -> Coder:
    """pythae's network for MNIST, from torch's own layers."""
    down, up = pythae_net.conv_down(width, 32, nn.BatchNorm2d), pythae_net.conv_up(width, 16, nn.BatchNorm2d)
    return Coder(nn.Sequential(*down), nn.Sequential(*up), variational=True, logits=True)


@dataclass(frozen=True)
class Workload:
    """A model and a batch that all contestants train."""

    batch: int
    steps: int
    """Per round; less than an epoch, so that no contestant evaluates or saves within."""
    warm: int
    """Steps at the start of a round that are not counted; also our steps between two rows of metrics."""
    by_hand: Callable[[], nn.Module]
    argv: str
    """Settings of our trainer."""
    bars: dict[str, float] = field(default_factory=dict)
    """Target of our speed over a contestant's, by its name."""

    @property
    def parameters(self) -> int:
        return count(self.by_hand())


PLUGIN = f"--plugin {pythae_net.__file__}"
AE = "--model ae --model.likelihood gaussian --model.latent-dim 20 --net.hidden 256 64"
VAE = "--model vae --model.latent-dim 16"
tiny = partial(mlp_coder, False, 784, 256, 64, 20)
WORKLOADS = {
    "ae-32": Workload(32, 1500, 20, tiny, AE, {"limit": 0.88, "pythae": 1.9, "lightning": 2.8}),
    "ae-128": Workload(128, 440, 20, tiny, AE, {"limit": 0.92, "pythae": 1.4, "lightning": 2.2}),
    "vae-128": Workload(
        128, 400, 20, partial(mlp_coder, True, 784, 512, 256, 16), f"{VAE} --net.hidden 512 256",
        {"limit": 0.95, "pythae": 1.4, "lightning": 2.2},
    ),
    "conv-128": Workload(
        128, 6, 2, conv_coder, f"{PLUGIN} {VAE} --net pythae_conv", {"limit": 0.95, "pythae": 1.0, "lightning": 1.0}
    ),
}  # fmt: skip
"""AE 784-256-64-20 (squared error), VAE 784-512-256-16 and pythae's conv net for MNIST (ELBO); the batch is in the name."""


def arguments(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """What the commands that run contestants have in common."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ours-args", action="append", default=[], help="options of distae.train for one more of ours: --ours-args=--compile"
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--root", help="folder that has MNIST; without it, made-up images like them")
    return parser


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def images(root: str | None, scale: float = 1.0) -> np.ndarray:
    """`[N, 28, 28]` uint8: MNIST's training images from the folder `root`, or bytes like them where it is None.

    Below a `scale` of 1 they are fewer, but enough for the warm-up of all workloads.

    As in MNIST, a fifth of the values is not 0, and a border always is: weights that see no gradient for long are what fills Adam's
    state with denormals.
    """
    n = max(10_240, int(N * min(1, scale)))
    if root:
        table = {"name": "mnist", "root": root, "val_fraction": 0.0}
        return data.load(build(TrainConfig, {"data": table}).data)["train"].x.squeeze(1).numpy()[:n]
    rng = np.random.default_rng(0)
    made = np.zeros((n, 28, 28), np.uint8)
    made[:, 4:24, 4:24] = rng.integers(0, 256, (n, 20, 20), np.uint8) * (rng.random((n, 20, 20), np.float32) < 0.4)
    return made


class Rate(NamedTuple):
    """Samples per second of wall time and of CPU time of this process."""

    wall: float
    cpu: float


class Clock:
    """Both clocks at the end of the first `warm` steps and of the newest step."""

    def __init__(self, warm: int) -> None:
        self.warm, self.steps = warm, 0

    def tick(self) -> None:
        """A step has ended, or is with the GPU: synchronise before the tick that ends the warm-up, and before the last."""
        self.steps += 1
        self.last = np.array([time.perf_counter(), time.process_time()])
        if self.steps == self.warm:
            self.first = self.last

    def rate(self, batch: int) -> Rate:
        return Rate(*((self.steps - self.warm) * batch / (self.last - self.first)).tolist())


@contextlib.contextmanager
def cpu_marks() -> Iterator[list[tuple[int, float]]]:
    """Step and CPU seconds of this process at each row of training metrics, whose own rate is of wall time only."""
    marks, write = [], Jsonl.row

    def row(self: Jsonl, row: dict[str, float]) -> None:
        write(self, row)
        if "train/loss" in row:
            marks.append((int(row["step"]), time.process_time()))

    Jsonl.row = row  # type: ignore[assignment, method-assign]
    try:
        yield marks
    finally:
        Jsonl.row = write  # type: ignore[method-assign]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Discard stdout and stderr; progress bars and log lines still take their time."""
    with open("/dev/null", "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):  # noqa: PTH123
        yield


def train_quietly(argv: str, run_dir: Path) -> None:
    """Train as the command line `argv` says, in this process."""
    with silence():
        code = train.main([*argv.split(), "--tracking", "none", "--run-dir", str(run_dir)])
    if code:
        raise SystemExit(f"distae.train {argv} ended with code {code}: {(run_dir / 'log.txt').read_text()}")


def read_rows(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def run_ours(argv: str, run_dir: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl of a new run."""
    shutil.rmtree(run_dir, ignore_errors=True)
    train_quietly(argv, run_dir)
    return read_rows(run_dir)


def training_argv(workload: Workload, steps: int, path: Path, device: str = "cpu") -> str:
    """Training and nothing else, on one thread, on the array of images in the file `path`."""
    return (
        f"{workload.argv} --data array --data.path {path} --data.val-fraction 0 --data.test-fraction 0 "
        f"--device {device} --threads 1 --global-batch-size {workload.batch} --steps {steps} "
        f"--log-every {workload.warm} --save-every {10 * steps}"
    )


def name_rank(rank: int, ranks: int, port: int) -> None:
    """Set torchrun's variables for a process of one node."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def training_rows(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [row for row in rows if "train/loss" in row]


def wall_rate(rows: list[dict[str, float]]) -> float:
    """train/samples_per_second over all rows but the first, which is warm-up; windows are of equal size."""
    return statistics.harmonic_mean([row["train/samples_per_second"] for row in training_rows(rows)[1:]])


class Steps:
    """Our training steps without the rest of a run, some at a time."""

    def __init__(self, cfg: TrainConfig, splits: dict[str, data.Split]) -> None:
        """`cfg` is checked, and its run folder is new."""
        Path(str(cfg.run_dir)).mkdir()
        self.trainer = Trainer(cfg, splits, StopRequest(), 1)
        started = time.perf_counter()
        self.trainer.train_step.warmup(next(self._rows()))
        self.warmup_seconds = time.perf_counter() - started
        self.rows = self._rows()

    def _rows(self) -> Iterator[Tensor]:
        return data.steps(self.trainer.sampler, 0, self.trainer.loaders["train"].storage_device)

    def cpu_seconds(self, n: int) -> float:
        """CPU seconds of the next `n` steps."""
        started = time.process_time()
        for _ in range(n):
            self.trainer.train_step(self.trainer.state.step, next(self.rows))
            self.trainer.state.step += 1
        return time.process_time() - started


Contestant = Callable[[], Rate]


def interleave(contestants: dict[str, Contestant], rounds: int) -> dict[str, list[Rate]]:
    """Rates of each contestant in each round; in a round all run once, and each round starts with a different one.

    The first round is not counted, unless it is the only one (`rounds` 0), to see whether everything runs.
    """
    names, found = [*contestants], {name: list[Any]() for name in contestants}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(contestants[name]())
    return {name: rates[1:] or rates for name, rates in found.items()}


def ratios(above: list[Rate], below: list[Rate]) -> dict[str, list[float]]:
    """Median, smallest and largest of the rounds' ratios, by each clock."""
    return {
        clock: spread([getattr(a, clock) / getattr(b, clock) for a, b in zip(above, below, strict=True)]) for clock in Rate._fields
    }


def spread(values: list[float]) -> list[float]:
    """Median, smallest and largest, to three digits after the point."""
    return [round(f(values), 3) for f in (statistics.median, min, max)]


def show(values: list[float]) -> str:
    return "{:.2f} ({:.2f}-{:.2f})".format(*values)
