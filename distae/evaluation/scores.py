"""Reconstruction errors of samples and of their values."""

import torch
from torch import Tensor

from distae.data import Transform
from distae.models import Autoencoder


def squared_errors(model: Autoencoder, x: Tensor, label: Tensor | None = None) -> Tensor:
    """(target - reconstruct(x))^2 of the model's values: `[B, *shape]`, NaN where `x` is missing."""
    return (model.target(x) - model.reconstruct(x, label)).square()


def per_sample(errors: Tensor) -> Tensor:
    """Their mean over the values of a sample that are not missing: `[B]`."""
    return errors.flatten(1).nanmean(1)


def squared(x: Tensor, made: Tensor) -> Tensor:
    """Mean squared error of each sample, `[B]`, over its values that are not missing (NaN); 0 where all are."""
    return per_sample((x - made).square()).nan_to_num(0.0)


def per_column(errors: Tensor, transform: Transform) -> Tensor:
    """Of a table, errors `[B, width]` as `[B, columns]`: of a category, the mean over its one-hot values."""
    widths = [column.width for column in transform.columns]
    return torch.stack([part.nanmean(1) for part in torch.split(errors, widths, 1)], 1)
