"""Encoders and decoders: `[B, *shape]` to features and back."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from distae.config.nets import ConvConfig, MLPConfig, NetConfig, ResNetConfig
from distae.nn.networks import conv, mlp, resnet

N = TypeVar("N")
_NETS: dict[type[NetConfig], Any] = {MLPConfig: mlp, ConvConfig: conv, ResNetConfig: resnet}


def register_net(config: type[NetConfig]) -> Callable[[N], N]:
    """Bind a module or class with functions `encoder(cfg, shape, out)` and `decoder(cfg, shape, latent_dim)` to its settings.

    The settings' `code_shape` says how a code is laid out: by default it is `(latent_dim,)`.
    """

    def bind(net: N) -> N:
        _NETS[config] = net
        return net

    return bind


def build_encoder(cfg: NetConfig, shape: tuple[int, ...], out: int) -> nn.Module:
    """A module `(x [B, *shape], noise) -> [B, out]`. k values per code dimension are k blocks, each laid out as a code."""
    return _NETS[type(cfg)].encoder(cfg, shape, out)  # type: ignore[no-any-return]


def build_decoder(cfg: NetConfig, shape: tuple[int, ...], latent_dim: int) -> nn.Module:
    """A module `(z [B, latent_dim], noise) -> [B, *shape]`."""
    return _NETS[type(cfg)].decoder(cfg, shape, latent_dim)  # type: ignore[no-any-return]
