"""Tokenizers killed around the step that starts the discriminator, by ddp, fsdp and hsdp: bit for bit, and as on one rank."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

from benchmarks.crash.compare import beyond, differences, leftovers
from benchmarks.crash.processes import COLLECTIVE_TIMEOUT, finish, run

COMMON = (
    "--model tokenizer --model.discriminator-start 6 --model.discriminator-channels 4 --model.codebook-size 8 --model.lecam 0.1 "
    "--data digits --data.limit 240 --net conv --net.channels 4 --net.norm batch --global-batch-size 24 --grad-accum-steps 2 "
    "--ema 0.9 --precision fp64 --steps 9 --log-every 1 --eval-every 8 --save-every 1 --checkpoint.mode sync --tracking none "
    f"--device cpu --threads 1 --timeout {COLLECTIVE_TIMEOUT}"
)
"""All that is of the global batch: batch norms of both networks, the adaptive weight, LeCam, codes that restart, accumulation."""
STEPS = (5, 6, 7)
"""Of the kills, in one run: one before the discriminator's start, at it, and one after it. Each step before them is saved."""
HELD = {"ddp": "--parallel ddp", "fsdp": "--parallel fsdp", "hsdp": "--parallel hsdp --parallel.shard-size 2"}
CASES = tuple((b, how, ranks) for b in ("kl", "vq") for how, ranks in
              (("ddp", 1), ("ddp", 2), ("ddp", 4), ("fsdp", 1), ("fsdp", 2), ("fsdp", 4), ("hsdp", 2), ("hsdp", 4)))  # fmt: skip
TOLERANCE = 1e-9


class Killed:
    """A plant: SIGKILL in a step, when the autoencoder is updated and the discriminator is not."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, rank: int) -> None:
        from distae.training.step import TrainStep

        run_phase = TrainStep._phase

        def patched(step: TrainStep, phase: Any, number: int, batches: Any) -> Any:
            if (phase.name, number) == ("discriminator", self.step):
                os.kill(os.getpid(), signal.SIGKILL)
            return run_phase(step, phase, number, batches)

        TrainStep._phase = patched  # type: ignore[method-assign, assignment]


def chain(bottleneck: str, how: str, ranks: int, folder: Path, alone: bool = True) -> dict[str, Any]:
    """A run killed at each of STEPS, next to one that was not, and with `alone` that one next to one rank's."""
    folder.mkdir(parents=True)
    argv, names, human = [*COMMON.split(), "--model.bottleneck", bottleneck], ("one", "straight", "killed"), ""
    one, straight, killed = (folder / name for name in names)
    held = [*argv, *HELD[how].split(), "--run-dir"]
    finish([*held, str(straight)], ranks, straight)
    for step in STEPS:
        end = run([*held, str(killed)], ranks, folder / "log", plant=Killed(step))
        if -signal.SIGKILL not in end.codes or not {*end.codes} <= {-signal.SIGKILL, 1}:
            human = f"{end.codes}: {end.text[-300:]}"
    resumed = f"resumed at step {STEPS[-1]}" in finish([*held, str(killed)], ranks, killed).text
    found = differences(straight, killed) + leftovers(killed) + ([] if resumed else ["it was not resumed where it was killed"])
    if alone:
        finish([*argv, "--run-dir", str(one)], 1, one)
        found += beyond(one, straight, TOLERANCE)
    if not found and not human:
        shutil.rmtree(folder)
    return {"case": f"{bottleneck}, {how} on {ranks}", "kills": len(STEPS), "differences": found, "human": human}


def tasks(count: int, seed: int, folder: Path) -> list[tuple[Any, ...]]:
    """Every case once, however many faults are asked for: nothing of it is drawn."""
    return [(chain, *case, folder / "-".join(map(str, case))) for case in CASES]


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "count": sum(c["kills"] for c in results),
        "faults": sum(bool(c["differences"] or c["human"]) for c in results),
        "runs": len(results),
        "differences": [f"{c['case']}: {d}" for c in results for d in c["differences"]][:20],
        "needed_a_human": [f"{c['case']}: {c['human']}" for c in results if c["human"]],
    }


def rows(s: dict[str, Any]) -> list[tuple[str, str, str]]:
    what = (
        "SIGKILL of tokenizers at the discriminator's start and a step before and after: kl and vq; ddp, fsdp, hsdp; 1, 2, 4 ranks"
    )
    return [(what, str(s["count"]), f"{s['faults']} of {s['runs']} runs differ, or are not one rank's to {TOLERANCE:.0e} in fp64")]
