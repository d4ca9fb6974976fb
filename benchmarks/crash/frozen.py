"""SIGSTOP of one rank: the others end by themselves; the run resumes once the frozen one is killed. A short freeze is survived."""

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.crash.compare import differences
from benchmarks.crash.kills import POLL_SECONDS, Progress, Reference
from benchmarks.crash.processes import COLLECTIVE_TIMEOUT, LIMIT, finish, kill, start, text_of, wait

VARIANT = "vae"
GRACE_SECONDS = 7
"""Seconds after `--timeout` within which the other ranks must have ended."""
RANKS = 3


def freeze(number: int, rank: int, seconds: float | None, seed: int, folder: Path) -> dict[str, Any]:
    """A run with a rank that is frozen for `seconds`, or forever."""
    folder.mkdir(parents=True)
    rng, reference = random.Random(f"{seed} {number}"), Reference(VARIANT, RANKS, folder)
    run_dir, log = folder / "run", folder / "frozen.log"
    argv, progress = reference.job(run_dir), Progress(run_dir)
    processes = start(argv, RANKS, log)
    step = rng.randint(0, 30)
    while progress.saved() < step and any(p.exitcode is None for p in processes):
        time.sleep(POLL_SECONDS)
    time.sleep(rng.uniform(0, 0.2 if step else reference.start_up))
    with contextlib.suppress(ProcessLookupError):
        os.kill(processes[rank].pid, signal.SIGSTOP)
    report = _sit_out(processes, rank, seconds) if seconds else _others_end(processes, rank)
    report |= {"traceback": "Traceback" in text_of(log), "rank": rank, "short": bool(seconds), "human": "", "step": step}
    try:
        finish(argv, RANKS, run_dir)
        report["differences"] = differences(reference.run_dir, run_dir)
    except SystemExit as error:
        report |= {"human": str(error)[-300:], "differences": ["it did not end"]}
    if not report["differences"] and not report["hung"]:
        shutil.rmtree(folder)
    return report


def _sit_out(processes: list[Any], rank: int, seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(processes[rank].pid, signal.SIGCONT)
    took = wait(processes, 60)
    return {"hung": None in took, "codes": [p.exitcode for p in processes], "seconds": []}


def _others_end(processes: list[Any], rank: int) -> dict[str, Any]:
    others = [p for i, p in enumerate(processes) if i != rank]
    took = wait(others, LIMIT)
    kill([processes[rank]])
    processes[rank].join()
    late = any(t is None or t > COLLECTIVE_TIMEOUT + GRACE_SECONDS for t in took)
    return {"hung": late, "codes": [None if t is None else p.exitcode for p, t in zip(others, took, strict=True)], "seconds": took}


def tasks(count: int, seed: int, folder: Path) -> list[tuple[Any, ...]]:
    """One freeze in four is shorter than the timeout."""
    lasts = (None, None, None, COLLECTIVE_TIMEOUT / 3)
    return [(freeze, i, i % RANKS, lasts[i // RANKS % 4], seed, folder / f"{i}") for i in range(count)]


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    for_good = [r for r in results if not r["short"]]
    seconds = [t for r in for_good for t in r["seconds"]]
    return {
        "count": len(results),
        "faults": sum(r["hung"] or bool(r["differences"]) or (r["short"] and any(r["codes"])) for r in results),
        "for_good": len(for_good),
        "hung": [f"rank {r['rank']} frozen at step {r['step']}: {r['codes']}" for r in results if r["hung"]],
        "longest_seconds": round(max((t for t in seconds if t is not None), default=0), 1),
        "codes": sorted({str(c) for r in for_good for c in r["codes"]}),
        "short_ones_sat_out": sum(r["short"] and not any(r["codes"]) for r in results),
        "tracebacks": sum(r["traceback"] for r in results),
        "differences": [f"rank {r['rank']} frozen at step {r['step']}: {d}" for r in results for d in r["differences"]][:20],
        "needed_a_human": [r["human"] for r in results if r["human"]],
    }


def rows(s: dict[str, Any]) -> list[tuple[str, str, str]]:
    what = f"SIGSTOP of one of {RANKS} ranks, `--timeout {COLLECTIVE_TIMEOUT}`"
    return [(what, str(s["count"]),
             f"{s['for_good']} for good: the others hung in {len(s['hung'])}, else gone within {s['longest_seconds']} s with codes "
             f"{', '.join(s['codes'])}; {s['count'] - s['for_good']} short: {s['short_ones_sat_out']} sat out; "
             f"{len(s['differences'])} differences after a restart")]  # fmt: skip
