"""What the settings of all variants share."""

from dataclasses import dataclass
from typing import ClassVar

from distae.config.fields import Count, Positive, Variant
from distae.config.names import LikelihoodName
from distae.config.nets import NetConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Variant):
    """What all variants share."""

    terms: ClassVar[tuple[str, ...]] = ("recon",)
    """Names of the terms that the variant's phases report besides `loss`."""
    generative: ClassVar[bool] = False
    """Has a prior to sample from."""
    conditional: ClassVar[bool] = False
    """Needs data with labels."""
    compiles: ClassVar[bool] = True
    """torch.compile supports its forward: it takes no gradient of a gradient."""

    latent_dim: Count = 16
    """Size of the code z."""
    likelihood: LikelihoodName = "bernoulli"
    """p(x|z), summed over all values of a sample, in nats. bernoulli needs data in [0, 1] (grey values count as
    probabilities unless --data.binarize); gaussian is the squared error in nats; laplace the absolute error (l1)."""
    scale: Positive = 1.0
    """Standard deviation of the gaussian, or b of the laplace likelihood."""
    learn_scale: bool = False
    """Learn that scale as one parameter shared by all values (Rybkin 2021, sigma-VAE)."""

    @property
    def couples_samples(self) -> bool:
        """Whether a sample's loss depends on the others of its batch: then gradient accumulation is another objective."""
        return False

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        """Raises UserError if settings conflict with each other, the data's shape or the network."""
