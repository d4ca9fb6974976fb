"""Rates and penalties against torch's own."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import fresh_trainer, metrics, settings
from torch import nn
from torch.optim import lr_scheduler as torchs
from variants import make

from distae.config.models import ModelConfig
from distae.config.nets import ViTConfig
from distae.config.optim import ConstantConfig, CosineConfig, ExponentialConfig, OptimConfig, PlateauConfig, StepConfig
from distae.errors import UserError
from distae.models import build
from distae.training.optim import Schedule, layer_scales, load_optimizer_tensors, make_optimizer, optimizer_tensors

STEPS_PER_EPOCH, TOTAL = 5, 60


def torch_rates(make, per_step: bool) -> list[float]:
    """Rates of torch's scheduler at each of TOTAL steps, from a peak of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], 1.0)
    scheduler, rates = make(optimizer), []
    for step in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if per_step or (step + 1) % STEPS_PER_EPOCH == 0:
            scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("cfg", "make", "per_step"),
    [
        (ConstantConfig(), lambda o: torchs.ConstantLR(o, 1.0), True),
        (CosineConfig(), lambda o: torchs.CosineAnnealingLR(o, TOTAL), True),
        (CosineConfig(final_factor=0.1), lambda o: torchs.CosineAnnealingLR(o, TOTAL, eta_min=0.1), True),
        (StepConfig(step_size=3, gamma=0.5), lambda o: torchs.StepLR(o, 3, 0.5), False),
        (ExponentialConfig(gamma=0.9), lambda o: torchs.ExponentialLR(o, 0.9), False),
    ],
)
def test_a_schedule_is_torchs(cfg, make, per_step):
    schedule = Schedule(cfg, TOTAL, STEPS_PER_EPOCH)
    assert [schedule.factor(s) for s in range(TOTAL)] == pytest.approx(torch_rates(make, per_step), abs=1e-12)


@pytest.mark.parametrize(("factor", "patience", "min_factor"), [(0.1, 2, 0.0), (0.5, 0, 0.0), (0.5, 1, 0.2)])
def test_plateau_is_torchs(factor, patience, min_factor):
    schedule = Schedule(PlateauConfig(factor=factor, patience=patience, min_factor=min_factor), TOTAL, STEPS_PER_EPOCH)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], 1.0)
    scheduler = torchs.ReduceLROnPlateau(optimizer, factor=factor, patience=patience, min_lr=min_factor, threshold=0.0)
    for value in [5, 4, 4, 4, 4, 3, 3.5, 3.2, 3.1, 3.05, 2, 2, 2, 2, 2, 2, 1]:
        schedule.observe(value)
        scheduler.step(value)
        assert schedule.factor(0) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_a_plateau_continues_from_its_state():
    cfg = PlateauConfig(factor=0.5, patience=1)
    whole, first, second = (Schedule(cfg, TOTAL, STEPS_PER_EPOCH) for _ in range(3))
    for value in [3, 3, 3, 3, 3]:
        whole.observe(value)
    for value in [3, 3]:
        first.observe(value)
    second.plateau = replace(first.plateau)
    for value in [3, 3, 3]:
        second.observe(value)
    assert second.plateau == whole.plateau


