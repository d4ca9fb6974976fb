"""Stored values to the values that a model sees, and back: one transform for training, encoding, detection and pictures."""

from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from distae.config.data import StoredLayout
from distae.config.fields import Positive
from distae.errors import UserError


@dataclass(frozen=True)
class Transform:
    """The transform from stored values to the model's. Works on batches, on any device; kept with the model as JSON."""

    scale: Positive = 1.0
    """The model's values are the stored ones divided by this."""
    layout: StoredLayout = "as_stored"

    def apply(self, x: Tensor, dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        """Stored samples `[B, *stored]` as the model's values `[B, *shape]`, floating point of `dtype`; `x` stays as it is."""
        made = self.arrange(x).to(dtype, memory_format=memory_format)
        if self.scale == 1:
            return made
        return made.mul_(1 / self.scale) if x.dtype != dtype else made * (1 / self.scale)  # another dtype is a copy already

    def invert(self, x: Tensor) -> Tensor:
        """The model's values `[B, *shape]` in the data's own units and layout `[B, *stored]`, floating point."""
        x = x * self.scale
        if self.layout == "channels_last":
            return x.permute(0, 2, 3, 1)
        return x.squeeze(1) if self.layout == "no_channel" else x

    def arrange(self, x: Tensor) -> Tensor:
        """Stored samples `[B, *stored]` in the model's layout `[B, *shape]`, without a copy."""
        if self.layout == "channels_last":
            return x.permute(0, 3, 1, 2)
        return x.unsqueeze(1) if self.layout == "no_channel" else x

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, table: Any) -> "Transform":
        """The inverse of `to_json`. Raises UserError on anything else."""
        try:
            return msgspec.convert(table, cls)
        except msgspec.ValidationError as error:
            raise UserError(f"{table!r} is not a transform of stored values ({error})") from error
