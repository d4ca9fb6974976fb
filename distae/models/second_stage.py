"""A second model of the codes of a first one."""

from torch import Tensor

from distae.config.models import VAEConfig
from distae.config.nets import MLPConfig
from distae.models.base import Autoencoder, build
from distae.noise import Noise


def second_stage(dim: int, hidden: int, seed: int) -> Autoencoder:
    """The second stage of Dai & Wipf 2019, sec. 4: a VAE of codes `[B, dim]` with as many dimensions, and a learned variance."""
    cfg = VAEConfig(latent_dim=dim, likelihood="gaussian", learn_scale=True)
    return build(cfg, MLPConfig(hidden=(hidden, hidden)), (dim,), seed)


def codes_of(model: Autoencoder, n: int, noise: Noise) -> Tensor:
    """`n` samples `[n, dim]` of a second stage, the noise of its likelihood included, as in the authors' code."""
    mean, (_, scale) = model.sample(n, noise), model.likelihood.scale_values()
    return mean + noise.normal(mean) * scale
