"""Training speed on one GPU: ours against the step on a fixed batch, that step replayed as a CUDA graph, and pythae.

    python benchmarks/gpu.py --root data                             # one H100 or H200
    python benchmarks/gpu.py --device cpu --tiny --rounds 0          # the same code without a GPU, in a minute: does it run?

No GPU was at hand when this was written: it has run on the CPU only. Jobs: the four workloads of benchmarks/train.py; pythae's
published one (VQ-VAE with its ResNet on MNIST, batch 256: 235 s for 100 epochs on a V100); a ResNet VAE of 54.7M parameters on
128x128 images in bf16.

limit   the network by hand on one batch on the device: fused Adam, lr 1e-12, no data loading, no logging
replay  that whole step captured as a CUDA graph
ours    `distae.train.main` from its command line; `--ours-args` adds ours with other options
pythae  its BaseTrainer's epoch, with its defaults and with fused Adam; always in fp32, as it has no bf16

Samples per second of wall time, training only, rounds interleaved; ratios are medians with the smallest and the largest.
`flops` are those of forward and backward, counted by torch; their rate is given as a share of the card's dense bf16 peak.
Then two processes train on the one card over gloo (NCCL needs a card for each): their loss is compared with one process's.
The last line is one JSON object.
"""

import argparse
import importlib
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pythae_net
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from peers import installed
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from workloads import (
    PLUGIN,
    WORKLOADS,
    Clock,
    Coder,
    Contestant,
    Rate,
    Workload,
    arguments,
    count,
    free_port,
    images,
    interleave,
    name_rank,
    ratios,
    read_rows,
    run_ours,
    show,
    train_quietly,
    training_argv,
    training_rows,
    wall_rate,
)

from distae import distributed as dist
from distae import load
from distae.config import TrainConfig, parse
from distae.nn import build_decoder, build_encoder
from distae.training.profiling import peak_flops

SMALL, LARGE = {"replay": 0.9, "pythae": 10.0}, {"limit": 0.95}


class VQCoder(nn.Module):
    """pythae's VQ-VAE by hand: 16 vectors of 32 values, 256 codes that follow as moving averages (van den Oord 2017, app. A.1)."""

    counts: Tensor
    totals: Tensor
    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(*pythae_net.resnet_down(32)), nn.Sequential(*pythae_net.resnet_up(32))
        codes = torch.empty(256, 32).uniform_(-1 / 256, 1 / 256)
        for name, value in {"counts": torch.ones(256), "totals": codes, "codes": codes.clone()}.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x).view(-1, 32)
        with torch.no_grad():
            nearest = torch.cdist(z, self.codes).argmin(1)
            quantized = self.codes[nearest]
            seen = torch.zeros_like(self.counts).index_add_(0, nearest, torch.ones_like(z[:, 0]))
            self.counts.lerp_(seen, 0.01)
            self.totals.lerp_(torch.zeros_like(self.codes).index_add_(0, nearest, z), 0.01)
            self.codes.copy_(self.totals / self.counts.clamp_min(1e-5)[:, None])
        recon = self.decoder((z + (quantized - z).detach()).view(len(x), -1))
        return (0.5 * (x - recon).square().sum() + 0.25 * (quantized - z).square().sum()) / len(x)


