"""Transformers with codes at the patches of an image (ViT-VQGAN, Yu 2022) or at learned tokens (TiTok, Yu 2024)."""

import torch
from torch import Tensor, nn

from distae.config.nets import ViTConfig
from distae.nn.layers import Chain
from distae.nn.networks.vit import blocks, patchify, positions, unpatchify


class TokenEncoder(nn.Module):
    """`[B, C, H, W]` to `[B, out, rows, columns]`, or `[B, out, tokens]`."""

    places: Tensor

    def __init__(self, cfg: ViTConfig, shape: tuple[int, ...], out: int) -> None:
        super().__init__()
        self.patch, self.positions = cfg.patch, cfg.code_shape(shape, out)[:-1]
        self.embed = nn.Linear(shape[0] * cfg.patch**2, cfg.width)
        self.tokens = Tokens(cfg.tokens, cfg.width) if cfg.tokens else None
        self.blocks, self.last = blocks(cfg.depth, cfg.width, cfg.heads), nn.Linear(cfg.width, out)
        self.register_buffer("places", positions(*cfg.grid(shape), cfg.width), persistent=False)

    def sharded_blocks(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.embed(patchify(x, self.patch)) + self.places
        if self.tokens is not None:
            seen = torch.cat([self.tokens(len(x)), seen], 1)
        kept = self.blocks(seen)[:, : torch.Size(self.positions).numel()]
        out: Tensor = self.last(kept)
        return out.transpose(1, 2).reshape(len(x), -1, *self.positions)


class TokenDecoder(nn.Module):
    """Codes `[B, latent_dim, rows, columns]`, or `[B, latent_dim, tokens]`, to `[B, C, H, W]`."""

    places: Tensor

    def __init__(self, cfg: ViTConfig, shape: tuple[int, ...], latent_dim: int) -> None:
        super().__init__()
        self.patch, self.shape = cfg.patch, shape
        self.embed = nn.Linear(latent_dim, cfg.width)
        self.tokens = Tokens(cfg.tokens, cfg.width) if cfg.tokens else None
        self.hidden = Tokens(1, cfg.width) if cfg.tokens else None
        self.blocks, self.last = blocks(cfg.depth, cfg.width, cfg.heads), nn.Linear(cfg.width, shape[0] * cfg.patch**2)
        self.register_buffer("places", positions(*cfg.grid(shape), cfg.width), persistent=False)

    def sharded_blocks(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, z: Tensor) -> Tensor:
        seen = self.embed(z.flatten(2).transpose(1, 2))
        if self.tokens is None or self.hidden is None:
            seen = seen + self.places
        else:
            seen = torch.cat([self.hidden(len(z)) + self.places, seen + self.tokens(len(z))], 1)
        patches = self.last(self.blocks(seen)[:, : len(self.places)])
        return unpatchify(patches, self.patch, self.shape)


class Tokens(nn.Module):
    """Learned tokens `[B, count, width]`, the same for every sample."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, n: int) -> Tensor:
        return self.weight.expand(n, -1, -1)


def encoder(cfg: ViTConfig, shape: tuple[int, ...], out: int) -> Chain:
    """`[B, C, H, W]` to a map, or to tokens, of `out` channels."""
    return Chain(TokenEncoder(cfg, shape, out))


def decoder(cfg: ViTConfig, shape: tuple[int, ...], latent_dim: int) -> Chain:
    """A map, or tokens, of `latent_dim` channels to `[B, C, H, W]`."""
    return Chain(TokenDecoder(cfg, shape, latent_dim))