def test_warm_up_is_linear_then_the_decay_starts():
    schedule = Schedule(CosineConfig(warmup_steps=10), TOTAL, STEPS_PER_EPOCH)
    assert [schedule.factor(s) for s in range(10)] == pytest.approx([(s + 1) / 10 for s in range(10)])
    later = Schedule(CosineConfig(), TOTAL - 10, STEPS_PER_EPOCH)
    assert [schedule.factor(s) for s in range(10, TOTAL)] == pytest.approx([later.factor(s) for s in range(TOTAL - 10)])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_weights_decay_and_vectors_do_not(name):
    """Against torch's optimizer over the same two groups, written out, not fused."""
    torch.manual_seed(0)
    mine = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    theirs = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    theirs.load_state_dict(mine.state_dict())
    cfg = OptimConfig(name=name, lr=0.05, weight_decay=0.3, momentum=0.9, betas=(0.8, 0.95), eps=1e-6)
    groups = [
        {"params": [p for n, p in theirs.named_parameters() if n in ("0.weight", "2.weight")], "weight_decay": 0.3},
        {"params": [p for n, p in theirs.named_parameters() if n not in ("0.weight", "2.weight")], "weight_decay": 0.0},
    ]
    expected = {
        "adam": lambda: torch.optim.Adam(groups, 0.05, betas=(0.8, 0.95), eps=1e-6),
        "adamw": lambda: torch.optim.AdamW(groups, 0.05, betas=(0.8, 0.95), eps=1e-6),
        "sgd": lambda: torch.optim.SGD(groups, 0.05, momentum=0.9),
    }[name]()
    optimizer = make_optimizer(cfg, list(mine.parameters()))
    for _ in range(5):
        x = torch.randn(6, 3, dtype=torch.float64)
        for model, opt in ((mine, optimizer), (theirs, expected)):
            opt.zero_grad()
            model(x).square().sum().backward()
            opt.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_is_torchs_fused_one_bit_for_bit(name):
    """Parameters without a gradient at some steps, masked updates, another rate, two groups."""
    torch.manual_seed(0)
    mine = nn.ModuleList([nn.Linear(3, 40), nn.Linear(3, 40), nn.Linear(3, 1)])
    theirs = copy.deepcopy(mine)
    groups = [
        {"params": [m.weight for m in theirs], "weight_decay": 0.3},
        {"params": [m.bias for m in theirs], "weight_decay": 0.0},
    ]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    expected = kind(groups, 0.05, betas=(0.8, 0.95), eps=1e-6, fused=True)
    optimizer = make_optimizer(
        OptimConfig(name=name, lr=0.05, weight_decay=0.3, betas=(0.8, 0.95), eps=1e-6), list(mine.parameters())
    )
    for step in range(12):
        x = torch.randn(6, 3)
        used = [m for m in range(3) if (step + m) % 3]
        pairs: list[tuple[Any, Any]] = [(mine, optimizer), (theirs, expected)]
        for models, opt in pairs:
            for group in opt.param_groups:
                group["lr"] = 0.05 / (1 + step)
            opt.zero_grad()
            sum(models[m](x).square().sum() for m in used).backward()
            opt.found_inf = torch.tensor(float(step % 4 == 3))
            opt.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
        assert all(torch.equal(optimizer.state[a][k], expected.state[b][k]) for k in ("step", "exp_avg", "exp_avg_sq"))


def test_a_masked_first_step_of_sgd_leaves_no_trace():
    """As fp16's first step often is. torch would go on from momentum that was never written."""
    masked, never = (nn.Parameter(torch.ones(64, 64)) for _ in range(2))
    first: Any  # torch reads `found_inf` without declaring it
    first, second = (make_optimizer(OptimConfig(name="sgd", momentum=0.9, lr=0.1), [p]) for p in (masked, never))
    masked.grad = torch.full_like(masked, math.inf)
    first.found_inf = torch.ones(())
    first.step()
    assert torch.equal(masked, torch.ones(64, 64))
    first.found_inf = torch.zeros(())
    for _ in range(3):
        for p, optimizer in ((masked, first), (never, second)):
            p.grad = torch.full_like(p, 2.0)
            optimizer.step()
    assert torch.equal(masked, never)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_an_optimizer_continues_from_its_tensors(name):
    def advance(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    cfg = OptimConfig(name=name, momentum=0.9)
    whole, half = nn.Linear(3, 2), nn.Linear(3, 2)
    half.load_state_dict(whole.state_dict())
    advance(whole, make_optimizer(cfg, list(whole.parameters())), 5)
    first = make_optimizer(cfg, list(half.parameters()))
    advance(half, first, 2)
    names: dict[torch.Tensor, str] = {p: n for n, p in half.named_parameters()}
    second = make_optimizer(cfg, list(half.parameters()))
    load_optimizer_tensors(second, names, {k: v.clone() for k, v in optimizer_tensors(first, names).items()})
    advance(half, second, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))


