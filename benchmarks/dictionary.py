"""Sparse dictionaries against SAELens, dictionary_learning and a dense hand loop: python benchmarks/dictionary.py [--quality]

One thread, fp32, the same data in memory, Adam, the same batches in the same order. Peers that are not installed
(pip install 'distae[peers]') are left out.

Speed: samples per second of the trainer's step (`TrainStep`), of the same with whole matrices, of the peers' steps, and of a plain
loop of torch that does what topk_sae does (encoder and decoder as matrix products, top k, unit-norm decoder; no statistics, no
checkpoints). Rounds alternate; the median of each is printed. jumprelu_sae, l1_sae and gated_sae begin, of all trainers, with
thresholds or biases from which k latents are active on average, and learn so slowly that it stays so.

--device cuda: milliseconds of a step with whole matrices and with active latents alone, for dictionaries of 1,024 to 65,536, and
of what a step consists of: from these DENSE of `distae/models/sparse_dictionary.py` is set. --device cpu --tiny shows that it runs.

--quality: variants trained by each on samples of known features, several seeds each, judged by `distae evaluate` on the test
split; peers' dictionaries are read from the files of SAELens.
"""

import argparse
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peers import installed
from torch import Tensor

from distae import distributed as dist
from distae import load
from distae.config import TrainConfig, build
from distae.config.names import METRICS
from distae.data import Loader, Split, Transform
from distae.data import load as load_data
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.metrics import load_all
from distae.models import Autoencoder
from distae.models import build as build_model
from distae.models.sparse_dictionary import DENSE, Dictionary
from distae.nn.sparse import DenseCode, Places, SparseCode
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
    x = (active * (1 + 0.3 * torch.randn(active.shape, generator=generator))) @ vectors
    return x - x.mean(0)


def made(cfg: TrainConfig, x: Tensor) -> Autoencoder:
    """A model with its initial weights, on a GPU drawn there: the CPU takes seconds for 100 million."""
    with torch.device("meta" if x.is_cuda else "cpu"):
        model = build_model(cfg.model, cfg.net, tuple(x.shape[1:]), cfg.seed)
    if x.is_cuda:
        model.to_empty(device=x.device)
        for t in [*model.parameters(), *model.buffers()]:
            t.detach().zero_()
        assert isinstance(model, Dictionary)
        model.reset_parameters()
    return model


class Ours:
    """One step at a time of a variant, where the data is."""

    def __init__(self, cfg: TrainConfig, x: Tensor) -> None:
        self.model: Autoencoder = made(cfg, x)
        loader = Loader(Split.of(x, None, Transform()), "none", x.device, torch.float32)
        pool = len(x) // cfg.global_batch_size
        self.step = TrainStep(cfg, self.model, loader, Schedule(cfg.schedule, 10**6, pool))
        self.rows = torch.arange(pool * cfg.global_batch_size, device=x.device).view(pool, 1, -1)

    def __call__(self, number: int) -> None:
        self.step(number, self.rows[number % len(self.rows)])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Encoder and decoder `[L, D]`, their biases, and thresholds `[L]`."""
        return dict(self.model.named_parameters())


def settings(model: dict[str, Any], batch: int, lr: float = 1e-3, seed: int = 0, **others: Any) -> TrainConfig:
    """Gradients are clipped to 1, as SAELens does whatever its settings."""
    optim = {"name": "adam", "lr": lr, "max_grad_norm": 1.0}
    return build(TrainConfig, {"model": model, "global_batch_size": batch, "optim": optim, "seed": seed, **others})


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


OF_K = ("topk_sae", "batch_topk_sae", "matryoshka_sae")
PENALISED = ("jumprelu_sae", "l1_sae", "gated_sae")
PEERS = {who: name for who, name in (("SAELens", "sae_lens"), ("dictionary_learning",) * 2) if installed(name)}
"""By name, the packages of those that are here."""


Contestant = tuple[Callable[[int], None], float]
"""What does one step, by its number, and the latents for each active one from which it computes with active ones alone."""


def contestants(name: str, x: Tensor, latents: int, k: int, batch: int, steps: int) -> dict[str, Contestant]:
    """By name, ours and the peers' trainers of a variant."""
    cfg = settings({"name": name, "latent_dim": latents} | of_k(name, k), batch, 1e-3 if name in OF_K else 1e-6)
    found: dict[str, tuple[Any, float]] = {name: (Ours(cfg, x), DENSE["cpu"]), f"{name} whole": (Ours(cfg, x), inf)}
    found |= {f"{name} {who}": (peer(who, cfg, x, steps), 0.0) for who in PEERS if has(who, name)}
    for step, _ in found.values() if name in PENALISED else ():
        step(0)
        activate(step.tensors, x[:2048], k)
    return found


