"""The interface of a sink."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

Row = Mapping[str, float | int]


class Sink(Protocol):
    """Takes rows of metrics and pictures."""

    def row(self, row: Row) -> None: ...
    def image(self, name: str, path: Path, step: int) -> None: ...
    def close(self) -> None: ...
