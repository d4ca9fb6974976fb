"""Using a trained model: arrays, tensors and lists in the data's own units, in batches, on any device."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from distae.data import Transform
from distae.errors import UserError
from distae.models.base import Autoencoder, Batch, Codes
from distae.models.frames import rows_of
from distae.models.serialization import load_with_transform, stored_shape
from distae.models.tiles import resized
from distae.noise import Noise, Rows

BATCH = 512
"""Default batch size."""
SAMPLED_AT_ONCE = 64
"""Samples drawn at once: fixed, so that the number of samples does not change their noise."""


class Given(NamedTuple):
    """What a caller gave, as a tensor."""

    x: Tensor
    is_tensor: bool
    """Whether results are to be tensors, on the device of `x`; else numpy arrays."""


class Model:
    """A trained autoencoder.

    `x` is `[N, *shape]` in the units and layout of the training data (bytes stay bytes): a numpy array, a tensor on any device, a
    DataFrame, or nested lists, of any integer or floating point type. A model of a table takes a DataFrame's columns by name, with
    categories as strings; in arrays categories are codes. Results are tensors on the same device if `x` is a tensor, else numpy
    arrays, in the model's floating point type, `dtype` (tables: float64). Only methods with a `seed` draw random numbers, and
    `batch_size` changes results by rounding only. `label` `[N]` integers is needed by variants that are conditioned on it. All
    methods raise UserError on a wrong shape or type, and on NaN and infinite values.
    """

    def __init__(self, module: Autoencoder, transform: Transform | None = None) -> None:
        """`transform` converts stored values to those of `module`."""
        self.module, self.transform = module.eval(), transform or Transform()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample as given and returned."""
        return stored_shape(self.transform, self.module.shape)

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Shape of one code: its positions, then the channels of each. Codes are flat: `z.reshape(-1, *code_shape)`."""
        return self.module.code_shape

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type that the model computes in, and of all results."""
        return next(self.module.parameters()).dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the model, as `torch.nn.Module.to` does: `to("cuda")`, `to(torch.float64)`. Returns the object itself."""
        self.module.to(*args, **kwargs)
        return self

    def resized(self, height: int, width: int, tile: int | None = None, overlap: float = 0.25) -> "Model":
        """The same model for images of another size, which the network's factor divides, with the same tensors.

        With `tile`, in tiles of that many pixels a side that overlap by the share `overlap` and are blended: memory grows with the
        tile, not with the image. Raises UserError where codes do not keep their place.
        """
        return Model(resized(self.module, height, width, tile, overlap), replace(self.transform, crop=0))

    def __call__(self, x: Any, label: Any = None, *, batch_size: int = BATCH) -> Any:
        """The same as `reconstruct`."""
        return self.reconstruct(x, label, batch_size=batch_size)

    def encode(self, x: Any, label: Any = None, *, batch_size: int = BATCH) -> Any:
        """Codes `[N, D]` of `x`, D being the number of values of `code_shape`; the mean if the variant has a posterior."""
        return self.codes(x, label, batch_size=batch_size).z

    @torch.no_grad()
    def codes(self, x: Any, label: Any = None, *, batch_size: int = BATCH) -> Codes:
        """`z` as `encode` gives it; `mu`, `logvar` `[N, D]` of the posterior and `indices` of discrete codes, else None."""
        given = self._samples(x, whole=False)
        parts = [self.module.encode(x, label) for x, label, _ in self._batches(given, label, batch_size)]
        columns: Any = (None if column[0] is None else _joined(column, given) for column in zip(*parts, strict=True))
        return Codes(*columns)

    @torch.no_grad()
    def decode(self, z: Any, label: Any = None, *, batch_size: int = BATCH) -> Any:
        """Means of p(x|z), `[N, *shape]`, of codes `[N, D]`."""
        given = _tensor(z, "z")
        _check_shape(given.x, (torch.Size(self.code_shape).numel(),), "z")
        parts = [
            self.transform.invert(self.module.decode(z, label)) for z, label, _ in self._batches(given, label, batch_size, "z")
        ]
        return _joined(parts, given)

    def features(self, x: Any, label: Any = None, *, batch_size: int = BATCH) -> Any:
        """What kNN and probes see of `x`, `[N, F]`: its code; of masked_ae the mean of all patches, or the class token."""
        return self._each(x, label, batch_size, lambda x, label, _: self.module.features(self.module.encode(x, label).z))

    def reconstruct(self, x: Any, label: Any = None, *, batch_size: int = BATCH) -> Any:
        """The reconstruction `[N, *shape]` of `x` without noise; for most variants `decode(encode(x))`.

        Transcoders give the target, and need the inputs alone, here and in `encode`.
        """
        return self._each(
            x, label, batch_size, lambda x, label, _: self.transform.invert(self.module.reconstruct(x, label)), whole=False
        )

    def score(self, x: Any, label: Any = None, *, batch_size: int = BATCH) -> Any:
        """The reconstruction error of each sample, `[N]`: the mean over its values of (x - reconstruct(x))^2.

        In squared units of the model's own values, those of the rows `val/mse`: images in [0, 1], normalised columns.
        Missing values are left out.
        """
        return self._each(x, label, batch_size, self._squared_error)

    def log_prob(self, x: Any, label: Any = None, *, seed: int = 0, batch_size: int = BATCH) -> Any:
        """A lower bound of log p(x) of each sample in nats, `[N]`, with posterior samples keyed by `seed`.

        The ELBO of one sample, -(recon + kl); for the importance weighted variants their bound of several. It is of the model's own
        values: a probability of binary or counted values, a density of others. Raises UserError if the variant has no bound.
        """
        if not self.module.has_log_bound:
            raise UserError(f"{self.module.cfg.name} gives no probability of x; score(x) is its reconstruction error")

        def bound(x: Tensor, label: Tensor | None, start: int) -> Tensor:
            noise = Noise(seed, ("log_prob",), Rows(len(x), start), x.device)
            return self.module.log_bound(Batch(x, label, None, None, len(x)), noise)

        return self._each(x, label, batch_size, bound)

    @torch.no_grad()
    def sample(self, n: int, *, seed: int = 0, label: Any = None) -> Any:
        """`n` samples from the prior, a numpy array `[n, *shape]`; of the labels `[n]` if the variant is conditioned on them.

        Raises UserError if the variant has no prior.
        """
        if not self.module.cfg.generative:
            raise UserError(f"{self.module.cfg.name} has no prior to sample from; decode(z) takes codes of your own")
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise UserError(f"n is {n!r}; expected a whole number from 1 on")
        labels = None if label is None else self._labels(label, n)
        parts = []
        for number, start in enumerate(range(0, n, SAMPLED_AT_ONCE)):
            count = min(SAMPLED_AT_ONCE, n - start)
            noise = Noise(seed, ("sample", number), Rows(count), self.device)
            of = {} if labels is None else {"label": labels[start : start + count].to(self.device)}
            parts.append(self.transform.invert(self.module.sample(count, noise, **of)).cpu())
        return torch.cat(parts).numpy()

    def __repr__(self) -> str:
        cfg, shape, where = self.module.cfg, list(self.shape), f"{str(self.dtype).removeprefix('torch.')} on {self.device}"
        return f"distae.Model({cfg.name}, x [N, {', '.join(map(str, shape))}], code {list(self.code_shape)}, {where})"

    def _squared_error(self, x: Tensor, label: Tensor | None, start: int) -> Tensor:
        return (self.module.target(x) - self.module.reconstruct(x, label)).square().flatten(1).nanmean(1)

    @torch.no_grad()
    def _each(
        self, x: Any, label: Any, batch_size: int, work: Callable[[Tensor, Tensor | None, int], Tensor], whole: bool = True
    ) -> Any:
        """`work(x, label, first row)` of every batch, joined."""
        given = self._samples(x, whole)
        return _joined([work(*batch) for batch in self._batches(given, label, batch_size)], given)

    def _samples(self, x: Any, whole: bool = True) -> Given:
        """`whole`: what `encode` needs of samples is not enough."""
        if self.transform.columns and hasattr(x, "iloc"):
            x = rows_of(x, self.transform.columns)
        given, input_shape = _tensor(x, "x"), self.module.input_shape
        of_input = not whole and input_shape != self.module.shape and tuple(given.x.shape[1:]) == input_shape
        fits = given.x.ndim > 1 and self.transform.crop and self.transform.shape(tuple(given.x.shape[1:])) == self.module.shape
        if not fits and not (of_input and len(given.x)):  # larger images are cropped
            _check_shape(given.x, self.shape, "x")
        self._check_units(given.x)
        return given

    def _check_units(self, x: Tensor) -> None:
        """Raises UserError if bytes are given to a model of [0, 1], or values in [0, 1] to a model of bytes."""
        scale, bernoulli = self.transform.scale, self.module.cfg.likelihood == "bernoulli"
        if scale == 1 and bernoulli and not x.is_floating_point() and int(x.max()) > 1:
            raise UserError(f"x contains integers up to {int(x.max())}; this model takes values in [0, 1]: give x / 255 for bytes")
        if scale == 255 and x.is_floating_point() and float(x.max()) <= 1 and bool((x != x.round()).any()):
            raise UserError("x contains fractions up to 1; this model takes bytes up to 255, as its training data: give x * 255")

    def _batches(self, given: Given, label: Any, batch_size: int, name: str = "x") -> Iterator[tuple[Tensor, Tensor | None, int]]:
        """Values for the model, labels, and the number of the first row, batch by batch."""
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size is {batch_size!r}; expected a whole number from 1 on")
        labels = None if label is None else self._labels(label, len(given.x))
        if labels is None and self.module.cfg.conditional:
            raise UserError(f"{self.module.cfg.name} needs label, [N] integers: the label of each sample")
        for start in range(0, len(given.x), batch_size):
            rows = slice(start, start + batch_size)
            x = given.x[rows].to(self.device)
            values = self.transform.apply(x, self.dtype) if name == "x" else x.to(self.dtype)
            _check_finite(values, name, start, may_miss=name == "x" and getattr(self.module.cfg, "missing", False))
            yield values, None if labels is None else labels[rows].to(self.device), start

    def _labels(self, label: Any, n: int) -> Tensor:
        labels, classes = _tensor(label, "label").x, getattr(self.module.cfg, "classes", None)
        if labels.shape != (n,) or labels.is_floating_point():
            raise UserError(
                f"label is {labels.dtype} {list(labels.shape)}; expected [{n}] integers, one for each sample".replace("torch.", "")
            )
        if classes and (int(labels.min()) < 0 or int(labels.max()) >= classes):
            raise UserError(f"label has values from {int(labels.min())} to {int(labels.max())}; expected 0 to {classes - 1}")
        return labels.long()


def load(run_dir: str | Path) -> Model:
    """The trained model of a run folder, or of a model folder, on the CPU. Raises UserError if there is none."""
    return Model(*load_with_transform(run_dir))


def as_array(x: Any, name: str = "x") -> np.ndarray:
    """A numpy array of numbers from an array, a DataFrame or nested lists. Raises UserError on anything else."""
    if type(x).__module__.partition(".")[0] == "scipy" or hasattr(x, "toarray"):
        raise UserError(f"{name} is a sparse matrix; expected a dense array: give {name}.toarray()")
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{name} is not an array of numbers: {str(error).splitlines()[0]}") from error
    if array.dtype == object and hasattr(x, "dtypes"):
        odd = [str(c) for c, kind in zip(x.columns, x.dtypes, strict=True) if getattr(kind, "kind", "O") not in "biuf"]
        raise UserError(f"{name} has columns that are not numbers: {', '.join(odd[:5])}; expected numbers alone")
    if array.dtype == object:
        array = _numbers_of(array, name)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name} is of type {array.dtype}; expected integers or floating point numbers")
    return array


def _numbers_of(array: np.ndarray, name: str) -> np.ndarray:
    """An object array of Python numbers as float64. Raises UserError if it holds anything else."""
    try:
        return array.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} is not an array of numbers: {str(error).splitlines()[0]}") from error


def as_tensor(x: Any, name: str = "x") -> Tensor:
    """A tensor of numbers, which shares the array's memory if torch can read it. Raises UserError on anything else."""
    if isinstance(x, Tensor):
        if x.is_complex() or x.layout != torch.strided or x.is_quantized:
            raise UserError(
                f"{name} is a tensor of {x.dtype}, {x.layout}; expected a dense tensor of numbers".replace("torch.", "")
            )
        x = x.detach()
        return x.byte() if x.dtype == torch.bool else x  # type: ignore[no-any-return]
    array = as_array(x, name)
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.dtype.itemsize > 8 or array.dtype in (np.uint16, np.uint32, np.uint64):  # types with few operations in torch
        array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
    array = np.require(array, array.dtype.newbyteorder("="), "C")
    return torch.from_numpy(array if array.flags.writeable or array.nbytes > _COPIED else array.copy())


