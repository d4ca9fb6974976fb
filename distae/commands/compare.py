"""distae compare RUN ...: what differs between runs, their best and final metrics, and mean and spread over seeds.

distae compare runs/a runs/b
distae compare runs/sweep --metrics val/loss val/mse --out sweep.csv
"""

import argparse
import csv
import io
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distae.commands.runs import RecordedRun, check_metrics, differing, only_seeds_differ, serve, table
from distae.report.html import shown
from distae.runtime.files import check_absent, write_atomically

Row = dict[str, Any]
MEASURED = ("best val/", "final ")
"""What columns of numbers begin with."""
SPREAD = "mean ± standard deviation over seeds"


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae compare") -> int:
    options = arguments(prog).parse_args(argv)

    def compare(runs: Sequence[RecordedRun]) -> Path | None:
        sys.stdout.write(report(runs, options.metrics))
        if options.out:
            write_csv(options.out, rows_of(runs, options.metrics or None), options.force)
        return options.out  # type: ignore[no-any-return]

    return serve(options, compare)


def arguments(prog: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog, description="Compare runs: settings that differ, metrics, mean and spread over seeds.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, or folders of runs, such as a sweep's")
    parser.add_argument("--metrics", nargs="+", default=[], metavar="NAME", help="as val/loss (default: --best-metric, test/loss)")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="write the table there too, with all metrics by default")
    parser.add_argument("--force", action="store_true", help="overwrite --out")
    return parser


def report(runs: Sequence[RecordedRun], metrics: Sequence[str] = ()) -> str:
    """The table of runs and, where several differ in their seed alone, that of mean and spread."""
    each, over_seeds = tables(runs, metrics)
    return table(each) + (f"\n{SPREAD}\n{table(over_seeds)}" if over_seeds else "")


def tables(runs: Sequence[RecordedRun], metrics: Sequence[str] = ()) -> tuple[list[Row], list[Row]]:
    """A row for each run, and one for each group that differs in its seed alone: mean ± standard deviation, as text."""
    there = {name for run in runs for name in run.metrics}
    usual = dict.fromkeys([*(run.config.best_metric for run in runs), "test/loss"])
    metrics = metrics or [name for name in usual if name in there]
    rows = rows_of(runs, metrics)
    each = [_without(row, "seeds", "statistic") for row in rows if row["seeds"] is None]
    means, spreads = ([row for row in rows if row["statistic"] == which] for which in ("mean", "std"))
    return each, [_both(*pair) for pair in zip(means, spreads, strict=True)]


def _without(row: Row, *names: str) -> Row:
    return {k: v for k, v in row.items() if k not in names}


def _both(mean: Row, std: Row) -> Row:
    """Rows of mean and standard deviation as one row of text."""
    row = _without(mean, "run", "statistic", "state", "seed", "best step")
    return {k: f"{shown(v)} ± {std[k]:.2g}" if k.startswith(MEASURED) and v is not None else v for k, v in row.items()}


def rows_of(runs: Sequence[RecordedRun], metrics: Sequence[str] | None) -> list[Row]:
    """A row for each run, then two for each group of runs that differ in `seed` alone: mean and standard deviation (n - 1).

    `metrics` None: all of validation and test. Raises UserError on one that no run has.
    """
    there = [*dict.fromkeys(name for run in runs for name in run.metrics)]
    check_metrics(metrics or (), there)
    metrics = [name for name in there if not name.startswith("train/")] if metrics is None else metrics
    settings = differing(runs)
    single = {run: _row(run, settings, metrics) for run in runs}
    groups = [group for group in only_seeds_differ(runs) if len(group) > 1]
    return [*single.values()] + [row for group in groups for row in _spread([single[run] for run in group])]


def _row(run: RecordedRun, settings: Sequence[str], metrics: Sequence[str]) -> Row:
    row: Row = {"run": run.name, "seeds": None, "statistic": None, "state": run.state, "best step": run.best.get("step")}
    row |= {name: run.settings.get(name) for name in settings}
    for name in metrics:
        if name.startswith("val/"):
            row[f"best {name}"] = run.best.get(name)
        row[f"final {name}"] = run.final.get(name)
    return row


def _spread(rows: Sequence[Row]) -> list[Row]:
    """Rows of mean and standard deviation of the runs' numbers; what is the same in all stays."""
    made: list[Row] = []
    for statistic, of in (("mean", statistics.fmean), ("std", statistics.stdev)):
        row: Row = {"run": rows[0]["run"], "seeds": len(rows), "statistic": statistic}
        for name in rows[0]:
            values = [row[name] for row in rows]
            if name.startswith(MEASURED):
                row[name] = None if None in values else of(values)
            elif name not in row:
                row[name] = values[0] if all(v == values[0] for v in values) else None
        made.append(row)
    return made


def write_csv(path: Path, rows: Sequence[Row], force: bool) -> None:
    """Raises UserError if there is a file and `force` is not given, OSError if it cannot be written."""
    check_absent(path, force)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: " ".join(map(str, v)) if isinstance(v, tuple) else v for k, v in row.items()} for row in rows)
    write_atomically(path, text.getvalue().encode(), durable=False)
