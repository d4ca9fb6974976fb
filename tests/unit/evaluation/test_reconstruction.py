"""Errors of reconstructions against numpy; LPIPS and FID's network with small random weights against second implementations."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluations import evaluation
from helpers import as_the_model_sees, images, splits
from torch import nn

from distae.config.names import METRICS
from distae.data import Split
from distae.errors import UserError
from distae.evaluation import extractors
from distae.evaluation.extractors import frechet, inception, perceptual
from distae.evaluation.metrics import Skip
from distae.losses.similarity import ms_ssim, ssim
from distae.nn.perceptual import LAYERS, SHIFT, SPREAD


def value(name, e):
    return METRICS[name].compute(e)


@pytest.fixture(scope="module")
def e():
    return evaluation("ae", latent_dim=3)


def square(x):
    return torch.from_numpy(x).view(-1, 1, 8, 8)


def test_errors_are_those_of_the_whole_split_beside_pca_of_as_many_components(e):
    x, train = (as_the_model_sees(splits()[name]).flatten(1).numpy() for name in ("test", "train"))
    _, _, axes = np.linalg.svd(train - train.mean(0), full_matrices=False)
    made = {"pca": (x - train.mean(0)) @ axes[:3].T @ axes[:3] + train.mean(0)}
    made["model"] = e.model.reconstruct(torch.from_numpy(x).view(-1, 1, 8, 8)).detach().flatten(1).numpy()
    for name, of in {
        "reconstruction_mse": lambda y: ((x - y) ** 2).mean(),
        "reconstruction_mae": lambda y: np.abs(x - y).mean(),
        "psnr": lambda y: (-10 * np.log10(((x - y) ** 2).mean(1))).mean(),
        "ssim": lambda y: ssim(square(x), square(y), 7).mean(),
        "ms_ssim": lambda y: ms_ssim(square(x), square(y), 7).mean(),
    }.items():
        found = value(name, e)
        assert found.value == pytest.approx(float(of(made["model"])), rel=1e-9), name
        assert found.baselines == {"pca": pytest.approx(float(of(made["pca"])), rel=1e-9)}, name


def test_ssim_is_one_for_equal_images_and_a_known_number_for_constant_ones():
    x = torch.rand(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ssim(x, x, 11), torch.ones(2, dtype=torch.float64))
    a, b = torch.full((1, 1, 12, 12), 0.2).double(), torch.full((1, 1, 12, 12), 0.6).double()
    assert float(ssim(a, b, 11)) == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.04 + 0.36 + 1e-4), rel=1e-6)


def test_an_exact_reconstruction_has_a_finite_psnr(monkeypatch):
    e = evaluation("ae")
    monkeypatch.setattr(e.model, "reconstruct", lambda x, label: x)
    assert value("psnr", e).value == pytest.approx(100)
    assert value("reconstruction_mse", e).value == 0


def test_a_table_has_errors_and_no_psnr():
    x = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table = {name: Split.of(x) for name in ("train", "val", "test")}
    e = evaluation("ae", table, likelihood="gaussian", latent_dim=5)
    assert value("reconstruction_mse", e).baselines["pca"] == pytest.approx(0, abs=1e-20)
    for name in ("psnr", "ssim", "ms_ssim", "lpips", "rfid"):
        with pytest.raises(Skip, match="not images"):
            value(name, e)


def test_without_weights_there_is_no_lpips_and_nothing_is_called_fid(e):
    for name in ("lpips", "rfid"):
        with pytest.raises(Skip, match="weights"):
            value(name, e)


def test_frechet_distance_is_the_closed_form():
    """Of gaussians with commuting covariances: |m - n|^2 + sum (s - t)^2."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, dtype=torch.float64, generator=generator)
    white = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    s, t, m = torch.tensor([1.0, 2, 3]).double(), torch.tensor([2.0, 2, 0.5]).double(), torch.tensor([1.0, 0, -2]).double()
    expected = float(m.square().sum() + (s - t).square().sum())
    assert frechet(white * s, white * t + m) == pytest.approx(expected, rel=1e-10)
    assert frechet(white, white) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(50, 40), (5, 6), (4, 30)])  # below 6, covariances are singular
def test_frechet_distance_is_that_of_scipy(n, m):
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(n, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(m, 6)) + 1
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(float(expected), rel=1e-6)


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory):
    """AlexNet with random weights, and random linear layers."""
    from torchvision.models import alexnet

    folder, generator = tmp_path_factory.mktemp("lpips"), torch.Generator().manual_seed(0)
    with torch.device("meta"):
        net = alexnet(weights=None).features
    weights = {f"features.{k}": 0.05 * torch.randn(v.shape, generator=generator) for k, v in net.state_dict().items()}
    scales = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator) for i, c in enumerate((64, 192, 384, 256, 256))}
    torch.save(weights, folder / "alexnet.pth")
    torch.save(scales, folder / "alex.pth")
    return str(folder / "alex.pth"), str(folder / "alexnet.pth"), weights, scales


