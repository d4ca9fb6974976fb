"""Whether the space of codes is continuous (near codes decode to near samples) and complete (codes of the prior decode to
plausible ones), as tutorials ask (Rocca 2019, "Understanding variational autoencoders"), and how codes compare with the prior."""

import torch
from torch import Tensor

from distae.evaluation.diagnosis import ACTIVE
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.generation import pca_samples, samples
from distae.evaluation.metrics import Figure, Skip, register_metric
from distae.evaluation.shared import flat, nearest, pca_of_code
from distae.losses import mmd
from distae.models import Batch
from distae.noise import Noise, Rows, keyed_order

COMPARED = 2000
"""Samples whose neighbours are compared, and codes of the MMD: its cost is their square."""
NEIGHBOURS = 10
PAIRS, STEPS = 256, 10
"""Pairs of samples between which codes are interpolated, and steps of each path."""
INSIDE = 0.95
"""The share of reconstructions that counts as near the data."""
CPU = torch.device("cpu")


def _neighbourhoods(e: Evaluation, codes_first: bool) -> Figure:
    """scikit-learn's trustworthiness of the codes as a map of the values, or of the values as a map of the codes."""
    x, z = flat(e.values()[:COMPARED]), e.codes().z[:COMPARED]
    if len(x) <= 2 * NEIGHBOURS:
        raise Skip(f"{len(x)} samples are too few for {NEIGHBOURS} neighbours")
    pca = pca_of_code(e)
    maps = {"model": z} | ({"pca": pca.encode(x)} if pca else {})

    def of(found: Tensor) -> float:
        from sklearn.manifold import trustworthiness

        return float(trustworthiness(*((found, x) if codes_first else (x, found)), n_neighbors=NEIGHBOURS))

    values = e.on_main(lambda: {name: of(found) for name, found in maps.items()})
    model = values.pop("model")
    return Figure(model, values, protocol={"neighbours": NEIGHBOURS, "compared": len(x)})


@register_metric("trustworthiness", task="latent_space", better="higher")
def trustworthiness(e: Evaluation) -> Figure:
    """1 where the neighbours of a code are neighbours as samples too, 0.5 at random (Venna & Kaski 2001, eq. 1)."""
    return _neighbourhoods(e, codes_first=False)


@register_metric("continuity", task="latent_space", better="higher")
def continuity(e: Evaluation) -> Figure:
    """1 where neighbours among samples have neighbouring codes, 0.5 at random (Venna & Kaski 2001, eq. 2)."""
    return _neighbourhoods(e, codes_first=True)


