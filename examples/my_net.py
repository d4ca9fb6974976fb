"""An encoder and a decoder of your own: --plugin examples/my_net.py --net tanh_net."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import nn

from distae.config.nets import MLPConfig
from distae.nn import register_net
from distae.nn.layers import Chain


@dataclass(frozen=True, kw_only=True)
class TanhNetConfig(MLPConfig):
    """One hidden layer each way, with tanh."""

    name: ClassVar[str] = "tanh_net"


@register_net(TanhNetConfig)
class TanhNet:
    """`encoder` makes a module `[B, *shape]` to `[B, out]`, `decoder` one from `[B, latent_dim]` to `[B, *shape]`."""

    @staticmethod
    def encoder(cfg, shape, out):
        return Chain(nn.Flatten(), nn.Linear(prod(shape), cfg.hidden[0]), nn.Tanh(), nn.Linear(cfg.hidden[0], out))

    @staticmethod
    def decoder(cfg, shape, latent_dim):
        body = nn.Linear(latent_dim, cfg.hidden[0]), nn.Tanh(), nn.Linear(cfg.hidden[0], prod(shape))
        return Chain(*body, nn.Unflatten(1, shape))