def test_lpips_is_the_equation(lpips_files):
    linear, backbone, weights, scales = lpips_files
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.rand(2, 3, 70, 70, generator=generator) for _ in range(2))
    strides, pads = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)

    def layers(z):
        z = (2 * z - 1 - torch.tensor(SHIFT).view(3, 1, 1)) / torch.tensor(SPREAD).view(3, 1, 1)
        for number, layer in enumerate((0, 3, 6, 8, 10)):
            z = F.max_pool2d(z, 3, 2) if number in (1, 2) else z
            z = F.conv2d(z, weights[f"features.{layer}.weight"], weights[f"features.{layer}.bias"], strides[number], pads[number])
            z = z.clamp_min(0)
            yield F.normalize(z, dim=1)

    expected = sum(
        ((a - b).square() * scale).sum(1).mean((1, 2)) for a, b, scale in zip(layers(x), layers(y), scales.values(), strict=True)
    )
    found = perceptual(linear, backbone)
    torch.testing.assert_close(found.distance(x, y), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.distance(x, x), torch.zeros(2))
    assert found.distance(x[:, :1, :8, :8], y[:, :1, :8, :8]).shape == (2,)  # grey and small: made larger
    assert LAYERS["alexnet"][-1] == 11


def test_lpips_of_a_model_names_its_weights(lpips_files):
    e = evaluation("ae", how={"lpips_weights": lpips_files[0], "lpips_backbone": lpips_files[1]}, dtype=torch.float32)
    found = value("lpips", e)
    assert found.value > 0
    assert found.baselines["pca"] > 0
    assert found.protocol["extractor"].startswith("lpips alexnet ")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("no.pth", "a"), "no file no.pth"),
        (("alex", None), "needs --lpips-backbone"),
        (("alexnet", "alexnet"), "not the 5 linear layers"),
        (("alex", "alex"), "weights of another network"),
        (("junk", "alexnet"), "not a file of weights"),
    ],
)
def test_wrong_weights_are_rejected(files, words, lpips_files, tmp_path):
    (tmp_path / "junk").write_bytes(b"no weights")
    paths = {"alex": lpips_files[0], "alexnet": lpips_files[1], "junk": str(tmp_path / "junk")}
    with pytest.raises(UserError, match=words):
        perceptual(*(paths.get(name, name) for name in files))


def test_a_file_with_code_is_not_run(tmp_path):
    torch.save({"lin0.model.1.weight": print}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="not a file of weights"):
        perceptual(str(tmp_path / "code.pth"), str(tmp_path / "code.pth"))


def test_a_block_of_fids_inception_pools_without_its_padding():
    from torchvision.models.inception import InceptionA, InceptionE

    x = torch.rand(2, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    pools = {
        InceptionA(16, 8): lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        InceptionE(16): lambda x: F.max_pool2d(x, 3, 1, 1),
    }
    for block, pool in pools.items():
        block.eval()
        before, expected = block(x), block.branch_pool(pool(x))
        extractors._pool_by(block, pool)
        after, width = block(x), expected.shape[1]
        torch.testing.assert_close(after[:, -width:], expected)
        torch.testing.assert_close(after[:, :-width], before[:, :-width])
        assert not torch.equal(before[:, -width:], expected)


@pytest.mark.slow
def test_rfid_takes_the_inception_weights(tmp_path):
    from torchvision.models import Inception3

    torch.manual_seed(0)
    net = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    torch.save(net.state_dict(), tmp_path / "inception.pth")
    data = {name: images(6, seed) for seed, name in enumerate(("train", "val", "test"))}
    e = evaluation("vae", data, how={"inception_weights": str(tmp_path / "inception.pth")}, dtype=torch.float32)
    found, generated = value("rfid", e), value("fid", e)
    assert found.protocol["extractor"] == generated.protocol["extractor"]
    assert found.protocol["extractor"].startswith("inception_2048 ")
    assert min(found.value, found.baselines["pca"], generated.value) >= 0
    assert math.isfinite(found.value)
    features = inception(str(tmp_path / "inception.pth")).compute(torch.rand(1, 1, 8, 8))
    assert features.shape == (1, 2048)
    assert isinstance(net, nn.Module)


def test_figures_follow_the_weights_once_what_was_computed_is_forgotten():
    e = evaluation("ae")
    before = value("reconstruction_mse", e).value
    with torch.no_grad():
        for parameter in e.model.parameters():
            parameter.mul_(2)
    assert value("reconstruction_mse", e).value == before
    e.forget_model()
    assert value("reconstruction_mse", e).value != before
