"""Training speed against the compute limit and other trainers: one process, one thread, interleaved rounds.

    python benchmarks/train.py --root data                # pip install -r requirements-peers.txt for pythae and Lightning
    python benchmarks/train.py --workloads ae-32 --rounds 5

limit      a network by hand on one batch in memory: fused Adam, denormals flushed, no data loading, no logging; lr 1e-12, because
           with a normal rate a fixed batch would lead to denormals and a wrong limit
ours       `distae.train.main` from its command line, with metrics.jsonl; `--ours-args` adds ours with other options
tutorial   torchvision's images through ToTensor and a DataLoader, default Adam, loss.item() at every step
pythae     its BaseTrainer's epoch; lightning: its Trainer; both with defaults, and tuned: fused Adam, denormals flushed

Same layers (equal parameter counts are asserted), loss, batch, precision and thread. Only training between evaluations and saves
is timed, progress bars and logging included. A figure is the median over rounds of the ratio within a round, with the smallest and
the largest. The table is by CPU time of the process, which other work on the machine disturbs least and which equals wall time on
one thread without waiting; the JSON object on the last line has both. For ours these are train/samples_per_second, and the CPU time
between the rows of metrics.
"""

import argparse
import importlib
import json
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
from peers import installed
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor
from workloads import (
    WORKLOADS,
    Clock,
    Contestant,
    Rate,
    Steps,
    Workload,
    arguments,
    count,
    cpu_marks,
    images,
    interleave,
    ratios,
    run_ours,
    show,
    spread,
    training_argv,
    training_rows,
    wall_rate,
)

from distae import data, load
from distae.config import TrainConfig, check, parse
from distae.data import Loader, Split, Transform
from distae.evaluation.diagnosis import diagnose
from distae.evaluation.exact import evaluate
from distae.models import build

CHUNK = 512
"""Samples per chunk of evaluation."""
PEERS = {"pythae": "peers.pythae_trainer", "lightning": "peers.lightning_trainer"}


