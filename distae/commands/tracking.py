"""distae sync RUN, python -m distae.tracking sync RUN: upload a run that had no network, as one W&B run."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from distae.errors import UserError


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae.tracking sync") -> int:
    from distae.tracking.upload import rebuild

    try:
        offline = rebuild(arguments(prog).parse_args(argv).run)
    except UserError as error:
        sys.stderr.write(f"distae: {error}\n")
        return 2
    sys.stdout.write(f"rebuilt in {offline}\n")
    return subprocess.run([sys.executable, "-m", "wandb", "sync", str(offline)], check=False).returncode


def arguments(prog: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog, description="Upload a whole run to Weights & Biases, as one run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run folder")
    return parser
