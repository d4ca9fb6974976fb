"""N ranks end where 1 rank ends, for every network and norm; and the gate sees planted bugs."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gate
import pytest
import torch
from gate import BATCH_NORM, EXACT, SINGLE, Case
from helpers import RICH, settings

from benchmarks import scale_model
from distae.config.optim import ConstantConfig
from distae.config.parallel import HybridShardConfig, ShardConfig
from distae.distributed.parallelize import blocks_of
from distae.models import build

NETS, NORMS = ("mlp", "conv", "resnet"), ("none", "layer", "group", "batch")
ALL_NETS = ("ae", "vae")
"""Variants that run on every network and norm; test_registry runs all of them on the mlp."""


def exact(model: str, net: str, norm: str, **changes: object) -> Case:
    net_table = {"name": net, "norm": norm, "dropout": 0.1}
    return Case(settings(model={"name": model}, net=net_table, precision="fp64", **changes))


def everything() -> Case:
    """What acts on gradients, weights, rates and inputs, all at once."""
    return Case(
        settings(
            model={"name": "vae", "likelihood": "laplace", "learn_scale": True, "beta": 0.5},
            net={"name": "mlp", "dropout": 0.2, "activation": "gelu"},
            optim={"name": "adamw", "weight_decay": 0.01, "l1": 1e-3, "max_grad_norm": 5.0, "layer_decay": 0.5},
            schedule={"name": "cosine", "warmup_steps": 4}, data={"binarize": "stochastic"},
            ema=0.9, grad_accum_steps=2, precision="fp64",
        )
    )  # fmt: skip


def outputs() -> Case:
    """Several outputs per value, and an encoder that sees another form of x, parts of it hidden."""
    model = {"name": "vae", "likelihood": "gaussian_per_value", "input": "l2", "input_dropout": 0.2}
    return Case(settings(model=model, net={"name": "conv", "dropout": 0.1}, precision="fp64"))


CASES = {f"{m}-{net}-{norm}": exact(m, net, norm) for m in ALL_NETS for net in NETS for norm in NORMS}
CASES["probed"] = exact(
    "vae", "mlp", "none", probe_every=6, best_metric="val/knn_accuracy", schedule={"name": "plateau", "patience": 0}
)
CASES |= {"several-outputs": outputs(), "everything": everything(), "rae_gp-conv-batch": exact("rae_gp", "conv", "batch")}
PLACES: dict[str, Case] = {
    "vae-image-group": exact("vae", "image", "group"),
    "vae-image-batch": exact("vae", "image", "batch"),
    "tokenizer-image-group": Case(
        settings(
            model={"name": "tokenizer", "discriminator_start": 5, "discriminator_channels": 4, "discriminator_norm": "group"},
            net={"name": "image", "dropout": 0.1},
            steps=10,
            precision="fp64",
        )
    ),
    "vae-vit-tokens": Case(settings(model={"name": "vae"}, net={"name": "vit", "tokens": 3}, precision="fp64")),
    "vq_vae-conv-places": Case(
        settings(model={"name": "vq_vae"}, net={"name": "conv", "spatial": True, "dropout": 0.1}, precision="fp64")
    ),
}
CASES |= PLACES
HALVED = {
    f"{m}-{net}-{norm}-accum2": exact(m, net, norm, grad_accum_steps=2)._replace(world_sizes=(1, 3))
    for m in ALL_NETS
    for net in NETS
    for norm in NORMS[:3]
}
FLOAT32 = {
    f"{m}-{net}-fp32-sgd": Case(settings(model={"name": m}, net={"name": net, "dropout": 0.1}, optim={"name": "sgd", "lr": 1e-3}))
    for m in ALL_NETS
    for net in NETS
}


def sharded(case: Case, *world_sizes: int, size: int = 0, **changes: Any) -> Case:
    """The case with `--parallel fsdp`, or with `hsdp` over groups of `size` ranks."""
    parallel = HybridShardConfig(shard_size=size) if size else ShardConfig()
    return case._replace(cfg=replace(case.cfg, parallel=parallel, **changes), world_sizes=world_sizes)


SHORT: dict[str, Any] = {"steps": 7, "eval_every": 3, "log_every": 2}
"""With steps after evaluations."""
WIDE = {"latent_dim": 24, "likelihood": "gaussian", "learn_scale": True}
VIT = {"name": "vit", "width": 16, "depth": 2, "heads": 2, "patch": 4}
WHOLE = {
    "steady": Case(replace(everything().cfg, schedule=ConstantConfig(warmup_steps=4), **SHORT), world_sizes=(1,)),
    "conv-batch": exact("vae", "conv", "batch", probe_every=6, **SHORT)._replace(world_sizes=(1,)),
    "resnet-group": exact("vae", "resnet", "group", **SHORT)._replace(world_sizes=(1,)),
    "vit": Case(settings(model={"name": "vae"}, net=VIT, precision="fp64", **SHORT), world_sizes=(1,)),
    "wide": Case(
        settings(net={"hidden": [96, 48]}, model=WIDE, steps=3, grad_accum_steps=2, precision="fp64"),
        gate.counted,
        world_sizes=(1,),
    ),
    "rich": Case(settings(**RICH | SHORT), world_sizes=(1,)),
}
CHECKPOINTING = {name: case._replace(cfg=replace(case.cfg, checkpoint_activations=True)) for name, case in WHOLE.items()}
IN_PARTS = {
    "steady fsdp": sharded(WHOLE["steady"], 1, 2, 3),
    "steady hsdp": sharded(WHOLE["steady"], 4, size=2),
    "steady fsdp-checkpointed": sharded(CHECKPOINTING["steady"], 2),
    "conv-batch fsdp": sharded(WHOLE["conv-batch"], 2),
    "conv-batch checkpointed": CHECKPOINTING["conv-batch"]._replace(world_sizes=(1, 2)),
    "conv-batch fsdp-checkpointed": sharded(CHECKPOINTING["conv-batch"], 2),
    "resnet-group fsdp": sharded(WHOLE["resnet-group"], 3),
    "resnet-group checkpointed": CHECKPOINTING["resnet-group"]._replace(world_sizes=(1, 2)),
    "vit fsdp-checkpointed": sharded(CHECKPOINTING["vit"], 2),
    "wide ddp": WHOLE["wide"]._replace(world_sizes=(4,)),
    "wide fsdp": sharded(WHOLE["wide"], 2, 4),
    "wide hsdp": sharded(WHOLE["wide"], 4, size=2),
}
"""Each must end where the case named first ends on one rank."""


def tokenizer(bottleneck: str) -> Case:
    """Across the discriminator's start, with all that is of the global batch: batch norms, adaptive weight, codes, accumulation."""
    model = {"bottleneck": bottleneck, "codebook_size": 8, "discriminator_channels": 4, "discriminator_start": 1, "lecam": 0.1}
    net = {"name": "conv", "channels": [4], "norm": "batch", "spatial": True}
    table: dict[str, Any] = {"model": {"name": "tokenizer"} | model, "net": net, "precision": "fp64", "grad_accum_steps": 2}
    return Case(settings(**table, steps=3, log_every=1, eval_every=3), world_sizes=(1,))


