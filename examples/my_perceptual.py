"""A perceptual network of your own: --plugin examples/my_perceptual.py --model.perceptual squeezenet."""

import torch
from torch import nn
from torchvision.models import squeezenet1_1

from distae.nn import register_perceptual_network


class SqueezeNet(nn.Module):
    """The first two stages."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)  # random weights; of a trained network: load_state_dict(torch.load("squeezenet.pt"))
        features = squeezenet1_1(weights=None).features
        self.stages = nn.ModuleList([features[:2], features[2:5]])

    def forward(self, x):
        """Maps `[B, c, h, w]` of images `[B, C, H, W]` in [0, 1]."""
        x, maps = 2 * x.expand(-1, 3, -1, -1) - 1, []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


@register_perceptual_network("squeezenet")
def squeezenet():
    """Called once per process; nothing of it is trained, or saved."""
    return SqueezeNet()
