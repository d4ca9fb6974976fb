"""The cost of a checkpoint: how long the loop is blocked, how long until it is on disk, and how much it slows training meanwhile.

    python benchmarks/checkpoint.py                # 100M parameters and Adam's state, 1.2 GB; 1 and 2 ranks
    python benchmarks/checkpoint.py --quick        # the same code on a small model, for CI

Five methods, alternating over several rounds: torch.save and fsync on rank 0, torch.distributed.checkpoint's own writer, ours in
both modes, and a plain write and fsync of the same number of bytes, which is the limit of the disk. Figures are medians and the
smallest and largest of the rounds, without each method's first save. 4 GB are written first: memory that the machine has not used
yet makes any first write up to seven times slower. Older files are deleted between the measurements. The last line is one JSON
object.
"""

import argparse
import json
import os
import resource
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distae import distributed as dist
from distae.checkpoint import CheckpointStore
from distae.config.optim import OptimConfig
from distae.runtime.environment import Environment
from distae.runtime.files import sync
from distae.training.optim import make_optimizer, optimizer_tensors

LAYERS, BATCH, PIECE = 6, 16, 8 << 20
Seconds = dict[str, float]


class Job:
    """A model of `LAYERS` square layers that trains on noise."""

    def __init__(self, width: int) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(*(nn.Linear(width, width) for _ in range(LAYERS)))
        self.optimizer = make_optimizer(OptimConfig(), list(self.model.parameters()))
        self.wrapped = DistributedDataParallel(self.model, gradient_as_bucket_view=True) if dist.world().group else self.model
        self.x = torch.randn(BATCH, width)

    def step(self) -> float:
        """Seconds that one training step took."""
        started = time.perf_counter()
        self.wrapped(self.x).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - started

    def tensors(self) -> dict[str, Tensor]:
        names: dict[Tensor, str] = {p: name for name, p in self.model.named_parameters()}
        return self.model.state_dict() | {f"optim.{k}": t for k, t in optimizer_tensors(self.optimizer, names).items()}


class Bench:
    """One process's part of the measurement; every method of saving returns its seconds, blocked and until durable."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder, self.main = job, folder, dist.world().is_main
        self.sync = CheckpointStore(folder / "sync", 9, "sync")
        self.beside = CheckpointStore(folder / "async", 9, "async")
        self.number = 0

    def clean(self) -> None:
        """Delete what was written and wait until the disk is idle."""
        if self.main:
            for path in self.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            sync(self.folder)
        dist.gather(None)

    def raw(self) -> Seconds:
        started = time.perf_counter()
        if self.main:
            write_raw(self.folder / "raw", self.job.tensors())
        return both(started)

    def torch_save(self) -> Seconds:
        started = time.perf_counter()
        if self.main:
            with (self.folder / "torch.pt").open("wb") as file:
                torch.save(self.job.tensors(), file)
                file.flush()
                os.fsync(file.fileno())
        return both(started)

    def dcp_save(self) -> Seconds:
        started = time.perf_counter()
        alone = dist.world().world_size == 1
        dcp.save(self.job.tensors(), storage_writer=dcp.FileSystemWriter(self.folder / "dcp"), no_dist=alone)
        return both(started)

    def ours_sync(self) -> Seconds:
        started = time.perf_counter()
        self._save(self.sync)
        self._wait(self.sync)
        return both(started)

    def ours_async(self, steps: bool = False) -> Seconds:
        """With `steps`, training continues during the write: also the mean seconds of the steps that overlap with it."""
        started = time.perf_counter()
        self._save(self.beside)
        blocked = time.perf_counter() - started
        durable = Finish(self.beside)
        beside = []
        while steps and dist.broadcast(self.beside.busy):
            beside.append(self.job.step())
        self._wait(self.beside)
        return {"blocked": blocked, "durable": durable.at - started} | ({"step": statistics.mean(beside)} if beside else {})

    def steps_alone(self) -> Seconds:
        return {"step": statistics.mean(self.job.step() for _ in range(3))}

    def _save(self, checkpoints: CheckpointStore) -> None:
        self.number += 1
        checkpoints.save(self.number, self.job.tensors(), b"{}", None)

    def _wait(self, checkpoints: CheckpointStore) -> None:
        if (error := checkpoints.wait()) is not None:
            raise SystemExit(error)


class Finish:
    """The time at which a pending save ended, without waiting for it."""

    def __init__(self, checkpoints: CheckpointStore) -> None:
        self.ended, self.time = threading.Event(), 0.0
        if checkpoints.pending is not None:
            checkpoints.pending.add_done_callback(self._note)

    def _note(self, future: object) -> None:
        self.time = time.perf_counter()
        self.ended.set()

    @property
    def at(self) -> float:
        self.ended.wait()
        return self.time


def both(started: float) -> Seconds:
    seconds = time.perf_counter() - started
    return {"blocked": seconds, "durable": seconds}


def write_raw(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write and fsync the bytes, nothing else."""
    with path.open("wb", buffering=0) as file:
        for t in tensors.values():
            view = t.detach().reshape(-1).view(torch.uint8).numpy().data
            for start in range(0, len(view), PIECE):
                file.write(view[start : start + PIECE])
        os.fsync(file.fileno())


