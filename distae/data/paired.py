"""Samples and what is to be reconstructed of them, side by side."""

import torch
from torch import Tensor

from distae.data.source import Source


class Paired(Source):
    """The rows of two sources as one sample each, flat: the values of the first, then those of the second."""

    def __init__(self, first: Source, second: Source) -> None:
        """Both have as many rows."""
        self.sources = first, second
        self.shape = (sum(torch.Size(source.shape).numel() for source in self.sources),)
        self.dtype = torch.promote_types(first.dtype, second.dtype)
        self.label = first.label
        self.origin = first.origin and second.origin and f"{first.origin} and {second.origin}"

    def __len__(self) -> int:
        return len(self.sources[0])

    def read(self, rows: Tensor) -> Tensor:
        return torch.cat([source.read(rows).flatten(1).to(self.dtype) for source in self.sources], 1)

    def name_of(self, row: int) -> str:
        return self.sources[0].name_of(row)
