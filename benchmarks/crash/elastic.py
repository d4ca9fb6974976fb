"""Runs with a random number of ranks at each start, killed or stopped in between, compared with a run of one rank in fp64."""

import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.crash.compare import beyond
from benchmarks.crash.kills import POLL_SECONDS, Progress
from benchmarks.crash.processes import COLLECTIVE_TIMEOUT, LIMIT, finish, kill, run, start, text_of, wait

COMMON = (
    "--model.latent-dim 4 --net.hidden 16 --net.dropout 0.1 --precision fp64 --global-batch-size 24 --data.limit 240 --log-every 4 "
    f"--eval-every 6 --save-every 5 --steps 40 --tracking none --device cpu --threads 1 --timeout {COLLECTIVE_TIMEOUT}"
)
VARIANTS = {
    "vae": ("--model vae --ema 0.9", 1e-9),
    "vq_vae": ("--model vq_vae --model.codebook-size 8", 1e-9),
    "vae batch norm": ("--model vae --net.norm batch", 1e-6),
}
STARTS = 4
"""Number of starts of a run that end early, before the last one, which finishes."""


def chain(variant: str, starts: int, seed: int, folder: Path) -> dict[str, Any]:
    """One run and its reference."""
    folder.mkdir(parents=True)
    rng, (options, tolerance) = random.Random(f"{seed} {variant}"), VARIANTS[variant]
    argv = [*COMMON.split(), *options.split(), "--run-dir"]
    finish([*argv, str(folder / "one")], 1, folder / "one")
    run_dir, sizes, human = folder / "run", [], ""
    for number in range(starts + 1):
        sizes.append(rng.randint(1, 3))
        if number < starts and not human:
            human = _cut_short([*argv, str(run_dir)], sizes[-1], run_dir, rng)
    end = run([*argv, str(run_dir)], sizes[-1], run_dir.with_suffix(".log"))
    human = human or ("" if not any(c != 0 for c in end.codes) else f"{end.codes}: {end.text[-300:]}")
    found = ["it did not end"] if human else beyond(folder / "one", run_dir, tolerance)
    if not found:
        shutil.rmtree(folder)
    return {"variant": variant, "ranks": sizes, "differences": found, "human": human}


def _cut_short(argv: list[str], ranks: int, run_dir: Path, rng: random.Random) -> str:
    """One start, ended at a random step by SIGKILL or SIGTERM; returns a complaint if it ended in another way."""
    progress, log = Progress(run_dir), run_dir.with_suffix(".log")
    at = progress.saved() + rng.randint(1, 10)
    log.unlink(missing_ok=True)
    processes = start(argv, ranks, log)
    moment = rng.choice(("saving", "commit", "evaluation"))
    while not progress.reached(moment, at) and any(p.exitcode is None for p in processes):
        time.sleep(POLL_SECONDS)
    time.sleep(rng.uniform(0, 0.02))
    stopped = rng.random() < 0.5
    if stopped and processes[0].exitcode is None:
        rng.choice(processes).terminate()
    else:
        kill(processes)
    wait(processes, LIMIT)
    fine = (0, 75, -signal.SIGTERM) if stopped else (0, -signal.SIGKILL)
    codes = [p.exitcode for p in processes]
    return "" if set(codes) <= set(fine) else f"{codes}: {text_of(log)[-300:]}"


def tasks(count: int, seed: int, folder: Path) -> list[tuple[Any, ...]]:
    names = list(VARIANTS)
    return [(chain, names[i % len(names)], STARTS, seed + i, folder / f"{i}") for i in range(-(-count // (STARTS + 1)))]


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "count": sum(len(c["ranks"]) for c in results),
        "faults": sum(bool(c["differences"]) for c in results),
        "runs": len(results),
        "differences": [f"{c['variant']}, ranks {c['ranks']}: {d}" for c in results for d in c["differences"]][:20],
        "needed_a_human": [f"{c['variant']}, ranks {c['ranks']}: {c['human']}" for c in results if c["human"]],
    }


def rows(s: dict[str, Any]) -> list[tuple[str, str, str]]:
    what = "starts with a random 1 to 3 ranks, fp64, against 1 rank: tensors and rows to 1e-9, with batch norm to 1e-6"
    return [(what, str(s["count"]), f"{s['faults']} of {s['runs']} runs beyond that; {len(s['needed_a_human'])} needed a human")]