WHOLE |= {f"tokenizer-{bottleneck}": tokenizer(bottleneck) for bottleneck in ("kl", "vq")}
IN_PARTS |= {
    "tokenizer-kl ddp": WHOLE["tokenizer-kl"]._replace(world_sizes=(4,)),
    "tokenizer-kl hsdp": sharded(WHOLE["tokenizer-kl"], 4, size=2),
    "tokenizer-vq fsdp": sharded(WHOLE["tokenizer-vq"], 4),
}
FURTHER = {
    "resumed": sharded(WHOLE["steady"], 3)._replace(ends_at=4),
    "elastic": WHOLE["steady"]._replace(legs=(gate.Leg(2, 2), gate.Leg(3, 5, ShardConfig()))),
    "rich fsdp": sharded(WHOLE["rich"], 2),
    "rich fsdp-bf16": sharded(WHOLE["rich"], 2, precision="bf16"),
    "scalars-not-averaged": sharded(WHOLE["steady"], 2)._replace(plant=gate.scalars_not_averaged),
    "noise-drawn-on": CHECKPOINTING["resnet-group"]._replace(plant=gate.noise_drawn_on),
}
PLANTED = {
    "dropped-gradient": exact("ae", "mlp", "none")._replace(plant=gate.dropped_gradient, world_sizes=(1, 2)),
    "local-batch-norm": exact("ae", "mlp", "batch")._replace(plant=gate.local_batch_norm, world_sizes=(1, 2)),
    "noise-per-rank": exact("vae", "mlp", "none")._replace(plant=gate.noise_per_rank, world_sizes=(1, 2)),
    "dropped-gradient-fp32": FLOAT32["ae-mlp-fp32-sgd"]._replace(plant=gate.dropped_gradient, world_sizes=(1, 2)),
    "one-shuffle": exact("ae", "mlp", "none")._replace(plant=gate.one_shuffle, world_sizes=(1, 2)),
    "buckets": exact("vae", "mlp", "none", ddp={"bucket_mb": 1e-3})._replace(world_sizes=(1, 3)),
    "compiled": exact("vae", "conv", "batch", compile=True)._replace(plant=gate.traced, world_sizes=(1, 2)),
    "bf16-gradients": exact("ae", "mlp", "none", log_every=1, ddp={"compression": "bf16"})._replace(world_sizes=(1, 2)),
    "fp16-gradients": exact("ae", "mlp", "none", log_every=1, ddp={"compression": "fp16"})._replace(world_sizes=(1, 2)),
}


