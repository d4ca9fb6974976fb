"""The optimizer step against loops written by hand, and with numbers that are not finite."""

import math
from dataclasses import replace
from itertools import count, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import fitted, fresh_trainer, metrics, settings, splits, spy
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from variants import noise

from benchmarks.crash import timeless
from distae import distributed as dist
from distae.config.check import identity_settings
from distae.data import Split
from distae.errors import TrainingError
from distae.models import build
from distae.training.step import TrainStep, explaining_memory

OPTIM = {
    "plain": {},
    "l2": {"weight_decay": 0.3},
    "l1": {"l1": 0.2},
    "clip": {"max_grad_norm": 0.5},
    "all": {"weight_decay": 0.3, "l1": 0.2, "max_grad_norm": 3.0},
}


def by_hand(cfg, orders: list[torch.Tensor]) -> nn.Module:
    """The same training, every term of the objective written out."""
    model: Any = build(cfg.model, cfg.net, (1, 8, 8), cfg.seed, dtype=torch.float64)
    data, optim = splits()["train"], cfg.optim
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optim.name]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    decay = {"weight_decay": optim.weight_decay} if optim.name == "adamw" else {}
    optimizer = kind([{"params": matrices, **decay}, {"params": vectors, "weight_decay": 0.0}], optim.lr)
    for rows in orders:
        x = data.x[rows].double() / 255
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model.decoder(model.encoder(x, None), None), x, reduction="none")
        penalty = sum(w.abs().sum() for w in matrices) * optim.l1
        (loss.sum((1, 2, 3)).mean() + penalty).backward()
        if optim.max_grad_norm:
            nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
        if optim.name != "adamw":
            for w in matrices:
                w.grad += optim.weight_decay * w.detach()
        optimizer.step()
    return model


@pytest.mark.parametrize("accum", [1, 3])
@pytest.mark.parametrize("case", OPTIM)
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_step_is_the_hand_written_one(name, case, accum, tmp_path):
    cfg = settings(optim={"name": name, **OPTIM[case]}, precision="fp64", steps=6, grad_accum_steps=accum)
    trainer = fresh_trainer(cfg, tmp_path)
    orders = []
    for step, rows in zip(range(6), trainer.sampler, strict=False):
        orders.append(rows.flatten())
        trainer.train_step(step, rows)
    trainer.close()
    for mine, expected in zip(trainer.train_step.model.parameters(), by_hand(cfg, orders).parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("model", "phases"), [("vae", 1), ("aae", 3)])
@pytest.mark.parametrize("accum", [1, 3])
def test_a_batch_is_fetched_once_per_micro_step(model, phases, accum, tmp_path, monkeypatch):
    """Whatever the number of phases, all of which see the same binarised values, with noise of their own."""
    cfg = settings(model={"name": model}, data={"binarize": "stochastic"}, grad_accum_steps=accum, net={"dropout": 0.5})
    trainer = fresh_trainer(cfg, tmp_path)
    fetched, seen, loader, kind = list[torch.Tensor](), list[Any](), trainer.loaders["train"], type(trainer.train_step.model)
    monkeypatch.setattr(loader, "batch", spy(loader.batch, lambda rows, noise, training: fetched.append(rows)))
    monkeypatch.setattr(kind, "forward", spy(kind.forward, lambda self, b, *how: seen.append((b.x, how))))
    for step, rows in zip(range(2), trainer.sampler, strict=False):
        trainer.train_step(step, rows)
        assert torch.equal(torch.stack(fetched), rows)
        assert len(seen) == phases * accum
        for (x, _), again in zip(seen, range(phases * accum), strict=True):
            assert torch.equal(x, seen[again % accum][0])
        keys = {(noise.key, noise.rows) for _, (_, noise) in seen}
        assert len(keys) == phases * accum
        fetched.clear()
        seen.clear()
    trainer.close()


