"""What the commands that look at finished and unfinished runs read of their folders; most often without torch."""

import math
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distae.config import TrainConfig
from distae.config.cli import near
from distae.config.fields import leaves
from distae.config.names import METRICS, metric_of
from distae.errors import UserError
from distae.report.html import shown
from distae.runtime import files, outcome
from distae.runtime.run_dir import CONFIG, read_settings

ROWS = "metrics.jsonl"
LARGEST = 1 << 30
"""Bytes of metrics.jsonl: some millions of rows."""
NOT_COMPARED = frozenset({"name", "run_dir", "fresh", "tracking", "progress", "report", "timeout", "allow_changed_data"})
"""Settings that do not change what was trained, nor how."""


@dataclass(frozen=True)
class RecordedRun:
    """A run folder, as it is now."""

    path: Path
    name: str
    """Short, and unlike that of the other runs that are looked at."""

    @cached_property
    def config(self) -> TrainConfig:
        """Raises UserError where it is missing or damaged."""
        return read_settings(self.path)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Dotted names and values of what was trained and how."""
        return {k: v for k, v in leaves(self.config) if k not in NOT_COMPARED}

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """Of metrics.jsonl, without what is null; none of a run that has not begun. Raises UserError if it cannot be read."""
        try:
            return [*_decoded(files.read_bytes(self.path / ROWS, LARGEST).splitlines())]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self.path / ROWS}: {files.in_words(error)}") from error

    @property
    def metrics(self) -> list[str]:
        """Names such as `val/loss` of this run's rows, in the order in which they first come."""
        return [*dict.fromkeys(name for row in self.rows for name in row if "/" in name)]

    def series(self, metric: str, x: str = "step") -> list[tuple[float, float]]:
        """(x, value) of the rows that have both; of a step that was repeated after a restart, the last."""
        return [*{row[x]: (row[x], row[metric]) for row in self.rows if metric in row and x in row}.values()]

    @property
    def final(self) -> dict[str, float]:
        """The last value of every metric."""
        return {name: value for row in self.rows for name, value in row.items() if "/" in name}

    @property
    def best(self) -> dict[str, float]:
        """The metrics of the row where --best-metric is best; empty where there is none."""
        name = self.config.best_metric
        having = [row for row in self.rows if not math.isnan(row.get(name, math.nan))]
        return min(having, key=lambda row: sign_of(name) * row[name]) if having else {}

    @property
    def state(self) -> str:
        """How it ended, and where."""
        end, step = outcome.read(self.path), max((int(row.get("step", 0)) for row in self.rows), default=0)
        return f"{end.outcome} at step {end.step}" if end else f"step {step}, not ended"


def sign_of(best_metric: str) -> int:
    """-1 where higher is better, which only registered metrics say; these import torch."""
    if metric_of(best_metric) not in METRICS.keys_known:
        return 1
    from distae.evaluation.metrics import named

    metric = named(best_metric)
    return metric.sign if metric else 1


def _decoded(lines: Iterable[bytes]) -> Iterator[dict[str, float]]:
    """Rows; a line that is torn or damaged is left out, and so are a row's values that are null."""
    for line in lines:
        with suppress(ValueError, RecursionError):
            row = files.decode(line, dict[str, float | None])
            yield {k: v for k, v in row.items() if v is not None}


def serve(options: Namespace, work: Callable[[list[RecordedRun]], Path | None]) -> int:
    """Call `work` with the runs that the command line names, and say what it wrote; returns the exit code."""
    try:
        if path := work(find(options.runs)):
            sys.stdout.write(f"wrote {path}\n")
    except (UserError, OSError) as error:
        sys.stderr.write(f"distae: {files.with_path(error)}\n")
        return 2
    return 0


def find(paths: Sequence[Path]) -> list[RecordedRun]:
    """The runs of these folders; a folder of runs, such as a sweep's, is all of them. Raises UserError where there are none."""
    found: list[Path] = []
    for path in paths:
        folder = path.expanduser()
        if not folder.is_dir():
            raise UserError(f"{path} is not a folder; expected run folders, or a folder of them")
        inside = [folder] if _is_run(folder) else sorted(p for p in folder.iterdir() if p.is_dir() and _is_run(p))
        if not inside:
            raise UserError(f"no run in {path}: neither {CONFIG} nor {ROWS} is there, nor in a folder of it")
        found += inside
    unique = [*dict.fromkeys(p.absolute() for p in found)]
    return [RecordedRun(path, name) for path, name in zip(unique, _names(unique), strict=True)]


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (folder / ROWS).is_file()


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many of them as tell the runs from each other."""
    for length in range(1, max(len(p.parts) for p in paths)):
        names = ["/".join(p.parts[-length:]) for p in paths]
        if len({*names}) == len(paths):
            return names
    return [str(p) for p in paths]


def differing(runs: Sequence[RecordedRun]) -> list[str]:
    """The settings that are not the same in all runs; one that a run does not have, of another variant, is."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1]


def terms_of(runs: Sequence[RecordedRun]) -> dict[str, list[str]]:
    """The metrics of the runs by their names without the split: `{"loss": ["train/loss", "val/loss"]}`."""
    terms: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for run in runs for name in run.metrics):
        terms.setdefault(name.partition("/")[2], []).append(name)
    return terms


def whole_terms(runs: Sequence[RecordedRun]) -> dict[str, list[str]]:
    """The same without those that are one of many, such as kl_dim/000."""
    return {k: v for k, v in terms_of(runs).items() if "/" not in k}


def only_seeds_differ(runs: Sequence[RecordedRun]) -> list[list[RecordedRun]]:
    """The runs, in groups whose settings are the same but for `seed`, in the order of their first ones."""
    groups: dict[str, list[RecordedRun]] = {}
    for run in runs:
        key = repr(sorted((k, repr(v)) for k, v in run.settings.items() if k != "seed"))
        groups.setdefault(key, []).append(run)
    return [*groups.values()]


def check_metrics(names: Iterable[str], valid: Sequence[str], option: str = "--metrics") -> None:
    """Raises UserError where a name is not one of the valid ones, or there are none."""
    if not valid:
        raise UserError(f"no run has rows in its {ROWS} yet")
    if odd := next((name for name in names if name not in valid), None):
        raise UserError(f"{option}: unknown {odd!r}{near(odd, valid)}; valid: {', '.join(valid)}")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as aligned text under their names, numbers to the right."""
    names = [*dict.fromkeys(name for row in rows for name in row)]
    cells = [[shown(row.get(name)) for name in names] for row in rows]
    is_number = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in names]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    aligned = (
        "  ".join(cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(line, widths, is_number, strict=True))
        for line in (names, *cells)
    )
    return "".join(f"{line.rstrip()}\n" for line in aligned)
