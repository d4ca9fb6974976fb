"""Every variant of the registry: the same result on 1 to 4 ranks and after a resume, and near it in bf16."""

import contextlib
from dataclasses import replace
from typing import Any
from unittest import mock

import gate
import pytest
from gate import Case
from helpers import SHIPPED, settings
from variants import SMALL

from distae.config import TrainConfig
from distae.config.models import ModelConfig
from distae.config.parallel import ShardConfig
from distae.models import build, registry

TOLERANCE = gate.BATCH_NORM
FURTHER: dict[str, tuple[dict[str, Any], ...]] = {
    "vae": ({"beta": "0:1@4"}, {"beta": "0:2@4x2", "free_bits": 0.1}),
    "denoising_ae": ({"corruption": "masking"}, {"corruption": "salt_pepper"}),
    "sparse_ae": ({"sparsity": "kl", "code_activation": "sigmoid"}, {"sparsity": "topk", "k": 2}),
    "contractive_ae": ({"code_activation": "tanh"},),
    "dip_vae": ({"variant": "I"},),
    "lin_nf_vae": ({"flow": "radial"},),
    "categorical_vae": ({"temperature": "2:0.5@8"},),
    "info_vae": ({"kernel": "imq"},),
    "topk_sae": ({"k": "8:2@6", "multi_weight": "0:0.125@4", "scale_input": True},),
    "batch_topk_sae": ({"k": "8:2@6", "scale_input": True, "unit_norm": False},),
    "jumprelu_sae": ({"k": "6:3@6", "l0_from": "activations", "scale_input": True},),
    "tokenizer": (
        {"bottleneck": "vq", "codebook_size": 16, "learning": "gradient", "perceptual": "msssim", "lecam": 0.1, "lecam_decay": 0.5},
        {"bottleneck": "fsq", "r1": 0.5, "discriminator_ramp": 3, "discriminator_norm": "group", "learn_scale": True},
        {"bottleneck": "lfq", "adaptive_weight": False, "discriminator_lr": 1e-3},
    ),
    "masked_ae": ({"likelihood": "gaussian", "norm_pix": True, "class_token": True, "decoder_heads": 4},),
    "vq_vae": ({"learning": "gradient"}, {"codebook_size": 16, "decay": 0.5, "restart_below": 0.9}),
}
"""Settings besides the defaults that take another path."""


def cfg_of(name: str, **changes: Any) -> TrainConfig:
    return settings(
        model={"name": name} | SMALL.get(name, {}) | changes, net={"hidden": [12], "dropout": 0.1, "activation": "gelu"},
        steps=10, eval_every=10, log_every=10, precision="fp64",
    )  # fmt: skip


FURTHER_CASES = {
    f"{name} {' '.join(f'{k}={v}' for k, v in changes.items())}": Case(cfg_of(name, **changes), world_sizes=(1, 4))
    for name, several in FURTHER.items()
    for changes in several
}


UNCOUPLED = [name for name in SHIPPED if not cfg_of(name).model.couples_samples]
HALVED = {f"{name} halved": Case(replace(cfg_of(name), grad_accum_steps=2), world_sizes=(1, 3)) for name in UNCOUPLED}


def local_pool() -> contextlib.AbstractContextManager[Any]:
    """An estimator over each rank's own rows."""
    return mock.patch("distae.models.base.Batch.pool", lambda self, x: x)


def local_top_k() -> contextlib.AbstractContextManager[Any]:
    """The top k of each rank's own rows."""
    kth = "distae.models.sparse_dictionary.global_kth"
    return mock.patch(kth, lambda x, k: x.flatten().topk(k * len(x)).values.min())


def local_weight() -> contextlib.AbstractContextManager[Any]:
    """The adaptive weight of each rank's own gradients, as in published code."""
    both = mock.Mock(all_reduce_=lambda x: x, world=lambda: mock.Mock(world_size=1))
    return mock.patch("distae.models.tokenizer.dist", both)


SHARDED = {
    f"{name} fsdp": Case(replace(cfg_of(name), parallel=ShardConfig()), world_sizes=(2,))
    for name in (
        "aae", "batch_topk_sae", "factor_vae", "hvae", "iaf_vae", "jumprelu_sae", "linear_ae", "masked_ae", "piwae", "rae_l2",
        "tokenizer", "vaegan", "vamp_vae", "vq_vae",
    )
}  # fmt: skip
SHARDED |= {
    f"{name} fsdp": Case(replace(FURTHER_CASES[name].cfg, parallel=ShardConfig()), world_sizes=(2,))
    for name in FURTHER_CASES
    if name.startswith(("masked_ae", "vq_vae learning=gradient"))
}
"""Several optimizers, parameters outside of blocks, sharded statistics, `start`, codebooks, flows and transformer blocks."""
PLANTED = {
    "local-weight": Case(cfg_of("tokenizer"), local_weight, (1, 2)),
    "local-pool": Case(cfg_of("swae"), local_pool, (1, 2)),
    "local-top-k": Case(cfg_of("batch_topk_sae"), local_top_k, (1, 2)),
}

