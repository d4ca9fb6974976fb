"""Every variant of the registry: the same result on 1 to 4 ranks and after a resume, and near it in bf16."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from typing import Any
from unittest import mock

import gate
import pytest
import torch
from gate import Case
from helpers import SHIPPED, settings
from torch.utils._python_dispatch import TorchDispatchMode
from variants import SMALL

from distae import distributed as dist
from distae.config import TrainConfig
from distae.config.models import ModelConfig
from distae.config.parallel import LatentShardConfig, ShardConfig
from distae.distributed.shards import is_sharded
from distae.models import build, registry
from distae.models.sparse_dictionary import DENSE
from distae.nn import sparse
from distae.training.step import TrainStep

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
        {"bottleneck": "bsq"},
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


VECTORS = {"name": "synthetic_features", "samples": 300, "features": 40, "dim": 15}
SIDES = {
    f"{name} {' '.join(f'{k}={v}' for k, v in changes.items())}": settings(
        model={"name": name} | SMALL[name] | changes, data=VECTORS, steps=10, eval_every=10, log_every=10, precision="fp64"
    )
    for name, changes in (
        ("batch_topk_sae", {"inputs": 9, "skip": True, "scale_input": True}), ("gated_sae", {"inputs": 7, "skip": True}),
        ("l1_sae", {"inputs": 5, "layers": 2}),
    )
}  # fmt: skip
"""Transcoders, and one to several layers."""
FURTHER_CASES |= {name: Case(cfg, world_sizes=(1, 4), of_settings=True) for name, cfg in SIDES.items()}


UNCOUPLED = [name for name in SHIPPED if not cfg_of(name).model.couples_samples]
HALVED = {f"{name} halved": Case(replace(cfg_of(name), grad_accum_steps=2), world_sizes=(1, 3)) for name in UNCOUPLED}


def local_pool() -> contextlib.AbstractContextManager[Any]:
    """An estimator over each rank's own rows."""
    return mock.patch("distae.models.base.Batch.pool", lambda self, x: x)


def local_top_k() -> contextlib.AbstractContextManager[Any]:
    """The top k of each rank's own rows."""
    kth = "distae.models.sparse_dictionary.global_kth"
    return mock.patch(kth, lambda x, k, *_: x.flatten().topk(k * len(x)).values.min())


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
DIVIDED: dict[str, tuple[dict[str, Any], ...]] = {
    "topk_sae": ({"k": "8:2@6", "aux_k": 3, "multi_weight": "0:0.125@4", "scale_input": True},),
    "batch_topk_sae": ({"aux_k": 3}, {"k": "8:2@6", "unit_norm": False}),
    "matryoshka_sae": ({},),
    "jumprelu_sae": ({"scale_input": True}, {"l0_from": "activations"}),
    "l1_sae": ({},),
    "gated_sae": ({},),
}


def divided(name: str, *world_sizes: int, size: int | None = None, **changes: Any) -> Case:
    """With `--parallel tp`, which one process alone does not notice; with clipping, an average and two micro-steps."""
    cfg = SIDES.get(name) or cfg_of(name, **changes)
    optim = replace(cfg.optim, max_grad_norm=0.5)
    cfg = replace(cfg, parallel=LatentShardConfig(shard_size=size), optim=optim, ema=0.9, grad_accum_steps=2)
    return Case(cfg, world_sizes=world_sizes, of_settings=name in SIDES)


OF_LATENTS = {
    f"{name} tp {number}": divided(name, 1, 2, **changes)
    for name, several in DIVIDED.items()
    for number, changes in enumerate(several)
}


def active_alone() -> contextlib.AbstractContextManager[Any]:
    """Nothing is computed with whole matrices after the encoder, however many latents are active."""
    return mock.patch.dict("distae.models.sparse_dictionary.DENSE", cpu=0.0)


OF_LATENTS |= {f"{name} tp": divided(name, 1, 2) for name in SIDES}
for name in ("jumprelu_sae tp 1", "gated_sae tp 0"):
    OF_LATENTS[name] = OF_LATENTS[name]._replace(plant=active_alone)


