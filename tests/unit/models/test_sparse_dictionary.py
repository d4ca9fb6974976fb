"""Sparse autoencoders against their formulas."""

from math import inf
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from helpers import fitted, settings
from variants import data, make, run, train

from distae.config.weights import Ramp
from distae.errors import UserError
from distae.models.sparse_dictionary import DENSE, Seen
from distae.nn.sparse import _by_rows, geometric_median, global_kth, jump_relu, step

NAMES = ("topk_sae", "batch_topk_sae", "matryoshka_sae", "jumprelu_sae", "l1_sae", "gated_sae")
OF_K = NAMES[:3]
FREE = ("jumprelu_sae", "l1_sae")
"""Decoder vectors of these have any length by default."""


def sae(name, **changes):
    few = {"prefixes": [0.25, 0.5]} if name == "matryoshka_sae" else {}
    return make(name, **{"latent_dim": 16} | ({"k": 3} if name in (*OF_K, "jumprelu_sae") else {}) | few | changes)


def pre_of(model, x):
    return (x - model.bias) @ model.encoder.T + model.encoder_bias


def unit(model):
    return model.decoder / model.decoder.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("name", NAMES)
def test_encoder_and_decoder_start_equal_and_of_one_length(name):
    model = sae(name)
    assert torch.equal(model.encoder, model.decoder)
    length = 0.1 if name in FREE else 1.0
    torch.testing.assert_close(model.decoder.norm(dim=1), torch.full((16,), length, dtype=torch.float64), atol=1e-6, rtol=0)


def test_thresholds_do_not_fall_below_0():
    model = sae("jumprelu_sae", threshold=0.2)
    with torch.no_grad():
        model.threshold[0] = -1.0
    model.after_step(1)
    torch.testing.assert_close(model.threshold, torch.tensor([0.0] + [0.2] * 15, dtype=torch.float64))


def test_the_bias_starts_at_the_geometric_median():
    x = data(40)
    x[0] += 1e6
    median = geometric_median(x)
    away = x - median
    assert (away / away.norm(dim=1, keepdim=True)).sum(0).norm() < 1e-6  # the gradient of the sum of distances
    model = sae("topk_sae")
    model.start(x)
    assert torch.equal(model.bias, median)


def test_topk_keeps_the_largest_of_each_sample():
    model, x = sae("topk_sae"), data(20)
    pre = pre_of(model, x)
    least = pre.sort(1, descending=True).values[:, [2]]
    expected = torch.where(pre >= least, pre, 0.0).relu()
    assert torch.equal(model.encode(x).z, expected)
    out = run(model, x)
    recon = expected @ unit(model) + model.bias
    torch.testing.assert_close(out.recon, recon)
    torch.testing.assert_close(out.per_sample["loss"], model.likelihood(recon, x))
    assert torch.equal(out.per_sample["l0"], (expected > 0).sum(1).double())


