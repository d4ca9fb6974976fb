"""Training speed on one GPU: ours against the step on a fixed batch, that step replayed as a CUDA graph, and pythae.

    python benchmarks/gpu.py --root data                             # one H100 or H200
    python benchmarks/gpu.py --device cpu --tiny --rounds 0          # the same code without a GPU, in a minute: does it run?

Jobs: the four workloads of benchmarks/train.py; pythae's published one (VQ-VAE with its ResNet on MNIST, batch 256: 235 s for 100
epochs on a V100); a ResNet VAE of 54.7M parameters on 128x128 images in bf16; the tokenizer KL-f8 of 83.7M on 256x256 images,
before and after its discriminator's start, and its networks as a VAE, which compiles, in bf16 too.

limit   the network by hand on one batch on the device: fused Adam, lr 1e-12, no data loading, no logging
replay  that whole step captured as a CUDA graph
ours    `distae.train.main` from its command line; `--ours-args` adds ours with other options
pythae  its BaseTrainer's epoch, with its defaults and with fused Adam; always in fp32, as it has no bf16

Samples per second of wall time, training only, rounds interleaved; ratios are medians with the smallest and the largest.
`flops` are those of the step by hand, counted by torch; their rate is given as a share of the card's dense bf16 peak. Memory is the
most that a contestant allocates.
Then two processes train on the one card over gloo (NCCL needs a card for each): their loss is compared with one process's.
The last line is one JSON object.
"""

import argparse
import gc
import importlib
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from gpu_jobs import Job, jobs
from peers import installed
from tokenizer_step import ByHand
from torch import Tensor
from workloads import (
    Clock,
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
from distae.training.profiling import FlopCounter, peak_flops


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
    if isinstance(model, ByHand):
        return model.training_step(x[: job.workload.batch].to(device), partial(job.autocast, device))
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


def ours(job: Job, folder: Path, device: str, more: str, parameters: int) -> Contestant:
    argv = f"{training_argv(job.workload, job.workload.steps, folder / 'images.npy', device)} {more}"

    def run() -> Rate:
        rate = wall_rate(run_ours(argv, folder / "run"))
        assert count(load(folder / "run").module) == parameters
        return Rate(rate, rate)

    return run


def in_fp32(contestant: Contestant) -> Rate:
    """Run without TF32, which one of ours may have set before."""
    dist.set_tf32(False)
    return contestant()


def contestants(job: Job, stored: np.ndarray, folder: Path, args: argparse.Namespace) -> dict[str, Contestant]:
    workload, device = job.workload, args.device
    x = torch.from_numpy(stored[: workload.steps * workload.batch]).view(-1, *job.shape).float() / 255
    made: dict[str, Contestant] = {"limit": lambda: timed(fixed_step(job, x, device), workload, device)}
    dist.set_tf32(False)  # a graph keeps what it was captured with
    if device == "cuda" and not job.variants:
        made["replay"] = partial(timed, replay(fixed_step(job, x, device)), workload, device)
    parameters, variants = workload.parameters, () if args.no_variants else job.variants
    options = {"": "ours"} | {more: f"ours {more}" for more in (*variants, *args.ours_args)}
    made |= {name: ours(job, folder, device, more, parameters) for more, name in options.items()}
    if installed("pythae") and not job.variants:
        peer = importlib.import_module("peers.pythae_trainer")
        for tuned in (False, True):
            run = peer.contestant(workload, x, workload.steps, folder / "pythae", tuned, device)
            made["pythae, tuned" if tuned else "pythae"] = run
    return {who: run if who.startswith("ours") else partial(in_fp32, run) for who, run in made.items()}


def flops(job: Job, stored: np.ndarray, device: str) -> float:
    """Operations per sample of the step by hand."""
    x = torch.from_numpy(stored[: job.workload.batch]).view(-1, *job.shape).float() / 255
    with FlopCounter() as counter:
        fixed_step(job, x, device)()
    return counter.total / job.workload.batch


def keeping_peak(contestant: Contestant, name: str, peaks: dict[str, float]) -> Rate:
    """Run, and keep the most memory in GiB that it has allocated on the GPU, its weights included."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    rate = contestant()
    peaks[name] = round((torch.cuda.max_memory_allocated() - before) / 2**30, 3)
    return rate


def measure(job: Job, stored: np.ndarray, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="distae-gpu-") as path:
        folder = Path(path)
        np.save(folder / "images.npy", stored)
        made, peaks = contestants(job, stored, folder, args), dict[str, float]()
        if args.device == "cuda":
            made = {who: partial(keeping_peak, run, who, peaks) for who, run in made.items()}
        rates = interleave(made, args.rounds)
    speeds = {who: statistics.median(r.wall for r in of) for who, of in rates.items()}
    per_sample, most = flops(job, stored, args.device), peak_flops(torch.device(args.device), "bf16", tf32=False)
    return {
        "parameters": job.workload.parameters, "batch": job.workload.batch, "flops_per_sample": per_sample,
        "peak_gib": peaks, "samples_per_second": {who: round(speed, 1) for who, speed in speeds.items()},
        "share_of_bf16_peak": {who: round(speed * per_sample / most, 4) for who, speed in speeds.items()} if most else None,
        "ours_over": {who: ratios(rates["ours"], of)["wall"] for who, of in rates.items() if who != "ours"},
        "seconds_for_100_epochs_of_50000": {who: round(5e6 / speed, 1) for who, speed in speeds.items()},
    }  # fmt: skip


def table(name: str, job: Job, report: dict[str, Any]) -> str:
    lines = [f"{name:34} {'samples/s':>12} {'ours over it':>20}   target   bf16 peak   GiB      100 epochs of 50,000 (s)"]
    for who, speed in report["samples_per_second"].items():
        over = show(report["ours_over"][who]) if who in report["ours_over"] else ""
        bar, seconds = job.workload.bars.get(who, ""), report["seconds_for_100_epochs_of_50000"][who]
        share, memory = (report["share_of_bf16_peak"] or {}).get(who, ""), report["peak_gib"].get(who, "")
        lines.append(f"  {who:32} {speed:>12,} {over:>20}   {bar!s:6}   {share!s:9}   {memory!s:6}   {seconds:,}")
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
    parser.add_argument("--no-variants", action="store_true", help="without the options of ours that belong to a job")
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
