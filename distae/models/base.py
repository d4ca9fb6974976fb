"""What every variant is: the contract between the models and the trainer, which never asks which variant it holds."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import prod
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distae import deprecation
from distae import distributed as dist
from distae import noise as noise_
from distae.config.models import ModelConfig
from distae.config.nets import NetConfig
from distae.config.registry import Registry
from distae.config.weights import Ramp, Weight, at
from distae.errors import UserError
from distae.losses import build_likelihood, mmd
from distae.nn import build_decoder, build_encoder
from distae.noise import Noise


class Batch(NamedTuple):
    """Samples as a model receives them."""

    x: Tensor
    """`[B, *shape]`, floating point."""
    label: Tensor | None = None
    """`[B]` int64, if the data has labels."""
    step: int | None = None
    """Optimizer step, from 0; None in evaluation: loss weights that change over training then have their final values."""
    valid_mask: Tensor | None = None
    """`[B]` bool, which rows count; None is all. In evaluation some rows may be padding, or unreadable."""
    dataset_size: int = 0
    """Samples in the split that these were drawn from."""
    y: Tensor | None = None
    """`[B, *shape of y]`: what is to be reconstructed, where it is not `x`."""
    ramps: dict[str, Tensor] | None = None
    """Current values of the loss weights that change over training, for compiled programs, which must not read the step."""
    recon: Tensor | None = None
    """Decoder output `[B, *raw_shape]` of this step's first phase, without gradient, in training if a phase has `sees_recon`."""

    @property
    def wanted(self) -> Tensor:
        """What is to be reconstructed."""
        return self.x if self.y is None else self.y

    def weight(self, weight: Weight) -> Any:
        """Value of a loss weight of the settings at this step: a number, or a scalar tensor."""
        return self.ramps[weight] if isinstance(weight, Ramp) and self.ramps is not None else at(weight, self.step)

    @property
    def held(self) -> Tensor | None:
        deprecation.warn("Batch.held", "valid_mask")
        return self.valid_mask

    @property
    def places(self) -> Tensor:
        deprecation.warn("Batch.places", "global_indices")
        return self.global_indices

    @property
    def population(self) -> int:
        deprecation.warn("Batch.population", "dataset_size")
        return self.dataset_size

    @property
    def global_indices(self) -> Tensor:
        """Which rows of the global batch these are: `[B]` int64."""
        return dist.world().rank * len(self.x) + torch.arange(len(self.x), device=self.x.device)

    def pool(self, x: Tensor) -> Tensor:
        """`[B, ...]` of all ranks as `[global batch, ...]`, only rows that count, in the same order at every world size."""
        rows = dist.gather_rows(x)
        return rows if self.valid_mask is None else rows[dist.gather_rows(self.valid_mask.long()).bool()]

    @property
    def own(self) -> Tensor:
        """Which rows of a `pool` are this process's: int64, one for each of its rows that count."""
        if self.valid_mask is None:
            return self.global_indices
        return (dist.gather_rows(self.valid_mask.long()).cumsum(0) - 1)[self.global_indices[self.valid_mask]]

    def mmd(self, x: Tensor, y: Tensor, kernel: str, widths: tuple[float, ...]) -> Tensor:
        """The MMD of samples `[B, D]` of all ranks, a scalar, with gradients; each rank computes the share of its own rows."""
        return dist.all_reduce(mmd(self.pool(x), self.pool(y), kernel, widths, self.own))

    def mean(self, x: Tensor) -> Tensor:
        """Mean `[...]` of `[B, ...]` over the rows of all ranks that count, with gradients."""
        if self.valid_mask is None:
            return dist.all_reduce(x.sum(0)) / (len(x) * dist.world().world_size)
        return dist.all_reduce(x[self.valid_mask].sum(0)) / dist.all_reduce(self.valid_mask.sum().to(x.dtype))


