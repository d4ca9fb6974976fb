"""The overhead of two processes that train together: against the same two without gradient exchange, and against DDP by hand.

    python benchmarks/ddp.py --root data
    python benchmarks/ddp.py --workloads ae-32 --ours-args "--ema 0.999"       # measured in addition to the defaults
    python benchmarks/ddp.py --workloads ae-32 --parallel fsdp hsdp            # these too, and their step time over that of ddp

2 gloo processes, one thread each, at the workload's batch per process:

apart           two runs of ours at the same time, one process each: the most that this machine can give
ours            one run of ours over both, from its command line
by hand         torch's DDP with gradients as bucket views, fused Adam, resident uint8, index_select, denormals flushed
by hand, apart  the same loop without DDP
in step         the same, but the two wait for each other after every step: the most that two which train together can give
alone           one run of ours in one process, the other one idle: weak scaling is relative to twice its speed
local norm      ours, with torch's batch norm over each process's rows, as by hand: shows the cost of global batch statistics

Samples per second of wall time of both processes, training only; rounds are interleaved, and a figure is the median over
rounds of the ratio within a round, with the smallest and the largest. The last line is one JSON object.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from workloads import (
    WORKLOADS,
    Clock,
    Contestant,
    Rate,
    Workload,
    arguments,
    free_port,
    images,
    interleave,
    name_rank,
    ratios,
    read_rows,
    show,
    train_quietly,
    training_argv,
    wall_rate,
)

RANKS = 2
WAYS = {"fsdp": "--parallel fsdp", "hsdp": f"--parallel hsdp --parallel.shard-size {RANKS}"}
"""Ways to hold a model besides ddp; two processes are one group of hsdp."""
TARGETS = {("ours", "apart", "conv-128"): 0.95, ("ours", "by hand", "ae-32"): 0.95, ("ours", "by hand", "conv-128"): 0.95}


@dataclass
class Pair:
    """One of the two processes, and what it shares with the other."""

    rank: int
    barrier: Any
    port: Any
    """Where they meet next."""
    workload: Workload
    steps: int
    folder: Path
    runs: int = 0

    def meet(self) -> None:
        """Wait for the other process, and agree on a free port."""
        if self.rank == 0:
            self.port.value = free_port()
        self.barrier.wait()

    def ours(self, ranks: tuple[int, ...], together: bool, more: str = "") -> Rate:
        """This process's share of the speed of a run over `ranks`, or of a run of each of them."""
        self.meet()
        self.runs += 1
        where = self.folder / f"run_{self.runs}" / (str(self.rank) if not together else "")
        argv = f"{training_argv(self.workload, self.steps, self.folder / 'images.npy')} {more}"
        share = 0.0
        if self.rank in ranks:
            if together:
                argv += f" --global-batch-size {RANKS * self.workload.batch}"
                name_rank(self.rank, RANKS, self.port.value)
            train_quietly(argv, where)
            for name in ("RANK", "WORLD_SIZE"):
                os.environ.pop(name, None)
        self.barrier.wait()
        if self.rank in ranks:
            share = wall_rate(read_rows(where)) / (len(ranks) if together else 1)
        self.barrier.wait()
        shutil.rmtree(where, ignore_errors=True)
        return Rate(share, share)

    def by_hand(self, exchange: Literal["gradients", "nothing but a word", "nothing"]) -> Rate:
        """This process's share of the speed of a loop by hand."""
        self.meet()
        torch.manual_seed(0)
        model: torch.nn.Module = self.workload.by_hand()
        if exchange != "nothing":
            td.init_process_group("gloo", f"tcp://127.0.0.1:{self.port.value}", rank=self.rank, world_size=RANKS)
        if exchange == "gradients":
            model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        clock = self.loop(model, exchange == "nothing but a word")
        if exchange != "nothing":
            td.destroy_process_group()
        self.barrier.wait()
        return clock.rate(self.workload.batch)

    def loop(self, model: torch.nn.Module, in_step: bool) -> Clock:
        stored = torch.from_numpy(np.load(self.folder / "images.npy")).unsqueeze(1)
        optimizer, clock = torch.optim.Adam(model.parameters(), 1e-3, fused=True), Clock(self.workload.warm)
        for rows in torch.randperm(len(stored))[self.rank :: RANKS].split(self.workload.batch)[: self.steps]:
            x = stored.index_select(0, rows).float() / 255
            optimizer.zero_grad()
            model(x).backward()
            optimizer.step()
            if in_step:
                td.barrier()
            clock.tick()
        return clock

    def contestants(self, ours_args: list[str]) -> dict[str, Contestant]:
        both = tuple(range(RANKS))
        made: dict[str, Contestant] = {
            "apart": partial(self.ours, both, False),
            "ours": partial(self.ours, both, True),
            "by hand": partial(self.by_hand, "gradients"),
            "in step": partial(self.by_hand, "nothing but a word"),
            "by hand, apart": partial(self.by_hand, "nothing"),
            "alone": partial(self.ours, (0,), False),
        }
        if "pythae_conv" in self.workload.argv:
            made["local norm"] = partial(self.ours, both, True, "--net.statistics local")
        return made | {f"ours {more}": partial(self.ours, both, True, more) for more in ours_args}


