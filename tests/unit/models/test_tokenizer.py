"""The tokenizer's terms next to a second implementation of the published equations, in float64; its start; its settings."""

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import settings
from torch import Tensor, nn
from variants import noise, run

from distae.config import plugin
from distae.config.check import fingerprint
from distae.config.names import PERCEPTUAL
from distae.errors import UserError
from distae.losses.similarity import ms_ssim
from distae.models import build
from distae.models.tokenizer import Tokenizer, _features
from distae.nn.discriminators import LeCam, PatchDiscriminator

VALUES = 3 * 16 * 16
X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NET: dict[str, Any] = {"name": "image", "channels": 4, "multipliers": [1, 2], "blocks": 1}


def made(**model: Any) -> Any:
    """A tokenizer of images of 3x16x16, f2, in float64."""
    few: dict[str, Any] = {"name": "tokenizer", "latent_dim": 4, "discriminator_channels": 4, "codebook_size": 8}
    cfg = settings(model=few | model, net=NET)
    return build(cfg.model, cfg.net, (3, 16, 16), seed=1, dtype=torch.float64)


def reconstruction(model: Any, number: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """y, mu and logvar of the kl bottleneck by its layers, with the noise that the model draws."""
    raw = model.codec.encoder(X, None)
    mu, logvar = raw[:, : raw.shape[1] // 2], raw[:, raw.shape[1] // 2 :]
    logvar = logvar.clamp(-30, 20)  # DiagonalGaussianDistribution of latent diffusion
    z = mu + noise(4, number).normal(mu) * (logvar / 2).exp()
    return model.codec.decoder(z, None), mu, logvar


@pytest.mark.parametrize("step", [2, 3, 4, 5, None])
def test_the_autoencoder_minimises_the_published_terms(step):
    """contperceptual.py of latent diffusion, on values in [-1, 1]: sums over values, over the batch size; hinge; ratio of norms."""
    model = made(discriminator_start=3, discriminator_ramp=2, kl_weight=0.1, perceptual="msssim", perceptual_weight=0.3)
    out = run(model, X, step=step)
    y, mu, logvar = reconstruction(model)
    distance = 1 - ms_ssim(X, y, 7)
    error = (2 * X - 1 - (2 * y - 1)).abs() + 0.3 * distance[:, None, None, None]
    fit = error.sum() / len(X)
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum() / len(X)
    fooled = -model.discriminator(y).mean()
    last = list(model.codec.decoder.modules())[-1].weight
    of_fit, of_fooled = (torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (fit, fooled))
    onset = {2: 0.0, 3: 0.5, 4: 1.0, 5: 1.0, None: 0.0}[step]
    weight = (of_fit / (of_fooled + 1e-4)).clamp(0, 1e4).detach()
    assert out.loss.item() == pytest.approx((fit + 0.1 * kl + onset * 0.5 * weight * fooled).item(), rel=1e-12)
    assert out.per_sample["perceptual"].tolist() == pytest.approx(distance.tolist())
    if onset:
        assert out.per_batch["adaptive_weight"].item() == pytest.approx(weight.item(), rel=1e-9)
        found = [out.per_batch[f"{term}_grad_norm"].item() for term in ("recon", "adversarial")]
        assert found == pytest.approx([of_fit.item(), of_fooled.item()], rel=1e-9)
    mine = torch.autograd.grad(out.loss, last)[0]
    expected = torch.autograd.grad(fit + 0.1 * kl + onset * 0.5 * weight * fooled, last)[0]
    torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("step", [2, 3])
def test_the_discriminator_minimises_the_published_terms(step):
    """Hinge loss by patch, R1 and LeCam; nothing before its start, though every parameter has a gradient."""
    model = made(discriminator_start=3, r1=0.2, lecam=0.4, discriminator_norm="group")
    model.lecam.means.copy_(torch.tensor([0.03, -0.02]))
    out = run(model, X, step=step, phase="discriminator")
    grads = torch.autograd.grad(out.loss, list(model.discriminator.parameters()))
    if step == 2:
        assert all(not g.any() for g in grads)
        assert not out.loss
        return
    y, _, _ = reconstruction(model)
    x = X.clone().requires_grad_()
    real, fake = model.discriminator(x), model.discriminator(y.detach())
    hinge = 0.5 * ((1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean())
    slope = torch.autograd.grad(real.mean((1, 2, 3)).sum(), x, create_graph=True)[0]
    r1 = 0.5 * slope.square().sum() / len(X)
    lecam = (real - -0.02).clamp_min(0).square().mean() + (0.03 - fake).clamp_min(0).square().mean()
    loss = hinge + 0.2 * r1 + 0.4 * lecam
    assert out.loss.item() == pytest.approx(loss.item(), rel=1e-6)  # the averages are float32
    for mine, theirs in zip(grads, torch.autograd.grad(loss, list(model.discriminator.parameters())), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("bottleneck", "terms"), [
    ("vq", {"commitment", "perplexity", "live"}), ("fsq", {"perplexity", "live"}),
    ("lfq", {"commitment", "sample_entropy", "batch_entropy", "perplexity", "live"}),
    ("bsq", {"commitment", "sample_entropy", "batch_entropy", "perplexity", "live"}),
])  # fmt: skip
def test_other_bottlenecks_have_the_objective_of_their_variant(bottleneck, terms):
    model = made(bottleneck=bottleneck, discriminator_weight=0.0, learning="gradient", restart_below=0.0)
    out, alone = run(model, X, step=0), run(model.codec, X, step=0)
    assert out.loss.item() == pytest.approx(alone.loss.item(), rel=1e-12)
    assert terms <= {*out.per_sample, *out.per_batch}
    codes = model.encode(X)
    assert codes.indices.shape == (4, 64)  # one code at each of 8x8 positions
    assert torch.equal(model.from_indices(codes.indices), codes.z)


def test_beta_may_be_where_the_legacy_form_has_it():
    """quantize.py of taming: `legacy` weighs the codes' own term by beta, otherwise the encoder's."""
    for commitment, codebook in ((0.25, 1.0), (1.0, 0.25)):
        model = made(bottleneck="vq", learning="gradient", restart_below=0.0, commitment=commitment, codebook_weight=codebook)
        out = run(model.codec, X)
        z = model.codec.encoder(X, None).view(4, -1, 4)
        distance = out.per_sample["commitment"].mean()
        assert out.loss.item() == pytest.approx((out.per_sample["recon"].mean() + (commitment + codebook) * distance).item())
        (of_codes,) = torch.autograd.grad(out.loss, model.codec.codebook.codes)
        index = model.encode(X).indices.flatten()
        expected = torch.zeros_like(of_codes).index_add_(0, index, (model.codec.codebook.codes[index] - z.flatten(0, 1)) / 2)
        torch.testing.assert_close(of_codes, codebook * expected)


def test_a_learned_scale_divides_the_perceptual_term_too():
    model = made(perceptual="msssim", learn_scale=True, kl_weight=0.0, discriminator_weight=0.0)
    with torch.no_grad():
        model.likelihood.log_scale.add_(1.0)
    out = run(model, X, step=0)
    expected = out.per_sample["recon"] + VALUES * out.per_sample["perceptual"] * torch.exp(torch.tensor(-1.0).double())
    torch.testing.assert_close(out.per_sample["loss"], expected)


def test_a_fixed_weight_is_relative_to_a_mean_over_values():
    """LlamaGen: mean error + 0.5 * (-mean logit)."""
    out = run(made(adaptive_weight=False, kl_weight=0.0), X, step=0)
    expected = out.per_sample["recon"] / VALUES + 0.5 * out.per_sample["adversarial"]
    torch.testing.assert_close(out.per_sample["loss"] / VALUES, expected)


def test_the_discriminator_sees_what_the_decoder_makes_and_moves_no_codebook():
    model = made(bottleneck="vq")
    run(model, X, step=0, phase="discriminator")
    assert not model.codec.codebook.seen.any()
    assert {id(p) for phase in model.phases() for p in phase.parameters} == {id(p) for p in model.parameters()}


def test_the_discriminator_is_pix2pixs():
    """2,765,633: 64-128-256-512 with batch norm, of images of 3 channels."""
    with torch.device("meta"):
        net = PatchDiscriminator((3, 256, 256), 64, 3, "batch")
    assert sum(p.numel() for p in net.parameters()) == 2_765_633
    weights = [p for p in PatchDiscriminator((3, 64, 64), 64, 3, "batch").parameters() if p.ndim == 4]
    assert [w.std().item() for w in weights[1:4]] == pytest.approx([0.02] * 3, rel=0.02)


def test_the_discriminator_has_fewer_layers_for_small_images():
    def layers(side: int) -> int:
        net = PatchDiscriminator((3, side, side), 4, 3, "group")
        assert net(torch.rand(2, 3, side, side)).shape[:2] == (2, 1)
        return sum(isinstance(m, nn.Conv2d) for m in net.modules())

    assert [layers(side) for side in (6, 8, 16, 32, 64)] == [3, 3, 4, 5, 5]


def test_lecam_averages_move_by_the_logits_of_all_calls():
    lecam = LeCam(0.9)
    lecam(torch.tensor([[1.0], [2.0]]), torch.tensor([[-1.0], [-3.0]]))
    lecam(torch.tensor([[3.0], [6.0]]), torch.zeros(2, 1))
    lecam.update()
    torch.testing.assert_close(lecam.means, torch.tensor([0.3, -0.1]))
    lecam.update()  # a step without logits
    torch.testing.assert_close(lecam.means, torch.tensor([0.3, -0.1]))
    lecam.eval()(torch.ones(2, 1), torch.ones(2, 1))
    assert not lecam.seen.any()


def lpips_files(folder: Any) -> dict[str, str]:
    """Small random weights in the published form: torchvision's AlexNet, and the linear layers of LPIPS."""
    import torchvision.models as tv

    torch.manual_seed(0)
    torch.save(tv.alexnet(weights=None).state_dict(), folder / "alexnet.pth")
    linear = {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, n in enumerate((64, 192, 384, 256, 256))}
    torch.save(linear, folder / "lpips.pth")
    return {"perceptual": "lpips", "lpips_weights": str(folder / "lpips.pth"), "lpips_backbone": str(folder / "alexnet.pth")}


@pytest.mark.slow
def test_lpips_trains_by_files_whose_checksum_is_part_of_the_run(tmp_path):
    from distae.evaluation.extractors import perceptual

    files = lpips_files(tmp_path)
    model = made(**files)
    assert len(model.cfg.lpips_checksum.split()) == 2
    assert not any("features" in name for name in model.state_dict())
    out = run(model.float(), X.float(), step=0)
    y = out.recon.clamp(0, 1)  # as evaluation has it
    expected = perceptual(files["lpips_weights"], files["lpips_backbone"]).distance(X.float(), y)
    torch.testing.assert_close(model.perceptual_distance(X.float(), y), expected)
    assert out.per_sample["perceptual"].tolist() == pytest.approx(expected.tolist(), rel=0.1)
    out.loss.backward()
    model.cfg = replace(model.cfg, lpips_checksum="0 0")
    with pytest.raises(UserError, match=r"checksum mismatch"):
        run(model, X.float(), step=0)


MAPS = """
import torch
from distae.nn import register_perceptual_network

class Maps(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 2, 3, bias=False)
        torch.nn.init.constant_(self.layer.weight, 0.5)

    def forward(self, x):
        return [x, self.layer(x) - 6]

@register_perceptual_network("maps")
def maps():
    return Maps()

@register_perceptual_network("no_maps")
def no_maps():
    return torch.nn.Flatten()
"""


@pytest.fixture
def maps(tmp_path, monkeypatch):
    """A plugin that registers two perceptual networks."""
    monkeypatch.setattr("sys.path", [*sys.path])
    file = tmp_path / "maps_plugin.py"
    file.write_text(MAPS)
    plugin.load(str(file))
    yield file
    del sys.modules["maps_plugin"]
    for name in ("maps", "no_maps"):
        del PERCEPTUAL[name]


def test_features_of_a_network_of_ones_own_whose_file_is_part_of_the_run(maps):
    model = made(perceptual="maps", perceptual_weight=0.3, kl_weight=0.0, discriminator_weight=0.0)
    y, _, _ = reconstruction(model)
    distance = torch.zeros(4).double()
    for image, other in ((X, y), tuple(F.conv2d(i, torch.full((2, 3, 3, 3), 0.5).double()) - 6 for i in (X, y))):
        a, b = (v / torch.linalg.vector_norm(v, dim=1, keepdim=True) for v in (image, other))
        distance = distance + torch.linalg.vector_norm(a - b, dim=1).square().mean((1, 2))
    out = run(model, X, step=0)
    torch.testing.assert_close(out.per_sample["perceptual"], distance, rtol=1e-10, atol=0)
    torch.testing.assert_close(out.per_sample["loss"], out.per_sample["recon"] + 0.3 * VALUES * distance)
    assert not any("layer.weight" in name and "discriminator" not in name and "codec" not in name for name in model.state_dict())
    out.loss.backward()
    assert not [p for p in _features("maps", model.cfg.perceptual_checksum).net.parameters() if p.requires_grad]
    table = {"name": "tokenizer", "perceptual": "maps"}
    before = fingerprint(settings(model=table))
    maps.write_text(f"{MAPS}# changed")
    assert fingerprint(settings(model=table)) != before
    changed = made(perceptual="maps")
    changed.cfg = replace(changed.cfg, perceptual_checksum="0")
    with pytest.raises(UserError, match=r"--model.perceptual maps: its file is not that of the run: checksum \w+, not 0"):
        run(changed, X, step=0)


def test_a_network_that_gives_no_maps_is_rejected(maps):
    with pytest.raises(UserError, match=r"--model.perceptual no_maps: the network gives Tensor; expected a list of"):
        run(made(perceptual="no_maps"), X, step=0)


def test_no_file_runs_because_a_setting_names_its_network():
    with pytest.raises(UserError, match=r"model.perceptual.* 'maps'.*none.*lpips.*msssim"):
        made(perceptual="maps")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"perceptual": "lpips"}, r"--model.lpips-weights: --model.perceptual lpips needs it"),
        ({"perceptual": "lpips", "lpips_weights": "no.pth"}, r"--model.lpips-weights: no file no.pth"),
        ({"perceptual": "msssim", "window": 9}, r"--model.window 9: expected odd"),
        ({"bottleneck": "fsq", "levels": [3, 3, 3]}, r"--model.latent-dim 4 is not a multiple of 3"),
        ({"bottleneck": "lfq", "latent_dim": 13}, r"--model.latent-dim 13: at most 12 with --model.bottleneck lfq"),
        ({"bottleneck": "bsq", "latent_dim": 21}, r"--model.latent-dim 21: at most 20 with --model.bottleneck bsq"),
        ({"likelihood": "logistic_mixture"}, r"--model tokenizer: valid with --model.likelihood .*laplace"),
    ],
)
def test_settings_that_cannot_work_are_rejected(model, words):
    with pytest.raises(UserError, match=words):
        settings(model={"name": "tokenizer"} | model)


def test_it_needs_images():
    with pytest.raises(UserError, match=r"needs images \[C, H, W\] of 6 pixels"):
        settings(model={"name": "tokenizer"}, data={"name": "synthetic_features"})
    assert isinstance(made(), Tokenizer)
