"""Discrete codes against brute force and the papers' formulas."""

import math
from typing import Any

import pytest
import torch
from helpers import settings
from torch.distributions import Categorical
from variants import data, make, noise, run, train

from distae import distributed as dist
from distae.errors import UserError
from distae.nn.quantizers import Codebook, describe, fsq, straight_through, usage

VQ: dict[str, Any] = {"latent_dim": 6, "dim": 2, "codebook_size": 5}


def like(model, name, **settings):
    other = make(name, **settings)
    other.load_state_dict(model.state_dict())
    return other


def codebook(learned=False, decay=0.9, restart_below=0.0):
    book = Codebook(5, 2, learned, decay, restart_below).double()
    with torch.no_grad():
        book.codes.copy_(torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
        if not learned:
            book.total.copy_(book.codes * book.frequency[:, None])
    return book


def test_each_vector_gets_its_nearest_code():
    book, z = codebook(), data(7, 3, 2)
    quantized, index = book(z, None)
    expected = (z[:, :, None] - book.codes).norm(dim=3).argmin(2)
    assert torch.equal(index, expected)
    assert torch.equal(quantized, book.codes[expected])


def test_gradients_go_straight_through():
    z = data(4).requires_grad_()
    weight = torch.arange(6.0)
    (slope,) = torch.autograd.grad((straight_through(z, z.round()) * weight).sum(), z)
    assert torch.equal(slope, weight.double().expand(4, 6))


def test_the_losses_of_a_learned_codebook_are_the_papers():
    x, model = data(4), make("vq_vae", learning="gradient", commitment=0.5, restart_below=0.0, **VQ)
    z = model.vectors(x, None)
    nearest = (z[:, :, None] - model.codebook.codes).square().sum(3).amin(2).sum(1)
    out = run(model, x)
    torch.testing.assert_close(out.per_sample["loss"], out.per_sample["recon"] + 1.5 * nearest)
    out.loss.backward()
    index = model.encode(x).indices
    used = torch.nn.functional.one_hot(index.flatten(), 5).double()
    expected = 2 * (used.sum(0)[:, None] * model.codebook.codes - used.T @ z.flatten(0, 1)) / 4
    torch.testing.assert_close(model.codebook.codes.grad, expected)


def test_the_encoder_learns_from_the_decoder_at_the_code_and_from_its_commitment():
    x, model = data(4), make("vq_vae", commitment=0.5, **VQ)
    z = model.vectors(x, None).detach()
    quantized = model.quantize(z, None)[0].detach().requires_grad_()
    model.likelihood(model.decoder(quantized.flatten(1), None), x).mean().backward()
    expected = quantized.grad + 2 * 0.5 * (z - quantized.detach()) / 4
    leaf = z.clone().requires_grad_()
    model.vectors = lambda x, noise: leaf
    run(model, x).loss.backward()
    torch.testing.assert_close(leaf.grad, expected)


def test_moving_averages_without_memory_are_a_step_of_k_means():
    book, z = codebook(decay=0.0), data(50, 3, 2)
    _, index = book(z, noise(50))
    book.update()
    for code in index.unique():
        torch.testing.assert_close(book.codes[code], z[index == code].mean(0))
    torch.testing.assert_close(book.frequency, index.flatten().bincount(minlength=5).double() / 150)


def test_moving_averages_are_the_papers_over_two_steps():
    book, counts = codebook(decay=0.9), torch.full((5,), 0.2).double()
    totals = book.codes * 0.2
    for seed in range(2):
        z = data(50, 3, 2, seed=seed)
        _, index = book(z, noise(50))
        hot = torch.nn.functional.one_hot(index.flatten(), 5).double()
        counts, totals = 0.9 * counts + 0.1 * hot.mean(0), 0.9 * totals + 0.1 * (hot.T @ z.flatten(0, 1)) / 150
        book.update()
        torch.testing.assert_close(book.codes, totals / counts[:, None])


@pytest.mark.parametrize("learned", [True, False])
def test_a_dead_code_restarts_at_a_vector_of_the_batch(learned):
    book, z = codebook(learned=learned, decay=0.5, restart_below=0.5), data(50, 3, 2)
    with torch.no_grad():
        book.codes[3] = 1e6
        book.frequency[3] = 0.2
    for _ in range(2):  # its frequency goes from 1/5 to 1/10 to 1/20, below half of 1/5
        assert (z.flatten(0, 1) != book.codes[3]).all()
        book(z, noise(50))
        book.update()
    assert (z.flatten(0, 1) == book.codes[3]).all(1).any()


@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_codes_that_the_first_batch_leaves_idle_restart_at_once(decay):
    book, z = codebook(decay=decay, restart_below=0.03), data(50, 3, 2)
    with torch.no_grad():
        book.codes[3] = 1e6
        book.total.copy_(book.codes * book.frequency[:, None])
    book(z, noise(50))
    book.update()
    assert (z.flatten(0, 1) == book.codes[3]).all(1).any()
    assert book.codes.abs().max() < 10


def test_a_code_that_restarted_at_a_vector_nobody_needs_restarts_again():
    book, far = codebook(decay=0.99, restart_below=0.03), data(50, 3, 2) + 100
    for z in (far, data(50, 3, 2), data(50, 3, 2)):  # codes that follow the first batch are of no use to the others
        book(z, noise(50))
        book.update()
    assert (book.codes.abs().amax(1) < 10).sum() >= 4


def test_each_depth_gives_codes_its_own_residuals_to_restart_at():
    x, model = data(20), make("rq_vae", depth=3, **VQ | {"codebook_size": 8})
    z = model.vectors(x, None).detach()
    model.quantize(z, noise(20))
    quantized = torch.zeros_like(z)
    for level in range(3):
        residuals = (z - quantized).flatten(0, 1)
        assert all((row == residuals).all(1).any() for row in model.codebook.candidates[level::3])
        quantized = quantized + model.codebook(z - quantized, None)[0]


def test_candidates_are_drawn_without_an_order_of_all_vectors(monkeypatch):
    book = codebook(restart_below=0.03)
    monkeypatch.setattr(torch, "randperm", None)
    book(data(1000, 3, 2), noise(1000))
    assert book.candidates.any(1).all()


def test_no_two_codes_restart_at_the_same_vector():
    """They would tie, and rounding would break the tie differently at each world size."""
    for samples in (1, 2, 7, 50):
        book = Codebook(5, 2, False, 0.9, 0.03).double()
        book(data(samples, 1, 2), noise(samples))
        book.update()
        assert len(book.codes.unique(dim=0)) == 5
        assert int(book.offered.sum()) == min(5, samples)


@pytest.mark.parametrize("contiguous", [False, True])
def test_ranks_draw_the_same_candidates_each_its_own_vectors(contiguous, monkeypatch):
    z, alone = data(8, 3, 2), codebook(restart_below=0.03)
    alone(z, noise(8))
    summed = torch.zeros_like(alone.candidates)
    for rank in range(2):
        mine = slice(4 * rank, 4 * rank + 4) if contiguous else slice(rank, None, 2)
        monkeypatch.setattr(dist, "local_rows", lambda x, mine=mine: x[mine])
        book = codebook(restart_below=0.03)
        with dist.use(dist.World(rank, 2, torch.device("cpu"))):
            book(z[mine], noise(8))
        summed += book.candidates
    assert torch.equal(summed, alone.candidates)


def test_evaluation_leaves_the_codebook_alone():
    book = codebook().eval()
    book(data(5, 3, 2), noise(5))
    assert not book.seen.any()


def test_a_step_that_is_not_finite_changes_no_code():
    book, z = codebook(restart_below=0.5), data(5, 3, 2)
    before = book.codes.clone()
    for bad in (math.inf, math.nan):
        book(z * bad, noise(5))
        book.update()
        torch.testing.assert_close(book.codes, before)
    book(z, noise(5))
    book.update()
    assert not torch.equal(book.codes, before)


def test_perplexity_counts_the_codes_in_use():
    used = describe(usage(torch.tensor([[0, 1], [2, 3], [7, 7]]), 8, torch.tensor([True, True, False])))
    assert float(used["perplexity"]) == pytest.approx(4)
    assert float(used["live"]) == 0.5


def test_a_residual_quantizer_of_depth_one_is_vq_and_more_depth_comes_nearer():
    x, vq = data(20), make("vq_vae", **VQ)
    torch.testing.assert_close(run(like(vq, "rq_vae", depth=1, **VQ), x).loss, run(vq, x).loss)
    z = vq.vectors(x, None)
    partial = [like(vq, "rq_vae", depth=d, **VQ).quantize(z, None) for d in (1, 2, 3)]
    torch.testing.assert_close(partial[2][2], sum((z - q[0]).square().sum((1, 2)) for q in partial))
    assert partial[2][1].shape == (20, 9)


def test_fsq_implies_a_codebook_of_the_product_of_its_levels():
    levels = torch.tensor([4, 3, 5])
    z = 4 * torch.randn(20000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes, indices = fsq(z, levels)
    assert set(indices.tolist()) == set(range(60))
    assert len({tuple(row) for row in codes.tolist()}) == 60
    assert len(torch.unique(torch.cat([codes, indices[:, None]], 1), dim=0)) == 60
    assert [len(column.unique()) for column in codes.T] == [4, 3, 5]
    assert codes.abs().max() <= 1
    assert not fsq(torch.zeros(1, 3, dtype=torch.float64), levels)[0].any()


def test_fsq_passes_the_gradient_of_its_bound():
    levels, z = torch.tensor([5, 5]), torch.tensor([[0.3, -1.0]], dtype=torch.float64, requires_grad=True)
    codes, _ = fsq(z, levels)
    (slope,) = torch.autograd.grad(codes.sum(), z)
    torch.testing.assert_close(slope, 2 * 0.999 / torch.cosh(z) ** 2 / 2)


def test_two_levels_of_fsq_are_the_signs():
    levels, z = torch.tensor([2, 5, 2]), 2 * torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z.requires_grad_()
    codes, indices = fsq(z, levels)
    assert set(indices.tolist()) == set(range(20))
    assert torch.equal(codes[:, [0, 2]], z[:, [0, 2]].sign())
    torch.testing.assert_close(codes[:, 1], fsq(z[:, 1:2], levels[1:2])[0][:, 0])
    (slope,) = torch.autograd.grad(codes[:, 0].sum(), z)
    torch.testing.assert_close(slope[:, 0], 0.999 / torch.cosh(z[:, 0]) ** 2)


def test_fsq_with_two_levels_trains():
    x, model = data(50), make("fsq_vae", levels=(2, 2, 2, 2), latent_dim=8)
    before = float(run(model, x).loss.detach())
    assert float(run(train(model, x, 50), x).loss.detach()) < before - 0.01


@pytest.mark.parametrize("sharpness", [1.0, 100.0])
def test_lfq_entropies_are_those_of_a_softmax_over_all_codes(sharpness):
    x, model = data(6), make("lfq_vae", latent_dim=6, bits=3, inverse_temperature=sharpness)
    z, signs, indices = model.quantize(x, None)
    codes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 3).flip(1)  # the lowest bit changes fastest
    q = Categorical(logits=-sharpness * (z[:, :, None] - codes).square().sum(3))
    torch.testing.assert_close(model.log_probabilities(z)[:, :, 0], q.logits)
    out = run(model, x)
    torch.testing.assert_close(out.per_sample["sample_entropy"], q.entropy().sum(1))
    torch.testing.assert_close(out.per_batch["batch_entropy"], 2 * Categorical(q.probs.mean((0, 1))).entropy())
    assert torch.equal(codes[indices], signs)
    torch.testing.assert_close(out.per_sample["commitment"], (z - z.sign()).square().sum((1, 2)))


@pytest.mark.parametrize(("group", "sharpness"), [(1, 1.0), (2, 3.0), (4, 100.0)])
def test_bsq_is_that_of_the_paper(group, sharpness):
    """Zhao 2024, sec. 4, over the 2^4 whole codes; only the batch's entropy is of groups, as if they were independent."""
    weights = {"commitment": 0.3, "entropy": 0.2, "inverse_temperature": sharpness}
    x, model = data(6), make("bsq_vae", latent_dim=8, bits=4, group=group, **weights)
    v = model.encoder(x, None).view(6, 2, 4)
    u = v / v.square().sum(2, keepdim=True).sqrt()
    hat = u.sign() / 2  # of 4 bits: 1 / sqrt(4)
    codes = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5]).double()] * 4).flip(1)
    q = Categorical(logits=-sharpness * (u[:, :, None] - codes).square().sum(3))
    mean, first_bit = q.probs.mean((0, 1)), 2.0 ** torch.arange(0, 4, group)
    of_group = torch.arange(16)[:, None] // first_bit.long() % 2**group  # [16, groups]: the part of a code in each group
    parts = [torch.zeros(2**group).double().index_add(0, part, mean) for part in of_group.T]
    batch_entropy = 2 * sum(-(p * p.log()).sum() for p in parts)
    commitment = (u - hat).square().sum((1, 2))
    raw = model.decoder((u.sign().detach() / 2 + (u - u.detach()) / 2).flatten(1), None)
    loss = (model.likelihood(raw, x) + 0.3 * commitment + 0.2 * (q.entropy().sum(1) - batch_entropy)).mean()
    out, encoded = run(model, x), model.encode(x)
    torch.testing.assert_close(out.per_sample["sample_entropy"], q.entropy().sum(1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.per_batch["batch_entropy"], batch_entropy, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(encoded.z, hat.flatten(1))
    assert torch.equal(codes[encoded.indices].flatten(1), encoded.z)
    mine, theirs = (torch.autograd.grad(of, [*model.parameters()]) for of in (out.loss, loss))
    torch.testing.assert_close(out.loss, loss, rtol=1e-12, atol=0)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_bsq_groups_divide_the_bits():
    with pytest.raises(UserError, match=r"--model.group 3 is not a divisor of the 8 bits"):
        settings(model={"name": "bsq_vae", "group": 3})


def test_lfq_trains_where_probabilities_are_rounded_to_0():
    model = make("lfq_vae", latent_dim=6, bits=3).float()
    x = data(6).float()
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.mul_(30)
    assert (model.log_probabilities(model.quantize(x, None)[0]).exp() == 0).any()
    run(model, x).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["vq_vae", "rq_vae", "fsq_vae", "lfq_vae", "bsq_vae"])
def test_codes_decode_to_the_reconstruction(name):
    x, model = data(6), make(name, latent_dim=8)
    codes = model.encode(x)
    assert codes.indices.dtype == torch.int64
    torch.testing.assert_close(model.decode(codes.z), model.likelihood.mean(run(model.eval(), x).recon))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vq_vae", VQ), ("rq_vae", VQ | {"depth": 3}), ("fsq_vae", {"latent_dim": 8, "levels": (8, 5, 2, 3)}),
        ("lfq_vae", {"latent_dim": 8, "bits": 4}), ("bsq_vae", {"latent_dim": 10, "bits": 5}),
        ("categorical_vae", {"latent_dim": 6, "categories": 3}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_indices_give_the_codes_bit_for_bit(name, settings, dtype):
    model, x = make(name, **settings), data(40)
    train(model, x, 5)
    model.to(dtype)
    with torch.no_grad():
        z, _, _, indices = model.encode(x.to(dtype))
        made = model.from_indices(indices)
    assert made.dtype == z.dtype
    assert torch.equal(made, z)
    assert int(indices.max()) < model.num_codes
    assert len(indices.unique()) > 1


def test_continuous_codes_have_no_indices():
    assert make("ae").num_codes is None
    with pytest.raises(NotImplementedError, match="ae has no discrete codes"):
        make("ae").from_indices(torch.zeros(1, 2, dtype=torch.int64))