def of_k(name: str, k: int) -> dict[str, Any]:
    return {"k": k} if name not in ("l1_sae", "gated_sae") else {}


def has(who: str, name: str) -> bool:
    return who == "SAELens" or name != "gated_sae"


@torch.no_grad()
def activate(tensors: dict[str, Tensor], x: Tensor, k: int) -> None:
    """Give a dictionary vectors of length 1, and thresholds or biases that `k` latents of a sample are above on average."""
    encoder, decoder = tensors["encoder"], tensors["decoder"]
    decoder.div_(decoder.norm(dim=1, keepdim=True))
    encoder.copy_(decoder)
    least = (x @ encoder.T).quantile(1 - k / len(encoder), dim=0)
    tensors["bias"].zero_()
    tensors["encoder_bias"].copy_(0 * least if "threshold" in tensors else -least)
    if "threshold" in tensors:
        tensors["threshold"].copy_(least)


def peer(who: str, cfg: TrainConfig, x: Tensor, steps: int, warmup: int = 0) -> Any:
    made = importlib.import_module(f"peers.{PEERS[who]}_trainer").Trainer
    return made(cfg.model, x, cfg.global_batch_size, cfg.optim.lr, steps, cfg.seed, warmup)


def speed(names: list[str], steps: int, rounds: int) -> None:
    for values, latents, k, batch in SIZES:
        print(f"D {values}, L {latents}, k {k}, batch {batch}, CPU time, median of {rounds} rounds of {steps} steps")
        x = data(values, latents, batch)
        loop = hand_loop(x, latents, k, batch)
        for name in names:
            kinds = {"the loop": (loop, 0.0), **contestants(name, x, latents, k, batch, steps * (rounds + 1) + 2)}
            shown(rates(kinds, steps, rounds, batch), name)


def rates(kinds: dict[str, Contestant], steps: int, rounds: int, batch: int) -> dict[str, list[float]]:
    """Samples per second of each round."""
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        for name, (step, dense) in kinds.items():
            with mock.patch.dict(DENSE, cpu=dense):
                start = time.process_time()
                for i in range(steps):
                    step(1 + number * steps + i)
                if number:  # the first round is a warm-up
                    found[name].append(steps * batch / (time.process_time() - start))
    return found


def shown(found: dict[str, list[float]], name: str) -> None:
    """Print them with the ratios of `name` to the others."""
    mine = statistics.median(found[name])
    for who, of in found.items():
        ratio = f", {mine / statistics.median(of):.2f} times as fast is {name}" if who != name else ""
        print(f"  {who:<36} {statistics.median(of):8.0f} samples/s ({min(of):.0f} to {max(of):.0f}){ratio}", flush=True)


GPU_SIZES = tuple((values, latents, k) for k in (32, 128) for values in (256, 768) for latents in (1024, 4096, 16384, 65536))
"""Values, latents, active latents."""
TINY_SIZES = ((32, 256, 4), (32, 256, 16))
SECONDS = 0.1
"""At least so long is timed."""