def process(rank: int, barrier: Any, port: Any, name: str, args: argparse.Namespace, folder: Path) -> None:
    """One of the two; leaves its shares of every round in a file."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    workload = WORKLOADS[name]
    pair = Pair(rank, barrier, port, workload, steps_of(workload, args.scale), folder)
    rates = interleave(pair.contestants(args.ours_args), args.rounds)
    (folder / f"{rank}.json").write_text(json.dumps({who: [r.wall for r in of] for who, of in rates.items()}))


def steps_of(workload: Workload, scale: float) -> int:
    """Steps of a round, within one epoch."""
    return max(2 * workload.warm, min(int(workload.steps * scale), 60_000 // (RANKS * workload.batch)))


def measure(name: str, args: argparse.Namespace, stored: np.ndarray) -> dict[str, list[Rate]]:
    """Samples per second of both processes in every round."""
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="distae-ddp-") as path:
        folder = Path(path)
        np.save(folder / "images.npy", stored)
        shared = context.Barrier(RANKS, timeout=900), context.Value("i", 0)
        mp.start_processes(process, (*shared, name, args, folder), nprocs=RANKS, start_method="spawn")
        shares = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]
    total = {who: [sum(parts) for parts in zip(*(s[who] for s in shares), strict=True)] for who in shares[0]}
    return {who: [Rate(r, r) for r in of] for who, of in total.items()}


def summary(rates: dict[str, list[Rate]]) -> dict[str, Any]:
    """Ratios of all runs over both processes to those that bound them, and of step times to that of ddp."""
    doubled = [Rate(2 * r.wall, 2 * r.cpu) for r in rates["alone"]]
    below = {**{who: rates[who] for who in ("apart", "in step", "by hand")}, "twice alone": doubled}
    over = {who: {b: ratios(of, below[b])["wall"] for b in below} for who, of in rates.items() if who != "alone"}
    speeds = {who: round(statistics.median(r.wall for r in of)) for who, of in rates.items()}
    steps = {way: ratios(rates["ours"], rates[who])["wall"] for way, words in WAYS.items() if (who := f"ours {words}") in rates}
    return {"samples_per_second": speeds, "over": over, "step_time_over_ddp": steps}


def table(name: str, report: dict[str, Any]) -> str:
    heads = [f"{f'of {below}':>18}" for below in report["over"]["ours"]]
    lines = [f"{name:34} {'samples/s':>10} {' '.join(heads)}"]
    for who, speed in report["samples_per_second"].items():
        cells = [f"{show(r):>18}" for r in report["over"].get(who, {}).values()]
        targets = [f"{bar} of {of}" for (a, of, workload), bar in TARGETS.items() if (a, workload) == (who, name)]
        lines.append(f"  {who:32} {speed:>10,} {' '.join(cells)}   {'target: ' + ', '.join(targets) if targets else ''}".rstrip())
    lines += [f"  step time of --parallel {way}, over ddp: {show(r)}" for way, r in report["step_time_over_ddp"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument(
        "--parallel", nargs="+", default=[], choices=list(WAYS), help="ways to hold the model, measured in addition"
    )
    parser.add_argument("--workloads", nargs="+", default=["ae-32", "conv-128"], choices=list(WORKLOADS))
    parser.add_argument("--scale", type=float, default=1.0, help="steps per round, as a share of the default")
    args = parser.parse_args()
    args.ours_args = [*args.ours_args, *(WAYS[way] for way in args.parallel)]
    stored = images(args.root, args.scale)
    result: dict[str, Any] = {"torch": str(torch.__version__), "cpus": len(os.sched_getaffinity(0)), "rounds": args.rounds}
    result["load_average_before"] = os.getloadavg()
    for name in args.workloads:
        result[name] = summary(measure(name, args, stored))
        print(table(name, result[name]), flush=True)
    print(json.dumps(result | {"load_average_after": os.getloadavg()}))


if __name__ == "__main__":
    main()
