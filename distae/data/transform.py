"""The transform from stored values to those that a model sees, and back: for training, encoding and pictures."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import msgspec
import torch
import xxhash
from torch import Tensor

from distae.config.data import StoredLayout
from distae.config.fields import Index, Positive
from distae.data.columns import Columns, Scaled, check_columns
from distae.errors import UserError


@dataclass(frozen=True)
class Transform:
    """The transform from stored values to the model's. Works on batches, on any device; kept with the model as JSON."""

    scale: Positive = 1.0
    """The model's values are the stored ones divided by this."""
    layout: StoredLayout = "as_stored"
    columns: tuple[Scaled, ...] = ()
    """Columns of a table; the other fields then have their defaults."""
    crop: Index = 0
    """Side of the central square of an image that the model sees; 0: all of it. Training may use random crops: `Augment`."""

    def apply(self, x: Tensor, dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        """Stored samples `[B, *stored]` as the model's values `[B, *shape]` of `dtype`; `x` is not modified."""
        if self.columns:
            return self._on(x.device).apply(x).to(dtype)
        return self.rescale(self.arrange(x), dtype, memory_format)

    def rescale(self, x: Tensor, dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        """Stored values in any layout as the model's values of `dtype`, in the same layout; `x` is not modified."""
        made = x.to(dtype, memory_format=memory_format)
        if self.scale == 1:
            return made
        return made.mul_(1 / self.scale) if x.dtype != dtype else made * (1 / self.scale)  # another dtype is a copy already

    def invert(self, x: Tensor) -> Tensor:
        """The model's values `[B, *shape]` in the data's own units and layout `[B, *stored]`, floating point."""
        if self.columns:
            return self._on(x.device).invert(x)
        x = x * self.scale
        if self.layout == "channels_last":
            return x.permute(0, 2, 3, 1)
        return x.squeeze(1) if self.layout == "no_channel" else x

    def arrange(self, x: Tensor) -> Tensor:
        """Stored samples `[B, *stored]` in the model's layout and size `[B, *shape]`, without a copy."""
        x = self.in_layout(x)
        if not self.crop:
            return x
        top, left = (x.shape[2] - self.crop) // 2, (x.shape[3] - self.crop) // 2
        return x[:, :, top : top + self.crop, left : left + self.crop]

    def in_layout(self, x: Tensor) -> Tensor:
        """Stored samples `[B, *stored]` in the model's layout `[B, C, H, W]` or `[B, D]`, uncropped, without a copy."""
        if self.layout == "channels_last":
            return x.permute(0, 3, 1, 2)
        return x.unsqueeze(1) if self.layout == "no_channel" else x

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Shape for the model of a sample that has the shape `stored`."""
        if self.columns:
            return (self._on(torch.device("cpu")).width,)
        return tuple(self.arrange(torch.empty((1, *stored), device="meta")).shape[1:])

    @cached_property
    def _devices(self) -> dict[torch.device, Columns]:
        return {}

    def _on(self, device: torch.device) -> Columns:
        if device not in self._devices:
            self._devices[device] = Columns(self.columns, device)
        return self._devices[device]

    def to_json(self) -> dict[str, Any]:
        """The fields by name, without `columns` and `crop` if they are empty: files of older versions do not have them."""
        return {k: v for k, v in asdict(self).items() if k not in ("columns", "crop") or v}

    def identity(self) -> dict[str, str | int | float | None]:
        """`to_json` with a checksum instead of the columns."""
        table: dict[str, Any] = self.to_json()
        if self.columns:
            table["columns"] = xxhash.xxh3_128_hexdigest(json.dumps(table["columns"]).encode())
        return table

    @classmethod
    def from_json(cls, table: Any) -> "Transform":
        """The inverse of `to_json`. Raises UserError on anything else."""
        try:
            made = msgspec.convert(table, cls)
            check_columns(made.columns)
            return made
        except (msgspec.ValidationError, ValueError) as error:
            raise UserError(f"{str(table)[:200]} is not a transform of stored values ({error})") from error