WAYS: dict[str, dict[str, object]] = {
    **{name: {"aux_k": 2} for name in OF_K}, "topk_sae multi": {"multi_weight": 0.5}, "l1_sae": {}, "gated_sae": {},
    "jumprelu_sae": {"bandwidth": 0.3}, "jumprelu_sae narrow": {"bandwidth": 0.02}, "jumprelu_sae unit": {"unit_norm": True},
    "jumprelu_sae activations": {"l0_from": "activations", "bandwidth": 0.3},
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_computing_with_active_latents_alone_changes_nothing(name):
    """Loss, terms, counts and all gradients. From 2 latents for each active one, thresholds' windows are too wide but `narrow`."""
    found = {bound: computed(name, bound) for bound in (inf, 2.0, 0.0)}
    assert 1 < found[inf]["l0"].mean() < 6
    assert [key for key, value in found[inf].items() if value.double().norm() < 1e-3] == []
    for bound in (2.0, 0.0):
        for key, value in found[inf].items():
            torch.testing.assert_close(found[bound][key], value, rtol=1e-12, atol=1e-12, msg=key)


def computed(name, bound):
    """What a model gives whose latents are taken one by one from `bound` latents for each active one."""
    model, x = sae(name.split()[0], dead_after=100, likelihood="laplace", **WAYS[name]), data(40) - 0.5
    model.silent[:5] = 100
    with torch.no_grad():
        model.bias.copy_(x[0])
        model.encoder.copy_(unit(model))
        for key, parameter in model.named_parameters():
            if key in ("encoder_bias", "log_magnitude", "magnitude_bias", "threshold"):
                parameter.copy_(torch.linspace(-0.8, 0.1, 16) if key == "encoder_bias" else torch.linspace(0.1, 0.3, 16))
    with mock.patch.dict(DENSE, cpu=bound), mock.patch.object(model, "sparse", wraps=model.sparse) as sparse:
        out = run(model, x)
        out.loss.backward()
    assert bool(sparse.call_count) == (bound != inf)
    return {"x": out.recon, **out.per_sample, "n": model.activity, **{key: p.grad for key, p in model.named_parameters()}}


@pytest.mark.parametrize("name", OF_K)
def test_auxk_is_the_residual_as_dead_latents_see_it(name):
    model, x = sae(name, dead_after=100, aux_k=2), data(20)
    assert not run(model, x).per_sample["auxiliary"].any()
    model.silent[:5] = 100
    out = run(model, x)
    error = x - out.recon
    top = pre_of(model, x)[:, :5].topk(2, dim=1)
    revived = torch.zeros(20, 5, dtype=torch.float64).scatter(1, top.indices, top.values.relu()) @ unit(model)[:5]
    expected = 0.5 * (error - revived).square().sum(1)
    torch.testing.assert_close(out.per_sample["auxiliary"], expected)
    objective = out.per_sample["prefixes" if name == "matryoshka_sae" else "recon"]
    torch.testing.assert_close(out.per_sample["loss"], objective + expected / 32)
    assert out.per_batch["dead"] == 5 / 16


def test_auxk_trains_dead_latents_alone():
    model, x = sae("topk_sae", dead_after=100), data(20)
    model.silent[:5] = 100
    out = model.auxiliary(Seen(x, pre_of(model, x)), x - x.mean(0))
    out.sum().backward()
    assert model.decoder.grad[:5].any()
    assert not model.decoder.grad[5:].any()


def test_batch_topk_keeps_the_largest_of_the_batch():
    model, x = sae("batch_topk_sae"), data(20)
    pre = pre_of(model, x)
    out = run(model, x)
    least = pre.flatten().sort(descending=True).values[59]
    assert out.per_sample["l0"].sum() == 60
    assert out.per_sample["l0"].unique().numel() > 1
    torch.testing.assert_close(out.recon, torch.where(pre >= least, pre, 0.0) @ unit(model) + model.bias)
    model.after_step(1)
    torch.testing.assert_close(model.threshold, least.detach())
    assert torch.equal(model.encode(x).z, torch.where(pre >= least, pre, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kth_is_found_by_its_digits(dtype):
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(0), dtype=dtype) * torch.logspace(-30, 30, 40, dtype=dtype)
    x[0], x[1, :9], x[2, 0] = -0.0, 1.5, torch.inf
    ordered = x.flatten().sort(descending=True).values
    for k in (1, 2, 7, 19, 20, 40):
        expected = ordered[50 * k - 1].clamp_min(0)
        assert expected == _by_rows(torch.where(x > 0, x, 0.0).flatten(), 50 * k)
        for near in (torch.zeros_like(expected), expected / 2, expected, expected * 1.5, expected * 1e6):
            assert global_kth(x, k, near) == expected


def test_where_fewer_are_positive_no_others_are_kept():
    assert global_kth(torch.tensor([[1.0, -1.0], [-2.0, -3.0]]), 2, torch.tensor(0.5)) == 0
    model, x = sae("batch_topk_sae", k=16), data(20)
    assert run(model, x).per_sample["l0"].sum() == (pre_of(model, x) > 0).sum()


@pytest.mark.parametrize("name", ["batch_topk_sae", "matryoshka_sae"])
def test_the_threshold_is_of_use_after_100_steps(name):
    x = data(400)
    model = sae(name)
    model.start(x[:200])
    train(model, x[:200], 100)
    kept = (model.encode(x[200:]).z > 0).double().sum(1).mean()
    assert abs(kept / 3 - 1) < 0.1
    out = run(model, x[200:])  # evaluation has the same codes
    torch.testing.assert_close(out.recon, model.reconstruct(x[200:]))


@pytest.mark.parametrize("name", NAMES)
def test_decoder_vectors_are_free_or_of_length_1(name):
    free, unit_, x = sae(name, unit_norm=False), sae(name, unit_norm=True), data(20)
    for model in (free, unit_):
        train(model, x, 3, lr=0.1)
    assert (free.decoder.norm(dim=1) - 1).abs().max() > 0.01
    torch.testing.assert_close(unit_.decoder.norm(dim=1), torch.ones(16, dtype=torch.float64))
    z = torch.eye(16, dtype=torch.float64)
    torch.testing.assert_close(free.decode(z), free.decoder + free.bias)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in FREE])