class Plain(nn.Module):
    """A network of ours without noise."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x, None)
        return out


def resnet_coder(argv: str, shape: tuple[int, ...]) -> Coder:
    """The network of the settings `argv` in the loop by hand: what is measured is the loop around it."""
    cfg = parse(TrainConfig, argv.split(), {}, "").settings
    encoder = build_encoder(cfg.net, shape, 2 * cfg.model.latent_dim)
    return Coder(Plain(encoder), Plain(build_decoder(cfg.net, shape, cfg.model.latent_dim)), variational=True, logits=False)


@dataclass(frozen=True)
class Job:
    """A workload, the shape of its samples, and its precision."""

    workload: Workload
    shape: tuple[int, ...] = (1, 28, 28)
    bf16: bool = False

    def autocast(self, device: str) -> Any:
        return torch.autocast(device, torch.bfloat16, enabled=self.bf16)


def jobs(tiny: bool) -> dict[str, Job]:
    """All jobs; `tiny` makes batches of 8, few steps and a small large one."""
    found = {name: Job(replace(w, steps=60_000 // w.batch // 20 * 20, warm=20, bars=SMALL)) for name, w in WORKLOADS.items()}
    vq = f"{PLUGIN} --net pythae_resnet --model vq_vae --model.latent-dim 512 --model.dim 32 --model.codebook-size 256"
    vq += " --model.likelihood gaussian --model.restart-below 0"
    found["vq-256"] = Job(Workload(256, 220, 20, VQCoder, vq, SMALL))
    channels, shape = ("8 16", (3, 16, 16)) if tiny else ("64 128 256 512", (3, 128, 128))
    large = f"--net resnet --net.channels {channels} --net.blocks 3 --net.norm group --model vae --model.latent-dim 128"
    large += " --model.likelihood gaussian --precision bf16"
    found["resnet-128px"] = Job(Workload(64, 64, 8, partial(resnet_coder, large, shape), large, LARGE), shape, bf16=True)
    if tiny:
        found = {name: replace(job, workload=replace(job.workload, batch=8, steps=4, warm=2)) for name, job in found.items()}
    return found


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(step: Callable[[], object], workload: Workload, device: str) -> Rate:
    """Samples per second of `step` after the warm-up."""
    clock = Clock(workload.warm)
    for done in range(1, workload.steps + 1):
        step()
        if done in (workload.warm, workload.steps):
            synchronise(device)
        clock.tick()
    return clock.rate(workload.batch)


def fixed_step(job: Job, x: Tensor, device: str) -> Callable[[], None]:
    """The step by hand on one batch on the device, at a learning rate that does not change the weights."""
    model = job.workload.by_hand().to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-12, fused=True, capturable=device == "cuda")
    fixed = x[: job.workload.batch].to(device)

    def step() -> None:
        optimizer.zero_grad()
        with job.autocast(device):
            loss = model(fixed)
        loss.backward()
        optimizer.step()

    return step


def replay(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph, captured after a few on a side stream, as torch's notes on CUDA graphs ask."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(5):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def again() -> None:
        graph.replay()

    again.keeps = step  # type: ignore[attr-defined]  # what the graph reads and writes: weights, state, batch
    return again


def ours(job: Job, folder: Path, device: str, more: str) -> Contestant:
    argv = f"{training_argv(job.workload, job.workload.steps, folder / 'images.npy', device)} {more}"

    def run() -> Rate:
        rate = wall_rate(run_ours(argv, folder / "run"))
        assert count(load(folder / "run").module) == job.workload.parameters
        return Rate(rate, rate)

    return run


def in_fp32(contestant: Contestant) -> Rate:
    """Run without TF32, which one of ours may have set before."""
    dist.set_tf32(False)
    return contestant()


def contestants(job: Job, stored: np.ndarray, folder: Path, args: argparse.Namespace) -> dict[str, Contestant]:
    workload, device = job.workload, args.device
    x = torch.from_numpy(stored[: workload.steps * workload.batch]).view(-1, *job.shape).float() / 255
    made: dict[str, Contestant] = {"limit": partial(timed, fixed_step(job, x, device), workload, device)}
    dist.set_tf32(False)  # a graph keeps what it was captured with
    if device == "cuda":
        made["replay"] = partial(timed, replay(fixed_step(job, x, device)), workload, device)
    made["ours"] = ours(job, folder, device, "")
    made |= {f"ours {more}": ours(job, folder, device, more) for more in args.ours_args}
    if installed("pythae"):
        peer = importlib.import_module("peers.pythae_trainer")
        for tuned in (False, True):
            run = peer.contestant(workload, x, workload.steps, folder / "pythae", tuned, device)
            made["pythae, tuned" if tuned else "pythae"] = run
    return {who: run if who.startswith("ours") else partial(in_fp32, run) for who, run in made.items()}


def flops(job: Job, stored: np.ndarray) -> float:
    """Operations of forward and backward per sample, from a batch of 2 on the CPU."""
    counter = FlopCounterMode(display=False)
    with counter:
        job.workload.by_hand()(torch.from_numpy(stored[:2]).view(-1, *job.shape).float() / 255).backward()
    return counter.get_total_flops() / 2


def measure(job: Job, stored: np.ndarray, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="distae-gpu-") as path:
        folder = Path(path)
        np.save(folder / "images.npy", stored)
        rates = interleave(contestants(job, stored, folder, args), args.rounds)
    speeds = {who: statistics.median(r.wall for r in of) for who, of in rates.items()}
    per_sample, most = flops(job, stored), peak_flops(torch.device(args.device), "bf16", tf32=False)
    return {
        "parameters": job.workload.parameters, "batch": job.workload.batch, "flops_per_sample": per_sample,
        "samples_per_second": {who: round(speed) for who, speed in speeds.items()},
        "share_of_bf16_peak": {who: round(speed * per_sample / most, 4) for who, speed in speeds.items()} if most else None,
        "ours_over": {who: ratios(rates["ours"], of)["wall"] for who, of in rates.items() if who != "ours"},
        "seconds_for_100_epochs_of_50000": {who: round(5e6 / speed, 1) for who, speed in speeds.items()},
    }  # fmt: skip


def table(name: str, job: Job, report: dict[str, Any]) -> str:
    lines = [f"{name:34} {'samples/s':>12} {'ours over it':>20}   target   100 epochs of 50,000 (s)"]
    for who, speed in report["samples_per_second"].items():
        over = show(report["ours_over"][who]) if who in report["ours_over"] else ""
        bar, seconds = job.workload.bars.get(who, ""), report["seconds_for_100_epochs_of_50000"][who]
        lines.append(f"  {who:32} {speed:>12,} {over:>20}   {bar!s:6}   {seconds:,}")
    return "\n".join(lines)


def one_of_two(rank: int, ranks: int, port: int, argv: str, run_dir: Path) -> None:
    """A process that trains with the other one, over gloo whatever the device."""
    join = td.init_process_group
    td.init_process_group = lambda backend, device_id=None, **how: join("gloo", **how)  # type: ignore[assignment]
    name_rank(rank, ranks, port)
    train_quietly(argv, run_dir)


def two_processes(job: Job, stored: np.ndarray, device: str) -> dict[str, float]:
    """The last loss of one process and of two on the one device, at the same global batch."""
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="distae-gpu-") as path:
        folder = Path(path)
        np.save(folder / "images.npy", stored)
        argv = training_argv(job.workload, 2 * job.workload.warm, folder / "images.npy", device)
        losses["one"] = training_rows(run_ours(argv, folder / "one"))[-1]["train/loss"]
        mp.spawn(one_of_two, (2, free_port(), argv, folder / "two"), nprocs=2)
        losses["two"] = training_rows(read_rows(folder / "two"))[-1]["train/loss"]
    assert math.isclose(losses["one"], losses["two"], rel_tol=1e-3), losses
    return losses


def made_up(job: Job) -> np.ndarray:
    """Random bytes `[N, *shape]`, as many as a round takes."""
    return np.random.default_rng(0).integers(0, 256, (job.workload.batch * job.workload.steps, *job.shape), np.uint8)


def main() -> None:
    names = list(jobs(False))
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--jobs", nargs="+", default=names, choices=names)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small batches and few steps: does it run?")
    parser.add_argument("--no-pair", action="store_true", help="without the two processes on one card")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    result: dict[str, Any] = {"torch": str(torch.__version__), "started": time.time(), "rounds": args.rounds, "tiny": args.tiny}
    result["device"] = torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, load average {os.getloadavg()[0]:.1f}"
    if args.device == "cpu":
        print("no CUDA graphs on the CPU: the replay is left out")
    if not installed("pythae"):
        print("pythae is left out, as it is not installed (pip install -r requirements-peers.txt)")
    digits = images(args.root, 0 if args.tiny else 1)
    for name, job in jobs(args.tiny).items():
        if name in args.jobs:
            result[name] = measure(job, digits if job.shape == (1, 28, 28) else made_up(job), args)
            print(table(name, job, result[name]), flush=True)
    if not args.no_pair:
        result["two_processes_over_gloo"] = two_processes(jobs(args.tiny)["vae-128"], digits, args.device)
        print(f"two processes on one device over gloo: {result['two_processes_over_gloo']}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
