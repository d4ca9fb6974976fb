"""SIGKILL at moments of every kind; the finished run is compared bit for bit with a run that was never killed."""

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.crash.compare import differences, last_checkpoint, leftovers
from benchmarks.crash.processes import COLLECTIVE_TIMEOUT, LIMIT, finish, kill, start, text_of, wait

COMMON = (
    "--model.latent-dim 4 --net.hidden 16 --global-batch-size 24 --data.limit 240 --eval-batch-size 64 --log-every 3 "
    f"--eval-every 6 --save-every 5 --tracking none --device cpu --threads 1 --timeout {COLLECTIVE_TIMEOUT} --steps 40"
)
PLATEAU = "--schedule plateau --schedule.patience 0 --early-stop.patience 4 --early-stop.min-delta 0.05"
VARIANTS = {
    "vae": f"--model vae --model.free-bits 0.1 --net.norm batch --net.dropout 0.1 --ema 0.9 --grad-accum-steps 2 {PLATEAU}",
    "vq_vae bf16": "--model vq_vae --model.codebook-size 8 --precision bf16 --net.dropout 0.1 --optim.lr 0.01",
    "aae fp16": "--model aae --precision fp16 --optim.max-grad-norm 1",
    "vae every step": "--model vae --net.norm layer --net.dropout 0.1 --ema 0.9 --save-every 1 --checkpoint.mode sync",
    "iwae auto": "--model iwae --model.samples 3 --save-every auto --checkpoint.mtbf-hours 1e-9 --data.binarize stochastic",
    "factor_vae": "--model factor_vae --net.norm layer --checkpoint.keep-latest-k 1 --schedule cosine --optim.name adamw",
    "hvae": "--model hvae --optim.weight-decay 0.01 --optim.name adamw --grad-accum-steps 2",
}
MOMENTS = ("start-up", "anywhere", "saving", "commit", "evaluation", "end")
MOST_KILLS = 14
"""Maximum number of kills of a run, which then finishes."""
POLL_SECONDS = 0.001
MORE = "only in run: "
"""How `differences` begins where a killed run has a file that the other has not."""


class Progress:
    """The progress of a run, from its folder."""

    def __init__(self, run_dir: Path) -> None:
        self.checkpoints, self.metrics = run_dir / "checkpoints", run_dir / "metrics.jsonl"

    def names(self) -> list[str]:
        try:
            return os.listdir(self.checkpoints)  # noqa: PTH208 - polled every millisecond
        except OSError:
            return []

    def saved(self) -> int:
        """The newest saved step."""
        return max((int(n[5:]) for n in self.names() if n.startswith("step_")), default=0)

    def writing(self) -> int:
        """The step that is being saved, 0 if there is none."""
        return max((int(n[6:14]) for n in self.names() if n.endswith(".writing")), default=0)

    def logged(self) -> int:
        """The step of the newest row."""
        try:
            with self.metrics.open("rb") as file:
                file.seek(max(0, self.metrics.stat().st_size - 4096))
                return int(json.loads(file.read().splitlines()[-1])["step"])
        except (OSError, ValueError, LookupError):
            return 0

    def reached(self, moment: str, step: int) -> bool:
        """Whether the run is about to do the thing at `step` or later."""
        if moment == "saving":
            return self.writing() >= step
        if moment == "commit":
            writing = self.writing()
            return self.saved() >= step or (writing >= step and (self.checkpoints / f".step_{writing:08}.writing/COMMIT").exists())
        return (self.logged() if moment == "evaluation" else self.saved()) >= step


