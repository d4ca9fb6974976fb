"""How near reconstructions are to their samples, beside PCA with as many components as the code has values."""

from torch import Tensor

from distae.evaluation.evaluation import Evaluation
from distae.evaluation.extractors import frechet, inception, perceptual
from distae.evaluation.metrics import Figure, Skip, register_metric
from distae.evaluation.scores import squared
from distae.evaluation.shared import are_images, need_images, once, pca_of_code
from distae.losses.similarity import ms_ssim, ssim
from distae.models import Batch
from distae.noise import Noise

WINDOW = 11
"""Side of the gaussian window of SSIM in pixels (Wang et al. 2004, sec. III.C); less in smaller images."""
LEAST_MSE = 1e-10
"""Below it PSNR is 100 dB: that of an exact reconstruction is infinite."""


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [0, 1], `[B]` from mean squared errors `[B]`."""
    return -10 * mse.clamp_min(LEAST_MSE).log10()


def window_of(shape: tuple[int, ...]) -> int:
    """The largest odd window up to WINDOW that fits an image."""
    side = min(WINDOW, *shape[1:])
    return side - 1 + side % 2


@once
def _errors(e: Evaluation) -> dict[str, float]:
    """Means over all samples of `mse`, `mae`, and for images `psnr`, `ssim`, `ms_ssim`, `lpips`; with `pca ` before them PCA's."""
    pca, images = pca_of_code(e), are_images(e)
    lpips = perceptual(e.settings.lpips_weights, e.settings.lpips_backbone) if images and e.settings.lpips_weights else None

    def of(x: Tensor, made: Tensor) -> dict[str, Tensor]:
        found = {"mse": squared(x, made), "mae": (x - made).abs().flatten(1).nanmean(1).nan_to_num(0.0)}
        if images:
            window = window_of(e.model.shape)
            found |= {"psnr": psnr(found["mse"]), "ssim": ssim(x, made, window), "ms_ssim": ms_ssim(x, made, window)}
        return found | ({"lpips": lpips.distance(x, made)} if lpips else {})

    def terms(batch: Batch, noise: Noise) -> dict[str, Tensor]:
        found = of(e.model.target(batch.x), e.model.reconstruct(batch.x, batch.label))
        if pca:
            beside = of(batch.x, pca.reconstruct(batch.x.cpu()).to(batch.x))
            found |= {f"pca {name}": value for name, value in beside.items()}
        return found

    return e.mean(terms, "reconstruction")


def _figure(e: Evaluation, name: str, **protocol: object) -> Figure:
    found = _errors(e)
    beside = {"pca": found[f"pca {name}"]} if f"pca {name}" in found else {}
    return Figure(found[name], beside, protocol=protocol)


@register_metric("reconstruction_mse", task="reconstruction", unit="squared units of the model's values")
def reconstruction_mse(e: Evaluation) -> Figure:
    """(x - reconstruct(x))^2, averaged over the values of a sample."""
    return _figure(e, "mse")


@register_metric("reconstruction_mae", task="reconstruction", unit="units of the model's values")
def reconstruction_mae(e: Evaluation) -> Figure:
    """|x - reconstruct(x)|, averaged over the values of a sample."""
    return _figure(e, "mae")


@register_metric("psnr", task="reconstruction", unit="dB", better="higher")
def peak_ratio(e: Evaluation) -> Figure:
    """-10 log10 of each image's mean squared error, values in [0, 1]; the mean over images."""
    need_images(e)
    return _figure(e, "psnr", peak=1)


@register_metric("ssim", task="reconstruction", better="higher")
def structural_similarity(e: Evaluation) -> Figure:
    """Structural similarity, at most 1 (Wang et al. 2004, eq. 13), gaussian window of standard deviation 1.5 pixels."""
    need_images(e)
    return _figure(e, "ssim", window=window_of(e.model.shape))


@register_metric("ms_ssim", task="reconstruction", better="higher")
def multiscale_similarity(e: Evaluation) -> Figure:
    """Multi-scale structural similarity (Wang et al. 2003, eq. 7), of as many of the 5 scales as fit the image."""
    need_images(e)
    return _figure(e, "ms_ssim", window=window_of(e.model.shape))


@register_metric("lpips", task="reconstruction")
def perceptual_distance(e: Evaluation) -> Figure:
    """Learned perceptual distance (Zhang et al. 2018, eq. 1), of weights by path: --lpips-weights, --lpips-backbone."""
    need_images(e)
    if not e.settings.lpips_weights:
        raise Skip("give --lpips-weights and --lpips-backbone, files of weights")
    return _figure(e, "lpips", extractor=perceptual(e.settings.lpips_weights, e.settings.lpips_backbone).name)


@register_metric("rfid", task="reconstruction")
def reconstruction_fid(e: Evaluation) -> Figure:
    """FID of reconstructions and their samples: the Fréchet distance of Inception features (Heusel et al. 2017, eq. 6)."""
    need_images(e)
    if not e.settings.inception_weights:
        raise Skip("give --inception-weights, a file of weights")
    net, pca = inception(e.settings.inception_weights), pca_of_code(e)
    real = net(e.values())
    value = frechet(real, net(e.reconstructions()))
    beside = {"pca": frechet(real, net(pca.reconstruct(e.values())))} if pca else {}
    return Figure(value, beside, protocol={"extractor": net.name, "images": len(real)})