pytestmark = pytest.mark.timeout(900)
"""The first test waits for all cases."""


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    every = CASES | HALVED | FLOAT32 | WHOLE | IN_PARTS | FURTHER | PLANTED
    return gate.run(gate.asked_for(request, every), tmp_path_factory.mktemp("gate"))


@pytest.mark.parametrize("name", CASES)
def test_world_sizes_agree(results, name):
    gate.assert_parity(results[name], BATCH_NORM if name.endswith("batch") else EXACT)


@pytest.mark.cases("{whole}", "{whole}-accum2")
@pytest.mark.parametrize("whole", [name.removesuffix("-accum2") for name in HALVED])
def test_accumulation_changes_nothing(results, whole):
    gate.assert_parity({0: results[whole][1]} | results[f"{whole}-accum2"], EXACT)


@pytest.mark.cases("{whole}", "{whole} {how}")
@pytest.mark.parametrize(("whole", "how"), [name.split(" ") for name in IN_PARTS])
def test_how_a_model_is_held_changes_nothing(results, whole, how):
    gate.assert_parity({0: results[whole][1]} | results[f"{whole} {how}"], BATCH_NORM if whole.endswith("batch") else EXACT)


@pytest.mark.cases("tokenizer-kl", "tokenizer-vq")
@pytest.mark.parametrize("name", ["tokenizer-kl", "tokenizer-vq"])
def test_the_start_of_a_discriminator_is_among_what_agrees(results, name):
    found = [results[name][1].metrics[f"{step} train/adaptive_weight"] for step in (1, 2, 3)]
    assert found[0] == 0 < min(found[1:])


@pytest.mark.cases("steady fsdp", "resumed")
def test_a_sharded_run_resumes_bit_for_bit(results):
    straight, resumed = results["steady fsdp"][3], results["resumed"][3]
    assert [k for k, v in straight.tensors.items() if not torch.equal(v, resumed.tensors[k])] == []


@pytest.mark.cases("steady", "elastic")
def test_a_run_continues_on_other_ranks_with_other_parts(results):
    """2 ranks with ddp, 3 with fsdp, 1 alone."""
    straight, elastic = (result[1]._replace(metrics={}) for result in (results["steady"], results["elastic"]))
    gate.assert_parity({0: straight, 1: elastic}, EXACT)  # the ends of the first parts add rows of metrics


@pytest.mark.cases("wide", "wide fsdp", "wide hsdp")
def test_a_rank_holds_its_share(results):
    one = results["wide"][1].bytes
    held = {(how, n): r.bytes for how in ("fsdp", "hsdp") for n, r in results[f"wide {how}"].items()}
    assert held.keys() == {("fsdp", 2), ("fsdp", 4), ("hsdp", 4)}
    assert held["fsdp", 2] <= 1.1 / 2 * one
    assert held["fsdp", 4] <= 1.1 / 4 * one
    assert held["hsdp", 4] <= 1.1 / 2 * one


