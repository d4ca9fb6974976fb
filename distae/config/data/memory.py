"""Settings of arrays in memory, which `distae.fit` is given."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from distae.config.data.array import ArrayConfig, StoredLayout, as_the_model_sees
from distae.config.data.base import DataConfig
from distae.config.fields import Count, Fraction, Positive
from distae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(DataConfig):
    """Arrays in memory: what distae.fit(x) trains on."""

    name: ClassVar[str] = "memory"

    stored: tuple[Count, ...] = ()
    """Shape of one sample as given."""
    scale: Literal["auto"] | Positive = "auto"
    """The model's values are those of x divided by this. auto: 255 for uint8 with values above 1, else 1."""
    layout: Literal["auto", "channels_first", "channels_last"] = "auto"
    """Meaning of an array of 4 dimensions, as for --data array."""
    test_fraction: Fraction = 0.0
    """Share of the samples held out for the test split."""

    def shape(self) -> tuple[int, ...]:
        return as_the_model_sees(self.stored, self.stored_layout())

    def stored_layout(self) -> StoredLayout:
        """Layout of the samples. Raises UserError if that needs `layout`, or there are no samples of this shape."""
        if not self.stored:
            raise UserError("--data memory is for distae.fit in Python, which takes the arrays as arguments")
        if len(self.stored) > 3:
            raise UserError(f"x has samples of shape {list(self.stored)}; valid are [D], [H, W], [C, H, W] and [H, W, C]")
        return ArrayConfig(path="x", layout=self.layout).stored_layout((1, *self.stored))
