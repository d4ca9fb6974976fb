"""The interface of a sink."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from distae.config.names import SINKS
from distae.config.train import TrainConfig

Row = Mapping[str, float | int]


class Start(NamedTuple):
    """What a sink is made with, at each start of a run, on rank 0."""

    run_dir: Path
    cfg: TrainConfig
    environment: dict[str, Any]
    """Commit, versions and devices."""
    say: Callable[[str], None]
    """Writes a line to the log."""


class Sink(Protocol):
    """Takes rows of metrics and pictures."""

    def row(self, row: Row) -> None: ...
    def image(self, name: str, path: Path, step: int) -> None: ...
    def close(self) -> None: ...


S = TypeVar("S", bound=Callable[[Start], Sink])


def register_sink(name: str) -> Callable[[S], S]:
    """Make a Sink, which is called with a Start, known as --tracking NAME."""
    return SINKS.register(name)