@pytest.mark.parametrize("accum", [1, 2])
def test_a_tokenizers_image_passes_through_its_networks_once_per_step(accum, tmp_path, monkeypatch):
    """The discriminator judges the reconstructions that its micro-step's autoencoder made: a quarter of the step otherwise."""
    cfg = settings(model={"name": "tokenizer"}, net={"name": "image"}, global_batch_size=8, grad_accum_steps=accum, steps=1)
    trainer = fresh_trainer(cfg, tmp_path)
    model: Any = trainer.train_step.model
    made, judged = list[torch.Tensor](), list[torch.Tensor]()
    model.codec.decoder.register_forward_hook(lambda _, inputs, out: made.append(out))
    model.discriminator.register_forward_hook(lambda _, inputs, out: judged.append(inputs[0]))
    trainer.train_step(0, next(iter(trainer.sampler)))
    trainer.close()
    assert len(made) == accum
    assert all(torch.equal(fake, y) for fake, y in zip(judged[accum + 1 :: 2], made, strict=True))


@pytest.mark.parametrize(("model", "together"), [("vae", False), ("topk_sae", True)])
def test_only_a_start_from_the_data_holds_all_micro_batches_at_once(model, together, tmp_path, monkeypatch):
    """Accumulation is there to save memory."""
    seen: list[str] = []
    trainer = fresh_trainer(settings(model={"name": model, "latent_dim": 32}, grad_accum_steps=3, steps=1), tmp_path)
    monkeypatch.setattr(TrainStep, "_fetch", spy(TrainStep._fetch, lambda *_: seen.append("fetch")))
    monkeypatch.setattr(TrainStep, "_backward", spy(TrainStep._backward, lambda *_: seen.append("backward")))
    trainer.train_step(0, next(iter(trainer.sampler)))
    trainer.close()
    assert seen == (["fetch"] * 3 + ["backward"] * 3 if together else ["fetch", "backward"] * 3)


def test_accumulation_changes_a_tokenizer_only_where_its_samples_are_coupled(tmp_path):
    """As docs/image_tokenizers.md says: by the ratio of gradients and by batch norm, both of a micro-batch; then runs differ."""
    apart = {"adaptive_weight": False, "discriminator_norm": "group"}
    ends: dict[bool, list[Any]] = {}
    for is_apart, accum in product((True, False), (1, 2)):
        model = {"name": "tokenizer", "discriminator_channels": 4, "discriminator_start": 1} | (apart if is_apart else {})
        cfg = settings(model=model, net={"name": "image"}, grad_accum_steps=accum, precision="fp64", optim={"lr": 1e-3})
        trainer = fresh_trainer(cfg, tmp_path / f"{is_apart}{accum}")
        for step, rows in zip(range(3), trainer.sampler, strict=False):
            trainer.train_step(step, rows)
        trainer.close()
        ends.setdefault(is_apart, []).append((identity_settings(cfg), parameters_to_vector(trainer.train_step.model.parameters())))
    (one, first), (other, second) = ends[True]
    assert one == other
    torch.testing.assert_close(first, second, rtol=1e-7, atol=1e-10)
    (one, first), (other, second) = ends[False]
    assert one != other
    assert not torch.allclose(first, second, rtol=1e-7, atol=1e-10)