def as_on_a_gpu() -> contextlib.AbstractContextManager[Any]:
    """The ranks exchange the largest values, not how many have which digits."""

    def kth(x: torch.Tensor, k: int, near: torch.Tensor, parts: int) -> torch.Tensor:
        return sparse._by_rows(x.relu().flatten(), k * len(x) * dist.world().world_size // parts)

    return mock.patch("distae.models.sparse_dictionary.global_kth", kth)


def counts_of_one_rank() -> contextlib.AbstractContextManager[Any]:
    """The threshold of a batch by the latents of each rank."""
    return mock.patch("distae.nn.sparse.dist.all_reduce_", lambda x: x)


@contextlib.contextmanager
def nothing_whole() -> Iterator[None]:
    """No step but its start makes a tensor as large as the dictionary, or as samples times latents."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **kwargs or {})
            for t in out if isinstance(out, tuple | list) else [out]:
                assert not isinstance(t, torch.Tensor) or is_sharded(t) or t.shape not in whole, (func, t.shape)
            return out

    def watched(step: TrainStep, *args: Any) -> Any:
        encoder: Any = step.model.encoder
        latents, values = encoder.shape
        batch = 2 * step.rows[0].count
        whole.update(torch.Size(of) for of in ((batch, latents), (latents, batch), (latents, values), (values, latents)))
        with Watch():
            return phase(step, *args)

    whole: set[torch.Size] = set()
    phase = TrainStep._phase
    with mock.patch.object(TrainStep, "_phase", watched):
        yield
    assert whole


TOPK, OF_BATCH = (divided(name, 1, **DIVIDED[name][0]).cfg for name in ("topk_sae", "batch_topk_sae"))
LEGS = (gate.Leg(2, 3, LatentShardConfig()), gate.Leg(1, 5), gate.Leg(3, 7, LatentShardConfig()))
IN_PARTS = {
    "topk_sae tp in groups": divided("topk_sae", 4, size=2, **DIVIDED["topk_sae"][0]),
    "topk_sae tp resumed": Case(TOPK, world_sizes=(3,), ends_at=5),
    "topk_sae tp elastic": Case(replace(TOPK, parallel=ShardConfig()), world_sizes=(2,), legs=LEGS),
    "batch_topk_sae tp by rows": Case(OF_BATCH, as_on_a_gpu, (3,)),
    "counts-of-one-rank": Case(OF_BATCH, counts_of_one_rank, (2,)),
}
for name in ("topk_sae", "batch_topk_sae"):
    OF_LATENTS[f"{name} tp 0"] = divided(name, *((1, 2, 3, 4) if name == "topk_sae" else (1, 2, 3)), **DIVIDED[name][0])
    IN_PARTS[f"{name} watched"] = Case(OF_LATENTS[f"{name} tp 0"].cfg, nothing_whole, (2,))
PLANTED = {
    "local-weight": Case(cfg_of("tokenizer"), local_weight, (1, 2)),
    "local-pool": Case(cfg_of("swae"), local_pool, (1, 2)),
    "local-top-k": Case(cfg_of("batch_topk_sae"), local_top_k, (1, 2)),
}


def each_its_way() -> contextlib.AbstractContextManager[Any]:
    """No bug: every second rank computes with active latents alone, the others with whole matrices."""
    return mock.patch.dict(DENSE, cpu=0.0 if dist.world().rank % 2 else inf)


MIXED = {
    f"{name} mixed": Case(cfg_of(name), each_its_way, (1, 2)) for name in ("batch_topk_sae", "jumprelu_sae", "l1_sae", "gated_sae")
}

OF_A_BATCH = ("batch_topk_sae", "jumprelu_sae")
OPTIONS = "batch_topk_sae k=8:2@6 scale_input=True unit_norm=False"
ELASTIC = {
    f"{name} elastic": Case(cfg, world_sizes=(3,), ends_at=5, begins_on=1)
    for name, cfg in [(name, cfg_of(name)) for name in OF_A_BATCH] + [(OPTIONS, FURTHER_CASES[OPTIONS].cfg)]
}


TRANSCODER = next(iter(SIDES))
ELASTIC[f"{TRANSCODER} elastic"] = Case(SIDES[TRANSCODER], world_sizes=(3,), ends_at=5, begins_on=1, of_settings=True)


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
    every |= FURTHER_CASES | HALVED | SHARDED | OF_LATENTS | IN_PARTS | PLANTED | MIXED | ELASTIC | ONSET
    return gate.run(gate.asked_for(request, every), tmp_path_factory.mktemp("registry"))


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


@pytest.mark.parametrize("name", OF_LATENTS)
def test_a_dictionary_in_parts_ends_where_one_rank_ends(results, name):
    gate.assert_parity(results[name], gate.EXACT)


@pytest.mark.cases("{name} tp 0", "{name} tp {how}")
@pytest.mark.parametrize(("name", "how"), [("topk_sae", "in groups"), ("batch_topk_sae", "by rows")])
def test_how_ranks_share_the_latents_changes_nothing(results, name, how):
    """3 ranks do not divide them."""
    gate.assert_parity({0: results[f"{name} tp 0"][1]} | results[f"{name} tp {how}"], gate.EXACT)


@pytest.mark.cases("topk_sae tp 0")
def test_a_rank_holds_its_part_of_a_dictionary(results):
    held = {n: r.bytes for n, r in results["topk_sae tp 0"].items()}
    assert {n: size <= 1.1 / n * held[1] for n, size in held.items()} == {1: True, 2: True, 3: True, 4: True}


@pytest.mark.cases("{name} tp 0", "{name} watched")
@pytest.mark.parametrize("name", ["topk_sae", "batch_topk_sae"])
def test_nothing_is_as_large_as_a_dictionary(results, name):
    """What the watched steps would have raised had failed the run."""
    gate.assert_parity({0: results[f"{name} tp 0"][1]} | results[f"{name} watched"], gate.EXACT)


@pytest.mark.cases("batch_topk_sae tp 0", "counts-of-one-rank")
def test_a_threshold_of_one_ranks_latents_breaks_parity(results):
    with pytest.raises(AssertionError, match=r"2 ranks (against|do not hold the same)"):
        gate.assert_parity({1: results["batch_topk_sae tp 0"][1]} | results["counts-of-one-rank"], gate.EXACT)


@pytest.mark.cases("topk_sae tp 0", "topk_sae tp elastic")
def test_a_dictionary_continues_whole_and_in_other_parts(results):
    """2 ranks with tp, 1 alone, 3 with tp, 2 with fsdp."""
    straight, elastic = (results[f"topk_sae tp {which}"][n]._replace(metrics={}) for which, n in (("0", 1), ("elastic", 2)))
    gate.assert_parity({0: straight, 1: elastic}, gate.EXACT)  # the ends of the first parts add rows of metrics


@pytest.mark.cases("topk_sae tp 0", "topk_sae tp resumed")
def test_a_dictionary_in_parts_resumes_bit_for_bit(results):
    straight, resumed = results["topk_sae tp 0"][3], results["topk_sae tp resumed"][3]
    assert [k for k, v in straight.tensors.items() if not torch.equal(v, resumed.tensors[k])] == []


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


@pytest.mark.parametrize("name", MIXED)
def test_ranks_need_not_compute_a_dictionary_the_same_way(results, name):
    gate.assert_parity(results[name], TOLERANCE)


@pytest.mark.cases("{name}")
@pytest.mark.parametrize("name", ["topk_sae", "batch_topk_sae", "matryoshka_sae"])
def test_dead_latents_are_among_what_agrees(results, name):
    assert results[name][1].metrics["10 train/dead"] > 0
    assert results[name][1].metrics["10 train/auxiliary"] > 0


@pytest.mark.cases("{name}", "{name} elastic")
@pytest.mark.parametrize("name", [*OF_A_BATCH, OPTIONS, TRANSCODER])
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
