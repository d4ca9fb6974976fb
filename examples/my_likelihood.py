"""A likelihood of your own: --plugin examples/my_likelihood.py --model.likelihood cauchy."""

import math

from distae.losses import Likelihood, register_likelihood, sum_per_sample, upcast


@register_likelihood("cauchy", scaled=True)  # scaled: --model.scale and --model.learn-scale are for it
class Cauchy(Likelihood):
    """Independent Cauchy values around the decoder's output, which outliers pull less than a gaussian's."""

    def forward(self, raw, x):
        """-log p(x|z) in nats per sample: `[B]`."""
        log_scale, scale = self.scale_values()
        error = (upcast(x) - upcast(raw)) / scale
        return sum_per_sample(error.square().log1p()) + x[0].numel() * (log_scale + math.log(math.pi))