def test_the_average_is_torchs(tmp_path):
    trainer = fresh_trainer(settings(ema=0.8, net={"norm": "batch"}), tmp_path)
    train_step = trainer.train_step
    torchs = AveragedModel(train_step.model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    torchs.update_parameters(train_step.model)  # its first call copies: the average starts at the initial weights
    for step, rows in zip(range(6), trainer.sampler, strict=False):
        train_step(step, rows)
        torchs.update_parameters(train_step.model)
    trainer.close()
    assert train_step.ema
    for (name, mine), (_, expected) in zip(
        train_step.ema.model.state_dict().items(), torchs.module.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(mine, expected, msg=name)


def test_logged_terms_are_means_over_the_window(tmp_path):
    cfg = settings(model={"name": "vae", "beta": 3.0}, precision="fp64", steps=6, log_every=3, optim={"lr": 1e-12})
    fitted(cfg, tmp_path)
    rows = [row for row in metrics(tmp_path) if "train/loss" in row]
    assert [row["step"] for row in rows] == [3, 6]
    for row in rows:
        assert row["train/loss"] == pytest.approx(row["train/recon"] + 3 * row["train/kl"])
    still = settings(precision="fp64", steps=6, log_every=3, optim={"lr": 1e-12})
    trainer = fitted(still, tmp_path / "ae")
    x, _ = trainer.loaders["train"].batch(torch.cat(list(trainer.sampler))[:3].flatten(), noise(72))
    model: Any = trainer.train_step.model
    expected = float(model.likelihood(model.decoder(model.encode(x).z, None), x).mean().detach())
    assert metrics(tmp_path / "ae")[0]["train/loss"] == pytest.approx(expected, rel=1e-6)


def with_nan(at: int) -> dict[str, Split]:
    """Float data of which sample `at` of the training split holds a NaN."""
    values = {k: v.x.float() / 255 for k, v in splits().items()}
    values["train"][at, 0, 0, 0] = float("nan")
    return {k: Split.of(x) for k, x in values.items()}


@pytest.mark.parametrize("optim", ["adam", "adamw", "sgd"])
def test_a_nan_sample_is_masked_and_named(optim, tmp_path):
    """The step is named, its update is not applied, and nothing is saved after it."""
    cfg = settings(model={"likelihood": "gaussian"}, optim={"name": optim, "lr": 1e-3}, log_every=5, save_every=1)
    trainer = fresh_trainer(cfg, tmp_path)
    orders = torch.cat(list(trainer.sampler)).view(-1, 24)
    trainer.close()
    step, victim = 3, int(orders[3, 5])
    trainer = fresh_trainer(cfg, tmp_path / "a", with_nan(victim))
    with pytest.raises(TrainingError, match=r"train/loss, train/recon became non-finite at step 4; that update was not applied"):
        trainer.fit()
    trainer.close()
    saved = sorted(p.name for p in (tmp_path / "a" / "checkpoints").iterdir())
    assert saved == ["step_00000002", "step_00000003"]
    assert all(p.isfinite().all() for p in trainer.train_step.model.parameters())
    reference = fresh_trainer(cfg, tmp_path / "b")
    for i in range(step):
        reference.train_step(i, orders[i : i + 1])
    reference.close()
    clean = splits()["train"]
    assert clean.transform.scale == 255
    for a, b in zip(trainer.train_step.model.parameters(), reference.train_step.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_gradient_alone_that_is_not_finite_is_named(tmp_path):
    trainer = fresh_trainer(settings(log_every=4, save_every=1000), tmp_path)
    calls = count(1)
    weight = next(trainer.train_step.model.parameters())
    weight.register_hook(lambda g: g * float("inf") if next(calls) == 3 else g)
    with pytest.raises(TrainingError, match="the gradient became non-finite at step 3; that update was not applied"):
        trainer.fit()
    trainer.close()
    assert all(p.isfinite().all() for p in trainer.train_step.model.parameters())
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("net", "model", "precision"),
    [
        ("conv", "vae", "bf16"),
        ("mlp", "ae", "fp16"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in product(("mlp", "conv"), ("ae", "vae"), ("bf16", "fp16"))
            if case not in {("conv", "vae", "bf16"), ("mlp", "ae", "fp16")}
        ),
    ],
)
def test_autocast_stays_near_single_precision(net, model, precision, tmp_path):
    """fp16 with its loss scaler. Likelihood and KL are summed in single precision."""
    runs = {}
    for kind in ("fp32", precision):
        cfg = settings(model={"name": model}, net={"name": net, "norm": "batch"}, precision=kind, optim={"max_grad_norm": 50.0})
        trainer = fitted(cfg, tmp_path / kind)
        assert {p.dtype for p in trainer.train_step.model.parameters()} == {torch.float32}
        runs[kind] = {k: v for row in metrics(tmp_path / kind) for k, v in row.items() if k in ("val/loss", "test/loss")}
    assert runs[precision] == pytest.approx(runs["fp32"], rel={"bf16": 0.02, "fp16": 0.01}[precision])
    assert runs[precision] != runs["fp32"]


def test_a_skipped_step_of_the_loss_scaler_counts_as_a_step(tmp_path):
    trainer = fresh_trainer(settings(precision="fp16", steps=3, log_every=1), tmp_path)
    scaler, before = trainer.train_step.scaler, [p.clone() for p in trainer.train_step.model.parameters()]
    assert scaler
    scaler._init_scale = 2.0**60  # overflows float16 in the first backward
    assert trainer.fit()
    trainer.close()
    assert trainer.state.step == 3
    assert scaler.get_scale() < 2.0**60
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.train_step.model.parameters(), strict=True))


