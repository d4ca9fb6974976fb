"""Deterministic variants against PCA, Jacobians and limits."""

from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence
from torch.func import jacrev, vmap
from variants import data, make, noise, run, train

from distae.models.smooth import jacobian_norm


def copy_of(model, name, **settings):
    """Another variant with the same weights."""
    other = make(name, **settings)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.slow
def test_the_optimum_of_a_linear_autoencoder_is_pcas_subspace():
    x = data(200) * torch.tensor([5.0, 3.0, 2.0, 1.0, 1.0, 1.0])
    model: Any = train(make("linear_ae", latent_dim=2), x, 1500, lr=0.03)
    components = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:2]
    basis, _ = torch.linalg.qr(model.decoder.layers[0].weight)
    torch.testing.assert_close(basis @ basis.T, components.T @ components, atol=1e-3, rtol=0)


def test_a_denoising_autoencoder_sees_noise_and_is_judged_on_the_clean_input():
    x = data(8)
    for corruption in ("gaussian", "masking", "salt_pepper"):
        model = make("denoising_ae", corruption=corruption, std=0.5, rate=0.4)
        recon = model.likelihood.mean(model.decoder(model._code(model.corrupt(x, noise(8)), None), None))
        out = run(model, x)
        torch.testing.assert_close(out.recon, recon)
        torch.testing.assert_close(out.per_sample["recon"], copy_of(model, "ae").likelihood(recon, x))


@pytest.mark.parametrize(("corruption", "values"), [("masking", {0.0}), ("salt_pepper", {0.0, 1.0})])
def test_corruption_hits_its_share_of_the_values(corruption, values):
    x = data(4000)
    noisy = make("denoising_ae", corruption=corruption, rate=0.3).corrupt(x, noise(4000))
    hit = noisy != x
    assert float(hit.double().mean()) == pytest.approx(0.3, abs=0.01)
    assert set(noisy[hit].tolist()) == values
    if len(values) == 2:
        assert float(noisy[hit].mean()) == pytest.approx(0.5, abs=0.02)


def test_topk_with_k_all_is_the_plain_autoencoder_and_fewer_keeps_the_largest():
    x = data(8)
    plain = make("ae")
    torch.testing.assert_close(run(copy_of(plain, "sparse_ae", sparsity="topk", k=3), x).loss, run(plain, x).loss)
    z, kept = plain.encode(x).z, copy_of(plain, "sparse_ae", sparsity="topk", k=1).encode(x).z
    assert torch.equal(kept.sum(1), z.amax(1))
    assert torch.equal((kept != 0).sum(1), torch.ones(8, dtype=torch.long))


def test_sparsity_terms_are_the_l1_norm_and_the_kl_of_rates():
    x = data(8)
    l1 = make("sparse_ae", weight=0.5)
    torch.testing.assert_close(run(l1, x).loss, run(copy_of(l1, "ae"), x).loss + 0.5 * l1.encode(x).z.abs().sum(1).mean())
    kl = copy_of(l1, "sparse_ae", sparsity="kl", code_activation="sigmoid", target=0.1, weight=2.0)
    rates = kl.encode(x).z.mean(0)
    expected = kl_divergence(Bernoulli(torch.full_like(rates, 0.1)), Bernoulli(rates)).sum()
    torch.testing.assert_close(run(kl, x).per_batch["sparsity"], expected)


def jacobian_norms(function, points):
    return vmap(jacrev(function))(points).square().flatten(1).sum(1)


@pytest.mark.parametrize("activation", ["none", "sigmoid", "tanh"])
def test_the_contraction_of_one_layer_is_the_jacobians_norm(activation):
    x = data(8)
    model = make("contractive_ae", layers=(), code_activation=activation)
    expected = jacobian_norms(lambda row: model.encode(row[None]).z[0], x)
    torch.testing.assert_close(run(model, x).per_sample["contraction"], expected)
    with torch.no_grad():  # as in evaluation
        torch.testing.assert_close(run(model, x).per_sample["contraction"], expected)


@pytest.mark.slow
def test_the_contraction_of_a_deep_encoder_is_the_jacobians_norm_on_average():
    x = data(4)
    model = make("contractive_ae")
    expected = jacobian_norms(lambda row: model.encode(row[None]).z[0], x)
    draws = torch.stack([run(model, x, i).per_sample["contraction"] for i in range(1500)])
    torch.testing.assert_close(draws.mean(0), expected, rtol=0.1, atol=0)


@pytest.mark.slow
def test_the_penalties_of_the_regularized_autoencoders():
    x = data(4)
    gp, l2 = make("rae_gp", likelihood="bernoulli"), make("rae_l2", code_weight=0.3, decoder_weight=0.2)
    z = gp.encode(x).z
    expected = jacobian_norms(lambda code: gp.decode(code[None])[0], z.detach())
    draws = torch.stack([run(gp, x, i).per_sample["decoder"] for i in range(1500)])
    torch.testing.assert_close(draws.mean(0), expected, rtol=0.1, atol=0)
    squares = sum(float((w**2).sum()) for k, w in l2.state_dict().items() if k.startswith("decoder") and k.endswith("weight"))
    plain = make("ae")
    plain.load_state_dict(l2.state_dict())
    half = 0.5 * l2.encode(x).z.square().sum(1).mean()
    torch.testing.assert_close(run(l2, x).loss, run(plain, x).loss + 0.3 * half + 0.2 * squares)


def test_the_jacobian_norm_has_gradients_of_its_own():
    x = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    norm = jacobian_norm(torch.sin(x), x, noise(1))
    (slope,) = torch.autograd.grad(norm, x)  # of v^2 cos^2 x
    torch.testing.assert_close(slope / norm, -2 * torch.tan(x))
