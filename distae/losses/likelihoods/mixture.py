"""Images of 8 bits as mixtures of discretised logistics."""

import torch
import torch.nn.functional as F
from torch import Tensor

from distae.config.models import ModelConfig
from distae.errors import UserError
from distae.losses.divergences import soft_bound, sum_per_sample, upcast
from distae.losses.likelihoods.base import Likelihood, register_likelihood

HALF = 1 / 255
"""Half the distance of two of 256 levels in [-1, 1]."""


@register_likelihood("logistic_mixture")
class LogisticMixture(Likelihood):
    """Each pixel is one of K discretised logistics (Salimans 2017, PixelCNN++, eq. 1-3): a probability of the 256 levels k / 255.

    The K weights are shared by a pixel's channels; with three, the mean of green depends linearly on red, that of blue on both.
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
        """Weights, means, log-scales and, of three channels, coefficients: 3 or 10 outputs per component and pixel."""
        return (self.k * (3 if self.channels == 1 else 10), *self.shape[1:])

    def mean(self, raw: Tensor) -> Tensor:
        """Weighted mean of the components', each within the range of the levels."""
        logits, means, _, coefficients = self._parts(raw)
        means = self._coupled(means, coefficients, None)
        return ((torch.softmax(logits, 1)[:, :, None] * means).sum(1).clamp(-1, 1) + 1) / 2

    def forward(self, raw: Tensor, x: Tensor) -> Tensor:
        logits, means, log_scales, coefficients = self._parts(raw)
        x = (2 * upcast(x) - 1)[:, None]  # [B, 1, C, H, W], against [B, K, C, H, W]
        centred = x - self._coupled(means, coefficients, x)
        log_p = _log_probability(centred, torch.exp(-log_scales), x).sum(2)
        return -sum_per_sample(torch.logsumexp(log_p + F.log_softmax(logits, 1), 1))

    def _parts(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Logits `[B, K, H, W]`, means and log-scales `[B, K, C, H, W]`, and coefficients `[B, K, 3, H, W]`."""
        logits, rest = upcast(raw)[:, : self.k], upcast(raw)[:, self.k :]
        parts = rest.view(len(raw), -1, self.k, *self.shape)
        coefficients = torch.tanh(parts[:, 2]) if self.channels == 3 else None
        return logits, parts[:, 0], soft_bound(parts[:, 1], 7.0), coefficients

    def _coupled(self, means: Tensor, coefficients: Tensor | None, x: Tensor | None) -> Tensor:
        """The means `[B, K, C, H, W]` given the channels before in `x` `[B, 1, C, H, W]`, or given their means."""
        if coefficients is None:
            return means
        a, b, c = coefficients.unbind(2)
        red = means[:, :, 0]
        green = means[:, :, 1] + a * (red if x is None else x[:, :, 0])
        blue = means[:, :, 2] + b * (red if x is None else x[:, :, 0]) + c * (green if x is None else x[:, :, 1])
        return torch.stack([red, green, blue], 2)


def _log_probability(centred: Tensor, inverse: Tensor, x: Tensor) -> Tensor:
    """log of the logistic's mass within half a level of `x`; the lowest and the highest level take the tails.

    sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which loses no digits in the tails.
    """
    above, below = F.logsigmoid((centred + HALF) * inverse), F.logsigmoid((HALF - centred) * inverse)
    inside = above + below + torch.log(-torch.expm1(-2 * HALF * inverse))
    return torch.where(x < -0.999, above, torch.where(x > 0.999, below, inside))