class Reference:
    """A run that was never killed, and how long its parts take."""

    def __init__(self, variant: str, ranks: int, folder: Path, options: Sequence[str] = ()) -> None:
        """`options` are those of a variant that is none of VARIANTS."""
        self.variant, self.ranks, self.run_dir = variant, ranks, folder / f"straight-{variant.replace(' ', '-')}-{ranks}"
        self.options, warm = options or VARIANTS[variant].split(), folder / "warm"
        finish(
            [*self.job(warm), "--steps", "2"], ranks, warm, cache=folder / "cache"
        )  # the server starts, and what is slow once is behind
        shutil.rmtree(warm)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        argv, progress = self.job(self.run_dir), Progress(self.run_dir)
        began = time.monotonic()
        processes = start(argv, ranks, self.run_dir.with_suffix(".log"), cache=folder / "cache")
        while not progress.logged() and any(p.exitcode is None for p in processes):
            time.sleep(POLL_SECONDS)
        self.start_up = time.monotonic() - began
        wait(processes, 120)
        self.seconds = time.monotonic() - began
        if any(p.exitcode for p in processes):
            raise SystemExit(f"{variant}: {text_of(self.run_dir.with_suffix('.log'))[-2000:]}")
        self.last = int(last_checkpoint(self.run_dir).name[5:])

    def job(self, run_dir: Path) -> list[str]:
        """The words of the command that trains in `run_dir`."""
        return [*COMMON.split(), *self.options, "--run-dir", str(run_dir)]

    def draw(self, saved: int, rng: random.Random) -> tuple[str, int, float]:
        """A moment, the step to wait for, and the seconds from the moment to the kill; soon, so that a run is killed often."""
        if saved >= self.last:
            return "end", 0, rng.uniform(0, 1.2 * self.start_up + 0.15)
        moment = "end" if saved > self.last / 2 and rng.random() < 0.3 else rng.choice(MOMENTS[:-1])
        longest = {
            "start-up": 1.2 * self.start_up, "anywhere": self.start_up + self.seconds / 4, "saving": 0.015, "commit": 0.004,
            "evaluation": 0.02, "end": 0.15,
        }  # fmt: skip
        at = self.last if moment == "end" else rng.randint(saved + 1, min(saved + 10, self.last))
        return moment, at, rng.uniform(0, longest[moment])


def life(argv: list[str], reference: Reference, run_dir: Path, log: Path, rng: random.Random) -> dict[str, Any]:
    """One start of the job, killed at a random moment, unless it ends before."""
    progress = Progress(run_dir)
    moment, at, delay = reference.draw(progress.saved(), rng)
    log.unlink(missing_ok=True)
    processes = start(argv, reference.ranks, log, cache=run_dir.with_name("cache"))
    end = time.monotonic() + 120
    while moment not in ("start-up", "anywhere") and not progress.reached(moment, at) and time.monotonic() < end:
        if all(p.exitcode is not None for p in processes):
            break
        time.sleep(POLL_SECONDS)
    time.sleep(delay)
    ended = [p.exitcode for p in processes if p.exitcode is not None]
    if len(ended) == len(processes) or any(ended):  # before the kill: by itself, or of an error
        wait(processes, LIMIT)
        return {"killed": False, "codes": [p.exitcode for p in processes], "text": text_of(log)}
    victims = processes if rng.random() < 0.5 else rng.sample(processes, rng.randint(1, max(1, len(processes) - 1)))
    kill(victims)
    survivors = [p for p in processes if p not in victims]
    took = wait(survivors, LIMIT)
    for victim in victims:
        victim.join()
    return {
        "killed": True, "moment": moment, "all": not survivors, "saving": progress.writing() > 0,
        "survivors": [(None if t is None else p.exitcode, t) for p, t in zip(survivors, took, strict=True)],
        "traceback": "Traceback" in text_of(log), "resumed": "resumed at step" in text_of(log),
    }  # fmt: skip


def chain(reference: Reference, kills: int, seed: object, folder: Path) -> dict[str, Any]:
    """One run, killed up to `kills` times and then finished, compared with the reference."""
    rng = random.Random(f"{seed} {reference.variant} {reference.ranks}")
    folder.mkdir(parents=True)
    run_dir, lives, human = folder / "run", list[dict[str, Any]](), ""
    argv = reference.job(run_dir)
    while len(lives) < kills:
        report = life(argv, reference, run_dir, folder / "life.log", rng)
        if not report["killed"]:
            human = "" if not any(report["codes"]) else f"{report['codes']}: {report['text'][-300:]}"
            break
        lives.append(report)
    if not human:
        try:
            last_words = finish(argv, reference.ranks, run_dir, cache=folder / "cache").text
        except SystemExit as error:
            human = str(error)[-300:]
    differing = ["it did not end"] if human else differences(reference.run_dir, run_dir, "auto" not in reference.variant)
    left = [d for d in differing if d.startswith(MORE)] + leftovers(run_dir)
    found = [d for d in differing if not d.startswith(MORE)]
    resumes = sum(life["resumed"] for life in lives) + (not human and "resumed at step" in last_words)
    if not found and not left:
        shutil.rmtree(folder)
    return {
        "variant": reference.variant, "ranks": reference.ranks, "lives": lives, "human": human, "differences": found, "left": left,
        "resumes": resumes,
    }  # fmt: skip


