"""Images of another size than a model was trained on, whole or in tiles that overlap, as diffusers' `enable_tiling` has them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from distae.config.nets import HalvingConfig
from distae.errors import UserError
from distae.models.base import Autoencoder, NetAutoencoder
from distae.models.tokenizer import Tokenizer
from distae.nn.layers import Noisy
from distae.nn.networks import FromMap, ToMap
from distae.noise import Noise

M = TypeVar("M", bound=Autoencoder)


@dataclass(frozen=True)
class Tiles:
    """Tiles of a side of `size`, which overlap by `overlap`: in positions of the code, each of `factor` pixels a side."""

    size: int
    overlap: int
    factor: int

    def encode(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`network` of images `[B, C, H, W]`, `[B, out, H / factor, W / factor]`."""
        return _in_tiles(network, x, self.size * self.factor, self.overlap * self.factor, self.overlap)

    def decode(self, network: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """`network` of maps `[B, D, rows, columns]`, `[B, C, rows * factor, columns * factor]`."""
        return _in_tiles(network, z, self.size, self.overlap, self.overlap * self.factor)


def _in_tiles(network: Callable[[Tensor], Tensor], x: Tensor, size: int, overlap: int, blended: int) -> Tensor:
    """`network` of tiles of `x` `[B, C, H, W]`; where two overlap, in `blended` pixels of the result, one fades into the other.

    Tiles are blended with the one above, then with the one on the left. diffusers also computes tiles that lie within the overlap.
    """
    tops, lefts = (range(0, max(1, side - overlap), size - overlap) for side in x.shape[2:])
    rows, above = [], list[Tensor]()
    for top in tops:
        row: list[Tensor] = []
        for j, left in enumerate(lefts):
            row.append(network(x[:, :, top : top + size, left : left + size].contiguous()))
            if above:
                _blend(above[j], row[j], 2, blended)
            if j:
                _blend(row[j - 1], row[j], 3, blended)
        rows.append(torch.cat([_kept(tile, 3, blended, tile is row[-1]) for tile in row], 3))
        above = row
    return torch.cat([_kept(row, 2, blended, row is rows[-1]) for row in rows], 2)


def _blend(before: Tensor, tile: Tensor, dim: int, extent: int) -> None:
    """Fade from the end of `before` to the beginning of `tile`, in place."""
    if extent := min(before.shape[dim], tile.shape[dim], extent):
        ramp = torch.arange(extent, device=tile.device, dtype=tile.dtype) / extent
        ramp = ramp.view(-1, 1) if dim == 2 else ramp
        start = tile.narrow(dim, 0, extent)
        start.copy_(before.narrow(dim, before.shape[dim] - extent, extent) * (1 - ramp) + start * ramp)


def _kept(tile: Tensor, dim: int, blended: int, is_last: bool) -> Tensor:
    """Without the end, which the next tile has."""
    return tile if is_last else tile.narrow(dim, 0, tile.shape[dim] - blended)


class TiledEncoder(Noisy):
    """An encoder `[B, C, H, W]` to codes `[B, D]`."""

    def __init__(self, network: nn.Module, to_code: nn.Module, tiles: Tiles | None) -> None:
        super().__init__()
        self.network, self.to_code, self.tiles = network, to_code, tiles

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        found: Tensor = self.to_code(self.tiles.encode(self._map, x) if self.tiles else self._map(x))
        return found

    def _map(self, x: Tensor) -> Tensor:
        return self.network(x, None)  # type: ignore[no-any-return]


class TiledDecoder(Noisy):
    """A decoder of codes `[B, D]` to `[B, C, H, W]`."""

    def __init__(self, network: nn.Module, to_map: nn.Module, tiles: Tiles | None) -> None:
        super().__init__()
        self.network, self.to_map, self.tiles = network, to_map, tiles

    def forward(self, z: Tensor, noise: Noise | None) -> Tensor:
        given = self.to_map(z)
        return self.tiles.decode(self._image, given) if self.tiles else self._image(given)

    def _image(self, z: Tensor) -> Tensor:
        return self.network(z, None)  # type: ignore[no-any-return]


def resized(model: Autoencoder, height: int, width: int, tile: int | None = None, overlap: float = 0.25) -> Autoencoder:
    """`model` for images of another size, with the same tensors, for use without gradients.

    With `tile`, in tiles of that many pixels a side, where codes are blended before they are quantized; `overlap` is the share
    of a tile. Raises UserError where the network takes one size alone, or the sides do not fit.
    """
    factor, shape = factor_of(model), (model.shape[0], height, width)
    inner: Any = model.codec if isinstance(model, Tokenizer) else model
    if any(side < factor or side % factor for side in (height, width)):
        raise UserError(f"{height}x{width} images: expected sides that are multiples of {factor}, the network's factor")
    tiles = None if tile is None else _tiles(tile, overlap, factor)
    made: Autoencoder = _of_shape(inner, shape)
    encoder, decoder = (_network(module) for module in (inner.encoder, inner.decoder))
    made.encoder = TiledEncoder(encoder, FromMap(inner.latent_factor), tiles)
    made.decoder = TiledDecoder(decoder, ToMap(made.code_shape), tiles)
    if inner is model:
        return made
    whole = _of_shape(model, shape)
    whole.codec = made
    return whole


def factor_of(model: Autoencoder) -> int:
    """Pixels of an image's side per position of the code. Raises UserError where the network takes images of one size alone."""
    inner = model.codec if isinstance(model, Tokenizer) else model
    net = model.net
    fits = isinstance(inner, NetAutoencoder) and len(inner.code_shape) == 3 and not inner.cfg.other_input
    if not isinstance(net, HalvingConfig) or not fits:
        raise UserError("images of another size: valid with networks whose codes keep their place (--net image, --net.spatial)")
    return 2**net.halvings  # type: ignore[no-any-return]


def _network(module: Any) -> nn.Module:
    """What takes or gives maps in an encoder or decoder as `build_encoder` and `build_decoder` make them, or as here."""
    if isinstance(module, TiledEncoder | TiledDecoder):
        return module.network
    found: nn.Module = next(layer for layer in module.layers if not isinstance(layer, FromMap | ToMap))
    return found


def _of_shape(model: M, shape: tuple[int, ...]) -> M:
    """A copy with the same tensors, whose parts can be replaced."""
    made = copy.copy(model)
    made._modules = dict(model._modules)
    made.shape = shape
    return made


def _tiles(tile: int, overlap: float, factor: int) -> Tiles:
    """Raises UserError."""
    if tile < factor or tile % factor:
        raise UserError(f"--tile {tile}: expected a multiple of {factor}, the network's factor")
    if not 0 <= overlap <= 0.5:
        raise UserError(f"--tile-overlap {overlap}: expected a share from 0 to 0.5")
    return Tiles(tile // factor, int(tile // factor * overlap), factor)
