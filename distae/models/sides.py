"""What a dictionary encodes, and what it reconstructs of that: the same samples, or the two parts of transcoders' ones."""

from math import prod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae.config.models import ModelConfig
from distae.config.models.sparse_dictionary import DictionaryConfig
from distae.config.nets import NetConfig
from distae.distributed.shards import part
from distae.models.base import Autoencoder


class TwoSided(Autoencoder):
    """The weights of a dictionary. Encoder and decoder start equal (Gao et al. 2024, app. A); those of a transcoder, whose sides
    have other values, as independent vectors of the same length.

    A sample of a transcoder (Dunefsky et al. 2024, arXiv 2406.11944) is its input, then its target. The skip connection is a linear
    map of the input that is added to the output and starts at 0 (Paulo et al. 2025, arXiv 2501.18823, sec. 2). A crosscoder
    (Lindsey et al. 2024) is a dictionary of the layers' values side by side, whose penalties add up the norms of its layers.
    """

    initial_norm: ClassVar[float] = 1.0
    """Length of the decoder's vectors at the start."""
    cfg: DictionaryConfig
    input_bias: Tensor
    skip: Tensor

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        inputs, outputs = self.cfg.sides(prod(shape))
        self.encoder = nn.Parameter(torch.empty(cfg.latent_dim, inputs))
        self.encoder_bias = nn.Parameter(torch.zeros(cfg.latent_dim))
        self.decoder = nn.Parameter(torch.empty(cfg.latent_dim, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        if self.cfg.inputs is not None:
            self.input_bias = nn.Parameter(torch.zeros(inputs))
        if self.cfg.skip:
            self.skip = nn.Parameter(torch.zeros(outputs, inputs))

    def reset_parameters(self) -> None:
        with torch.no_grad():
            nn.init.normal_(self.decoder)
            self.decoder.mul_(self.initial_norm / self.decoder.norm(dim=1, keepdim=True))
            if self.cfg.inputs is None:
                self.encoder.copy_(self.decoder)
                return
            nn.init.normal_(self.encoder)
            self.encoder.mul_(self.initial_norm / self.encoder.norm(dim=1, keepdim=True))

    @property
    def code_shape(self) -> tuple[int, ...]:
        return (self.cfg.latent_dim,)

    def seen(self, x: Tensor) -> Tensor:
        """What is encoded of samples `[B, *shape]`, of a transcoder `[B, inputs]`; it may be given alone."""
        return x if self.cfg.inputs is None else x.flatten(1)[:, : self.cfg.inputs]

    def target(self, x: Tensor) -> Tensor:
        return x if self.cfg.inputs is None else x.flatten(1)[:, self.cfg.inputs :]

    def beside(self, x: Tensor) -> Tensor:
        """What is added to the dictionary's output for samples `[B, *shape]`: 0 without a skip connection."""
        return F.linear(self.seen(x), self.skip) if self.cfg.skip else x.new_zeros(())

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.shape if self.cfg.inputs is None else (self.cfg.inputs,)

    @property
    def made_shape(self) -> tuple[int, ...]:
        """Shape of a reconstruction."""
        return self.shape if self.cfg.inputs is None else (len(self.bias),)

    @property
    def center(self) -> Tensor:
        """What is subtracted before encoding, `[values]`."""
        return self.bias if self.cfg.inputs is None else self.input_bias

    def norms(self) -> Tensor:
        """Lengths of decoder vectors, `[L]`: of a crosscoder the sums of those of its layers."""
        decoder = part(self.decoder)
        of_layers: Tensor = decoder.view(len(decoder), self.cfg.layers, -1).norm(dim=2)
        return of_layers.sum(1)

    def reconstruct(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        made = super().reconstruct(x, label)
        return made + self.beside(x) if self.cfg.skip else made
