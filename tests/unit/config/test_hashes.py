"""Run folders keep their names: the hashes of the recipes and of some command lines, as they were when recorded."""

from typing import Any

import pytest
from helpers import ROOT

from distae.config import TrainConfig, build, check
from distae.config.check import fingerprint
from distae.config.cli import read_toml

RECIPES = {
    "ae_fashion_mnist_3": "9126d58e", "ae_mnist_20": "2f475e3e", "ae_mnist_32_deep": "c43b934a",
    "ae_mnist_32_one_hidden": "b78e1d86", "ae_mnist_32_single_layer": "a05f7107", "ae_mnist_64": "c02934c9",
    "vae_mnist": "804923e6", "vae_mnist_10": "bfd33985", "ae_mnist_2": "7005c605", "ae_mnist_8": "b0efa6ac",
    "ae_mnist_32": "86108242", "denoising_ae_mnist": "9f06910c", "vae_mnist_static": "bc34944b", "iwae_mnist_static": "eaec5800",
}  # fmt: skip
VARIANTS = {"ae": "05603667", "vae": "a5272bd0", "vq_vae": "493695be", "factor_vae": "29f1ca39"}
"""With everything else at its default."""
CHANGED = {"ae": "f81a206a", "vae": "b9272f46", "vq_vae": "49db5888", "factor_vae": "f56ad49f"}
"""With another seed, batch norm and accumulation, which is then part of the result."""


ADDED_LATER = {"model": {"lfq_vae": "e78456e3"}, "data": {"array": "f913dbba"}}
"""As they were before model.inverse_temperature, data.scale, data.layout and data.label_key."""


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, names in ADDED_LATER.items() for name in names])
def test_a_setting_that_was_added_changes_no_hash(group, name):
    table = {group: {"name": name} | ({"path": "x.npy"} if name == "array" else {})}
    assert fingerprint(build(TrainConfig, table)) == ADDED_LATER[group][name]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_keeps_its_hash(name):
    assert fingerprint(build(TrainConfig, read_toml(str(ROOT / "recipes" / f"{name}.toml")))) == RECIPES[name]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_keeps_its_hash(name):
    table: dict[str, Any] = {"model": {"name": name}}
    assert fingerprint(check(build(TrainConfig, table), 1)) == VARIANTS[name]
    table |= {"seed": 7, "net": {"name": "mlp", "norm": "batch"}, "grad_accum_steps": 2}
    assert fingerprint(check(build(TrainConfig, table), 1)) == CHANGED[name]
