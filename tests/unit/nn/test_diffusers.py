"""The image network with the weights of diffusers' AutoencoderKL computes what that does; needs diffusers, or is skipped."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from distae.config.nets import ImageConfig
from distae.nn import build_decoder, build_encoder

MULTIPLIERS = (1, 2, 2)


def layers(module: Any) -> Iterator[Any]:
    """Layers with weights in the order of the computation: of our networks, whose `skip` comes last in a block."""
    yield from (m for m in module.modules() if getattr(m, "weight", None) is not None)


def of_block(block: Any) -> list[Any]:
    shortcut = [block.conv_shortcut] if block.conv_shortcut is not None else []
    return [block.norm1, block.conv1, block.norm2, block.conv2, *shortcut]


def of_middle(middle: Any) -> list[Any]:
    attention = middle.attentions[0]
    joined = nn.Conv2d(1, 1, 1)
    parts = (attention.to_q, attention.to_k, attention.to_v)
    joined.weight, joined.bias = (nn.Parameter(torch.cat([getattr(p, k) for p in parts])) for k in ("weight", "bias"))  # type: ignore[assignment]
    first, second = (of_block(block) for block in middle.resnets)
    return [*first, attention.group_norm, joined, attention.to_out[0], *second]


def of_levels(levels: Any, sampler: str) -> Iterator[Any]:
    for level in levels:
        for block in level.resnets:
            yield from of_block(block)
        if getattr(level, sampler):
            yield getattr(level, sampler)[0].conv


def fill(mine: Any, theirs: list[Any]) -> None:
    for a, b in zip(layers(mine), theirs, strict=True):
        a.weight.data.copy_(b.weight.view_as(a.weight))
        a.bias.data.copy_(b.bias)


def test_encoder_and_decoder_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    n = len(MULTIPLIERS)
    theirs = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n, layers_per_block=2,
        block_out_channels=tuple(32 * m for m in MULTIPLIERS), latent_channels=4, norm_num_groups=16,
    ).double().eval()  # fmt: skip
    cfg, shape = ImageConfig(channels=32, multipliers=MULTIPLIERS, groups=16), (3, 24, 40)
    encoder, decoder = build_encoder(cfg, shape, 8, 2).double(), build_decoder(cfg, shape, 4).double()
    e, d = theirs.encoder, theirs.decoder
    down, up = [*of_levels(e.down_blocks, "downsamplers")], [*of_levels(d.up_blocks, "upsamplers")]
    fill(encoder, [e.conv_in, *down, *of_middle(e.mid_block), e.conv_norm_out, e.conv_out, theirs.quant_conv])
    fill(decoder, [theirs.post_quant_conv, d.conv_in, *of_middle(d.mid_block), *up, d.conv_norm_out, d.conv_out])
    x = 2 * torch.rand(2, *shape, dtype=torch.float64) - 1
    with torch.no_grad():
        mean = theirs.encode(x).latent_dist.mean
        codes = encoder((x + 1) / 2, None).chunk(2, 1)[0]
        torch.testing.assert_close(codes.view(2, 6, 10, 4).permute(0, 3, 1, 2), mean)
        torch.testing.assert_close(decoder(codes, None), theirs.decode(mean).sample)