def test_layer_decay_is_that_of_beit():
    """The groups of the published code of MAE (util/lr_decay.py) for a ViT of 3 blocks: embeddings and class token are layer 0."""
    model = make("masked_ae", shape=(1, 4, 4), latent_dim=8, decoder_dim=8, patch=2, heads=2, depth=3, class_token=True)
    names = {p: name for name, p in model.named_parameters()}
    found = {names[p]: scale for p, scale in layer_scales(model, 0.75).items()}
    expected = dict.fromkeys(("embed.weight", "embed.bias", "token.weight"), 0.75**4)
    for name in (name for name in names.values() if name.startswith("encoder.blocks.")):
        layer = int(name.split(".")[2])
        expected[name.removeprefix("encoder.")] = 0.75 ** (3 - layer)  # the fourth is the last norm
    assert found == {f"encoder.{name}": pytest.approx(scale) for name, scale in expected.items()}
    groups = make_optimizer(OptimConfig(weight_decay=0.1), list(model.parameters()), layer_scales(model, 0.75)).param_groups
    assert sorted({g["lr_scale"] for g in groups}) == pytest.approx([0.75**n for n in (4, 3, 2, 1, 0)])
    got = {names[p]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert got == {name: (found.get(name, 1.0), 0.1 if p.ndim > 1 else 0.0) for p, name in names.items()}


def test_layer_decay_of_other_networks():
    mlp = make("vae", layers=(8, 5))
    scales = layer_scales(mlp, 0.5)
    assert [scales[p] for p in mlp.encoder.parameters()] == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    assert scales.keys() == {*mlp.encoder.parameters()}
    net = ViTConfig(patch=4, width=8, depth=2, heads=2)
    vit = build(ModelConfig.choices()["ae"](latent_dim=3), net, (1, 8, 8), 0)
    found = {name: layer_scales(vit, 0.5)[p] for name, p in vit.named_parameters() if name.startswith("encoder.")}
    assert {scale for name, scale in found.items() if ".embed." in name} == {0.125}
    assert {scale for name, scale in found.items() if ".last." in name} == {1.0}
    assert layer_scales(vit, 1.0) == {}
    with pytest.raises(UserError, match=r"--optim\.layer-decay 0\.5: the model has no encoder of several blocks"):
        layer_scales(make("l1_sae"), 0.5)


def test_the_rate_of_a_group_is_its_share(tmp_path):
    """Of SGD without momentum, whose updates are the rate times the gradient; with a base rate of 0.2 per 256 samples."""
    moved = {}
    for decay in (1.0, 0.5):
        optim = {"name": "sgd", "lr": OptimConfig().lr, "blr": 0.2, "layer_decay": decay}
        cfg = settings(model={"name": "ae"}, net={"dropout": 0.0}, optim=optim, steps=1, precision="fp64")
        assert cfg.peak_lr == 0.2 * cfg.global_batch_size / 256
        trainer = fresh_trainer(cfg, tmp_path / str(decay))
        before = [p.detach().clone() for p in trainer.train_step.model.parameters()]
        trainer.fit()
        trainer.close()
        trainer.tracker.close()
        assert metrics(tmp_path / str(decay))[-1].get("train/lr", cfg.peak_lr) == pytest.approx(cfg.peak_lr)
        moved[decay] = [p.detach() - b for p, b in zip(trainer.train_step.model.parameters(), before, strict=True)]
    scales = layer_scales(trainer.train_step.model, 0.5)
    assert len({*scales.values()}) > 1
    for p, whole, part in zip(trainer.train_step.model.parameters(), moved[1.0], moved[0.5], strict=True):
        torch.testing.assert_close(part, whole * scales.get(p, 1.0))
