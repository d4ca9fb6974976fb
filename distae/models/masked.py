"""An autoencoder that predicts hidden parts of an image from the visible ones."""

import torch
from torch import Tensor, nn

from distae.config.models import MaskedAEConfig, ModelConfig
from distae.config.nets import NetConfig
from distae.models.base import Autoencoder, Batch, Codes, Output, output, register
from distae.nn.networks.vit import blocks, patchify, positions, unpatchify
from distae.noise import Noise


class PatchEncoder(nn.Module):
    """Codes `[B, V, latent_dim]` of V visible patches: `visible` `[B, V]` int64 are their indices, row by row of the image."""

    positions: Tensor

    def __init__(self, cfg: MaskedAEConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.embed = nn.Linear(shape[0] * cfg.patch**2, cfg.latent_dim)
        self.blocks = blocks(cfg.depth, cfg.latent_dim, cfg.heads)
        table = positions(shape[1] // cfg.patch, shape[2] // cfg.patch, cfg.latent_dim)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, patches: Tensor, visible: Tensor) -> Tensor:
        chosen = patches.gather(1, visible[:, :, None].expand(-1, -1, patches.shape[2]))
        codes: Tensor = self.blocks(self.embed(chosen) + self.positions[visible])
        return codes


class PatchDecoder(nn.Module):
    """All patches `[B, N, C * side * side]` from the codes `[B, V, latent_dim]` of the patches with indices `visible` `[B, V]`."""

    positions: Tensor

    def __init__(self, cfg: MaskedAEConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.embed = nn.Linear(cfg.latent_dim, cfg.decoder_dim)
        self.hidden = nn.Parameter(torch.empty(1, 1, cfg.decoder_dim))
        self.blocks = blocks(cfg.decoder_depth, cfg.decoder_dim, cfg.heads)
        self.last = nn.Linear(cfg.decoder_dim, shape[0] * cfg.patch**2)
        table = positions(shape[1] // cfg.patch, shape[2] // cfg.patch, cfg.decoder_dim)
        self.register_buffer("positions", table, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.hidden, std=0.02)

    def forward(self, codes: Tensor, visible: Tensor) -> Tensor:
        tokens = self.embed(codes)
        all_tokens = self.hidden.to(tokens.dtype).expand(codes.shape[0], len(self.positions), -1)
        all_tokens = all_tokens.scatter(1, visible[:, :, None].expand(-1, -1, tokens.shape[2]), tokens)
        patches: Tensor = self.last(self.blocks(all_tokens + self.positions))
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
        return (self.shape[1] // self.cfg.patch, self.shape[2] // self.cfg.patch, self.cfg.latent_dim)

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        patches, count = patchify(batch.x, self.cfg.patch), self.cfg.visible(self.shape)
        order = noise.uniform(patches[:, :, 0]).argsort(1)
        visible, hidden = order[:, :count], order[:, count:]
        predicted = self.decoder(self.encoder(patches, visible), visible)
        where = hidden[:, :, None].expand(-1, -1, patches.shape[2])
        nll = self.likelihood(predicted.gather(1, where), patches.gather(1, where))
        return output(nll, self._image(predicted), {"recon": nll})

    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        patches = patchify(x, self.cfg.patch)
        return Codes(self.encoder(patches, self._all(x.shape[0])).flatten(1))

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Means `[B, *shape]` from codes `[B, D]`. It was trained to predict hidden patches only: `reconstruct` does better."""
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
        return self.likelihood.mean(self._image(predicted))

    def _all(self, n: int) -> Tensor:
        return torch.arange(self.cfg.patches(self.shape), device=next(self.parameters()).device).expand(n, -1)

    def _image(self, patches: Tensor) -> Tensor:
        return unpatchify(patches, self.cfg.patch, self.shape)
