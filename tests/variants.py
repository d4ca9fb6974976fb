"""Small variants for tests without the trainer."""

from typing import Any

import torch
from torch import Tensor

from distae.config.models import ModelConfig
from distae.config.nets import MLPConfig
from distae.models import Autoencoder, Batch, Output, build
from distae.noise import Noise, Rows

SMALL: dict[str, dict[str, Any]] = {
    "lfq_vae": {"latent_dim": 8, "bits": 4},
    "bsq_vae": {"latent_dim": 8, "bits": 4, "group": 2},
    "vaegan": {"features": 8},
    "tokenizer": {"discriminator_start": 6, "discriminator_channels": 4, "discriminator_layers": 2},
    "categorical_vae": {"latent_dim": 12, "categories": 3},
    "masked_ae": {"latent_dim": 8, "decoder_dim": 8, "patch": 2, "heads": 2, "depth": 1},
    "hvae": {"hidden": 12, "upper": [3, 2]},
    "iaf_vae": {"flow_hidden": 12},
    "msssim_vae": {"window": 3},
    "vamp_vae": {"components": 5},
    "l1_sae": {"latent_dim": 12},
    "gated_sae": {"latent_dim": 12},
    "jumprelu_sae": {"latent_dim": 12, "k": 3},
    "matryoshka_sae": {"latent_dim": 32, "k": 2, "dead_after": 20, "prefixes": [0.25, 0.5]},
    **{name: {"latent_dim": 32, "k": 2, "dead_after": 20} for name in ("topk_sae", "batch_topk_sae")},
    **{name: {"critic_hidden": [12]} for name in ("aae", "wae_gan", "factor_vae")},
}
"""What keeps a variant small, or within the 4 code dimensions of the gate."""
IMAGES_ONLY = ("masked_ae", "msssim_vae", "tokenizer")
"""Variants that take images and no vectors."""


def make(name: str, shape: tuple[int, ...] = (6,), layers: tuple[int, ...] = (8,), seed: int = 0, **settings: Any) -> Any:
    """A variant in float64 with smooth activations: `make("vae", latent_dim=2)`. Its class is known by name only."""
    table: dict[str, Any] = {"latent_dim": 3, "likelihood": "gaussian"}
    cfg = ModelConfig.choices()[name](**table | settings)
    return build(cfg, MLPConfig(hidden=layers, activation="tanh"), shape, seed, dtype=torch.float64)


class Fixed(torch.nn.Module):
    """An encoder that gives these codes, whatever it sees."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.codes = codes

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        return self.codes


def noise(rows: int, number: int = 0) -> Noise:
    return Noise(0, ("test", number), Rows(rows), torch.device("cpu"))


def data(n: int, *shape: int, seed: int = 0) -> Tensor:
    """`n` correlated samples in [0, 1], `[n, *shape]` float64."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape or (6,))
    mix = torch.randn(size.numel(), size.numel(), generator=generator, dtype=torch.float64)
    return torch.sigmoid(torch.randn(n, size.numel(), generator=generator, dtype=torch.float64) @ mix).view(n, *size)


def run(model: Autoencoder, x: Tensor, number: int = 0, phase: str | None = None, **batch: Any) -> Output:
    """One forward of a phase, the first by default."""
    out: Output = model(Batch(x, dataset_size=len(x), **batch), phase or model.phases()[0].name, noise(len(x), number))
    return out


def train(model: Autoencoder, x: Tensor, steps: int, lr: float = 0.01) -> Autoencoder:
    """Full-batch Adam on all phases."""
    phases = [(t, torch.optim.Adam(t.parameters, lr)) for t in model.phases()]
    for step in range(steps):
        for phase, optimizer in phases:
            optimizer.zero_grad()
            run(model, x, step, phase.name, step=step).loss.backward()
            optimizer.step()
        model.after_step(step + 1)
    return model.eval()
