"""Keyword arguments of Python as settings, by the names and hints of the command line."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distae.config import TrainConfig, to_dict
from distae.config.keywords import from_keywords
from distae.config.models import BetaVAEConfig, VAEConfig
from distae.config.nets import ResNetConfig
from distae.errors import UserError


def test_settings_by_any_of_their_names():
    cfg = from_keywords(
        TrainConfig,
        {
            "model": "sparse_ae", "net": {"name": "resnet", "channels": [4, 8]}, "latent_dim": np.int64(8), "lr": np.float64(0.5),
            "batch_size": 7, "optim.betas": (0.5, 0.9), "epochs": 3, "run_dir": Path("a"), "patience": 2, "ema": 0.5,
        },
    )  # fmt: skip
    assert isinstance(cfg.net, ResNetConfig)
    assert (cfg.model.name, cfg.model.latent_dim, cfg.net.name, cfg.net.channels) == ("sparse_ae", 8, "resnet", (4, 8))
    assert (cfg.optim.lr, cfg.optim.betas, cfg.global_batch_size) == (0.5, (0.5, 0.9), 7)
    assert (cfg.epochs, cfg.run_dir, cfg.early_stop.patience, cfg.ema) == (3, "a", 2, 0.5)


def test_a_variant_is_a_name_a_table_or_settings():
    ramp: Any = "0:1@50"
    for model in ("vae", {"name": "vae"}, VAEConfig()):
        assert from_keywords(TrainConfig, {"model": model, "beta": 2}).model == VAEConfig(beta=2)
    assert from_keywords(TrainConfig, {"model": VAEConfig(latent_dim=3, beta=ramp)}).model.latent_dim == 3
    assert from_keywords(TrainConfig, {"schedule": "cosine", "optim": {"name": "sgd"}}).optim.name == "sgd"


def test_changes_of_other_settings_keep_the_rest():
    base = to_dict(from_keywords(TrainConfig, {"model": "vae", "beta": 2, "epochs": 5}))
    longer = from_keywords(TrainConfig, {"steps": 9}, base)
    assert (longer.steps, longer.epochs, longer.model) == (9, None, VAEConfig(beta=2))
    assert from_keywords(TrainConfig, {"model": "beta_vae"}, base).model == BetaVAEConfig()
    assert base["epochs"] == 5
    rate = to_dict(from_keywords(TrainConfig, {"lr": 1e-4}))
    for given in ({"blr": 1e-3}, {"optim": {"blr": 1e-3}}):
        found = from_keywords(TrainConfig, given, rate)
        assert (found.optim.lr, found.peak_lr) == (TrainConfig().optim.lr, 1e-3 * 128 / 256)
    assert rate["optim"]["lr"] == 1e-4


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "modle": ({"modle": "vae"}, "unknown setting 'modle' (did you mean 'model'?)"),
    "latent": ({"latnt_dim": 3}, "unknown setting 'latnt_dim' (did you mean 'latent_dim'?)"),
    "dotted": ({"model.latent_dims": 3}, "unknown setting 'model.latent_dims' (did you mean 'model.latent_dim'?)"),
    "of another variant": ({"model": "vae", "codes": 3}, "unknown setting 'codes'"),
    "variant": ({"model": "vea"}, "--model: unknown 'vea' (did you mean 'vae'?); valid: "),
    "kind": ({"model": 3}, "model is 3; valid: "),
    "group": ({"optim": "adam"}, "optim is 'adam'; valid: a dict of name, lr, "),
    "value": ({"latent_dim": "x"}, "--model.latent-dim: 'x' is not valid; expected an integer >= 1"),
    "two": ({"data": "array", "scale": 2}, "'scale' is ambiguous: model.scale or data.scale; write"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case):
    given, message = WRONG[case]
    with pytest.raises(UserError, match="^" + re.escape(message)) as caught:
        from_keywords(TrainConfig, given)
    assert "\n" not in str(caught.value)