def test_decoder_vectors_keep_length_1_and_their_gradient_is_orthogonal(name):
    model, x = sae(name), data(20)
    run(model, x).loss.backward()
    along = (model.decoder.grad * model.decoder).sum(1)
    assert model.decoder.grad.norm() > 1e-3
    assert along.abs().max() < 1e-12
    train(model, x, 3, lr=0.1)
    torch.testing.assert_close(model.decoder.norm(dim=1), torch.ones(16, dtype=torch.float64))


def test_matryoshka_means_over_prefixes():
    model, x = sae("matryoshka_sae"), data(20)
    out = run(model, x)
    pre = pre_of(model, x)
    z = torch.where(pre >= global_kth(pre, 3, model.threshold), pre, 0.0)
    each = [model.likelihood(z[:, :n] @ unit(model)[:n] + model.bias, x) for n in (4, 8, 16)]
    torch.testing.assert_close(out.per_sample["prefixes"], torch.stack(each).mean(0))
    torch.testing.assert_close(out.per_sample["recon"], each[-1])


def test_thresholds_get_the_estimated_gradient():
    x = torch.tensor([[0.2, 0.9], [0.55, 1.02], [0.48, 3.0]], dtype=torch.float64, requires_grad=True)
    threshold = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)
    z = jump_relu(x, threshold, 0.25)
    assert torch.equal(z, torch.tensor([[0, 0], [0.55, 1.02], [0, 3.0]], dtype=torch.float64))
    (z * weight).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, weight * (x > threshold))
    torch.testing.assert_close(threshold.grad, torch.tensor([-(0.5 / 0.25) * 8, -(1 / 0.25) * 6], dtype=torch.float64))
    threshold.grad = None
    (step(x, threshold, 0.25) * weight).sum().backward()
    torch.testing.assert_close(threshold.grad, torch.tensor([-8 / 0.25, -6 / 0.25], dtype=torch.float64))


def test_jumprelu_trains_towards_k():
    model, x = sae("jumprelu_sae", weight=2.0), data(100)
    before = run(model, x)
    mean = before.per_sample["l0"].mean()
    torch.testing.assert_close(before.per_sample["loss"], before.per_sample["recon"] + 2 * (mean / 3 - 1) ** 2)
    model.start(x)
    train(model, x, 400)
    after = float((model.encode(x).z > 0).double().sum(1).mean())
    assert abs(after / 3 - 1) < 0.1 < abs(float(mean) / 3 - 1)


