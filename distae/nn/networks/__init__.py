"""Encoders and decoders: `[B, *shape]` to features and back."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from distae.config.nets import ConvConfig, MLPConfig, NetConfig, ResNetConfig
from distae.errors import UserError
from distae.nn.networks import conv, mlp, resnet
from distae.registry import Registry, import_all

N = TypeVar("N")
_NETS: Registry[type[NetConfig], Any] = Registry("network")
_NETS.register(MLPConfig)(mlp)
_NETS.register(ConvConfig)(conv)
_NETS.register(ResNetConfig)(resnet)


def register_net(config: type[NetConfig]) -> Callable[[N], N]:
    """Bind a module or class with functions `encoder(cfg, shape, out)` and `decoder(cfg, shape, latent_dim)` to its settings.

    The settings' `code_shape` is the shape of a code, by default `(latent_dim,)`.
    """
    return _NETS.register(config)


def build_encoder(cfg: NetConfig, shape: tuple[int, ...], out: int) -> nn.Module:
    """A module `(x [B, *shape], noise) -> [B, out]`. k values per code dimension are k blocks, each laid out as a code."""
    return _bound(cfg).encoder(cfg, shape, out)  # type: ignore[no-any-return]


def build_decoder(cfg: NetConfig, shape: tuple[int, ...], latent_dim: int) -> nn.Module:
    """A module `(z [B, latent_dim], noise) -> [B, *shape]`."""
    return _bound(cfg).decoder(cfg, shape, latent_dim)  # type: ignore[no-any-return]


def _bound(cfg: NetConfig) -> Any:
    if type(cfg) not in _NETS:
        raise UserError(f"--net {cfg.name}: no network is bound to its settings by @register_net({type(cfg).__name__})")
    return _NETS[type(cfg)]


import_all(__name__)