@register_metric("interpolation_jump", task="latent_space")
def interpolation_jump(e: Evaluation) -> Figure:
    """The longest of 10 steps over the mean step, of what codes between two samples decode to: 1 is even, 10 one jump.

    Codes are on the straight line between those of two samples, steps are distances of decoded values; the mean over pairs.
    """
    z, n = e.codes().z, len(e.codes().z)
    if n < 2:
        raise Skip("a path needs two samples")
    order = keyed_order(n, e.seed, "interpolation")[: 2 * min(PAIRS, n // 2)]
    first, second = z[order].view(-1, 2, z.shape[1]).unbind(1)
    along = torch.linspace(0, 1, STEPS + 1, dtype=z.dtype)[:, None]
    label = e.labels()[order[::2]] if e.model.cfg.conditional else None
    jumps = torch.stack(
        [
            _jump(e, a + along * (b - a), None if label is None else label[i])
            for i, (a, b) in enumerate(zip(first, second, strict=True))
        ]
    )
    return Figure(float(jumps.mean()), protocol={"pairs": len(jumps), "steps": STEPS})


@torch.no_grad()
def _jump(e: Evaluation, path: Tensor, label: Tensor | None) -> Tensor:
    first = next(e.model.parameters())
    labels = None if label is None else label.expand(len(path)).to(first.device)
    decoded = e.model.decode(path.to(first), labels).flatten(1).double().cpu()
    steps = decoded.diff(dim=0).norm(dim=1)
    jump: Tensor = steps.max() / steps.mean().clamp_min(torch.finfo(steps.dtype).tiny)
    return jump


@register_metric("completeness", task="latent_space", unit="share of samples", better="higher")
def completeness(e: Evaluation) -> Figure:
    """The share of decoded samples of the prior that are as near to a training sample as 95% of the split's reconstructions are.

    Distances are of values. Beside it samples of a gaussian on PCA's components, measured against PCA's own reconstructions.
    """
    train, pca, linear = e.values("train"), pca_of_code(e), pca_samples(e)
    sets = {"model": (samples(e), e.reconstructions())}
    if pca and linear is not None:
        sets["pca"] = linear, pca.reconstruct(e.values())

    def near(drawn: Tensor, made: Tensor) -> float:
        reach = nearest(made, train).quantile(INSIDE)
        return float((nearest(drawn, train) <= reach).double().mean())

    values = e.on_main(lambda: {name: near(*pair) for name, pair in sets.items()})
    model = values.pop("model")
    return Figure(model, values, protocol={"training_samples": len(train), "drawn": len(samples(e)), "near": INSIDE})


@register_metric("active_units", task="latent_space", unit="dimensions", better=None)
def active_units(e: Evaluation) -> Figure:
    """Dimensions whose posterior mean has a variance over samples above 0.01 (Burda et al. 2016, sec. 5.3)."""
    if (mu := e.codes().mu) is None:
        raise Skip(f"{e.model.cfg.name} has no posterior mean")
    return Figure(float((mu.var(0, correction=0) > ACTIVE).sum()), protocol={"dimensions": mu.shape[1], "above": ACTIVE})


@register_metric("scaling_factor", task="latent_space", better=None)
def scaling_factor(e: Evaluation) -> Figure:
    """One over the standard deviation of a value of a code, over all samples, positions and channels, of codes with positions.

    Rombach et al. 2022, app. G, divide a latent diffusion model's codes by it: a scalar, of samples of the posterior of the first
    batch. Here the expectation over the posterior: the variance of its means plus its mean variance, of the first `limit` samples.
    """
    if len(e.model.code_shape) == 1:
        raise Skip("codes have no positions")

    def moments(batch: Batch, noise: Noise) -> dict[str, Tensor]:
        codes = e.model.encode(batch.x, batch.label)
        z, spread = codes.z.double(), 0.0 if codes.logvar is None else codes.logvar.double().exp().mean(1)
        return {"first": z.mean(1), "second": z.square().mean(1) + spread}

    found = e.mean(moments, "scaling_factor", e.limit)
    variance = found["second"] - found["first"] ** 2
    if variance <= 0:
        raise Skip("all codes are equal")
    return Figure(variance**-0.5)


def _posterior(e: Evaluation) -> tuple[Tensor, Tensor | None]:
    """Means `[n, D]`, and variances where codes have them. Raises Skip unless the prior is standard normal."""
    if not e.model.normal_prior:
        raise Skip(f"the prior of {e.model.cfg.name} is not standard normal")
    codes = e.codes()
    return codes.z, None if codes.logvar is None else codes.logvar.exp()


@register_metric("aggregate_kl", task="latent_space", unit="nats")
def aggregate_kl(e: Evaluation) -> Figure:
    """KL(N(m, S) || N(0, I)), m and S of the aggregate posterior q(z) = E q(z|x): what two moments show of its distance.

    S is the covariance of the posterior means plus the mean posterior variance; (tr S + |m|^2 - D - log det S) / 2.
    """
    mu, variance = _posterior(e)
    mean, cov = mu.mean(0), mu.T.cov(correction=0).view(mu.shape[1], -1)
    cov = cov if variance is None else cov + variance.mean(0).diag()
    logdet = torch.linalg.slogdet(cov).logabsdet
    if not bool(logdet.isfinite()):
        raise Skip("the codes span fewer dimensions than they have")
    return Figure(float(0.5 * (cov.trace() + mean.square().sum() - len(mean) - logdet)), protocol={"samples": len(mu)})


@register_metric("aggregate_mmd", task="latent_space")
def aggregate_mmd(e: Evaluation) -> Figure:
    """Squared MMD of codes and as many samples of N(0, I), unbiased, inverse multiquadric kernel of scale 2 D (Tolstikhin 2018).

    Codes are samples of the posterior where there is one. Below 0 is a chance result of equal distributions.
    """
    mu, variance = _posterior(e)
    mu, noise = mu[:COMPARED], Noise(e.seed, ("aggregate",), Rows(0), CPU)
    z = mu if variance is None else mu + noise.common(*mu.shape).double() * variance[:COMPARED].sqrt()
    prior = noise.common(*mu.shape).double()
    return Figure(float(mmd(z, prior, "imq", (1.0,))), protocol={"samples": len(mu), "kernel": "imq"})
