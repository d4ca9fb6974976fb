"""Tokenizers in the files of diffusers: AutoencoderKL and VQModel (config.json and diffusion_pytorch_model.safetensors).

Their images are in [-1, 1], a tokenizer's in [0, 1]: the encoder's first layer maps them, the decoder's last one has other weights.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from distae.config.models import TokenizerConfig
from distae.config.models.diffusers import CONFIG, WEIGHTS, Described, described
from distae.config.nets import ImageConfig
from distae.errors import UserError
from distae.models.base import Autoencoder
from distae.models.tokenizer import Tokenizer

__all__ = ["CONFIG", "WEIGHTS", "exported", "imported"]

LAST = "decoder.conv_out"
"""The layer whose outputs are in [-1, 1]."""
CODES, OF_CODES = "codebook.codes", "quantize.embedding.weight"
OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention's layers in older folders."""


def exported(model: Autoencoder, scaling_factor: float, shift_factor: float | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the tensors of a tokenizer. Raises UserError where diffusers cannot express it."""
    if not isinstance(model, Tokenizer):
        raise UserError(f"--format diffusers is for --model {TokenizerConfig.name}, not {model.cfg.name}")
    config = described(model.cfg, model.net, model.shape, scaling_factor, shift_factor)
    own, tensors = model.codec.state_dict(), dict[str, Tensor]()
    for mine, theirs in _layers(model):
        for kind in ("weight", "bias"):
            parts = own[f"{mine}.{kind}"].chunk(len(theirs))
            tensors |= {f"{name}.{kind}": _linear(name, part) for name, part in zip(theirs, parts, strict=True)}
    tensors[f"{LAST}.weight"], tensors[f"{LAST}.bias"] = 2 * tensors[f"{LAST}.weight"], 2 * tensors[f"{LAST}.bias"] - 1
    if CODES in own:
        tensors[OF_CODES] = own[CODES]
    return config, tensors


def imported(found: Described, tensors: dict[str, Tensor], like: Autoencoder) -> dict[str, Tensor]:
    """The codec's weights by their names in `like`, a model of the settings of `found`; those of codes for every way to learn them.

    Raises UserError where a tensor is missing or unknown.
    """
    given = _identities(found) | {_newer(name): t.float() for name, t in tensors.items()}
    assert isinstance(like, Tokenizer)
    weights = {}
    try:
        given[f"{LAST}.weight"], given[f"{LAST}.bias"] = given[f"{LAST}.weight"] / 2, (given[f"{LAST}.bias"] + 1) / 2
        for mine, theirs in _layers(like):
            for kind in ("weight", "bias"):
                joined = torch.cat([given.pop(f"{name}.{kind}") for name in theirs])
                weights[f"codec.{mine}.{kind}"] = joined[:, :, None, None] if joined.ndim == 2 else joined
        if found.bottleneck == "vq":
            weights |= _codebook(given.pop(OF_CODES))
    except KeyError as error:
        raise UserError(f"{WEIGHTS} of diffusers: {error.args[0]} is missing") from error
    if given:
        raise UserError(f"{WEIGHTS} of diffusers: {min(given)} is unknown")
    return weights


def _codebook(codes: Tensor) -> dict[str, Tensor]:
    """Codes, and averages as of uniform use."""
    frequency = codes.new_full((len(codes),), 1 / len(codes))
    return {f"codec.{CODES}": codes, "codec.codebook.frequency": frequency, "codec.codebook.total": codes / len(codes)}


def _layers(model: Tokenizer) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each layer of the codec, and its layers in diffusers: three of them are an attention's one layer for query, key and value."""
    cfg = model.net
    assert isinstance(cfg, ImageConfig)
    theirs = [*_encoder(cfg), *_decoder(cfg)]
    mine = [f"{part}.{name}" for part in ("encoder", "decoder") for name in _weighted(getattr(model.codec, part))]
    for name, other in zip(mine, theirs, strict=True):
        yield name, (other,) if isinstance(other, str) else other


def _weighted(module: nn.Module) -> Iterator[str]:
    """Layers with weights in the order of the computation; a block's skip comes last."""
    return (name for name, m in module.named_modules() if getattr(m, "weight", None) is not None)


Names = Iterator[str | tuple[str, ...]]


def _encoder(cfg: ImageConfig) -> Names:
    yield "encoder.conv_in"
    before = cfg.channels
    for i, width in enumerate(cfg.widths):
        yield from _stage(f"encoder.down_blocks.{i}", before, width, cfg.blocks, i + 1 in cfg.attention)
        if i + 1 < len(cfg.widths):
            yield f"encoder.down_blocks.{i}.downsamplers.0.conv"
        before = width
    yield from _middle("encoder.mid_block", cfg)
    yield from ("encoder.conv_norm_out", "encoder.conv_out", "quant_conv")


def _decoder(cfg: ImageConfig) -> Names:
    yield from ("post_quant_conv", "decoder.conv_in")
    yield from _middle("decoder.mid_block", cfg)
    before, levels = cfg.widths[-1], len(cfg.widths)
    for i, width in enumerate(reversed(cfg.widths)):
        yield from _stage(f"decoder.up_blocks.{i}", before, width, cfg.blocks + 1, levels - i in cfg.attention)
        if i + 1 < levels:
            yield f"decoder.up_blocks.{i}.upsamplers.0.conv"
        before = width
    yield from ("decoder.conv_norm_out", LAST)


def _stage(level: str, before: int, width: int, blocks: int, attends: bool) -> Names:
    for i in range(blocks):
        yield from _block(f"{level}.resnets.{i}", skips=i == 0 and before != width)
        if attends:
            yield from _attention(f"{level}.attentions.{i}")


def _middle(name: str, cfg: ImageConfig) -> Names:
    yield from _block(f"{name}.resnets.0", skips=False)
    if cfg.middle_attention:
        yield from _attention(f"{name}.attentions.0")
    yield from _block(f"{name}.resnets.1", skips=False)


def _block(name: str, skips: bool) -> Names:
    yield from (f"{name}.{part}" for part in ("norm1", "conv1", "norm2", "conv2"))
    if skips:
        yield f"{name}.conv_shortcut"


def _attention(name: str) -> Names:
    yield f"{name}.group_norm"
    yield f"{name}.to_q", f"{name}.to_k", f"{name}.to_v"
    yield f"{name}.to_out.0"


def _linear(name: str, weight: Tensor) -> Tensor:
    """Attention's layers are linear in diffusers, 1x1 convolutions here."""
    return weight.flatten(1) if ".attentions." in name and weight.ndim == 4 else weight


def _newer(name: str) -> str:
    """The name in folders of today."""
    before, _, last = name.rpartition(".")
    owner, _, layer = before.rpartition(".")
    return f"{owner}.{OLDER[layer]}.{last}" if ".attentions." in name and layer in OLDER else name


def _identities(found: Described) -> dict[str, Tensor]:
    """1x1 convolutions that a model does without."""
    moments = 2 * found.latent_channels
    absent = {"quant_conv": (found.use_quant_conv, moments), "post_quant_conv": (found.use_post_quant_conv, found.latent_channels)}
    made: dict[str, Tensor] = {}
    for name, (is_there, channels) in absent.items():
        if not is_there and found.bottleneck == "kl":
            made |= {f"{name}.weight": torch.eye(channels), f"{name}.bias": torch.zeros(channels)}
    return made
