"""distae sync RUN, python -m distae.tracking sync RUN: upload a run that had no network, as one W&B run.

distae sync runs/a
distae sync runs/a --model
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distae.errors import UserError

if TYPE_CHECKING:
    from distae.tracking.upload import Extra

COLUMNS = ("metric", "task", "value", "unit", "better")
"""Of the table of figures, before the baselines."""
PICTURES = "evaluation/*/*.png"
"""Of `distae generate` and `distae reconstruct`, where they write by default."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae.tracking sync") -> int:
    from distae.tracking.upload import rebuild

    options = arguments(prog).parse_args(argv)
    try:
        offline = rebuild(options.run, extra_of(options.run, options.model))
    except UserError as error:
        sys.stderr.write(f"distae: {error}\n")
        return 2
    sys.stdout.write(f"rebuilt in {offline}\n")
    return subprocess.run([sys.executable, "-m", "wandb", "sync", str(offline)], check=False).returncode


def arguments(prog: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of the command line."""
    about = "Upload a whole run to Weights & Biases, as one run: rows, pictures, and what distae evaluate and generate left in it."
    parser = argparse.ArgumentParser(prog, description=about)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run folder")
    parser.add_argument("--model", action="store_true", help="the exported model too, as an artifact")
    return parser


def extra_of(run: Path, with_model: bool) -> "Extra":
    """What is uploaded besides rows. Raises UserError where there is no model to upload."""
    from distae.commands.recorded import evaluated
    from distae.commands.runs import RecordedRun
    from distae.tracking.upload import Extra

    if with_model and not (run / "model").is_dir():
        raise UserError(f"--model: {run} has no model/ yet; a finished run has")
    found = evaluated(RecordedRun(run, run.name))
    pictures = {f"evaluation/{path.stem}": path for path in sorted(run.glob(PICTURES))}
    return Extra(_table(found.figures if found else ()), pictures, run / "model" if with_model else None)


def _table(figures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A column for each baseline; None where a figure lacks it."""
    baselines = [*dict.fromkeys(name for figure in figures for name in figure["baselines"])]
    return [
        {name: figure[name] for name in COLUMNS} | {f"baseline {name}": figure["baselines"].get(name) for name in baselines}
        for figure in figures
    ]
