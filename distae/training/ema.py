"""Exponential moving average of the weights."""

import copy

import torch

from distae.distributed.shards import local
from distae.models import Autoencoder


class EMA:
    """Exponential moving average of the parameters; buffers are copied. Starts at the model's own values."""

    def __init__(self, model: Autoencoder, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Autoencoder) -> None:
        averages, newest = ([local(p) for p in each.parameters()] for each in (self.model, model))
        torch._foreach_lerp_(averages, newest, 1 - self.decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
