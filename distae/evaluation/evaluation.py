"""What the metrics of a whole split are computed from: codes, values and reconstructions, the same on any number of ranks."""

import copy
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from distae import distributed as dist
from distae.config import TrainConfig
from distae.config.evaluation import EvaluationConfig
from distae.data import Loader, Reading, Split, Transform
from distae.evaluation.exact import codes_of, eval_shards, fetch, gathered, means
from distae.evaluation.metrics import Skip
from distae.models import Autoencoder, Batch, Codes
from distae.noise import Noise, Rows

T = TypeVar("T")
MOST_VALUES = 4096
"""Values of a sample up to which PCA is computed: its covariance has the square of that."""


class Pca(NamedTuple):
    """Principal components of the training split."""

    mean: Tensor
    """`[D]` float64."""
    components: Tensor
    """`[dim, D]`, orthonormal, by falling variance."""

    def encode(self, x: Tensor) -> Tensor:
        """`[N, dim]` of `[N, ...]` with D values each, which may be missing (NaN): then they are the mean."""
        return torch.where((flat := x.flatten(1).double()).isnan(), self.mean, flat).sub(self.mean) @ self.components.T

    def reconstruct(self, x: Tensor) -> Tensor:
        """`x` `[N, ...]` projected on the components, float64."""
        return (self.encode(x) @ self.components + self.mean).view(x.shape)


