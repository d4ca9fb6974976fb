"""python -m distae.tracking sync RUN: see distae.commands.tracking."""

import argparse
import sys

from distae.commands.tracking import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m distae.tracking", description="The W&B run of a run folder.")
    parser.add_argument("command", choices=["sync"], help="upload all of it as one W&B run")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    sys.exit(main(parser.parse_args().rest))
