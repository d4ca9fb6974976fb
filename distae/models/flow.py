"""Variational autoencoders whose posterior is a gaussian transformed by invertible maps."""

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from distae.config.models import IAFVAEConfig, LinNFVAEConfig, ModelConfig
from distae.config.nets import NetConfig
from distae.losses import log_normal, log_standard_normal, soft_bound, upcast
from distae.models.base import Batch, Codes, NetAutoencoder, Output, output, register
from distae.models.vae import Posterior
from distae.nn.flows import InverseAutoregressive, Planar, Radial
from distae.noise import Noise


class FlowVAE(NetAutoencoder):
    """-log p(x|z) + beta * (log q(z|x) - log N(z; 0, I)), z = f(z0), log q(z|x) = log N(z0; mu, sigma) - log |det df/dz0|.

    Rezende & Mohamed 2015, eq. 15. `kl` is the term that beta weights: a one-sample estimate.
    """

    cfg: LinNFVAEConfig | IAFVAEConfig

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        self.flows = nn.ModuleList(self.build_flows())

    @abstractmethod
    def build_flows(self) -> Iterable[nn.Module]:
        """The maps that make up f, the first one applied first."""

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        mu, logvar, context = self.base_posterior(batch.x, noise)
        q = Posterior.draw(mu, logvar, noise)
        z, log_det = self.transform(q.z, context)
        recon = self.decoder(z, noise)
        nll = self.likelihood(recon, batch.x)
        kl = log_normal(q.z, mu, logvar).sum(1) - log_det - log_standard_normal(z)
        return output(nll + batch.weight(self.cfg.beta) * kl, recon, {"recon": nll, "kl": kl})

    def base_posterior(self, x: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor, Tensor]:
        """mu and logvar of z0, and the context of the flows, each `[B, code_size]`; `[B, 0]` if there is none."""
        mu, logvar, *context = upcast(self.encoder(x, noise)).chunk(self.latent_factor, 1)
        return mu, soft_bound(logvar), context[0] if context else mu[:, :0]

    def transform(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """f(z) `[B, code_size]` and log |det df/dz| `[B]`."""
        total = torch.zeros_like(z[:, 0])
        for flow in self.flows:
            z, log_det = flow(z, context) if isinstance(flow, InverseAutoregressive) else flow(z)
            total = total + log_det
        return z, total

    def log_weights(self, batch: Batch, k: int, noise: Noise) -> Tensor | None:
        mu, logvar, context = (t.repeat_interleave(k, 0) for t in self.base_posterior(batch.x, None))
        z0 = mu + noise.times(k).normal(mu) * torch.exp(0.5 * logvar)
        z, log_det = self.transform(z0, context)
        nll = self.likelihood(self.decode_raw(z), batch.x.repeat_interleave(k, 0))
        weights: Tensor = log_standard_normal(z) - nll - log_normal(z0, mu, logvar).sum(1) + log_det
        return weights.view(-1, k)

    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        """`z` is f of the mean of z0. mu and logvar are those of z0, and None if the flows depend on the sample."""
        mu, logvar, context = self.base_posterior(x, None)
        z, _ = self.transform(mu, context)
        return Codes(z) if context.shape[1] else Codes(z, mu, logvar)

    def sample(self, n: int, noise: Noise) -> Tensor:
        return self.decode(self.normal_codes(n, noise))


@register(LinNFVAEConfig)
class LinNFVAE(FlowVAE):
    """Rezende & Mohamed 2015, sec. 4.1: planar or radial flows, with parameters shared by all samples."""

    cfg: LinNFVAEConfig
    latent_factor = 2

    def build_flows(self) -> Iterable[nn.Module]:
        kind = Planar if self.cfg.flow == "planar" else Radial
        return (kind(self.code_size) for _ in range(self.cfg.flows))


@register(IAFVAEConfig)
class IAFVAE(FlowVAE):
    """Kingma et al. 2016, algorithm 1: inverse autoregressive flows with a context from the encoder."""

    cfg: IAFVAEConfig
    latent_factor = 3

    def build_flows(self) -> Iterable[nn.Module]:
        dim = self.code_size
        return (InverseAutoregressive(dim, self.cfg.flow_hidden, dim, bool(i % 2)) for i in range(self.cfg.flows))