_COPIED = 64 << 20
"""Read-only arrays up to this size in bytes are copied, since torch warns about them; a larger one may not fit in memory."""


def _tensor(x: Any, name: str) -> Given:
    return Given(as_tensor(x, name), isinstance(x, Tensor))


def _check_shape(x: Tensor, shape: tuple[int, ...], name: str) -> None:
    if tuple(x.shape[1:]) == shape and len(x):
        return
    expected = f"expected [N, {', '.join(map(str, shape))}], N from 1 on"
    if tuple(x.shape) == shape:
        raise UserError(f"{name} is one sample of shape {list(shape)}; {expected}: give {name}[None]")
    raise UserError(f"{name} has shape {list(x.shape)}; {expected}")


def _check_finite(x: Tensor, name: str, start: int, may_miss: bool) -> None:
    bad = x.isinf() if may_miss else ~x.isfinite()
    if bool(bad.any()):
        row = start + int(bad.flatten(1).any(1).nonzero()[0])
        raise UserError(f"{name} contains NaN or infinite values, first in sample {row}; expected finite numbers")


def _joined(parts: Any, given: Given) -> Any:
    """The batches' results as one tensor on the caller's device, or as a numpy array."""
    whole = torch.cat([part.to(given.x.device) for part in parts])
    return whole if given.is_tensor else whole.numpy()