def test_a_loss_scale_that_collapses_ends_the_run(tmp_path):
    trainer = fresh_trainer(settings(precision="fp16", steps=60, log_every=10), tmp_path)
    for p in trainer.train_step.model.parameters():
        p.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(TrainingError, match=r"fp16 gradients overflow even at a loss scale of .* \(step 30\)"):
        trainer.fit()
    trainer.close()


def test_a_single_process_is_not_wrapped(tmp_path):
    trainer = fresh_trainer(settings(), tmp_path)
    trainer.close()
    assert set(trainer.train_step.wrapped.values()) == {trainer.train_step.model}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_says_what_to_change(error):
    with (
        pytest.raises(
            TrainingError, match=r"micro-batch of 4 samples .*raise --grad-accum-steps \(now 2\) or the number of processes"
        ),
        explaining_memory(settings(grad_accum_steps=2), world_size=3),
    ):
        raise error
    with (
        pytest.raises(TrainingError, match=r"micro-batch of 1 samples .*no smaller one is possible: give a smaller --net"),
        explaining_memory(settings(grad_accum_steps=24), world_size=1),
    ):
        raise MemoryError
    with pytest.raises(RuntimeError, match="another"), explaining_memory(settings(), 1):
        raise RuntimeError("another")


def test_early_stop_and_best(tmp_path):
    """With a rate that leads nowhere nothing improves after the first evaluation."""
    cfg = settings(optim={"lr": 1e-30}, eval_every=2, early_stop={"patience": 3}, steps=20)
    trainer = fitted(cfg, tmp_path)
    assert trainer.state.step == 8
    assert trainer.state.best_step == 2


def test_the_rate_drops_on_a_plateau(tmp_path):
    cfg = settings(
        optim={"lr": 1e-30}, eval_every=2, log_every=2, steps=12, schedule={"name": "plateau", "patience": 1, "factor": 0.5}
    )
    fitted(cfg, tmp_path)
    rates = [row["train/lr"] / 1e-30 for row in metrics(tmp_path) if "train/lr" in row]
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.5, 0.25])


@pytest.mark.slow
def test_channels_last_changes_nothing_and_resumes_bit_for_bit(tmp_path):
    cfg = settings(model={"name": "vae"}, net={"name": "conv", "norm": "batch"}, steps=6, log_every=1, eval_every=6)
    last = replace(cfg, channels_last=True)
    trainer = fitted(last, tmp_path / "last")
    kernel = next(p for p in trainer.train_step.model.parameters() if p.ndim == 4 and p.shape[1] > 1)
    moment = trainer.train_step.optimizers["autoencoder"].state[kernel]["exp_avg"]
    assert kernel.stride() == moment.stride() != kernel.contiguous().stride()
    fitted(cfg, tmp_path / "first")
    for mine, expected in zip(metrics(tmp_path / "last"), metrics(tmp_path / "first"), strict=True):
        assert timeless(mine) == pytest.approx(timeless(expected), rel=1e-4)
    for steps in (3, 6):
        fitted(replace(last, steps=steps), tmp_path / "stopped")
    models = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("last", "stopped")]
    assert models[0] == models[1]


def test_tf32_is_off_unless_asked_for():
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        for allowed in (False, True):
            dist.set_tf32(allowed)
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
            assert [b.fp32_precision == "tf32" for b in (matmul, cudnn.conv)] == [allowed, allowed]
            with cudnn.flags():
                pass
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
