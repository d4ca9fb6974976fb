"""Ranks of a job as processes forked from a server that has already imported torch: a start costs 0.2 s instead of 4."""

import contextlib
import multiprocessing
import os
import random
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PRELOAD = (
    "distae.train",
    "distae.training.trainer",
    "distae.checkpoint",
    "distae.checkpoint.__main__",
    "launch.slurm",
    "wandb",
    "sklearn.datasets",
    "scipy.sparse",
    "pyarrow.parquet",
    "pyarrow.csv",
    "fsspec",
    "torchvision.utils",
    "tomli_w",
    "PIL.PngImagePlugin",
    "PIL.ImageChops",
    "torch.distributed.checkpoint",
    "benchmarks.crash.hostile",
)
"""All that is slow to import; modules that are absent are skipped."""
Plant = Callable[[int], None]
COLLECTIVE_TIMEOUT = 8
"""`--timeout` of the jobs here, in seconds."""
LIMIT = 3 * COLLECTIVE_TIMEOUT
"""A process that is still there after this many seconds, although others ended or all were done, hangs."""


class End(NamedTuple):
    """How the processes of one start ended."""

    codes: list[int | None]
    """Exit codes in rank order, minus the signal; None if the process had to be killed by the harness."""
    text: str
    """What they printed."""
    seconds: float

    @property
    def hung(self) -> bool:
        return None in self.codes


def _child(work: Callable[..., Any], args: Sequence[Any], env: dict[str, str], log: Path) -> None:
    os.environ |= env
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.pop("OMP_NUM_THREADS", None)
    sys.exit(work(*args))


def fork(work: Callable[..., Any], args: Sequence[Any], log: Path, env: dict[str, str] | None = None) -> Any:
    """Start a process that runs `work(*args)`, prints to `log`, and exits with the returned code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    process = context.Process(target=_child, args=(work, args, env or {}, log))
    process.start()
    return process


def train(argv: list[str], rank: int, plant: Plant | None = None) -> Any:
    """`python -m distae.train ARGV` in this process; `plant` injects a fault."""
    from distae.train import main

    if plant:
        plant(rank)
    return main(argv)


def tool(module: str, argv: list[str]) -> None:
    """`python -m MODULE ARGV` in this process."""
    sys.argv = [module, *argv]
    runpy.run_module(module, run_name="__main__")


def start(argv: list[str], ranks: int, log: Path, plant: Plant | None = None, cache: Path | None = None) -> list[Any]:
    """Start the ranks of a job as torchrun would; `cache` is the node's folder for what can be made again."""
    node = {"DISTAE_CACHE": str(cache)} if cache else {}
    env = node | {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    own = [env | {"RANK": str(r), "LOCAL_RANK": str(r)} if ranks > 1 else node for r in range(ranks)]
    return [fork(train, (argv, rank, plant), log, e) for rank, e in enumerate(own)]


def _free_port() -> int:
    """A free port below the ephemeral ones, which connections of other jobs may take at any time."""
    while True:
        port = random.SystemRandom().randrange(15000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait(processes: list[Any], limit: float) -> list[float | None]:
    """Seconds until each ended; None if it did not within `limit` seconds and was killed."""
    began = time.monotonic()
    took: list[float | None] = [None] * len(processes)
    while None in took and (now := time.monotonic() - began) < limit:
        for i, process in enumerate(processes):
            if took[i] is None and process.exitcode is not None:
                took[i] = now
        time.sleep(0.003)
    for process, seconds in zip(processes, took, strict=True):
        if seconds is None:
            kill([process])
        process.join()
    return took


def kill(processes: list[Any]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def run(argv: list[str], ranks: int, log: Path, limit: float = 120, plant: Plant | None = None, cache: Path | None = None) -> End:
    """One start of a job, to its end."""
    log.unlink(missing_ok=True)
    began = time.monotonic()
    processes = start(argv, ranks, log, plant, cache)
    took = wait(processes, limit)
    codes = [None if t is None else p.exitcode for p, t in zip(processes, took, strict=True)]
    return End(codes, text_of(log), time.monotonic() - began)


def text_of(log: Path) -> str:
    with contextlib.suppress(OSError):
        return log.read_text(errors="replace")
    return ""


def finish(argv: list[str], ranks: int, run_dir: Path, code: int = 0, plant: Plant | None = None, cache: Path | None = None) -> End:
    """Run the job to its end. Raises SystemExit where a rank ends with another exit code than `code`."""
    end = run(argv, ranks, run_dir.with_suffix(".log"), plant=plant, cache=cache)
    if any(c != code for c in end.codes):
        raise SystemExit(f"the run ended with {end.codes}:\n{end.text[-3000:]}")
    return end