def on_gpu(device: torch.device, sizes: tuple[tuple[int, int, int], ...], batch: int) -> None:
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{card}, torch {torch.__version__}, batch {batch}, ms of a step")
    print("| D | L | k | L/k | variant | precision | whole | active | whole / active | GiB |\n" + "|---" * 10 + "|")
    for values, latents, k in sizes:
        x = torch.randn(2 * batch, values, device=device)
        for name in ("topk_sae", "batch_topk_sae"):
            for precision, tf32 in (("fp32", False), ("fp32", True), ("bf16", False)):
                if tf32 or (k == sizes[0][2] and name == "topk_sae"):  # the others say the same again
                    cfg = settings({"name": name, "latent_dim": latents, "k": k}, batch, precision=precision)
                    what = f"{values} | {latents} | {k} | {latents / k:.0f} | {name} | {'tf32' if tf32 else precision}"
                    print(f"| {what} | {compared(cfg, x, tf32)} |", flush=True)


def compared(cfg: TrainConfig, x: Tensor, tf32: bool) -> str:
    """Milliseconds of a step with whole matrices and with active latents, their ratio and GiB that they allocate."""
    dist.set_tf32(tf32)
    found, memory, step = [], [], Ours(cfg, x)
    for dense in (inf, 0.0):
        with mock.patch.dict(DENSE, {x.device.type: dense}):
            if x.is_cuda:
                torch.cuda.reset_peak_memory_stats()
            found.append(milliseconds(step, x.device))
            memory.append(torch.cuda.max_memory_allocated() / 2**30 if x.is_cuda else 0.0)
    return f"{found[0]:.2f} | {found[1]:.2f} | {found[0] / found[1]:.2f} | {memory[0]:.1f}, {memory[1]:.1f}"


def milliseconds(step: Callable[[int], Any], device: torch.device) -> float:
    """Wall time of a call, by as many as take `SECONDS`, after three."""
    done, start, wait = -3, 0.0, torch.cuda.synchronize if device.type == "cuda" else lambda: None
    while done < 5 or time.perf_counter() - start < SECONDS:
        for _ in range(3 if done < 0 else 5):
            step(done + 3)
            done += 1
        wait()
        if done == 0:
            start = time.perf_counter()
    return 1000 * (time.perf_counter() - start) / done


def parts(device: torch.device, values: int, latents: int, k: int, batch: int) -> None:
    """What a step of topk_sae consists of, each alone, in TF32: what another kernel could save."""
    dist.set_tf32(True)
    x, encoder = torch.randn(batch, values, device=device), torch.randn(latents, values, device=device)
    pre = x @ encoder.T
    choice = pre.topk(k, dim=1, sorted=False).indices
    places = Places.of(choice, latents)
    chosen = pre.gather(1, choice).relu()
    dense, sparse = DenseCode(torch.zeros_like(pre).scatter_(1, choice, chosen)), SparseCode(chosen.flatten(), places)
    leaf = sparse.values.clone().requires_grad_()
    bags = places.to_rows(encoder, leaf)
    kinds: dict[str, Callable[[int], Any]] = {
        "encoder": lambda _: x @ encoder.T,
        "top k": lambda _: pre.topk(k, dim=1, sorted=False),
        "codes as a matrix": lambda _: torch.zeros_like(pre).scatter_(1, choice, chosen),
        "decoder, whole": lambda _: dense.decode(encoder),
        "codes' gradient, whole": lambda _: x @ encoder.T,
        "a weight's gradient, whole": lambda _: dense.z.T @ x,
        "places": lambda _: Places.of(choice, latents),
        "decoder, active": lambda _: sparse.decode(encoder),
        "codes' gradient, active": lambda _: torch.autograd.grad(bags, leaf, x, retain_graph=True),
        "a weight's gradient, active": lambda _: places.to_latents(x, sparse.values),
    }
    print(f"D {values}, L {latents}, k {k}, batch {batch}, TF32, ms:")
    print("; ".join(f"{name} {milliseconds(step, device):.3f}" for name, step in kinds.items()), flush=True)