class Codes(NamedTuple):
    """The codes of a batch. `D` is the number of values of the model's `code_shape`, in whose order they are laid out."""

    z: Tensor
    """`[B, D]`; the posterior's mean if there is a posterior."""
    mu: Tensor | None = None
    """`[B, D]`: mean of the gaussian posterior, if there is one."""
    logvar: Tensor | None = None
    """`[B, D]`: log of its variances."""
    indices: Tensor | None = None
    """`[B, N]` int64: which codes, in the order of their vectors in `z`, where codes are discrete."""


class Output(NamedTuple):
    """Result of a forward pass. A NamedTuple, so that DDP finds the tensors in it."""

    loss: Tensor
    """Scalar to minimise: the mean of per_sample["loss"] over this process's rows."""
    per_sample: dict[str, Tensor]
    """Terms `[B]` in nats per sample; "loss" is the weighted sum of all terms."""
    per_batch: dict[str, Tensor]
    """Scalar terms that are not means over samples: the same on every rank."""
    recon: Tensor
    """Decoder output `[B, *raw_shape]`; `likelihood.mean` of it is the reconstruction."""


def output(loss: Tensor, recon: Tensor, terms: dict[str, Tensor], objective: str = "loss") -> Output:
    """An Output that minimises the mean of `loss` `[B]` and reports it as `objective`, with `terms`: `[B]`, or scalars per batch.

    Each phase of a variant reports under its own name: only the first phase's objective is "loss".
    """
    reported = {k: v.detach() for k, v in {objective: loss, **terms}.items()}
    per_sample = {k: v for k, v in reported.items() if v.ndim}
    return Output(loss.mean(), per_sample, {k: v for k, v in reported.items() if not v.ndim}, recon.detach())


class Objective(NamedTuple):
    """What a variant minimises, with gradients: `forward` is `output(*objective)`, and other variants may add terms to it."""

    loss: Tensor
    """`[B]`, in nats per sample."""
    recon: Tensor
    """Decoder output `[B, *raw_shape]`."""
    terms: dict[str, Tensor]
    """`[B]`, or scalars over the global batch; `recon` is -log p(x|z)."""


class Phase(NamedTuple):
    """Part of a step with its own parameters and optimizer; adversarial variants have several. The first one's loss is `loss`."""

    name: str
    parameters: list[nn.Parameter]
    lr: float | None = None
    """Peak learning rate; None is the one of the settings."""
    sees_recon: bool = False
    """Whether it uses the first phase's reconstructions, `Batch.recon`, instead of a forward pass of its own. Not with `compiles`:
    a CUDA graph's output does not outlive its next replay."""


