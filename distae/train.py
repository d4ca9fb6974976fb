"""python -m distae.train, torchrun -m distae.train: see distae.commands.train."""

from distae.commands.train import SWITCHES, main, run
from distae.runtime import console
from distae.runtime.signals import leave

__all__ = ["SWITCHES", "main", "run"]


if __name__ == "__main__":
    console.ignore_closed_streams()
    leave(console.exit_code(main))
