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
TRANSCODERS = {
    "transcoder": ("standard", False), "skip_transcoder": ("standard", True),
    "jumprelu_transcoder": ("jumprelu", False), "jumprelu_skip_transcoder": ("jumprelu", True),
}  # fmt: skip
"""What an architecture of transcoders encodes as, and whether it has a skip connection."""
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
    if model.cfg.inputs is not None:
        _make_transcoder(model, settings, tensors)
    settings |= {
        "d_in": model.encoder.shape[1], "d_sae": len(vectors), "dtype": str(vectors.dtype).removeprefix("torch."), "device": "cpu",
        "apply_b_dec_to_input": model.cfg.inputs is None, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": FORMAT, "training_architecture": model.cfg.name, "step": step},
    }  # fmt: skip
    return settings, tensors


def _make_transcoder(model: Dictionary, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Raises UserError where SAELens has no transcoder that encodes like this variant."""
    kind = settings["architecture"], model.cfg.skip
    if kind not in TRANSCODERS.values():
        able = "l1_sae, batch_topk_sae, matryoshka_sae and jumprelu_sae"
        raise UserError(f"--format sae_lens: SAELens has no transcoder like {model.cfg.name}; there is one for {able}")
    settings |= {"architecture": next(k for k, v in TRANSCODERS.items() if v == kind), "d_out": model.decoder.shape[1]}
    tensors["b_enc"] = model.encoder_bias - model.encoder @ model.input_bias
    if model.cfg.skip:
        tensors["W_skip"] = model.skip


def imported(settings: dict[str, Any], tensors: dict[str, Tensor], scale: float) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and weights of the variant that encodes stored values, divided by `scale`, as they do.

    Raises UserError where there is none, or tensors do not match.
    """
    name = settings.get("architecture", "standard")
    is_transcoder = name in TRANSCODERS
    name, skips = TRANSCODERS.get(name, (name, False))
    if name not in VARIANTS:
        raise UserError(f"architecture {name!r} of SAELens cannot be read; valid: {', '.join([*VARIANTS, *TRANSCODERS])}")
    for key, valid in VALID.items():
        if settings.get(key) not in valid:
            raise UserError(f"{key} {settings[key]!r} of SAELens cannot be read; valid: {', '.join(str(v) for v in valid if v)}")
    variant, own = VARIANTS[name]
    _check_shapes(tensors, (*own, *(["W_skip"] if skips else [])), is_transcoder)
    found = {key: t if t.dtype == torch.float64 else t.float() for key, t in tensors.items()}
    _fold(settings, found, is_transcoder)
    found |= {"W_enc": found["W_enc"] * scale, "W_dec": found["W_dec"] / scale, "b_dec": found["b_dec"] / scale}
    latents = len(found["W_dec"])
    given = {"name": variant.name, "latent_dim": latents, "unit_norm": bool((found["W_dec"].norm(dim=1) - 1).abs().max() < 1e-5)}
    if issubclass(variant, OfKConfig):
        given["k"] = settings.get("k", min(OfKConfig().final_k, latents))  # thresholds have none: it is a default of training
        if type(given["k"]) is not int or not 0 < given["k"] <= latents:
            raise UserError(f"{CONFIG} of SAELens: k is {given['k']!r}; expected a whole number from 1 to {latents}")
    weights = _renamed(found)
    if is_transcoder:
        given |= {"inputs": len(found["W_enc"]), "skip": skips}
        weights |= {"input_bias": torch.zeros_like(found["W_enc"][:, 0])} | ({"skip": found["W_skip"]} if skips else {})
    return given, weights


def _check_shapes(tensors: dict[str, Tensor], own: tuple[str, ...], is_transcoder: bool) -> None:
    """Raises UserError where there are other tensors than `SHARED` and `own`, or their shapes do not match."""
    if odd := sorted(tensors.keys() ^ {*SHARED, *own}):
        raise UserError(f"{WEIGHTS} of SAELens: {odd[0]} is {'unknown' if odd[0] in tensors else 'missing'}")
    if tensors["W_dec"].ndim == 2:
        latents, values = tensors["W_dec"].shape
        inputs = tensors["W_enc"].shape[0] if is_transcoder and tensors["W_enc"].ndim else values
        expected: dict[str, tuple[int, ...]] = dict.fromkeys(own, (latents,))
        expected |= {"W_dec": (latents, values), "W_enc": (inputs, latents), "b_dec": (values,)}
        if "W_skip" in own:
            expected["W_skip"] = (values, inputs)
        if all(tuple(tensors[name].shape) == shape for name, shape in expected.items()):
            return
    raise UserError(f"{WEIGHTS} of SAELens: shapes of tensors do not match each other")


def _fold(settings: dict[str, Any], t: dict[str, Tensor], is_transcoder: bool) -> None:
    """Make the tensors those of an encoder of x - b_dec whose activations multiply the decoder's vectors as they are.

    Encoders of transcoders take x itself, whatever the settings say.
    """
    if not settings.get("apply_b_dec_to_input", True) and not is_transcoder:
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
