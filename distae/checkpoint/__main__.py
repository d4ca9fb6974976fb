"""python -m distae.checkpoint: see distae.commands.checkpoint."""

import sys

from distae.commands.checkpoint import main

if __name__ == "__main__":
    sys.exit(main())