class Evaluation:
    """A trained model on the splits of its data. Every rank has one and calls the same methods in the same order.

    What is gathered covers the first `limit` samples of a split, without those that cannot be read, in order.
    """

    def __init__(
        self, model: Autoencoder, run: TrainConfig, splits: dict[str, Split], split: str = "test",
        settings: EvaluationConfig | None = None, reading: Reading | None = None,
    ) -> None:  # fmt: skip
        """`split` is the one that metrics are of; baselines are fitted on `train`. Of `run`, `eval_batch_size` and `seed` count."""
        self.model, self.run, self.splits, self.split = model.eval(), run, splits, split
        self.settings = settings or EvaluationConfig()
        self.chunk, self.seed, self.limit = run.eval_batch_size, run.seed, self.settings.limit
        first, reading = next(model.parameters()), reading or Reading()
        self.loaders = {k: Loader(v, run.data.binarize, first.device, first.dtype, False, reading) for k, v in splits.items()}
        self._once: dict[str, Any] = {}
        self._once_of_model: dict[str, Any] = {}
        self._values: dict[str, Tensor] = {}

    @property
    def transform(self) -> Transform:
        """From stored values to those of the model."""
        return self.splits[self.split].transform

    def labels(self, split: str | None = None) -> Tensor:
        """`[n]` int64. Raises Skip where the data has none."""
        name = split or self.split
        n, label = self._samples(name)[1], self.splits[name].label
        if label is None:
            raise Skip("the data has no labels")
        if self.splits[name].bad is None:
            return label[:n].cpu()
        return torch.cat([label[good].cpu() for _, label, good in self._local(name) if label is not None])

    def codes(self, split: str | None = None) -> Codes:
        """`z` and, where there are any, `mu` and `logvar` `[n, D]` float64 and `indices` `[n, N]`, on the CPU of every rank."""
        name = split or self.split

        def work() -> Codes:
            return codes_of(self.model, *self._samples(name), self.chunk, self.seed)

        return self.once(f"codes of {name}", work, of_model=True)

    def features(self, split: str | None = None) -> Tensor:
        """What the model's `features` makes of codes: `[n, F]` float64, on the CPU of every rank."""
        name = split or self.split
        if type(self.model).features is Autoencoder.features:
            return self.codes(name).z

        def work() -> Tensor:  # not of gathered codes, which may be hundreds of times as large
            loader, n = self._samples(name)
            model = self.model
            _, (found,) = gathered(loader, range(n), self.chunk, self.seed, lambda *x: [model.features(model.encode(*x).z)])
            assert found is not None
            return found.double()

        return self.once(f"features of {name}", work, of_model=True)

    def reconstructions(self, split: str | None = None) -> Tensor:
        """`[n, *shape]`: means of p(x|z), on the CPU of every rank."""
        name = split or self.split

        def work() -> Tensor:
            loader, n = self._samples(name)
            _, (found,) = gathered(loader, range(n), self.chunk, self.seed, lambda x, label: [self.model.reconstruct(x, label)])
            assert found is not None
            return found

        return self.once(f"reconstructions of {name}", work, of_model=True)

    def values(self, split: str | None = None) -> Tensor:
        """`[n, *shape]`: what the model sees (images in [0, 1], normalised columns), on the CPU. Read by this rank alone."""
        name = split or self.split
        if name not in self._values:
            self._values[name] = torch.cat([x[good].cpu() for x, _, good in self._local(name)])
        return self._values[name]

    def targets(self, split: str | None = None) -> Tensor:
        """`[n, ...]`: what reconstructions are compared with, the values unless the variant predicts a part of them."""
        return self.model.target(self.values(split))

    def pca(self, dim: int) -> Pca:
        """Of all training samples, exact. Raises Skip where a sample has more than MOST_VALUES values, or is not what is
        reconstructed."""
        if self.model.input_shape != self.model.shape:
            raise Skip("PCA reconstructs samples, and this model a part of them from the others")
        mean, components = self._principal
        return Pca(mean, components[: min(dim, len(components))])

    def mean(self, terms: Callable[[Batch, Noise], dict[str, Tensor]], name: str, limit: int | None = None) -> dict[str, float]:
        """Means over all samples of the split, or its first `limit`, of `terms(batch, noise)`: `[B]` each.

        The noise is keyed by `name` and chunk.
        """

        def keyed(batch: Batch, number: int, rows: Rows) -> dict[str, Tensor]:
            return terms(batch, Noise(self.seed, (name, number), rows, batch.x.device))

        found = means(self.model, self.loaders[self.split], self.chunk, self.seed, keyed, limit=limit)
        assert found is not None
        return found

    @staticmethod
    def on_main(work: Callable[[], T]) -> T:
        """`work` of rank 0 alone, such as scikit-learn's; its result on every rank."""
        return dist.on_main(work)

    def once(self, name: str, work: Callable[[], T], *, of_model: bool = False) -> T:
        """`work()`, kept by name, for metrics that share it; `of_model` if it follows from the model's weights."""
        kept = self._once_of_model if of_model else self._once
        if name not in kept:
            kept[name] = work()
        return kept[name]  # type: ignore[no-any-return]

    def forget_model(self) -> None:
        """Forget what follows from the model's weights, which have changed."""
        self._once_of_model.clear()

    def other(self, *, model: Autoencoder | None = None, split: str | None = None) -> "Evaluation":
        """The same of another model, or of another split."""
        made = copy.copy(self)
        made.model, made.split = (model or self.model).eval(), split or self.split
        made._once, made._once_of_model = {}, {}
        return made

    def close(self) -> None:
        """End the threads that read."""
        for loader in self.loaders.values():
            loader.close()

    def _samples(self, name: str) -> tuple[Loader, int]:
        """The loader of a split, and how many of its samples are held in memory. Raises Skip where there are none."""
        if name not in self.splits:
            raise Skip(f"the {'training' if name == 'train' else name} samples of the run cannot be read")
        if not len(self.splits[name]):
            raise Skip(f"the {name} split has no samples")
        return self.loaders[name], min(self.limit, len(self.splits[name]))

    def _noise(self, number: int, rows: Rows, device: torch.device) -> Noise:
        """Of binarisation: the noise of the exact evaluation."""
        return Noise(self.seed, ("eval data", number), rows, device)

    def _local(self, name: str) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """Values, labels and which of them can be read `[B]` bool, chunk by chunk, read by this rank."""
        loader, n = self._samples(name)
        for number, start in enumerate(range(0, n, self.chunk)):
            samples = torch.arange(start, min(start + self.chunk, n), device=loader.storage_device)
            x, label = loader.batch(samples, self._noise(number, Rows(len(samples)), loader.device))
            bad = loader.unreadable(samples)
            yield x, label, torch.ones(len(x), dtype=torch.bool, device=x.device) if bad is None else ~bad

    @cached_property
    @torch.no_grad()
    def _principal(self) -> tuple[Tensor, Tensor]:
        """Mean `[D]` and all principal axes `[D, D]` of the training split, missing values as 0."""
        loader, _ = self._samples("train")
        if (size := torch.Size(self.model.shape).numel()) > MOST_VALUES:
            raise Skip(f"PCA: a sample has {size} values, more than {MOST_VALUES}")
        sums = torch.zeros(size + 1, size + 1, dtype=torch.float64)  # of products, of values, and last the number of samples
        for number, here in enumerate(eval_shards(loader, len(loader), self.chunk)):
            x, _, here = fetch(loader, here, self._noise(number, here.rows, here.valid_mask.device))  # noqa: PLW2901
            flat = F.pad(x[here.valid_mask].flatten(1).double().nan_to_num(0.0).cpu(), (0, 1), value=1.0)
            sums += flat.T @ flat
        sums = dist.all_reduce_(sums.to(dist.world().device)).cpu()
        moments = sums / sums[-1, -1]
        mean = moments[-1, :-1]
        covariance = moments[:-1, :-1] - torch.outer(mean, mean)
        return mean, torch.linalg.eigh(covariance).eigenvectors.flip(1).T