def measure(bench: Bench, rounds: int) -> dict[str, list[Seconds]]:
    """Every method once per round, each round starting with a different one, on an idle disk."""
    ways: dict[str, Callable[[], Seconds]] = {
        "raw_write": bench.raw,
        "torch_save": bench.torch_save,
        "dcp_save": bench.dcp_save,
        "ours_sync": bench.ours_sync,
        "ours_async": bench.ours_async,
        "ours_async_beside_steps": partial(bench.ours_async, steps=True),
        "steps_alone": bench.steps_alone,
    }
    found: dict[str, list[Seconds]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in [*ways][number % len(ways) :] + [*ways][: number % len(ways)]:
            bench.clean()
            seconds = ways[name]()
            of_all = dist.gather(seconds)
            found[name].append({key: max(s[key] for s in of_all) for key in seconds})
    return found


def summary(found: dict[str, list[Seconds]], size: int) -> dict[str, Any]:
    """Medians, spread, and ratios to torch.save and to the plain write."""
    report: dict[str, Any] = {
        name: {k: spread([r[k] for r in rows[1:] if k in r]) for k in rows[1]} for name, rows in found.items()
    }
    report["first_save"] = {name: rows[0]["blocked"] for name, rows in found.items() if "blocked" in rows[0]}
    durable, blocked = report["raw_write"]["durable"]["median"], report["torch_save"]["blocked"]["median"]
    for name in ("ours_sync", "ours_async", "ours_async_beside_steps"):
        report[name]["blocked_of_torch_save"] = report[name]["blocked"]["median"] / blocked
        report[name]["durable_of_raw_write"] = report[name]["durable"]["median"] / durable
    if "step" in report["ours_async_beside_steps"]:
        report["step_slowdown_beside_writer"] = (
            report["ours_async_beside_steps"]["step"]["median"] / report["steps_alone"]["step"]["median"]
        )
    report["raw_write_MB_per_second"] = size / 1e6 / durable
    return report


def spread(values: list[float]) -> Seconds:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def peak_rss() -> int:
    """Peak bytes of host memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rank(number: int, ranks: int, port: int, width: int, rounds: int, folder: Path) -> None:
    """A process of the measurement; rank 0 leaves its figures in result.json."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env = Environment(number, ranks, number, ranks, "torchrun")
    threads = dist.set_threads("auto", env)
    with dist.rendezvous(env, 600) as meeting, dist.session(meeting, torch.device("cpu")):
        job = Job(width)
        for _ in range(3):
            job.step()
        size = sum(t.nbytes for t in job.tensors().values())
        before, bench = peak_rss(), Bench(job, folder)
        bench.ours_async()
        memory = {
            "rank": number, "threads": threads, "peak_rss_before_saves": before, "peak_rss_after_an_async_save": peak_rss(),
            "staging_bytes": sum(t.nbytes for t in bench.beside.staging.buffers.values()),
        }  # fmt: skip
        found = measure(bench, rounds)
        memories = dist.gather(memory)
        bench.sync.close()
        bench.beside.close()
        if dist.world().is_main:
            (folder / "result.json").write_text(json.dumps({"bytes": size} | summary(found, size) | {"memory": memories}))


def warm(folder: Path, size: int) -> None:
    """Make the machine use this much of its memory once."""
    with (folder / "warm").open("wb", buffering=0) as file:
        for _ in range(size // PIECE):
            file.write(bytes(PIECE))
        os.fsync(file.fileno())
    (folder / "warm").unlink()


def run(ranks: int, width: int, rounds: int, where: str | None) -> dict[str, Any]:
    """The figures of one number of ranks."""
    folder = Path(tempfile.mkdtemp(prefix="distae-cost-", dir=where))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        warm(folder, min(4 << 30, 40 * LAYERS * width**2))
        mp.spawn(rank, (ranks, port, width, rounds, folder), nprocs=ranks)
        return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]
    finally:
        shutil.rmtree(folder)


def table(ranks: int, report: dict[str, Any]) -> str:
    rows = [f"{ranks} rank(s), {report['bytes'] / 1e9:.3f} GB      blocked s (min-max)         durable s (min-max)"]
    for name, one in report.items():
        if isinstance(one, dict) and "durable" in one:
            cells = [f"{s['median']:8.3f} ({s['min']:.3f}-{s['max']:.3f})" for s in (one["blocked"], one["durable"])]
            rows.append(f"  {name:24} {cells[0]:>26}  {cells[1]:>26}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, one round: does it run?")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", help="where to write; default: the folder for temporary files")
    args = parser.parse_args()
    width, rounds = (64, 1) if args.quick else (4096, args.rounds)
    result: dict[str, Any] = {
        "torch": str(torch.__version__), "cpus": len(os.sched_getaffinity(0)), "rounds": rounds,
        "load_average_before": os.getloadavg(),
    }  # fmt: skip
    for ranks in args.ranks:
        result[f"ranks_{ranks}"] = run(ranks, width, rounds, args.dir)
        sys.stderr.write(table(ranks, result[f"ranks_{ranks}"]) + "\n")
    print(json.dumps(result | {"load_average_after": os.getloadavg()}))


if __name__ == "__main__":
    main()
