"""Where runs can be started: this machine and Slurm (`launch/`), and what plugins add."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from distae.config.registry import Registry


class Backend(Protocol):
    """Starts training runs somewhere. Its docstring's first line is its help."""

    def submit(self, argv: Sequence[str], prog: str) -> int:
        """Start a run: `argv` is `[OPTION ...] [-- TRAIN OPTION ...]`; returns the exit code of `distae launch`.

        Raises UserError if the options are wrong; `prog` is what the help calls the command.
        """

    def status(self, run_dir: Path) -> Iterable[tuple[str, str]]:
        """Label and text of each line that `distae status` shows for the run's newest job; none if it has no job here."""


B = TypeVar("B", bound=type[Backend])
BACKENDS: Registry[str, type[Backend]] = Registry("launcher backend")


def register_backend(name: str) -> Callable[[B], B]:
    """Make a Backend known as `distae launch NAME`."""
    return BACKENDS.register(name)
