"""python -m distae.tracking: see distae.commands.tracking."""

import sys

from distae.commands.tracking import main

if __name__ == "__main__":
    sys.exit(main())
