"""Dictionaries in the files of SAELens (version 6 and later): cfg.json and sae_weights.safetensors."""

from typing import Any

import torch
from torch import Tensor

from distae.config.models import GatedSAEConfig, JumpReLUSAEConfig, L1SAEConfig, TopKSAEConfig
from distae.config.models.sparse_dictionary import DictionaryConfig, OfKConfig
from distae.data import Transform
from distae.errors import UserError
from distae.models.base import Autoencoder
from distae.models.sparse_dictionary import Dictionary

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
FORMAT = "6.0.0"
"""The version of SAELens from which on the files are read as they are here."""
SHARED = ("W_enc", "W_dec", "b_dec")
VARIANTS: dict[str, tuple[type[DictionaryConfig], tuple[str, ...]]] = {
    "standard": (L1SAEConfig, ("b_enc",)),
    "topk": (TopKSAEConfig, ("b_enc",)),
    "jumprelu": (JumpReLUSAEConfig, ("b_enc", "threshold")),
    "gated": (GatedSAEConfig, ("b_gate", "b_mag", "r_mag")),
}
"""The variant that encodes as an architecture of SAELens, and the architecture's tensors besides `SHARED`."""
VALID = {
    "normalize_activations": (None, "none", "expected_average_only_in"),  # the last is for training: the weights have it
    "reshape_activations": (None, "none"),
    "activation_fn": (None, "relu"),
    "activation_fn_str": (None, "relu"),
}
"""Settings that change what is computed, and what is valid of them."""


@torch.no_grad()
def exported(model: Autoencoder, transform: Transform, step: int | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """cfg.json and the tensors of a dictionary. They take and give stored values: the transform is part of the weights.

    Raises UserError where the model is not a dictionary, or its transform more than a scale.
    """
    if not isinstance(model, Dictionary):
        raise UserError(f"--format sae_lens is for sparse autoencoders of a dictionary, not {model.cfg.name}")
    if transform != Transform(transform.scale):
        raise UserError("--format sae_lens: samples must be arrays as they are stored, not tables or other layouts of images")
    settings, tensors = model.in_sae_lens()
    scale, vectors = transform.scale / model.scale, model.vectors()
    tensors |= {"W_enc": model.encoder.T / scale, "W_dec": vectors * scale, "b_dec": model.bias * scale}
    settings |= {
        "d_in": vectors.shape[1], "d_sae": len(vectors), "dtype": str(vectors.dtype).removeprefix("torch."), "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": FORMAT, "training_architecture": model.cfg.name, "step": step},
    }  # fmt: skip
    return settings, tensors


def imported(settings: dict[str, Any], tensors: dict[str, Tensor], scale: float) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and weights of the variant that encodes stored values, divided by `scale`, as they do.

    Raises UserError where there is none, or tensors do not match.
    """
    name = settings.get("architecture", "standard")
    if name not in VARIANTS:
        raise UserError(f"architecture {name!r} of SAELens cannot be read; valid: {', '.join(VARIANTS)}")
    for key, valid in VALID.items():
        if settings.get(key) not in valid:
            raise UserError(f"{key} {settings[key]!r} of SAELens cannot be read; valid: {', '.join(str(v) for v in valid if v)}")
    variant, own = VARIANTS[name]
    _check_shapes(tensors, own)
    found = {key: t if t.dtype == torch.float64 else t.float() for key, t in tensors.items()}
    _fold(settings, found)
    found |= {"W_enc": found["W_enc"] * scale, "W_dec": found["W_dec"] / scale, "b_dec": found["b_dec"] / scale}
    latents = len(found["W_dec"])
    given = {"name": variant.name, "latent_dim": latents, "unit_norm": bool((found["W_dec"].norm(dim=1) - 1).abs().max() < 1e-5)}
    if issubclass(variant, OfKConfig):
        given["k"] = settings.get("k", min(OfKConfig().final_k, latents))  # thresholds have none: it is a default of training
        if type(given["k"]) is not int or not 0 < given["k"] <= latents:
            raise UserError(f"{CONFIG} of SAELens: k is {given['k']!r}; expected a whole number from 1 to {latents}")
    return given, _renamed(found)


def _check_shapes(tensors: dict[str, Tensor], own: tuple[str, ...]) -> None:
    """Raises UserError where there are other tensors than `SHARED` and `own`, or their shapes do not match."""
    if odd := sorted(tensors.keys() ^ {*SHARED, *own}):
        raise UserError(f"{WEIGHTS} of SAELens: {odd[0]} is {'unknown' if odd[0] in tensors else 'missing'}")
    if tensors["W_dec"].ndim == 2:
        latents, values = tensors["W_dec"].shape
        expected = {"W_dec": (latents, values), "W_enc": (values, latents), "b_dec": (values,), **dict.fromkeys(own, (latents,))}
        if all(tuple(tensors[name].shape) == shape for name, shape in expected.items()):
            return
    raise UserError(f"{WEIGHTS} of SAELens: shapes of tensors do not match each other")


def _fold(settings: dict[str, Any], t: dict[str, Tensor]) -> None:
    """Make the tensors those of an encoder of x - b_dec whose activations multiply the decoder's vectors as they are."""
    if not settings.get("apply_b_dec_to_input", True):
        shift = t["b_dec"] @ t["W_enc"]
        for name, by in (("b_enc", shift), ("b_gate", shift), ("b_mag", shift * t["r_mag"].exp() if "r_mag" in t else 0)):
            if name in t:
                t[name] = t[name] + by
    if settings.get("rescale_acts_by_decoder_norm"):
        norms = t["W_dec"].norm(dim=1)
        t |= {"W_enc": t["W_enc"] * norms, "b_enc": t["b_enc"] * norms, "W_dec": t["W_dec"] / norms[:, None]}


def _renamed(t: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names here."""
    names = {"b_enc": "encoder_bias", "b_gate": "encoder_bias", "b_mag": "magnitude_bias", "r_mag": "log_magnitude"}
    found = {names[key]: value for key, value in t.items() if key in names}
    found |= {"encoder": t["W_enc"].T.contiguous(), "decoder": t["W_dec"], "bias": t["b_dec"]}
    found["silent"] = torch.zeros(len(t["W_dec"]), dtype=torch.int64)
    if "threshold" in t:
        found["threshold"] = t["threshold"].clamp_min(0.0)  # activations are positive whatever the threshold
    return found