def in_parts(parameters: list[torch.nn.Parameter], parts: int) -> float:
    """Bytes in float64: a part is whole rows, and all are padded to the length of the longest."""
    return 8 * sum(parts * -(-len(p) // parts) * p[0].numel() for p in parameters)


@pytest.mark.cases("wide ddp", "wide fsdp", "wide hsdp")
@pytest.mark.parametrize(("how", "ranks", "parts"), [("ddp", 4, 1), ("fsdp", 2, 2), ("fsdp", 4, 4), ("hsdp", 4, 2)])
def test_the_scale_model_is_what_is_held_and_sent(results, how, ranks, parts):
    cfg, result = WHOLE["wide"].cfg, results[f"wide {how}"][ranks]
    model = build(cfg.model, cfg.net, (1, 8, 8))
    blocks = [p for block in blocks_of(model) for p in block.parameters()]
    whole = [p for p in model.parameters() if not p.ndim]
    rest = [p for p in model.parameters() if not any(p is q for q in [*blocks, *whole])]
    divided = in_parts(blocks, parts), in_parts(rest, parts), 8.0 * len(whole)
    expected = scale_model.exchanged(*divided, ranks, parts, micro_steps=2)
    assert result.exchanged == pytest.approx(expected, abs=16)  # a scalar alone is not counted
    assert result.bytes == pytest.approx(scale_model.held(sum(divided[:2]), divided[2], parts), rel=0.01)


@pytest.mark.cases("rich", "rich fsdp", "rich fsdp-bf16")
@pytest.mark.parametrize("how", ["fsdp", "fsdp-bf16"])
def test_sharded_half_precision_is_near(results, how):
    half, single = results[f"rich {how}"][2], results["rich"][1]
    assert half.metrics["7 val/loss"] == pytest.approx(single.metrics["7 val/loss"], rel=0.02)
    assert not half.apart


@pytest.mark.parametrize("name", FLOAT32)
def test_world_sizes_agree_in_single_precision(results, name):
    gate.assert_parity(results[name], SINGLE)


@pytest.mark.parametrize("name", [*CASES, *HALVED])
def test_the_order_is_torchs_own(results, name):
    for result in results[name].values():
        gate.assert_order(result, (CASES | HALVED)[name].cfg)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dropped-gradient", "2 ranks against 1"),
        ("dropped-gradient-fp32", "2 ranks against 1"),
        ("local-batch-norm", "2 ranks (against 1|do not hold the same)"),
        ("noise-per-rank", "2 ranks against 1"),
    ],
)
def test_a_planted_bug_breaks_parity(results, name, reason):
    with pytest.raises(AssertionError, match=reason):
        gate.assert_parity(results[name], SINGLE if name.endswith("fp32") else BATCH_NORM)


@pytest.mark.cases("{whole}", "{name}")
@pytest.mark.parametrize(("name", "whole"), [("scalars-not-averaged", "steady"), ("noise-drawn-on", "resnet-group")])
def test_a_bug_in_what_is_kept_in_parts_breaks_parity(results, name, whole):
    with pytest.raises(AssertionError, match=r"differs by|do not hold the same"):
        gate.assert_parity({0: results[whole][1]} | results[name], BATCH_NORM)


@pytest.mark.cases("one-shuffle")
def test_one_shuffle_for_all_epochs_breaks_the_order(results):
    gate.assert_parity(results["one-shuffle"], EXACT)  # which alone does not see it
    with pytest.raises(AssertionError):
        gate.assert_order(results["one-shuffle"][2], PLANTED["one-shuffle"].cfg)


@pytest.mark.cases("vae-conv-batch", "compiled")
def test_compiled_programs_agree_too(results):
    gate.assert_parity({0: results["vae-conv-batch"][1]} | results["compiled"], BATCH_NORM)


@pytest.mark.cases("buckets")
def test_small_buckets_change_nothing(results):
    gate.assert_parity(results["buckets"], EXACT)


@pytest.mark.cases("{kind}-gradients")
@pytest.mark.parametrize(("kind", "rounding"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_compressed_gradients_are_rounded_and_give_up_parity(results, kind, rounding):
    alone, two = results[f"{kind}-gradients"][1], results[f"{kind}-gradients"][2]
    assert EXACT < abs(two.metrics["1 train/grad_norm"] / alone.metrics["1 train/grad_norm"] - 1) < rounding
    assert two.metrics["20 val/loss"] == pytest.approx(alone.metrics["20 val/loss"], rel=0.02)


def test_only_the_cases_of_the_chosen_tests_run(request):
    """What `-k "mlp and accum"` leaves."""
    chosen = [i for i in request.session.items if "test_accumulation_changes_nothing[vae-mlp-none]" in i.name] or pytest.skip("-k")
    some: Any = SimpleNamespace(session=SimpleNamespace(items=chosen), path=request.path, fixturename="results")
    assert [*gate.asked_for(some, CASES | HALVED | PLANTED)] == ["vae-mlp-none", "vae-mlp-none-accum2"]
