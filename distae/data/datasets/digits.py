"""scikit-learn's digits."""

import torch

from distae.config.data import DigitsConfig
from distae.data.datasets.base import register_dataset
from distae.data.splits import Split, hold_out
from distae.data.transform import Transform


@register_dataset(DigitsConfig)
def load(cfg: DigitsConfig) -> tuple[Split, Split]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).to(torch.uint8).view(-1, *cfg.shape())
    return hold_out(Split.of(x, torch.from_numpy(labels).long(), Transform(16.0)), 0.2)