def bare_step(workload: Workload, x: Tensor) -> Callable[[], None]:
    """The step on one batch, at a learning rate that does not change the weights."""
    model, x = workload.by_hand(), x[: workload.batch].clone()
    optimizer = torch.optim.Adam(model.parameters(), 1e-12, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()

    return step


def limit(workload: Workload, x: Tensor, steps: int) -> Contestant:
    step = bare_step(workload, x)

    def run() -> Rate:
        clock = Clock(workload.warm)
        for _ in range(steps):
            step()
            clock.tick()
        return clock.rate(workload.batch)

    return run


def in_turns(workload: Workload, x: Tensor, steps: int, folder: Path) -> list[float]:
    """Our step's speed over the limit's, alternating step by step, so that drift cancels: median and quartiles."""
    argv = f"{training_argv(workload, steps, folder / 'images.npy')} --tracking none --run-dir {folder / 'steps'}"
    cfg = check(parse(TrainConfig, argv.split(), {}, "").settings, 1)
    mine, bare, over = Steps(cfg, data.load(cfg.data)), bare_step(workload, x), []
    for _ in range(steps):
        started = time.process_time()
        bare()
        over.append((time.process_time() - started) / mine.cpu_seconds(1))
    mine.trainer.close()
    low, median, high = statistics.quantiles(over[steps // 10 :], n=4)
    return [round(q, 3) for q in (median, low, high)]


class Pictures(Dataset[tuple[Tensor, int]]):
    """What torchvision.datasets.MNIST does with `[N, 28, 28]` uint8."""

    def __init__(self, stored: np.ndarray) -> None:
        self.stored, self.transform = torch.from_numpy(stored), ToTensor()

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.stored[index].numpy())), 0


def tutorial(workload: Workload, stored: np.ndarray, steps: int) -> Contestant:
    """The training loop of tutorials."""
    model, loader = workload.by_hand(), DataLoader(Pictures(stored[: steps * workload.batch]), workload.batch, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def run() -> Rate:
        clock, total = Clock(workload.warm), 0.0
        for x, _ in loader:
            optimizer.zero_grad()
            loss = model(x)
            loss.backward()
            optimizer.step()
            total += loss.item()
            clock.tick()
        return clock.rate(workload.batch)

    return run


def ours(workload: Workload, folder: Path, steps: int, set_ups: list[float], more: str = "") -> Contestant:
    """A whole run; `set_ups` takes its seconds before the first step."""
    argv, run_dir = f"{training_argv(workload, steps, folder / 'images.npy')} {more}", folder / "run"

    def run() -> Rate:
        started = time.time()
        with cpu_marks() as marks:
            rows = training_rows(run_ours(argv, run_dir))
        assert count(load(run_dir).module) == workload.parameters
        set_ups.append(rows[0]["time"] - started - workload.warm * workload.batch / rows[0]["train/samples_per_second"])
        (first, began), (last, ended) = marks[0], marks[-1]
        return Rate(wall_rate(rows), (last - first) * workload.batch / (ended - began))

    return run


def with_denormals(flushed: bool, contestant: Contestant) -> Rate:
    """Set flushing before each run: ours sets it for itself, and it stays set."""
    torch.set_flush_denormal(flushed)
    return contestant()


def missing() -> list[str]:
    return [name for name in PEERS if not installed(name)]


def contestants(
    workload: Workload, stored: np.ndarray, x: Tensor, steps: int, folder: Path, set_ups: dict[str, list[float]]
) -> dict[str, Contestant]:
    """The contestants by name; `set_ups` has the options of each of ours."""
    made: dict[str, Contestant] = {
        "limit": partial(with_denormals, True, limit(workload, x, steps)),
        "tutorial": partial(with_denormals, False, tutorial(workload, stored, steps)),
    }
    made |= {f"ours {more}".strip(): ours(workload, folder, steps, took, more) for more, took in set_ups.items()}
    for name in PEERS.keys() - set(missing()):
        peer = importlib.import_module(PEERS[name])
        for tuned in (False, True):
            run = peer.contestant(workload, x, steps, folder / name, tuned)
            made[f"{name}, tuned" if tuned else name] = partial(with_denormals, tuned, run)
    return made


def evaluation(workload: Workload, stored: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Speed of our evaluation, alone and with the diagnosis that follows it in a run, over a loop of forward passes."""
    cfg = parse(TrainConfig, workload.argv.split(), {}, "").settings
    by_hand, model = workload.by_hand().eval(), build(cfg.model, cfg.net, (1, 28, 28)).eval()
    x = torch.from_numpy(stored).unsqueeze(1)
    loader = Loader(Split.of(x, None, Transform(255.0)), "none", torch.device("cpu"), torch.float32)

    @torch.no_grad()
    def forward() -> None:
        sum(by_hand(chunk.float() / 255) * len(chunk) for chunk in x.split(CHUNK))

    def timed(work: Callable[[], object]) -> Rate:
        clock = Clock(1)
        clock.tick()
        work()
        clock.tick()
        return clock.rate(len(x))

    alone = partial(evaluate, model, loader, CHUNK, 0)
    ways: dict[str, Callable[[], object]] = {
        "forward": forward,
        "evaluate": alone,
        "with_diagnosis": lambda: (alone(), diagnose(model, loader, CHUNK, 0)),
    }
    rates = interleave({name: partial(timed, way) for name, way in ways.items()}, rounds)
    return {name: ratios(rates[name], rates["forward"])["cpu"] for name in ("evaluate", "with_diagnosis")}


def blocked(workload: Workload, folder: Path, saves: int = 5) -> list[float]:
    """Seconds for which a save blocks training, without the first one, which allocates its buffers."""
    steps = saves * workload.warm
    rows = run_ours(f"{training_argv(workload, steps + 1, folder / 'images.npy')} --save-every {workload.warm}", folder / "run")
    return spread([row["train/checkpoint_blocked_seconds"] for row in training_rows(rows)[2:]])


def measure(workload: Workload, stored: np.ndarray, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures of a workload."""
    steps = max(2 * workload.warm, int(workload.steps * args.scale))
    set_ups: dict[str, list[float]] = {more: [] for more in ("", *args.ours_args)}
    x = torch.from_numpy(stored).unsqueeze(1).float() / 255
    np.save(folder / "images.npy", stored)
    rates = interleave(contestants(workload, stored, x, steps, folder, set_ups), args.rounds)
    torch.set_flush_denormal(True)
    return {
        "parameters": workload.parameters,
        "limit_samples_per_second": {c: round(statistics.median(getattr(r, c) for r in rates["limit"])) for c in Rate._fields},
        "of_limit": {name: ratios(rates[name], rates["limit"]) for name in rates if name != "limit"},
        "steps_in_turns_of_limit": in_turns(workload, x, max(24, steps), folder),
        "ours_over": {name: ratios(rates["ours"], rates[name]) for name in rates if name != "ours"},
        "evaluation_of_forward_loop": evaluation(workload, stored[: min(10_000, steps * workload.batch)], args.rounds),
        "blocked_seconds_per_save": blocked(workload, folder),
        "set_up_seconds": spread(set_ups[""][1:] or set_ups[""]),
    }


def table(name: str, found: dict[str, Any]) -> str:
    """Median (smallest-largest) by CPU time."""
    bars = WORKLOADS[name].bars
    lines = [f"{name}: {found['parameters']:,} parameters", f"  {'':18} {'of the limit':>20} {'ours over it':>20}   target"]
    for who, over in found["ours_over"].items():
        of = show(found["of_limit"][who]["cpu"]) if who in found["of_limit"] else ""
        lines.append(f"  {who:18} {of:>20} {show(over['cpu']):>20}   {bars.get(who, '')}")
    alone, whole = (show(found["evaluation_of_forward_loop"][k]) for k in ("evaluate", "with_diagnosis"))
    lines.append(f"  alternating step by step with the limit: {show(found['steps_in_turns_of_limit'])}, median and quartiles")
    lines.append(f"  besides: evaluation {alone} of a forward-only loop (target 0.9), with diagnosis {whole};")
    shown = [" ({}-{})".join(["{}", ""]).format(*found[k]) for k in ("blocked_seconds_per_save", "set_up_seconds")]
    return "\n".join([*lines, f"  seconds that a save blocks: {shown[0]}; of set-up: {shown[1]}"])


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--scale", type=float, default=1.0, help="steps per round, as a share of the default")
    args = parser.parse_args()
    torch.set_num_threads(1)
    stored = images(args.root, args.scale)
    result: dict[str, Any] = {"torch": str(torch.__version__), "rounds": args.rounds, "mnist": bool(args.root)}
    result["load_average_before"] = os.getloadavg()
    if left_out := missing():
        print(f"left out, as it is not installed: {', '.join(left_out)} (pip install -r requirements-peers.txt)")
    for name in args.workloads:
        with tempfile.TemporaryDirectory(prefix="distae-speed-") as folder:
            result[name] = measure(WORKLOADS[name], stored, args, Path(folder))
        print(table(name, result[name]), flush=True)
    print(json.dumps(result | {"load_average_after": os.getloadavg()}))


if __name__ == "__main__":
    main()
