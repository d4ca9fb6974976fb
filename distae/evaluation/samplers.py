"""Samples of a trained model: from its own prior, or from a density that is fitted to the codes of its training samples."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from distae import distributed as dist
from distae import noise as noise_
from distae.config.models import ModelConfig
from distae.errors import TrainingError, UserError
from distae.models import Autoencoder, Batch, Codes
from distae.models.inference import SAMPLED_AT_ONCE
from distae.models.second_stage import codes_of, second_stage
from distae.nn.causal import CausalIndices
from distae.nn.flows import MaskedAutoregressive
from distae.noise import Noise, Rows

CPU = torch.device("cpu")
Loss = Callable[[Tensor, Noise], Tensor]
M = TypeVar("M", bound=nn.Module)
FULL_COVARIANCE = 256
"""Dimensions of a code up to which the components of a mixture have full covariance matrices."""
BATCH, HIDDEN, FLOWS, LEARNING_RATE = 256, 128, 6, 2e-3
"""Of the fitted networks."""


class Fit(NamedTuple):
    """How a density is fitted."""

    seed: int = 0
    components: int = 10
    """Of the gaussian mixture."""
    steps: int = 2000
    """Of the optimizer, for `two_stage`, `flow` and `pixel`."""


class Density(Protocol):
    """What is fitted to codes."""

    about: dict[str, Any]
    """What defines it, for the record."""

    def draw(self, n: int, noise: Noise) -> Tensor:
        """`n` codes `[n, D]`, or sequences of indices `[n, N]` int64, on the CPU; a row depends on `noise` of that row alone."""


def samplers_of(cfg: ModelConfig) -> list[str]:
    """The samplers that a variant has, its own prior first."""
    return [*([cfg.prior] if cfg.generative else []), *cfg.fitted_priors]


def check_sampler(cfg: ModelConfig, name: str | None) -> str:
    """The sampler; by default the variant's own prior. Raises UserError if it is not one of the variant's."""
    valid = samplers_of(cfg)
    if name is None and not cfg.generative:
        raise UserError(f"{cfg.name} has no prior of its own: give --sampler; valid: {', '.join(valid)}")
    if name is not None and name not in valid:
        raise UserError(f"--sampler {name} does not fit {cfg.name}; valid: {', '.join(valid)}")
    return name or cfg.prior


def labels_of(cfg: Any, n: int, label: int | None, device: torch.device = CPU) -> Tensor | None:
    """Labels `[n]` int64 for a variant that is conditioned on them: `label`, or each in turn; None for others. Raises UserError."""
    if not cfg.conditional:
        if label is not None:
            raise UserError(f"--label: {cfg.name} is not conditioned on labels")
        return None
    if label is None:
        return torch.arange(n, device=device) % int(cfg.classes)
    if not 0 <= label < cfg.classes:
        raise UserError(f"--label {label}: valid: 0 to {cfg.classes - 1}")
    return torch.full((n,), label, device=device)


def fit(name: str, codes: Callable[[], Codes], how: Fit) -> Density:
    """The density that a sampler draws from, of the `codes()` of training samples; the same on every rank.

    Rank 0 computes the codes and fits, alone and on one thread, for the number of ranks to change no bit. Codes with a gaussian
    posterior are samples of it. Raises UserError where there are too few.
    """

    def alone() -> Density:
        with dist.use(dist.World(0, 1, dist.world().device)):
            found = posterior_samples(codes(), how.seed)
            with _one_thread():
                return FITTED[name](found, how)

    return dist.on_main(alone)


def posterior_samples(codes: Codes, seed: int) -> Codes:
    """The same codes, `z` being one sample of the gaussian posterior where there is one."""
    if codes.mu is None or codes.logvar is None:
        return codes
    noise = Noise(seed, ("posterior",), Rows(len(codes.mu)), CPU)
    return codes._replace(z=codes.mu + noise.normal(codes.mu) * torch.exp(0.5 * codes.logvar))


@torch.no_grad()
def sample(model: Autoencoder, density: Density | None, n: int, seed: int, label: int | None = None) -> Tensor:
    """`n` samples in the model's values, `[n, *shape]`, on the CPU of every rank; each rank computes some blocks of them.

    Without a density they are those of `distae.Model.sample`. `label` is for variants that are conditioned on it: by default each
    label in turn.
    """
    here, found = dist.world(), {}
    for number, start in enumerate(range(0, n, SAMPLED_AT_ONCE)):
        if number % here.world_size == here.rank:
            found[number] = _block(model, density, number, min(SAMPLED_AT_ONCE, n - start), seed, label).cpu()
    blocks = {number: block for part in dist.gather(found) for number, block in part.items()}
    return torch.cat([blocks[number] for number in sorted(blocks)])


def _block(model: Autoencoder, density: Density | None, number: int, n: int, seed: int, label: int | None) -> Tensor:
    first = next(model.parameters())
    labels = labels_of(model.cfg, n, label, first.device)
    if density is None:
        of = {} if labels is None else {"label": labels}
        return model.sample(n, Noise(seed, ("sample", number), Rows(n), first.device), **of)
    drawn = density.draw(n, Noise(seed, ("sample", number), Rows(n), CPU)).to(first.device)
    z = drawn.to(first.dtype) if drawn.is_floating_point() else model.from_indices(drawn)
    return model.decode(z, labels)


class Mixture:
    """A mixture of gaussians fitted by scikit-learn's EM (Ghosh et al. 2020, sec. 4: ex-post density estimation)."""

    def __init__(self, codes: Codes, how: Fit) -> None:
        from sklearn.mixture import GaussianMixture

        n, dim = codes.z.shape
        if how.components > n:
            raise UserError(f"--components {how.components}: more than the {n} codes that it is fitted to; valid: 1 to {n}")
        kind = "full" if dim <= FULL_COVARIANCE else "diag"
        mixture = GaussianMixture(how.components, covariance_type=kind, random_state=how.seed, max_iter=200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whether it has converged is kept
            mixture.fit(codes.z.numpy())
        self.edges = torch.from_numpy(mixture.weights_).cumsum(0)
        self.means = torch.from_numpy(mixture.means_)
        covariances = torch.from_numpy(mixture.covariances_)
        self.roots = torch.linalg.cholesky(covariances) if kind == "full" else torch.diag_embed(covariances.sqrt())
        self.about = {"codes": n, "components": how.components, "covariance": kind, "converged": bool(mixture.converged_)}

    def draw(self, n: int, noise: Noise) -> Tensor:
        uniform = noise.uniform(self.edges.new_empty(n))
        which = torch.searchsorted(self.edges / self.edges[-1], uniform, right=True).clamp_max(len(self.edges) - 1)
        normal = noise.normal(self.means.new_empty(n, self.means.shape[1]))
        return self.means[which] + torch.einsum("nij,nj->ni", self.roots[which], normal)


class Fitted:
    """A network that is fitted to codes scaled to mean 0 and variance 1 in each dimension."""

    def __init__(self, codes: Codes, how: Fit, module: nn.Module, loss: Loss) -> None:
        self.mean, self.std = codes.z.mean(0), codes.z.std(0, correction=0).clamp_min(1e-6)
        self.module = module
        self.about = minimise(module, ((codes.z - self.mean) / self.std).float(), loss, how)

    def restored(self, z: Tensor) -> Tensor:
        """Codes `[n, D]` in the model's scale."""
        return z.double() * self.std + self.mean


class SecondStage(Fitted):
    """A VAE of the codes (Dai & Wipf 2019, sec. 4)."""

    module: Autoencoder

    def __init__(self, codes: Codes, how: Fit) -> None:
        model = second_stage(codes.z.shape[1], HIDDEN, how.seed)
        super().__init__(codes, how, model, lambda z, noise: model(Batch(z), model.phases()[0].name, noise).loss)

    def draw(self, n: int, noise: Noise) -> Tensor:
        return self.restored(codes_of(self.module, n, noise))


class Flow(Fitted):
    """A masked autoregressive flow (Papamakarios et al. 2017)."""

    module: MaskedAutoregressive

    def __init__(self, codes: Codes, how: Fit) -> None:
        flow = _made(lambda: MaskedAutoregressive(codes.z.shape[1], HIDDEN, FLOWS), how.seed)
        super().__init__(codes, how, flow, lambda z, noise: -flow.log_prob(z).mean())

    def draw(self, n: int, noise: Noise) -> Tensor:
        return self.restored(self.module.inverse(noise.normal(torch.empty(n, len(self.mean)))))


class Sequence:
    """A density of discrete codes, one index after another, over those that training samples have."""

    def __init__(self, codes: Codes, how: Fit) -> None:
        assert codes.indices is not None
        self.used, found = torch.unique(codes.indices, return_inverse=True)
        size, positions = len(self.used), codes.indices.shape[1]
        self.model = _made(lambda: CausalIndices(size, positions, HIDDEN), how.seed)
        self.about = minimise(self.model, found, lambda rows, noise: -self.model.log_prob(rows).mean(), how) | {"used": size}

    def draw(self, n: int, noise: Noise) -> Tensor:
        found: Tensor = self.used[self.model.sample(n, noise)]
        return found


FITTED: dict[str, Callable[[Codes, Fit], Density]] = {"gmm": Mixture, "two_stage": SecondStage, "flow": Flow, "pixel": Sequence}
"""The samplers that are fitted to codes, by name."""


def minimise(module: nn.Module, rows: Tensor, loss: Loss, how: Fit) -> dict[str, Any]:
    """Minimise `loss(rows, noise)`, a mean over rows, with Adam, its rate falling to 0; returns what was done.

    `nats`: the mean loss over the last tenth of the steps.
    """
    size = min(BATCH, len(rows))
    epoch = len(rows) // size
    optimizer = torch.optim.Adam(module.parameters(), LEARNING_RATE)
    losses = []
    for step in range(how.steps):
        if step % epoch == 0:
            order = noise_.keyed_order(len(rows), how.seed, "fit", step // epoch)
        chosen = rows[order[step % epoch * size :][:size]]
        value = loss(chosen, Noise(how.seed, ("fit", step), Rows(size), CPU))
        optimizer.zero_grad()
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(module.parameters(), 10.0)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / how.steps)
        optimizer.step()
        losses.append(float(value.detach()))
    module.eval().requires_grad_(False)
    last = losses[-max(1, how.steps // 10) :]
    if not all(map(math.isfinite, last)):
        raise TrainingError("the density of the codes has become infinite or NaN in fitting")
    return {"codes": len(rows), "steps": how.steps, "nats": sum(last) / len(last)}


def _made(make: Callable[[], M], seed: int) -> M:
    """A network with initial weights by `seed`."""
    with noise_.initialising(seed):
        module = make()
    noise_.reset_parameters(module, seed)
    return module


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The number of threads changes the order of sums."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(before)
