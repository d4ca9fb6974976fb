"""An autoencoder that predicts hidden parts of an image from the visible ones."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from distae.config.models import MaskedAEConfig, ModelConfig
from distae.config.nets import NetConfig
from distae.models.base import Autoencoder, Batch, Codes, Output, output, register
from distae.nn.networks.tokens import Tokens
from distae.nn.networks.vit import blocks, patchify, positions, unpatchify
from distae.noise import Noise


class Patches(NamedTuple):
    """Patches of mean 0 and variance 1, and what they were before."""

    values: Tensor
    """`[B, N, C * side * side]`."""
    mean: Tensor
    """`[B, N, 1]`."""
    std: Tensor

    @classmethod
    def of(cls, patches: Tensor) -> "Patches":
        """The unbiased variance and 1e-6 are those of the published code, which the paper does not give."""
        mean, std = patches.mean(2, keepdim=True), (patches.var(2, keepdim=True) + 1e-6).sqrt()
        return cls((patches - mean) / std, mean, std)


class PatchEncoder(nn.Module):
    """Codes `[B, V, latent_dim]` of V visible patches: `visible` `[B, V]` int64 are their indices, row by row of the image.

    With a class token its code comes first: `[B, 1 + V, latent_dim]`.
    """

    positions: Tensor

    def __init__(self, cfg: MaskedAEConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.embed = nn.Linear(shape[0] * cfg.patch**2, cfg.latent_dim)
        self.token = Tokens(1, cfg.latent_dim) if cfg.class_token else None
        self.blocks = blocks(cfg.depth, cfg.latent_dim, cfg.heads)
        table = positions(shape[1] // cfg.patch, shape[2] // cfg.patch, cfg.latent_dim)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, patches: Tensor, visible: Tensor) -> Tensor:
        chosen = patches.gather(1, visible[:, :, None].expand(-1, -1, patches.shape[2]))
        seen = self.embed(chosen) + self.positions[visible]
        codes: Tensor = self.blocks(seen if self.token is None else torch.cat([self.token(len(seen)).to(seen.dtype), seen], 1))
        return codes


class PatchDecoder(nn.Module):
    """All patches `[B, N, C * side * side]` from the encoder's codes of the patches with indices `visible` `[B, V]`."""

    positions: Tensor

    def __init__(self, cfg: MaskedAEConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.prefix = cfg.prefix
        self.embed = nn.Linear(cfg.latent_dim, cfg.decoder_dim)
        self.hidden = nn.Parameter(torch.empty(1, 1, cfg.decoder_dim))
        self.blocks = blocks(cfg.decoder_depth, cfg.decoder_dim, cfg.decoder_heads or cfg.heads)
        self.last = nn.Linear(cfg.decoder_dim, shape[0] * cfg.patch**2)
        table = positions(shape[1] // cfg.patch, shape[2] // cfg.patch, cfg.decoder_dim)
        self.register_buffer("positions", table, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.hidden, std=0.02)

    def forward(self, codes: Tensor, visible: Tensor) -> Tensor:
        before, tokens = self.embed(codes).split([self.prefix, visible.shape[1]], 1)
        all_tokens = self.hidden.to(tokens.dtype).expand(codes.shape[0], len(self.positions), -1)
        all_tokens = all_tokens.scatter(1, visible[:, :, None].expand(-1, -1, tokens.shape[2]), tokens) + self.positions
        patches: Tensor = self.last(self.blocks(torch.cat([before.to(all_tokens.dtype), all_tokens], 1))[:, self.prefix :])
        return patches


@register(MaskedAEConfig)
class MaskedAE(Autoencoder):
    """He et al. 2022, sec. 3: -log p(hidden patches | visible patches), in nats per sample; the encoder sees visible patches only.

    `encode` takes the whole image; its code is the codes of all patches, row by row. `reconstruct` predicts each patch from the
    other half of a checkerboard.
    """

    cfg: MaskedAEConfig

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        self.encoder, self.decoder = PatchEncoder(self.cfg, shape), PatchDecoder(self.cfg, shape)

    @property
    def code_shape(self) -> tuple[int, ...]:
        rows, columns = self.shape[1] // self.cfg.patch, self.shape[2] // self.cfg.patch
        places = (1 + rows * columns,) if self.cfg.class_token else (rows, columns)
        return (*places, self.cfg.latent_dim)

    def features(self, z: Tensor) -> Tensor:
        codes = z.view(len(z), -1, self.cfg.latent_dim)
        return codes[:, 0] if self.cfg.pool == "token" else codes[:, self.cfg.prefix :].mean(1)

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        patches, count = patchify(batch.x, self.cfg.patch), self.cfg.visible(self.shape)
        order = noise.uniform(patches[:, :, 0]).argsort(1)
        visible, hidden = order[:, :count], order[:, count:]
        predicted = self.decoder(self.encoder(patches, visible), visible)
        where = hidden[:, :, None].expand(-1, -1, patches.shape[2])
        target = Patches.of(patches).values if self.cfg.norm_pix else patches
        nll = self.likelihood(predicted.gather(1, where), target.gather(1, where))
        return output(nll, self._image(self._restored(predicted, patches)), {"recon": nll})

    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        patches = patchify(x, self.cfg.patch)
        return Codes(self.encoder(patches, self._all(x.shape[0])).flatten(1))

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Means `[B, *shape]` from codes `[B, D]`. It was trained to predict hidden patches only: `reconstruct` does better.

        With norm_pix, patches have about mean 0 and variance 1: a code does not say what theirs were.
        """
        codes = z.view(z.shape[0], -1, self.cfg.latent_dim)
        return self.likelihood.mean(self._image(self.decoder(codes, self._all(z.shape[0]))))

    def reconstruct(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        patches, indices = patchify(x, self.cfg.patch), self._all(x.shape[0])
        columns = self.shape[2] // self.cfg.patch
        colour = (indices[0] // columns + indices[0] % columns) % 2
        predicted = torch.zeros_like(patches)
        for side in (0, 1):
            visible = indices[:, colour == side]
            guess = self.decoder(self.encoder(patches, visible), visible)
            predicted = torch.where((colour == side)[:, None], predicted, guess.to(predicted.dtype))
        return self.likelihood.mean(self._image(self._restored(predicted, patches)))

    def _restored(self, predicted: Tensor, patches: Tensor) -> Tensor:
        """Predictions `[B, N, ...]` in the units of `patches`."""
        if not self.cfg.norm_pix:
            return predicted
        of = Patches.of(patches)
        return predicted * of.std + of.mean

    def _all(self, n: int) -> Tensor:
        return torch.arange(self.cfg.patches(self.shape), device=next(self.parameters()).device).expand(n, -1)

    def _image(self, patches: Tensor) -> Tensor:
        return unpatchify(patches, self.cfg.patch, self.shape)