def parameters_except(model: nn.Module, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """The model's parameters without `parameters`, in order."""
    known = {id(p) for p in parameters}
    return [p for p in model.parameters() if id(p) not in known]


class Autoencoder(nn.Module, ABC):
    """The contract of all variants. Most build on `NetAutoencoder`; a direct subclass brings its own networks and `code_shape`."""

    normal_prior: ClassVar[bool] = False
    """Whether codes are meant to follow N(0, I)."""
    sparse_codes: ClassVar[bool] = False
    """Whether most values of a code are 0, so that codes are written as sparse matrices."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "turns" in vars(cls):
            deprecation.warn(f"{cls.__name__}.turns()", "phases()")
            cls.phases = cls.turns  # type: ignore[attr-defined, method-assign]
        if Autoencoder in cls.__bases__ and "code_shape" not in vars(cls):  # up to 0.1, this class built the networks
            deprecation.warn(f"class {cls.__name__}(Autoencoder)", f"class {cls.__name__}(NetAutoencoder)")
            cls.__bases__ = tuple(NetAutoencoder if base is Autoencoder else base for base in cls.__bases__)

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        """`shape` is that of a sample: `(C, H, W)` of images, `(values,)` of tables."""
        super().__init__()
        self.cfg, self.net, self.shape = cfg, net, shape
        self.likelihood = build_likelihood(cfg, shape)

    @property
    @abstractmethod
    def code_shape(self) -> tuple[int, ...]:
        """Shape of a sample's code: its positions, then the channels of each: `(channels,)` or `(rows, columns, channels)`.

        Codes themselves are flat, `[B, D]` with D = prod(code_shape); `z.view(-1, *code_shape)` restores the shape.
        """

    @property
    def code_size(self) -> int:
        """Values of a sample's code, over all positions."""
        return prod(self.code_shape)

    @abstractmethod
    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        """The objective of `phase`. It is the forward, so that DDP's hooks see it."""

    @abstractmethod
    def encode(self, x: Tensor, label: Tensor | None = None) -> Codes:
        """Codes of `x` `[B, *shape]`, without noise. Labels `[B]` int64 are for variants that are conditioned on them."""

    def features(self, z: Tensor) -> Tensor:
        """What neighbours and classifiers see of codes `[B, D]`: `[B, F]`, all of them unless the variant says otherwise."""
        return z

    @abstractmethod
    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Mean of p(x|z) in the data's units: `[B, *shape]` from codes `[B, D]`, laid out as `code_shape`."""

    def target(self, x: Tensor) -> Tensor:
        """What reconstructions of samples `[B, *shape]` are compared with: samples, unless the variant predicts a part of them."""
        return x

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of what `encode` and `reconstruct` need of a sample."""
        return self.shape

    def reconstruct(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """`[B, *shape]` to the same: `decode(encode(x).z)`, of counts with the totals of `x`, unless the variant says otherwise."""
        return self.likelihood.matched(self.decode(self.encode(x, label).z, label), x)

    def sample(self, n: int, noise: Noise) -> Tensor:
        """`n` samples from the model, `[n, *shape]`. Raises NotImplementedError if the variant has no prior."""
        raise NotImplementedError(f"{self.cfg.name} has no prior to sample from")

    @property
    def num_codes(self) -> int | None:
        """How many codes each of `Codes.indices` chooses from; None where codes are not discrete."""
        return None

    def from_indices(self, indices: Tensor) -> Tensor:
        """`z` `[B, D]` of `Codes.indices` `[B, N]`, as `encode` gives it. Raises NotImplementedError without `num_codes`."""
        raise NotImplementedError(f"{self.cfg.name} has no discrete codes")

    @property
    def has_log_bound(self) -> bool:
        """Whether the variant bounds log p(x)."""
        return "kl" in self.cfg.terms

    def log_bound(self, batch: Batch, noise: Noise) -> Tensor:
        """A lower bound of log p(x) in nats, `[B]`: the ELBO of one posterior sample, whatever is minimised."""
        terms = self(batch, self.phases()[0].name, noise).per_sample
        return -(terms["recon"] + terms["kl"])  # type: ignore[no-any-return]

    def log_weights(self, batch: Batch, k: int, noise: Noise) -> Tensor | None:
        """log p(x, z) - log q(z|x) in nats of `k` posterior samples of each row, `[B, k]`: their mean is the ELBO, the logarithm of
        their exponentials' mean the bound of Burda et al. 2016, eq. 8. None where the variant has no such density."""
        return None

    def kl_of_dimensions(self, codes: Codes) -> Tensor | None:
        """KL of each code dimension from the prior in nats, `[B, D]`, for diagnosis. None if it is not a sum over dimensions."""
        return None

    def phases(self) -> list[Phase]:
        """The optimizer phases of a step, in order."""
        return [Phase("autoencoder", list(self.parameters()))]

    def start(self, x: Tensor) -> None:
        """Called once on new weights, before the first step, with this process's rows of the first batch, `[B, *shape]`.

        For initial values that depend on the data: gather rows or sum over ranks, so that all end with the same ones.
        """

    def after_step(self, step: int) -> None:
        """Called once after each optimizer step, for codebooks and averages that no optimizer updates.

        Sum this rank's statistics with `distributed.all_reduce_` first: every rank must end with the same buffers.
        """


class PreprocessedEncoder(nn.Module):
    """An encoder of preprocessed x: missing values (NaN) are 0, x becomes log(1 + x) or has length 1; dropout in training."""

    def __init__(self, encoder: nn.Module, cfg: ModelConfig, channels: int) -> None:
        """The first `channels` of its input are x; the others (labels) stay as they are."""
        super().__init__()
        self.encoder, self.form, self.missing, self.channels = encoder, cfg.input, cfg.missing, channels
        self.dropout = cfg.input_dropout

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        """`[B, outputs]` from `[B, C, ...]`."""
        seen, others = x[:, : self.channels], x[:, self.channels :]
        seen = seen.nan_to_num(0.0) if self.missing else seen
        if self.form == "log1p":
            seen = seen.clamp_min(0).log1p()  # noise of a corrupted input can be below -1
        elif self.form == "l2":
            seen = F.normalize(seen.flatten(1)).view_as(seen)
        if self.training and self.dropout and noise:
            seen = noise.dropout(seen, self.dropout)
        out: Tensor = self.encoder(torch.cat([seen, others], 1) if others.shape[1] else seen, noise)
        return out


class NetAutoencoder(Autoencoder):
    """An encoder and a decoder made from the settings of the network. Override a builder to use a different one."""

    latent_factor: ClassVar[int] = 1
    """Encoder outputs per value of a code, such as 2 for a mean and a variance: blocks of `code_size`, one after the other."""

    def __init__(self, cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
        super().__init__(cfg, net, shape)
        encoder = self.build_encoder()
        self.encoder = PreprocessedEncoder(encoder, cfg, shape[0]) if cfg.other_input else encoder
        self.decoder = self.build_decoder()

    def build_encoder(self) -> nn.Module:
        """A module `(x [B, *shape], noise) -> [B, outputs]`. Called once, after `cfg`, `net` and `shape` are set."""
        return build_encoder(self.net, self.shape, self.latent_factor * self.cfg.latent_dim, self.latent_factor)

    def build_decoder(self) -> nn.Module:
        """A module `(z [B, code_size], noise) -> [B, *raw_shape]`, its outputs the parameters of the likelihood."""
        return build_decoder(self.net, self.likelihood.raw_shape, self.cfg.latent_dim)

    @property
    def code_shape(self) -> tuple[int, ...]:
        return self.net.code_shape(self.shape, self.cfg.latent_dim)

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self.likelihood.mean(self.decode_raw(z, label))

    def decode_raw(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """The parameters of p(x|z), `[B, *raw_shape]`, of codes `[B, code_size]`."""
        raw: Tensor = self.decoder(z, None)
        return raw

    def normal_codes(self, n: int, noise: Noise) -> Tensor:
        """`n` codes from a standard normal prior: `[n, code_size]`."""
        return noise.normal(next(self.parameters()).new_empty(n, self.code_size))


M = TypeVar("M", bound=type[Autoencoder])
_REGISTRY: Registry[type[ModelConfig], type[Autoencoder]] = Registry("variant")


def register(config: type[ModelConfig]) -> Callable[[M], M]:
    """Bind a variant to its settings class. Raises TypeError if the variant lacks a method of the contract."""

    def bind(model: M) -> M:
        if missing := sorted(model.__abstractmethods__):
            raise TypeError(f"{model.__name__}, registered for --model {config.name}, does not define {', '.join(missing)}")
        return _REGISTRY.register(config)(model)

    return bind


def registry() -> dict[type[ModelConfig], type[Autoencoder]]:
    """Each variant's class by its settings class."""
    return dict(_REGISTRY)


def build(cfg: ModelConfig, net: NetConfig, shape: tuple[int, ...], seed: int = 0, **to: Any) -> Autoencoder:
    """A new model, its weights initialised on the CPU from `seed` and their names, then moved by `model.to(**to)`."""
    if type(cfg) not in _REGISTRY:
        raise UserError(f"--model {cfg.name}: no class is bound to its settings by @register({type(cfg).__name__})")
    with noise_.initialising(seed):
        model = _REGISTRY[type(cfg)](cfg, net, shape)
    noise_.reset_parameters(model, seed)
    return model.to(**to)


__getattr__ = deprecation.renamed(__name__, {"Turn": ("Phase", Phase)})