def test_the_l1_penalty_is_not_evaded_by_large_decoder_vectors():
    model, x = sae("l1_sae", weight=0.5), data(20)
    out = run(model, x)
    z = pre_of(model, x).relu()
    torch.testing.assert_close(out.per_sample["sparsity"], z @ model.decoder.norm(dim=1))
    torch.testing.assert_close(out.per_sample["loss"], out.per_sample["recon"] + 0.5 * out.per_sample["sparsity"])
    with torch.no_grad():
        for t, factor in ((model.encoder, 0.1), (model.encoder_bias, 0.1), (model.decoder, 10)):
            t.mul_(factor)
    torch.testing.assert_close(run(model, x).per_sample["loss"], out.per_sample["loss"])


def test_a_gate_decides_and_its_loss_leaves_the_decoder_alone():
    model, x = sae("gated_sae", weight=0.5), data(20)
    with torch.no_grad():
        model.log_magnitude.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
        model.magnitude_bias.fill_(0.05)
        model.encoder_bias.fill_(-0.2)
    gate = pre_of(model, x)
    magnitude = (x - model.bias) @ (model.log_magnitude.exp()[:, None] * model.encoder).T + model.magnitude_bias
    z = magnitude.relu() * (gate > 0)
    torch.testing.assert_close(model.encode(x).z, z)
    out = run(model, x)
    frozen = model.likelihood((gate.relu() @ unit(model) + model.bias).detach(), x)
    torch.testing.assert_close(out.per_sample["gate_recon"], frozen)
    expected = model.likelihood(z @ unit(model) + model.bias, x) + 0.5 * gate.relu().sum(1) + frozen
    torch.testing.assert_close(out.per_sample["loss"], expected)
    out.loss.backward()
    (mine,) = torch.autograd.grad(model.likelihood(z.detach() @ unit(model) + model.bias.detach(), x).mean(), [model.decoder])
    torch.testing.assert_close(model.decoder.grad, mine)


@pytest.mark.parametrize("name", NAMES)
def test_latents_are_dead_after_so_many_samples_without(name):
    model, x = sae(name, dead_after=40), data(20)
    with torch.no_grad():
        model.encoder_bias[0] = -1e6
    for at, dead in ((1, 0), (2, 1)):
        run(model, x)
        model.after_step(at)
        assert (model.silent[0], bool(model.dead[0])) == (20 * at, bool(dead))
    with torch.no_grad():
        model.encoder_bias[0] = 1e6
    run(model, x)
    model.after_step(3)
    assert model.silent[0] == 0
    model.eval()
    run(model, x)
    model.after_step(4)
    assert not model.activity.any()


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"name": "topk_sae", "likelihood": "bernoulli"}, r"valid with --model\.likelihood gaussian, laplace"),
        ({"name": "l1_sae", "input": "log1p"}, r"--model\.input as_is"),
        ({"name": "jumprelu_sae", "latent_dim": 8, "k": 9}, r"--model\.k 9: valid from 1 to --model\.latent-dim, which is 8"),
        ({"name": "topk_sae", "latent_dim": 8, "k": "9:3@5"}, r"--model\.k 9:3@5: valid from 1"),
        ({"name": "matryoshka_sae", "prefixes": [0.5, 0.25]}, r"--model\.prefixes 0\.5 0\.25"),
        ({"name": "matryoshka_sae", "latent_dim": 40}, r"--model\.prefixes"),
    ],
)
def test_settings_that_conflict_are_named(model, named):
    model = {"k": 3} | model if model["name"] not in ("l1_sae",) else model
    if model["name"] == "matryoshka_sae" and "prefixes" not in model:
        model["prefixes"] = [0.01]
    with pytest.raises(UserError, match=named):
        settings(model=model)


def test_weights_taken_over_keep_their_bias(tmp_path):
    model = {"name": "topk_sae", "latent_dim": 12, "k": 3}
    first = fitted(settings(model=model, steps=2, ema=0.5), tmp_path / "first")
    mean, trained = (m.state_dict()["bias"] for m in (first.train_step.evaluated, first.train_step.model))
    assert trained.abs().max() > 0.1
    torch.testing.assert_close(mean, trained, atol=0.05, rtol=0)
    second = fitted(settings(model=model, steps=1, optim={"lr": 1e-30}, init_from=str(tmp_path / "first")), tmp_path / "second")
    assert torch.equal(second.train_step.model.state_dict()["bias"], mean)


