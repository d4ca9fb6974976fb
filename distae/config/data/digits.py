"""Settings of scikit-learn's digits."""

from dataclasses import dataclass
from typing import ClassVar

from distae.config.data.base import DataConfig


@dataclass(frozen=True, kw_only=True)
class DigitsConfig(DataConfig):
    """scikit-learn's 1,797 handwritten digits, 8x8, 17 grey levels (UCI, Alpaydin & Kaynak 1998). No download.
    A fixed fifth is the test split."""

    name: ClassVar[str] = "digits"

    def shape(self) -> tuple[int, ...]:
        return (1, 8, 8)
