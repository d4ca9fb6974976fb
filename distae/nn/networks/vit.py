"""Transformer blocks over patches of an image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def patchify(x: Tensor, side: int) -> Tensor:
    """`[B, C, H, W]` as patches `[B, N, C * side * side]`, row by row."""
    return F.unfold(x, side, stride=side).transpose(1, 2)


def unpatchify(patches: Tensor, side: int, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `patchify`."""
    return F.fold(patches.transpose(1, 2), (shape[1], shape[2]), side, stride=side)


def positions(rows: int, columns: int, dim: int) -> Tensor:
    """Sine and cosine embeddings of the places of a grid, `[rows * columns, dim]`; dim divides by 4 (He 2022, app. A.1)."""
    rates = 1 / 10000 ** (torch.arange(dim // 4) / (dim // 4))
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    y, x = torch.outer(place[:, 0], rates), torch.outer(place[:, 1], rates)
    return torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], 1)


class Block(nn.Module):
    """Pre-norm attention and a perceptron of four times the width (Dosovitskiy 2021, eq. 2-3). `[B, N, dim]` to the same."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attend, self.merge = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (t.transpose(1, 2) for t in self.attend(self.before(x)).unflatten(2, (3, self.heads, -1)).unbind(2))
        x = x + self.merge(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        out: Tensor = x + self.narrow(F.gelu(self.widen(self.between(x))))
        return out


def blocks(depth: int, dim: int, heads: int) -> nn.Sequential:
    return nn.Sequential(*(Block(dim, heads) for _ in range(depth)), nn.LayerNorm(dim))
