"""Steps of sparse dictionaries beside a dense hand loop: python benchmarks/dictionary.py

One thread, fp32, the same data in memory, Adam, the same batch: samples per second of the trainer's step (`TrainStep`), of the same
with whole matrices, and of a plain loop of torch that does what topk_sae does (encoder and decoder as matrix products, top k,
unit-norm decoder; no statistics, no checkpoints). Rounds alternate; the median of each is printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

from distae.config import TrainConfig, build
from distae.data import Loader, Split, Transform
from distae.models import build as build_model
from distae.training.optim import Schedule
from distae.training.step import TrainStep

SIZES = ((128, 1024, 16, 1024), (256, 4096, 32, 1024))
"""Values, latents, active latents, batch."""
POOL = 8
"""Batches of data."""


def data(values: int, latents: int, batch: int) -> Tensor:
    """Sums of a few of `latents` random vectors, `[POOL * batch, values]`."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(latents, values, generator=generator) / values**0.5
    active = torch.rand(POOL * batch, latents, generator=generator) < 16 / latents
    return (active * (1 + 0.3 * torch.randn(active.shape, generator=generator))) @ vectors


def trainer(name: str, x: Tensor, latents: int, k: int, batch: int) -> Callable[[int], None]:
    """Does one step of the trainer, by its number."""
    cfg = build(TrainConfig, {
        "model": {"name": name, "latent_dim": latents, "k": k}, "global_batch_size": batch, "optim": {"name": "adam", "lr": 1e-3},
    })  # fmt: skip
    model = build_model(cfg.model, cfg.net, tuple(x.shape[1:]), 0)
    loader = Loader(Split.of(x, None, Transform()), "none", torch.device("cpu"), torch.float32)
    step = TrainStep(cfg, model, loader, Schedule(cfg.schedule, 10**6, POOL))
    rows = torch.arange(len(x)).view(POOL, 1, batch)
    return lambda number: step(number, rows[number % POOL])


def hand_loop(x: Tensor, latents: int, k: int, batch: int) -> Callable[[int], None]:
    """One step of a plain loop with whole matrices."""
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(latents, x.shape[1], generator=generator), dim=1)
    tensors = [decoder.clone(), decoder, torch.zeros(latents), x.mean(0)]
    w, v, b, center = (t.requires_grad_() for t in tensors)
    optimizer = torch.optim.Adam([w, v, b, center], 1e-3)

    def step(number: int) -> None:
        mine = x[number % POOL * batch :][:batch]
        pre = (mine - center) @ w.T + b
        top = pre.topk(k, dim=1)
        z = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        loss = (z @ v + center - mine).square().sum(1).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            assert v.grad is not None
            v.grad.sub_((v.grad * v).sum(1, keepdim=True) * v)
        optimizer.step()
        with torch.no_grad():
            v.div_(v.norm(dim=1, keepdim=True))

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for values, latents, k, batch in SIZES:
        x = data(values, latents, batch)
        names = ("topk_sae", "batch_topk_sae", "matryoshka_sae")
        kinds = {
            f"{n}{how}": (trainer(n, x, latents, k, batch), dense) for n in names for how, dense in (("", 0), (" dense", 10**9))
        }
        kinds["hand loop"] = (hand_loop(x, latents, k, batch), 0)
        found: dict[str, list[float]] = {name: [] for name in kinds}
        for number in range(options.rounds + 1):
            for name, (step, dense) in kinds.items():
                with mock.patch("distae.models.sparse_dictionary.DENSE", dense):
                    start = time.process_time()
                    for i in range(options.steps):
                        step(number * options.steps + i)
                    if number:  # the first round is a warm-up
                        found[name].append(options.steps * batch / (time.process_time() - start))
        loop = statistics.median(found["hand loop"])
        print(
            f"D {values}, L {latents}, k {k}, batch {batch}, CPU time, median of {options.rounds} rounds of {options.steps} steps"
        )
        for name, rates in found.items():
            median = statistics.median(rates)
            print(
                f"  {name:<22} {median:8.0f} samples/s ({min(rates):.0f} to {max(rates):.0f}), {median / loop:.2f} of the hand loop"
            )


if __name__ == "__main__":
    main()
