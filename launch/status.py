"""Show the state of a run or a job.

python -m launch.status runs/a          # a run folder, or a sweep's
python -m launch.status 1234            # a job
"""

import argparse
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from distae.errors import UserError
from distae.runtime import console, files, outcome
from distae.runtime.backends import BACKENDS
from distae.runtime.run_dir import CONFIG

from . import jobs
from .backends import newest_job

LAST_BYTES = 4 << 20
"""Bytes read from the end of metrics.jsonl: some ten thousand rows."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m launch.status") -> int:
    target = arguments(prog).parse_args(argv).target
    try:
        reports = ["\n".join(f"{name:<10}{text}" for name, text in report(run_dir)) for run_dir in find(target)]
    except UserError as error:
        sys.stderr.write(f"distae: {error}\n")
        return 2
    sys.stdout.write("\n\n".join(reports) + "\n")
    return 0


def arguments(prog: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog, description="Show the state of a run or a job.")
    parser.add_argument("target", metavar="RUN_OR_JOB", help="a run's or a sweep's folder, or a job id")
    return parser


def find(target: str) -> list[Path]:
    """The run folders of a folder or a job id. Raises UserError if there are none."""
    if Path(target).is_dir():
        folder = Path(target)
        children = sorted(p for p in folder.iterdir() if (p / "slurm").is_dir() or (p / CONFIG).is_file())
        return children or [folder]
    if not re.fullmatch(jobs.JOB, target):
        raise UserError(f"{target} is neither a run folder nor a job id")
    batch = Path(jobs.info(target).stdout)
    if batch.parent.name != "slurm":
        raise UserError(f"Slurm no longer knows the run folder of job {target}; give the folder")
    return [p for p in find(str(batch.parents[1])) if f"{newest_job(p)}_".startswith(f"{target}_")]


def report(run_dir: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each line."""
    yield "run", str(run_dir)
    for backend in BACKENDS.values():
        yield from backend().status(run_dir)
    yield from _progress(run_dir)
    if end := outcome.read(run_dir):
        why = " ".join(filter(None, [end.signal and f"by {end.signal}", end.reason]))
        yield "outcome", f"{end.outcome} at step {end.step} {why}".strip()
    if list(run_dir.glob("wandb/offline-run-*")):
        yield "W&B", f"offline; sync with distae sync {run_dir}"


def _progress(run_dir: Path) -> Iterator[tuple[str, str]]:
    """The last losses of each split."""
    last: dict[str, dict[str, float | None]] = {}
    with suppress(OSError):
        for line in files.read_end(run_dir / "metrics.jsonl", LAST_BYTES).splitlines():
            with suppress(ValueError, RecursionError):
                row = files.decode(line, dict[str, float | None])
                last |= {name.partition("/")[0]: row for name in row if "/" in name and {"step", "epoch"} <= row.keys()}
    for split, row in last.items():
        shown = {k: math.nan if v is None else v for k, v in row.items()}
        losses = " ".join(f"{k}={v:.5g}" for k, v in shown.items() if k.removeprefix(f"{split}/") in ("loss", "recon", "kl"))
        yield split, f"step {shown['step']:.0f} epoch {shown['epoch']:.2f} {losses}"


if __name__ == "__main__":
    console.ignore_closed_streams()
    sys.exit(console.exit_code(main))
