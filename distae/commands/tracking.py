"""python -m distae.tracking sync RUN: upload a run that had no network, as one W&B run."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from distae.errors import UserError
from distae.tracking.upload import rebuild


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m distae.tracking", description="The W&B run of a run folder.")
    command = parser.add_subparsers(required=True, metavar="sync").add_parser("sync", help="upload all of it as one W&B run")
    command.add_argument("run", type=Path, metavar="RUN", help="the run folder")
    try:
        offline = rebuild(parser.parse_args(argv).run)
    except UserError as error:
        sys.stderr.write(f"distae: {error}\n")
        return 2
    sys.stdout.write(f"rebuilt in {offline}\n")
    return subprocess.run([sys.executable, "-m", "wandb", "sync", str(offline)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