FEATURES = {"name": "synthetic_features", "features": 2048, "dim": 128, "active": 8.0, "samples": 120_000}
"""The published benchmark (SAELens, docs/synth_sae_bench.md) reduced: as many features for each value, without its hierarchy."""
WIDTH, ACTIVE = 512, 4
"""A quarter of the features, as there, and how many of the 512 most frequent a sample has on average."""
WARMUP = 500
"""Steps over which penalties reach their weight."""
VARIANTS: dict[str, dict[str, Any]] = {
    "topk_sae": {"k": ACTIVE}, "batch_topk_sae": {"k": ACTIVE}, "matryoshka_sae": {"k": ACTIVE},
    "jumprelu_sae": {"k": ACTIVE, "weight": f"0:1@{WARMUP}"}, "l1_sae": {"weight": f"0:0.3@{WARMUP}"},
}  # fmt: skip
TARGETS: dict[tuple[str, str], dict[str, Any]] = {
    ("SAELens", "jumprelu_sae"): {"k": 4.7}, ("dictionary_learning", "jumprelu_sae"): {"k": 2.08},
}  # fmt: skip
"""What a peer is given instead, so that as many latents are active in the end as are here."""
FIGURES = ("l0", "explained_variance", "mcc", "f1", "dead_share")


def quality(names: list[str], steps: int, lr: float, seeds: int) -> None:
    load_all()
    splits = load_data(build(TrainConfig, {"data": FEATURES}).data)
    known: Any = splits["test"].source.features
    x = splits["train"].x
    truth = known.activations(splits["test"].rows_at(torch.arange(10_000)))  # once, and not for every figure
    known.activations = lambda _: truth
    print(f"| variant | trainer | {' | '.join(FIGURES)} | s |\n|{'---|' * (len(FIGURES) + 3)}")
    for name in names:
        found: dict[str, list[list[float]]] = {}
        for seed in range(seeds):
            cfg = settings({"name": name, "latent_dim": WIDTH, "dead_after": 1024 * 1000} | VARIANTS[name], 1024, lr, seed)
            found.setdefault("distae", []).append(trained(Ours(cfg, x), cfg, splits, steps))
            for who in PEERS:
                model = replace(cfg.model, **TARGETS.get((who, name), {}))
                theirs = peer(who, replace(cfg, model=model), x, steps, WARMUP)
                found.setdefault(who, []).append(trained(theirs, cfg, splits, steps))
        for who, rows in found.items():
            cells = [f"{statistics.mean(c):.4g} ± {statistics.stdev(c) if seeds > 1 else 0:.1g}" for c in zip(*rows, strict=True)]
            print(f"| {name} | {who} | {' | '.join(cells)} |", flush=True)


def trained(trainer: Any, cfg: TrainConfig, splits: dict[str, Split], steps: int) -> list[float]:
    """`FIGURES` on the test split, and CPU seconds of training."""
    start = time.process_time()
    for number in range(steps):
        trainer(number)
    seconds = time.process_time() - start
    if isinstance(trainer, Ours):
        model = trainer.model
    else:
        with tempfile.TemporaryDirectory() as folder:
            trainer.save(Path(folder))
            model = load(folder).module
    e = Evaluation(model, cfg, splits)
    return [*(METRICS[name].compute(e).value for name in FIGURES), seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="of a round (10), or of a training (2000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="*", default=[*VARIANTS], choices=[*OF_K, *PENALISED])
    parser.add_argument("--device", choices=("cpu", "cuda"), help="time steps with whole matrices and with active latents there")
    parser.add_argument("--tiny", action="store_true", help="small sizes for --device")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if options.device:
        device = torch.device(options.device, 0)
        with dist.use(dist.World(0, 1, device)):
            sizes, batch = (TINY_SIZES, 64) if options.tiny else (GPU_SIZES, 4096)
            for values, latents, k in sizes[:: len(sizes) // 2 - 1 or 1]:
                parts(device, values, latents, k, batch)
            on_gpu(device, sizes, batch)
    elif options.quality:
        quality(options.variants, options.steps or 2000, options.lr, options.seeds)
    else:
        speed(options.variants, options.steps or 10, options.rounds)


if __name__ == "__main__":
    main()
