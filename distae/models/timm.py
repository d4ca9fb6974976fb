"""Encoders of masked autoencoders in the files of timm: config.json and model.safetensors, as its models on the hub."""

from typing import Any

import torch
from torch import Tensor

from distae.data import Transform
from distae.errors import UserError
from distae.models.base import Autoencoder
from distae.models.masked import MaskedAE

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SIZES = {(192, 12, 3): "tiny", (384, 12, 6): "small", (768, 12, 12): "base", (1024, 24, 16): "large"}
"""Width, depth and heads of timm's ViTs. Others are `base` with other arguments."""
NAMES = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
"""A block's layers, and their names in timm where they differ."""


@torch.no_grad()
def exported(model: Autoencoder, transform: Transform) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the tensors of an encoder, whose input are images in [0, 1] and whose output are `model.features`.

    Raises UserError where the model is not a masked autoencoder, or its samples are not such images.
    """
    if not isinstance(model, MaskedAE):
        raise UserError(f"--format timm is for the encoder of masked_ae, not {model.cfg.name}")
    if transform.columns or transform.scale not in (1.0, 255.0):
        raise UserError(
            f"--format timm: samples must be images of bytes, or of values in [0, 1]; these are divided by {transform.scale:g}"
        )
    return _config(model), _tensors(model)


def _config(model: MaskedAE) -> dict[str, Any]:
    cfg, (channels, rows, columns) = model.cfg, model.shape
    pool, width = {"mean": "avg", "token": "token"}[cfg.pool], cfg.latent_dim
    arguments = {
        "img_size": [rows, columns], "patch_size": cfg.patch, "in_chans": channels, "num_classes": 0, "embed_dim": width,
        "depth": cfg.depth, "num_heads": cfg.heads, "class_token": cfg.class_token, "global_pool": pool, "fc_norm": False,
    }  # fmt: skip
    name = SIZES.get((width, cfg.depth, cfg.heads), "base")
    return {
        "architecture": f"vit_{name}_patch16_224", "num_classes": 0, "num_features": width, "global_pool": pool,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [channels, rows, columns], "fixed_input_size": True,
            "mean": [0.0] * channels, "std": [1.0] * channels,
            "num_classes": 0, "pool_size": None, "crop_pct": 1.0, "interpolation": "bicubic", "crop_mode": "center",
            "first_conv": "patch_embed.proj", "classifier": "head",
        },
    }  # fmt: skip


def _tensors(model: MaskedAE) -> dict[str, Tensor]:
    encoder, (channels, *_), side = model.encoder, model.shape, model.cfg.patch
    places = encoder.positions.to(encoder.embed.weight.dtype)
    found = {
        "patch_embed.proj.weight": encoder.embed.weight.view(-1, channels, side, side),
        "patch_embed.proj.bias": encoder.embed.bias,
    }
    if encoder.token is not None:
        places = torch.cat([torch.zeros_like(places[:1]), places])
        found["cls_token"] = encoder.token.weight[None]
    found["pos_embed"] = places[None]
    *blocks, last = encoder.blocks
    found |= {f"norm.{key}": value for key, value in last.state_dict().items()}
    for number, block in enumerate(blocks):
        for name, value in block.state_dict().items():
            layer, _, tensor = name.partition(".")
            found[f"blocks.{number}.{NAMES.get(layer, layer)}.{tensor}"] = value
    return {name: value.contiguous() for name, value in found.items()}
