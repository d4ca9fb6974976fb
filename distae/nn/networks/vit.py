"""Transformer blocks over patches of an image."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def patchify(x: Tensor, side: int) -> Tensor:
    """`[B, C, H, W]` as patches `[B, N, C * side * side]`, row by row; `side` divides H and W."""
    return F.unfold(x, side, stride=side).transpose(1, 2)


def unpatchify(patches: Tensor, side: int, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `patchify`: `[B, *shape]` from patches."""
    return F.fold(patches.transpose(1, 2), (shape[1], shape[2]), side, stride=side)


def positions(rows: int, columns: int, dim: int) -> Tensor:
    """Sine and cosine embeddings of the positions of a grid, `[rows * columns, dim]`; 4 divides dim (He 2022, app. A.1)."""
    rates = 1 / 10000 ** (torch.arange(dim // 4) / (dim // 4))
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    y, x = torch.outer(grid[:, 0], rates), torch.outer(grid[:, 1], rates)
    return torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], 1)


EPS = 1e-6
"""Of layer norms, as in published ViTs and in timm."""
NAMES_OF_0_1 = {"before": "norm1", "between": "norm2", "attend": "qkv", "merge": "proj", "widen": "fc1", "narrow": "fc2"}
"""Names of a `Block`'s layers in weights saved by distae 0.1, and the current names."""


class Block(nn.Module):
    """Pre-norm attention and an MLP of four times the width (Dosovitskiy 2021, eq. 2-3). `[B, N, dim]` to the same."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, EPS), nn.LayerNorm(dim, EPS)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (t.transpose(1, 2) for t in self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).unbind(2))
        x = x + self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in [k for k in state_dict if k.startswith(prefix)]:
            layer, _, tensor = key.removeprefix(prefix).partition(".")
            state_dict[f"{prefix}{NAMES_OF_0_1.get(layer, layer)}.{tensor}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def blocks(depth: int, dim: int, heads: int) -> nn.Sequential:
    """`depth` blocks and a last norm: `[B, N, dim]` to the same."""
    return nn.Sequential(*(Block(dim, heads) for _ in range(depth)), nn.LayerNorm(dim, EPS))