@pytest.mark.parametrize("name", NAMES)
def test_scaled_input_changes_units_alone(name):
    """Codes and losses are those of samples of mean norm sqrt(6), reconstructions are in the data's own units."""
    x = 1000 * (data(40) + 0.3)
    plain, scaled = sae(name), sae(name, scale_input=True)
    scaled.start(x)
    factor = 6**0.5 / x.norm(dim=1).mean()
    plain.start(x * factor)
    torch.testing.assert_close(scaled.input_scale, factor)
    a, b = run(plain, x * factor), run(scaled, x)
    torch.testing.assert_close(a.per_sample["loss"], b.per_sample["loss"])
    torch.testing.assert_close(a.recon / factor, b.recon)
    for model, of in ((plain, x * factor), (scaled, x)):
        run(model, of).loss.backward()
        model.after_step(1)
        model.eval()
    torch.testing.assert_close(plain.encoder.grad, scaled.encoder.grad)
    torch.testing.assert_close(plain.encode(x * factor).z, scaled.encode(x).z)
    torch.testing.assert_close(plain.reconstruct(x * factor) / factor, scaled.reconstruct(x))


@pytest.mark.parametrize("name", OF_K)
def test_k_changes_over_steps(name):
    model, x = sae(name, k=Ramp("6:2@4")), data(20)
    with torch.no_grad():
        model.encoder_bias.fill_(2)  # all are above 0
    found = [float(run(model, x, step=step).per_sample["l0"].mean()) for step in (0, 1, 2, 4, None)]
    assert found == [6, 5, 4, 2, 2]
    if name == "topk_sae":
        assert ((model.encode(x).z > 0).sum(1) == 2).all()


def test_multi_topk_reconstructs_from_more_latents_too():
    model, x = sae("topk_sae", multi_weight=0.5), data(20)
    pre = pre_of(model, x)
    wide = torch.where(pre >= pre.topk(12).values[:, -1:], pre, 0.0).relu() @ unit(model) + model.bias
    out = run(model, x)
    torch.testing.assert_close(out.per_sample["multi"], model.likelihood(wide, x))
    torch.testing.assert_close(out.per_sample["loss"], out.per_sample["recon"] + 0.5 * out.per_sample["multi"])


def test_thresholds_by_activations_have_half_the_window():
    grads = {}
    for l0_from in ("pre_activations", "activations"):
        model, x = sae("jumprelu_sae", l0_from=l0_from, threshold=0.05, bandwidth=0.04), data(200)
        pre, threshold = pre_of(model, x), 0.05
        (grads[l0_from],) = torch.autograd.grad(run(model, x).loss, [model.threshold])
        counted = pre if l0_from == "pre_activations" else torch.where(pre > threshold, pre, 0.0)
        near = ((counted - threshold).abs() < 0.02).double().sum(0) / 200
        l0 = (pre > threshold).double().sum(1).mean()
        by_l0 = 2 * (l0 / 3 - 1) / 3 * -near / 0.04  # the loss' share of the number of active latents
        (by_recon,) = torch.autograd.grad(run(sae_without(model), x).loss, [model.threshold])
        torch.testing.assert_close(grads[l0_from], by_l0 + by_recon)
    assert not torch.allclose(grads["activations"], grads["pre_activations"])


def sae_without(model):
    """The same parameters without the penalty."""
    other = sae("jumprelu_sae", weight=0.0, threshold=0.05, bandwidth=0.04)
    for name, parameter in model.named_parameters():
        setattr(other, name, parameter)
    return other


def test_the_code_is_not_normalised_twice():
    model = sae("topk_sae")
    torch.testing.assert_close(model.decode(torch.eye(16, dtype=torch.float64)), F.normalize(model.decoder, dim=1) + model.bias)
