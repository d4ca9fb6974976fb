"""Networks: shapes, norms and activations."""

from typing import get_args

import pytest
import torch
from helpers import WIDTHS, settings
from torch import nn

from distae import dist, noise
from distae.config.models import AEConfig
from distae.config.nets import Activation, ConvConfig, MLPConfig, NetConfig, ResNetConfig
from distae.nn import build_decoder, build_encoder
from distae.nn.layers import ACTIVATIONS
from distae.nn.norms import BatchNorm

SHAPES = {"mlp": [(7,), (1, 8, 8), (3, 5, 9)], "conv": [(1, 8, 8), (3, 4, 12)], "resnet": [(1, 8, 8), (3, 12, 4)]}
CASES = [(net, shape, norm) for net in SHAPES for shape in SHAPES[net] for norm in ("none", "batch", "group", "layer")]


@pytest.mark.parametrize(("net", "shape", "norm"), CASES)
def test_shapes(net, shape, norm):
    cfg = settings(net={"name": net, "norm": norm}).net
    encoder, decoder = build_encoder(cfg, shape, 6), build_decoder(cfg, shape, 5)
    assert encoder(torch.ones(4, *shape), None).shape == (4, 6)
    assert decoder(torch.ones(4, 5), None).shape == (4, *shape)


def test_the_tutorials_stack_mirrors_itself():
    encoder, decoder = (build(MLPConfig(hidden=(128, 64, 12)), (1, 28, 28), 3) for build in (build_encoder, build_decoder))
    sizes = [[tuple(p.shape) for p in net.parameters() if p.ndim == 2] for net in (encoder, decoder)]
    assert sizes[0] == [(128, 784), (64, 128), (12, 64), (3, 12)]
    assert sizes[1] == [shape[::-1] for shape in reversed(sizes[0])]


def test_no_hidden_layer_is_a_single_layer():
    assert [tuple(p.shape) for p in build_encoder(MLPConfig(hidden=()), (9,), 2).parameters()] == [(2, 9), (2,)]


def test_every_activation_of_the_settings_exists():
    codes = AEConfig.__dataclass_fields__["code_activation"].type
    assert set(get_args(Activation)) | set(get_args(codes)) == set(ACTIVATIONS)


@pytest.mark.parametrize("cfg", [MLPConfig, ConvConfig, ResNetConfig])
def test_dropout_is_drawn_in_training_only(cfg):
    cfg = settings(net={"name": cfg.name, "dropout": 0.5}).net
    net, x = build_encoder(cfg, (1, 8, 8), 4), torch.rand(3, 1, 8, 8)
    drawn = [net(x, noise.Noise(0, ("a",), noise.Rows(3), x.device)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], net(x, noise.Noise(0, ("b",), noise.Rows(3), x.device)))
    plain = net(x, None)
    assert not torch.equal(drawn[0], plain)
    assert torch.equal(plain, net.eval()(x, noise.Noise(0, ("a",), noise.Rows(3), x.device)))


@pytest.mark.parametrize("net", WIDTHS)
def test_no_bias_directly_before_a_batch_norm(net):
    """A bias that the norm takes away again has a gradient of 0 in exact arithmetic."""
    cfg: NetConfig = settings(net={"name": net, "norm": "batch"}).net
    torch.manual_seed(0)
    encoder, decoder = (build(cfg, (1, 8, 8), 4).double() for build in (build_encoder, build_decoder))
    decoder(encoder(torch.rand(16, 1, 8, 8).double(), None) ** 2, None).pow(3).sum().backward()
    grads = [p.grad.abs().max() for p in (*encoder.parameters(), *decoder.parameters())]
    assert min(grads) > 1e-9 * max(grads)


@pytest.mark.parametrize("shape", [(12, 3), (6, 3, 4, 5)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_batch_norm_is_torchs(shape, ranks, monkeypatch):
    """Outputs, running statistics and gradients; two ranks with the same rows are one with each row twice."""
    monkeypatch.setattr(dist, "_current", dist.World(0, ranks, torch.device("cpu")))
    monkeypatch.setattr(dist, "all_reduce", lambda x: x * ranks)
    monkeypatch.setattr(dist, "gather_rows", lambda x: torch.cat([x] * ranks))
    mine, theirs = BatchNorm(3), (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(3)
    torch.manual_seed(0)
    for _ in range(3):
        x, weight = torch.randn(shape) * 3 + 1, torch.randn(shape)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        mine.zero_grad()
        theirs.zero_grad()
        out, expected = mine(a), theirs(torch.cat([b] * ranks))[: len(x)]
        (out * weight).sum().backward()
        (torch.cat([expected] * ranks) * torch.cat([weight] * ranks)).sum().div(ranks).backward()
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(a.grad, b.grad)
        torch.testing.assert_close(mine.weight.grad, theirs.weight.grad)
        torch.testing.assert_close(mine.bias.grad, theirs.bias.grad)
        torch.testing.assert_close(mine.running_mean, theirs.running_mean)
        torch.testing.assert_close(mine.running_var, theirs.running_var)
    torch.testing.assert_close(mine.eval()(x), theirs.eval()(x))
