"""Images of 8 bits as mixtures of discretised logistics."""

import torch
import torch.nn.functional as F
from torch import Tensor

from distae.config.models import ModelConfig
from distae.errors import UserError
from distae.losses.divergences import soft_bound, sum_per_sample, upcast
from distae.losses.likelihoods.base import Likelihood, register_likelihood

HALF = 1 / 255
"""Half the spacing of 256 levels in [-1, 1]."""


@register_likelihood("logistic_mixture")
class LogisticMixture(Likelihood):
    """Each pixel is one of K discretised logistics (Salimans 2017, PixelCNN++, eq. 1-3): a distribution over the levels k / 255.

    The K weights are shared by a pixel's channels; of three, the mean of green depends linearly on red, that of blue on both.
    Data are in [0, 1]. Log-scales are bounded to (-7, 7), around the paper's lower clamp of -7.
    """

    def __init__(self, cfg: ModelConfig, shape: tuple[int, ...] = ()) -> None:
        """Raises UserError unless samples are images of 1 or 3 channels."""
        super().__init__(cfg, shape)
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise UserError(
                f"--model.likelihood logistic_mixture is for images of 1 or 3 channels; the data has shape {list(shape)}"
            )
        self.k, self.channels = cfg.mixtures, shape[0]

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Weights, means, log-scales and, with three channels, coefficients: 3 or 10 outputs per component and pixel."""
        return (self.k * (3 if self.channels == 1 else 10), *self.shape[1:])

    def mean(self, raw: Tensor) -> Tensor:
        """Weighted mean of the components' means, each with its tails moved to the lowest and the highest level."""
        logits, means, log_scales, coefficients = self._parts(raw)
        clipped: list[Tensor] = []
        for channel in range(self.channels):  # given the means of the channels before
            before = torch.stack([*clipped, *means.unbind(2)[channel:]], 2)
            own = self._coupled(means, coefficients, before)[:, :, channel]
            clipped.append(_clipped_mean(own, torch.exp(log_scales[:, :, channel])))
        return ((torch.softmax(logits, 1)[:, :, None] * torch.stack(clipped, 2)).sum(1) + 1) / 2

    def forward(self, raw: Tensor, x: Tensor) -> Tensor:
        logits, means, log_scales, coefficients = self._parts(raw)
        x = (2 * upcast(x) - 1)[:, None]  # [B, 1, C, H, W], against [B, K, C, H, W]
        centred = x - self._coupled(means, coefficients, x)
        log_p = _log_probability(centred, torch.exp(-log_scales), x).sum(2)
        return -sum_per_sample(torch.logsumexp(log_p + F.log_softmax(logits, 1), 1))

    def _parts(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Logits `[B, K, H, W]`, means and log-scales `[B, K, C, H, W]`, and coefficients `[B, K, 3, H, W]`."""
        logits, rest = upcast(raw)[:, : self.k], upcast(raw)[:, self.k :]
        parts = rest.view(raw.shape[0], -1, self.k, *self.shape)
        coefficients = torch.tanh(parts[:, 2]) if self.channels == 3 else None
        return logits, parts[:, 0], soft_bound(parts[:, 1], 7.0), coefficients

    def _coupled(self, means: Tensor, coefficients: Tensor | None, x: Tensor) -> Tensor:
        """The means `[B, K, C, H, W]` given the preceding channels in `x` `[B, 1, C, H, W]`, or `[B, K, C, H, W]`."""
        if coefficients is None:
            return means
        a, b, c = coefficients.unbind(2)
        red, green, _ = x.unbind(2)
        shift = torch.stack([torch.zeros_like(a), a * red, b * red + c * green], 2)
        return means + shift


def _clipped_mean(mean: Tensor, scale: Tensor) -> Tensor:
    """Mean of a logistic whose tails beyond -1 and 1 are moved there: the integral of 1 - F over [-1, 1], minus 1."""
    inside = scale * (F.softplus((mean + 1) / scale) - F.softplus((mean - 1) / scale))
    return (inside - 1).clamp(-1, 1)


def _log_probability(centred: Tensor, inverse: Tensor, x: Tensor) -> Tensor:
    """log of the logistic's mass within half a level of `x`; the lowest and the highest level take the tails.

    sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which loses no digits in the tails.
    """
    above, below = F.logsigmoid((centred + HALF) * inverse), F.logsigmoid((HALF - centred) * inverse)
    inside = above + below + torch.log(-torch.expm1(-2 * HALF * inverse))
    return torch.where(x < -0.999, above, torch.where(x > 0.999, below, inside))
