"""Encoders and decoders: `[B, *shape]` to features and back."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from distae.config.nets import ConvConfig, ImageConfig, MLPConfig, NetConfig, ResNetConfig, ViTConfig
from distae.config.registry import Registry, import_all
from distae.errors import UserError
from distae.nn.layers import Chain
from distae.nn.networks import conv, image, mlp, resnet, tokens

N = TypeVar("N")
_NETS: Registry[type[NetConfig], Any] = Registry("network")
_NETS.register(MLPConfig)(mlp)
_NETS.register(ConvConfig)(conv)
_NETS.register(ResNetConfig)(resnet)
_NETS.register(ImageConfig)(image)
_NETS.register(ViTConfig)(tokens)


def register_net(config: type[NetConfig]) -> Callable[[N], N]:
    """Bind a module or class with functions `encoder(cfg, shape, out)` and `decoder(cfg, shape, latent_dim)` to its settings.

    The settings' `code_shape` is the shape of a code, by default `(latent_dim,)`. Where it has rows and columns, the encoder
    returns a map `[B, out, rows, columns]`, which `build_encoder` makes a code; the decoder takes a map of `latent_dim` channels.
    """
    return _NETS.register(config)


class FromMap(nn.Module):
    """Maps `[B, blocks * C, H, W]` to `[B, blocks * H * W * C]`: each block of channels as a code, positions, then channels."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.blocks, x.shape[1] // self.blocks, -1).transpose(2, 3).flatten(1)


class ToMap(nn.Module):
    """Codes `[B, H * W * C]` to maps `[B, C, H, W]`; `code_shape` is `(H, W, C)`, or `(N, C)` of tokens `[B, C, N]`."""

    def __init__(self, code_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.code_shape = code_shape

    def forward(self, z: Tensor) -> Tensor:
        return z.view(len(z), *self.code_shape).movedim(-1, 1).contiguous()


def build_encoder(cfg: NetConfig, shape: tuple[int, ...], out: int, blocks: int = 1) -> nn.Module:
    """A module `(x [B, *shape], noise) -> [B, D]`, D the values of `cfg.code_shape(shape, out)`: `out` without positions.

    `blocks` values per code value, such as a mean and a variance, are `blocks` of the `out`, each laid out as a code.
    """
    encoder: nn.Module = _bound(cfg).encoder(cfg, shape, out)
    return encoder if len(cfg.code_shape(shape, out)) == 1 else Chain(encoder, FromMap(blocks))


def build_decoder(cfg: NetConfig, shape: tuple[int, ...], latent_dim: int) -> nn.Module:
    """A module `(z [B, D], noise) -> [B, *shape]`, D the values of `cfg.code_shape(shape, latent_dim)`."""
    decoder: nn.Module = _bound(cfg).decoder(cfg, shape, latent_dim)
    code_shape = cfg.code_shape(shape, latent_dim)
    return decoder if len(code_shape) == 1 else Chain(ToMap(code_shape), decoder)


def _bound(cfg: NetConfig) -> Any:
    if type(cfg) not in _NETS:
        raise UserError(f"--net {cfg.name}: no network is bound to its settings by @register_net({type(cfg).__name__})")
    return _NETS[type(cfg)]


import_all(__name__)
