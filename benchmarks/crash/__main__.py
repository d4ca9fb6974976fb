"""python -m benchmarks.crash --all, or one mode: kills, sources, elastic, onset, frozen, flips, disk, hostile, selfcheck.

Each mode injects `--count` faults that are drawn from `--seed`, `--jobs` of them at a time. Prints a table in Markdown and, as the
last line, one JSON object; the exit code is 1 if anything went wrong silently, hung, or needed a human.
"""

import argparse
import importlib
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

COUNTS = {
    "kills": 1000, "sources": 192, "elastic": 60, "onset": 48, "frozen": 12, "flips": 1000, "disk": 100, "hostile": 200,
    "selfcheck": 1,
}  # fmt: skip
"""Faults of each mode by default. Kills, flips and disk faults are shared out over all cases; a hostile input is tried once."""


def run_mode(name: str, count: int, seed: int, jobs: int, folder: Path) -> dict[str, Any]:
    mode = importlib.import_module(f"benchmarks.crash.{name}")
    todo, results, began = mode.tasks(count, seed, folder / name), [], time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(*task) for task in todo]
        for number, future in enumerate(as_completed(futures)):
            results.append(_result(future, pool))
            sys.stderr.write(f"\r{name}: {number + 1} of {len(todo)} parts, {time.monotonic() - began:.0f} s ")
    sys.stderr.write("\n")
    report = mode.summary(results)
    return report | {"seed": seed, "seconds": round(time.monotonic() - began), "table": mode.rows(report)}


def _result(future: "Future[Any]", pool: ProcessPoolExecutor) -> Any:
    try:
        return future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.crash", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("modes", nargs="*", metavar="MODE", help=", ".join(COUNTS))
    parser.add_argument("--all", action="store_true", help="all modes at full size")
    parser.add_argument(
        "--count", type=int, help="faults of each mode (default: " + ", ".join(f"{k} {v}" for k, v in COUNTS.items()) + ")"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=3, help="faults at a time; each has its own server that holds torch")
    parser.add_argument("--folder", type=Path, help="where runs go; kept where something was found (default: a temporary folder)")
    args = parser.parse_args()
    modes = list(COUNTS) if args.all else args.modes
    if not modes or set(modes) - set(COUNTS):
        parser.error(f"give --all or modes; valid: {', '.join(COUNTS)}")
    folder = args.folder or Path(tempfile.mkdtemp(prefix="distae-crash-"))
    report = {m: run_mode(m, args.count or COUNTS[m], args.seed, args.jobs, folder) for m in modes}
    print("\n| fault | count | outcome |\n|---|---|---|")
    for result in report.values():
        for row in result.pop("table"):
            print(f"| {' | '.join(row)} |")
    faults = sum(result["faults"] for result in report.values())
    if not faults:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{json.dumps(report)}")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
