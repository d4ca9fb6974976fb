"""Kill a run again and again, at random moments, and see whether it ends as if nothing had happened.

    python benchmarks/crash.py --kills 100 --ranks 2 --seed 0

A small job (accumulation, fp16 loss scaling, EMA, plateau schedule, dropout) saves every 3 steps. One rank or all are sent SIGKILL,
the others have to end by themselves, and the same command starts again. At the end parameters, optimizer state, averages and every
row of metrics.jsonl must equal, bit for bit, those of a run that was never interrupted. The last line is one JSON object.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

JOB = (
    "--model.latent-dim 4 --net.hidden 16 --net.norm layer --net.dropout 0.1 --global-batch-size 24 --grad-accum-steps 2 "
    "--precision fp16 --ema 0.9 --schedule plateau --schedule.patience 1 --data.limit 240 --eval-every 7 --log-every 5 "
    "--save-every 3 --tracking none --device cpu --threads 1"
)
Plant = Callable[[int], None]
GRACE_SECONDS = 15
"""After this time the rest of a job is killed, as torchrun and srun do: a rank that waits for a rendezvous cannot know better."""


def _rank(argv: list[str], env: dict[str, str], log: Path, plant: Plant | None) -> None:
    os.environ |= env
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from distae.train import main

    if plant:
        plant(int(env.get("RANK", 0)))
    sys.exit(main(argv))


def start(argv: list[str], ranks: int, log: Path, plant: Plant | None = None) -> list[Any]:
    """Start the ranks of a job as torchrun would, from a server that has torch imported already; `plant` puts a fault into each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["distae.training.trainer", "sklearn.datasets", "torchvision.utils"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    own = [env | {"RANK": str(r), "LOCAL_RANK": str(r)} if ranks > 1 else {} for r in range(ranks)]
    processes = [context.Process(target=_rank, args=(argv, e, log, plant)) for e in own]
    for process in processes:
        process.start()
    return processes


def _saved(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob("step_*"))


def live_and_die(
    argv: list[str], ranks: int, run_dir: Path, rng: random.Random, longest: float, after_a_save: bool = False
) -> dict[str, Any]:
    """One life of the job, ended by SIGKILL, on a slow machine before the first save unless `after_a_save`; what was hit."""
    processes = start(argv, ranks, run_dir.with_suffix(".log"))
    end = time.monotonic() + rng.uniform(0, longest)
    while time.monotonic() < end or (after_a_save and any(p.is_alive() for p in processes) and not _saved(run_dir)):
        time.sleep(0.01)
    finished = all(p.exitcode == 0 for p in processes)
    saving = any((run_dir / "checkpoints").glob(".step_*.writing"))
    victims = processes if rng.random() < 0.5 else [rng.choice(processes)]
    for process in victims:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    end = time.monotonic() + GRACE_SECONDS
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    waiting = [p for p in processes if p.is_alive()]
    for process in waiting:
        process.kill()
        process.join()
    return {"finished": finished, "saving": saving, "all": len(victims) == ranks, "waiting": bool(waiting)}


def finish(argv: list[str], ranks: int, run_dir: Path, code: int = 0, plant: Plant | None = None) -> None:
    """Run the job to its end, with this exit code on every rank."""
    processes = start(argv, ranks, run_dir.with_suffix(".log"), plant)
    for process in processes:
        process.join()
    if any(p.exitcode != code for p in processes):
        raise SystemExit(
            f"the run ended with {[p.exitcode for p in processes]}:\n{run_dir.with_suffix('.log').read_text()[-3000:]}"
        )


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two finished runs: the model, tensors of the last checkpoint, rows of metrics.jsonl."""
    found = [f"{p.name} of the model" for p in (a / "model").iterdir() if p.read_bytes() != (b / "model" / p.name).read_bytes()]
    last = max(p.name for p in (a / "checkpoints").glob("step_*"))
    for path in sorted((a / "checkpoints" / last).glob("*.safetensors")):
        if path.read_bytes() != (b / "checkpoints" / last / path.name).read_bytes():
            found.append(f"{path.name} of {last}")
    rows = [[timeless(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (a, b)]
    found += [f"row {i}: {x} != {y}" for i, (x, y) in enumerate(zip(*rows, strict=False)) if x != y][:3]
    if len(rows[0]) != len(rows[1]):
        found.append(f"{len(rows[0])} rows and {len(rows[1])}")
    return found


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl without what no two runs share: times, rates and memory."""
    unsteady = ("_seconds", "_per_second", "_fraction", "_bytes")
    return {k: v for k, v in row.items() if k != "time" and not k.endswith(unsteady)}


def crash(kills: int, ranks: int, seed: int, folder: Path, longest: float = 3.0, steps_per_kill: int = 60) -> dict[str, Any]:
    """The whole test; the outcome as plain values."""
    rng = random.Random(seed)
    job = [*JOB.split(), "--steps", str(kills * steps_per_kill)]
    straight, broken = folder / "straight", folder / "broken"
    finish([*job, "--run-dir", str(straight)], ranks, straight)
    lives = []
    for number in range(kills):
        last = number == kills - 1
        lives.append(live_and_die([*job, "--run-dir", str(broken)], ranks, broken, rng, longest, after_a_save=last))
        sys.stderr.write(f"\rkill {number + 1}/{kills}")
    finish([*job, "--run-dir", str(broken)], ranks, broken)
    return {
        "kills": sum(not life["finished"] for life in lives),
        "ranks": ranks,
        "seed": seed,
        "steps": kills * steps_per_kill,
        "kills_of_all_ranks": sum(life["all"] for life in lives),
        "kills_during_a_save": sum(life["saving"] for life in lives),
        "survivors_ended_by_themselves": sum(not life["all"] and not life["waiting"] for life in lives),
        "survivors_killed_after_grace": sum(life["waiting"] for life in lives),
        "resumes": broken.with_suffix(".log").read_text().count(" resumed at step "),
        "differences": differences(straight, broken),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="distae-crash-"))
    result = crash(args.kills, args.ranks, args.seed, folder)
    if not result["differences"]:
        shutil.rmtree(folder)
    print(f"\n{json.dumps(result)}")
    sys.exit(bool(result["differences"]))


if __name__ == "__main__":
    main()