def resumed_chain(reference: Reference, kills: int, folder: Path) -> dict[str, Any]:
    """The first chain that was resumed, or has a fault; the last of 8 where all kills came before a checkpoint or after the end."""
    for seed in range(8):
        report = chain(reference, kills, seed, folder / f"chain-{seed}")
        if report["resumes"] or report["differences"] or report["left"] or report["human"]:
            break
    return report


def batch(variant: str, ranks: int, kills: int, seed: int, folder: Path, options: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Chains of one variant and number of ranks until there are so many kills."""
    folder.mkdir(parents=True, exist_ok=True)
    reference, chains, done = Reference(variant, ranks, folder, options), list[dict[str, Any]](), 0
    while done < kills and len(chains) < kills:
        chains.append(chain(reference, min(MOST_KILLS, kills - done), f"{seed} {len(chains)}", folder / f"chain-{len(chains)}"))
        done += len(chains[-1]["lives"])
    return chains


def tasks(count: int, seed: int, folder: Path) -> list[tuple[Any, ...]]:
    """Kills shared out evenly over variants; half of them on one rank, whose lives are short; those of many ranks go first."""
    shares = shared_out(count, [(v, r) for r in (3, 2, 1, 1) for v in VARIANTS])
    return [(batch, v, r, n, seed + i, folder / f"{i}-{v.replace(' ', '-')}-{r}") for i, (v, r, n) in enumerate(shares) if n]


def shared_out(count: int, pairs: Sequence[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """Variants and numbers of ranks, each with its share of `count`."""
    return [(v, r, (count * (i + 1)) // len(pairs) - (count * i) // len(pairs)) for i, (v, r) in enumerate(pairs)]


def summary(results: list[list[dict[str, Any]]]) -> dict[str, Any]:
    chains = [c for part in results for c in part]
    lives = [life for c in chains for life in c["lives"]]
    survivors = [s for life in lives for s in life["survivors"]]
    ended = sorted(t for _, t in survivors if t is not None)
    ranks = Counter(c["ranks"] for c in chains for _ in c["lives"])
    return {
        "count": len(lives),
        "faults": sum(bool(c["differences"] or c["left"]) for c in chains) + sum(code not in (0, 1) for code, _ in survivors),
        "runs": len(chains),
        "variants": len({c["variant"] for c in chains}),
        "kills_by_ranks": dict(sorted(ranks.items())),
        "kills_by_moment": dict(Counter(life["moment"] for life in lives)),
        "of_all_ranks": sum(life["all"] for life in lives),
        "hit_a_save": sum(life["saving"] for life in lives),
        "resumes": sum(c["resumes"] for c in chains),
        "runs_that_differ": sum(bool(c["differences"]) for c in chains),
        "differences": [f"{c['variant']}, {c['ranks']} ranks: {d}" for c in chains for d in c["differences"]][:20],
        "left_over_files": sum(len(c["left"]) for c in chains),
        "left_over": [f"{c['variant']}, {c['ranks']} ranks: {c['left'][:3]}" for c in chains if c["left"]][:20],
        "needed_a_human": [f"{c['variant']}, {c['ranks']} ranks: {c['human']}" for c in chains if c["human"]],
        "survivors": len(survivors),
        "survivor_codes": {str(k): v for k, v in Counter(code for code, _ in survivors).items()},
        "survivor_seconds": [round(ended[int(q * (len(ended) - 1))], 1) for q in (0.5, 0.95, 1)] if ended else [],
        "survivors_still_there": sum(t is None for _, t in survivors),
        "lives_with_a_traceback": sum(life["traceback"] for life in lives),
    }


def rows(s: dict[str, Any]) -> list[tuple[str, str, str]]:
    by = ", ".join(f"{n} on {r}" for r, n in s["kills_by_ranks"].items())
    moments = ", ".join(f"{m} {n}" for m, n in s["kills_by_moment"].items())
    return [
        (
            f"SIGKILL: {s['variants']} variants; {by} ranks; {moments}",
            str(s["count"]),
            f"{s['runs_that_differ']} of {s['runs']} runs differ; {s['left_over_files']} left-over files; "
            f"{len(s['needed_a_human'])} needed a human; "
            f"{s['hit_a_save']} hit a save, {s['resumes']} resumes",
        ),
        (
            "ranks that outlived a killed one",
            str(s["survivors"]),
            f"exit codes {s['survivor_codes']}; seconds (median, 95 %, most) {s['survivor_seconds']}; "
            f"{s['survivors_still_there']} still there after {LIMIT} s; {s['lives_with_a_traceback']} starts with a traceback",
        ),
    ]