OF_A_BATCH = ("batch_topk_sae", "jumprelu_sae")
OPTIONS = "batch_topk_sae k=8:2@6 scale_input=True unit_norm=False"
ELASTIC = {
    f"{name} elastic": Case(cfg, world_sizes=(3,), ends_at=5, begins_on=1)
    for name, cfg in [(name, cfg_of(name)) for name in OF_A_BATCH] + [(OPTIONS, FURTHER_CASES[OPTIONS].cfg)]
}


ONSET = {
    f"tokenizer from {n} on {m}": Case(cfg_of("tokenizer"), world_sizes=(3,), ends_at=n, begins_on=m)
    for n in (5, 6, 7)
    for m in (1, 3)
}
"""Ended before, at and after the step that starts the discriminator (6), on 1 or 3 ranks, and resumed on 3."""


pytestmark = pytest.mark.timeout(900)
"""The first test waits for all cases."""


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    every = {k: v for name in SHIPPED for k, v in gate.gates(name, cfg_of(name)).items()}
    return gate.run(
        gate.asked_for(request, every | FURTHER_CASES | HALVED | SHARDED | PLANTED | ELASTIC | ONSET),
        tmp_path_factory.mktemp("registry"),
    )


@pytest.mark.cases(*gate.GATES)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_variant_passes_the_gates(results, name):
    gate.assert_gates(results, name)


@pytest.mark.parametrize("name", FURTHER_CASES)
def test_world_sizes_agree(results, name):
    gate.assert_parity(results[name], TOLERANCE)


@pytest.mark.cases("{name}", "{name} halved")
@pytest.mark.parametrize("name", UNCOUPLED)
def test_accumulation_changes_nothing_where_samples_are_not_coupled(results, name):
    for result in results[f"{name} halved"].values():
        found = gate.differences(result, results[name][1])
        of_a_batch = {k for k in found if k.endswith(("train/perplexity", "train/live"))}  # and half a batch uses fewer codes
        assert {k: v for k, v in found.items() if not v <= TOLERANCE and k not in of_a_batch} == {}


@pytest.mark.cases("{name}", "{name} fsdp")
@pytest.mark.parametrize("name", [name.removesuffix(" fsdp") for name in SHARDED])
def test_a_sharded_variant_ends_where_one_rank_ends(results, name):
    gate.assert_parity({0: results[name][1]} | results[f"{name} fsdp"], gate.EXACT)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_term_that_settings_name_is_evaluated(results, name):
    terms = {"loss", "mse", *ModelConfig.choices()[name].terms}
    assert {f"10 val/{term}" for term in terms} <= results[name][1].metrics.keys()


@pytest.mark.parametrize("name", SHIPPED)
def test_the_networks_are_small(name):
    cfg = cfg_of(name)
    assert sum(p.numel() for p in build(cfg.model, cfg.net, cfg.data.shape()).parameters()) < 20_000


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_breaks_parity(results, name):
    with pytest.raises(AssertionError, match=r"2 ranks (against 1|do not hold the same)"):
        gate.assert_parity(results[name], TOLERANCE)


@pytest.mark.cases("{name}")
@pytest.mark.parametrize("name", ["topk_sae", "batch_topk_sae", "matryoshka_sae"])
def test_dead_latents_are_among_what_agrees(results, name):
    assert results[name][1].metrics["10 train/dead"] > 0
    assert results[name][1].metrics["10 train/auxiliary"] > 0


@pytest.mark.cases("{name}", "{name} elastic")
@pytest.mark.parametrize("name", [*OF_A_BATCH, OPTIONS])
def test_dictionaries_continue_on_another_number_of_ranks(results, name):
    straight, elastic = (result._replace(metrics={}) for result in (results[name][1], results[f"{name} elastic"][3]))
    gate.assert_parity({1: straight, 3: elastic}, gate.EXACT)  # the end of the first part adds rows of metrics


@pytest.mark.cases("tokenizer", "{name}")
@pytest.mark.parametrize("name", ONSET)
def test_a_stop_around_the_discriminators_start_changes_nothing(results, name):
    """Bit for bit on the same number of ranks."""
    straight, resumed = (result._replace(metrics={}) for result in (results["tokenizer"][3], results[name][3]))
    gate.assert_parity({1: straight, 3: resumed}, 0.0 if name.endswith("on 3") else TOLERANCE)


def test_every_settings_class_has_its_variant():
    assert set(registry()) == set(ModelConfig.choices().values())
