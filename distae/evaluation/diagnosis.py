"""Diagnosis of codes: inactive dimensions, unused codebook entries."""

import math

import torch
from torch import Tensor

from distae import distributed as dist
from distae.data import Loader
from distae.evaluation.exact import EvalShard, eval_shards, fetch
from distae.losses import log_normal_pairs
from distae.models import Autoencoder, Batch
from distae.noise import Noise

SAMPLES = 4096
"""Maximum number of samples used: the diagnosis is cheap next to an evaluation."""
ACTIVE = 0.01
"""Variance above which a dimension counts as active (Burda 2016, sec. 5)."""


@torch.no_grad()
def diagnose(model: Autoencoder, loader: Loader, chunk: int, seed: int) -> dict[str, float]:
    """Metrics of codes with a gaussian posterior, else none; the same at every world size.

    `active_units`: dimensions whose posterior mean varies by more than ACTIVE over samples. `mi`: mutual information of sample and
    code in nats, E[log q(z|x) - log q(z)], q(z) the mean posterior of a chunk, hence at most log chunk (Hoffman & Johnson 2016).
    `kl_dim/NNN`: mean KL of each dimension from the prior in nats, if the prior is standard normal; where codes have positions, of
    each channel, summed over them.
    """
    was_training = model.training
    model.eval()
    found: list[list[Tensor]] = []
    try:
        for number, here in enumerate(eval_shards(loader, min(len(loader), SAMPLES), chunk)):
            found.append(_chunk(model, loader, number, here, seed))
            if not found[0]:
                return {}
    finally:
        model.train(was_training)
    if not found:
        return {}
    count, first, second, *rest = (dist.all_reduce_(torch.stack(parts).sum(0)) for parts in zip(*found, strict=True))
    variance = second / count - (first / count).square()
    information, *kl = (part / count for part in rest)
    metrics = {"active_units": float((variance > ACTIVE).sum()), "mi": float(information)}
    return metrics | {f"kl_dim/{i:03}": value for i, value in enumerate(kl[0].tolist() if kl else [])}


def _chunk(model: Autoencoder, loader: Loader, number: int, here: EvalShard, seed: int) -> list[Tensor]:
    """Sums over this rank's rows: their number, posterior means and squares, log q(z|x) - log q(z), and the KL by dimension."""
    noise = Noise(seed, ("diagnosis", number), here.rows, dist.world().device)
    x, label, here = fetch(loader, here, noise)
    codes = model.encode(x, label)
    if codes.mu is None or codes.logvar is None:
        return []
    batch = Batch(x, label, None, here.valid_mask)
    mu, logvar, weight = codes.mu.double(), codes.logvar.double(), here.valid_mask.double()[:, None]
    z = mu + noise.normal(mu) * torch.exp(0.5 * logvar)
    each = log_normal_pairs(z, batch.pool(mu), batch.pool(logvar))
    aggregate = torch.logsumexp(each, 1) - math.log(each.shape[1])
    own = batch.global_indices.clamp_max(each.shape[1] - 1)  # rows past the end have weight 0
    information = (each.gather(1, own[:, None])[:, 0] - aggregate) * weight[:, 0]
    kl = model.kl_of_dimensions(codes)
    sums = [weight.sum(), (mu * weight).sum(0), (mu.square() * weight).sum(0), information.sum()]
    return sums if kl is None else [*sums, (kl.double() * weight).sum(0).view(-1, model.code_shape[-1]).sum(0)]


def warnings(metrics: dict[str, float], code_size: int) -> list[str]:
    """Warnings about a trained model, with what to try."""
    lines = []
    active, live = metrics.get("active_units", code_size), metrics.get("live", 1.0)
    if active < max(1, 0.1 * code_size):
        lines.append(
            f"posterior collapse: {active:.0f} of {code_size} code dimensions are in use; "
            "try a KL warm-up (--model.beta 0:1@5000), --model.free-bits, or a smaller decoder"
        )
    if live < 0.1:
        lines.append(
            f"codebook: {live:.1%} of the codes are in use; try fewer codes, or --model.restart-below if the variant has it"
        )
    return lines
