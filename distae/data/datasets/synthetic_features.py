"""Samples made of known sparse features."""

from dataclasses import asdict, fields

import numpy as np
import torch
import torch.nn.functional as F
import xxhash
from filelock import FileLock
from torch import Tensor

from distae.config.data import DataConfig
from distae.config.data.synthetic_features import SyntheticFeaturesConfig
from distae.data.datasets.base import register_dataset
from distae.data.feature_trees import FeatureTrees
from distae.data.runs import Rows
from distae.data.source import Tensors
from distae.data.splits import Split, hold_out
from distae.data.storage import SMALL_BYTES
from distae.data.transform import Transform
from distae.data.units import UnitSource
from distae.errors import UserError
from distae.noise import Noise
from distae.noise import Rows as NoiseRows
from distae.runtime.cache import cache_folder, make_room
from distae.runtime.files import write_atomically

PIECE_ROWS, PIECE_VALUES = 4096, 1 << 22
"""Maximum size of the activations that are made at once, which is the same whichever samples are read: so are all roundings."""
UNIT_BYTES = 2 << 20
CACHED_BYTES = 4 << 30
"""Maximum bytes of all orthogonal dictionaries that a node keeps."""
GRID = 2.0**20
"""Orthogonal vectors are rounded to multiples of 1 / GRID, so that they do not depend on how a machine adds up."""


class Features:
    """The dictionary that the samples are made of, and which of its vectors each has."""

    def __init__(self, cfg: SyntheticFeaturesConfig) -> None:
        self.cfg, self.trees = cfg, FeatureTrees(cfg)
        drawn = self._noise("vectors", 1).common(cfg.features + 1, cfg.dim)
        drawn = drawn / drawn.norm(dim=1, keepdim=True)
        self.vectors, self.bias = orthogonal(drawn[:-1], cfg.orthogonal_steps), cfg.bias * drawn[-1]
        rates = self.trees.raised(torch.tensor(cfg.rates, dtype=torch.float64))
        self.least = torch.special.ndtri(1 - rates).float()  # what a standard normal variable exceeds at that rate
        last = cfg.magnitude if cfg.magnitude_last is None else cfg.magnitude_last
        self.mean = torch.linspace(cfg.magnitude, last, cfg.features)
        self.std = torch.full((cfg.features,), cfg.magnitude_std)
        if cfg.magnitude_std_std:
            self.std = (self.std + cfg.magnitude_std_std * self._noise("stds", 1).common(cfg.features)).abs()
        if cfg.correlation_rank:
            weights = cfg.correlation_scale * self._noise("weights", 1).common(cfg.features, cfg.correlation_rank)
            self.weights = weights * (0.99 / weights.square().sum(1, keepdim=True)).clamp_max(1).sqrt()
        self.rows = max(1, min(PIECE_ROWS, PIECE_VALUES // cfg.features))
        """Samples of a piece."""

    def activations(self, rows: Tensor) -> Tensor:
        """How much of each vector the samples `rows` `[n]`, rising, have: `[n, features]` float32, mostly 0."""
        of_row = rows // self.rows
        return torch.cat([self.piece(n)[rows[of_row == n] - n * self.rows] for n in torch.unique(of_row).tolist()])

    def samples(self, piece: int) -> Tensor:
        """Those of a piece, `[rows, dim]` float32."""
        z = self.piece(piece)
        row, feature = z.nonzero(as_tuple=True)
        begins = torch.searchsorted(row, torch.arange(len(z)))
        sums: Tensor = F.embedding_bag(feature, self.vectors, begins, mode="sum", per_sample_weights=z[row, feature])
        return sums.add_(self.bias)

    def piece(self, number: int) -> Tensor:
        """The activations `[rows, features]` of the samples from `number * rows` on. They depend on a sample's number alone."""
        c, start, own = self.cfg, number * self.rows, torch.empty(self.rows, self.cfg.features)
        level = self._noise("active", self.rows, start).normal(own)
        if c.correlation:
            common = self._noise("groups", self.rows, start).normal(torch.empty(self.rows, c.groups))
            level = c.correlation**0.5 * common[:, torch.arange(c.features) % c.groups] + (1 - c.correlation) ** 0.5 * level
        if c.correlation_rank:
            factors = self._noise("factors", self.rows, start).normal(torch.empty(self.rows, c.correlation_rank))
            level = factors @ self.weights.T + (1 - self.weights.square().sum(1)).sqrt() * level
        size = self.mean + self.std * self._noise("magnitudes", self.rows, start).normal(own)
        z = torch.where(level > self.least, size.abs() if c.magnitude_below == "folded" else size.relu(), 0.0)
        if self.trees.families:
            choice = self._noise("siblings", self.rows, start).uniform(torch.empty(self.rows, self.trees.families))
            self.trees.apply(z, choice, self.mean)
        return z

    def _noise(self, name: str, count: int, start: int = 0) -> Noise:
        return Noise(self.cfg.seed, ("synthetic_features", name), NoiseRows(count, start), torch.device("cpu"))


class Generated(UnitSource):
    """Samples that are made when they are read, a unit of pieces at a time."""

    decodes = True

    def __init__(self, features: Features) -> None:
        cfg = features.cfg
        self.features: Features = features
        self.shape, self.dtype = (cfg.dim,), torch.float32
        self.pieces = max(1, UNIT_BYTES // (4 * cfg.dim * features.rows))
        """Of a unit."""
        size = self.pieces * features.rows
        self.units = torch.full((-(-cfg.samples // size),), size)
        self.units[-1] = cfg.samples - size * (len(self.units) - 1)

    def read_unit(self, number: int) -> Tensor:
        return torch.cat([self.features.samples(number * self.pieces + i) for i in range(self.pieces)])

    def decode(self, unit: Tensor, rows: Tensor) -> Tensor:
        return unit[rows]

    def checksum(self, rows: Rows | None) -> str:
        """Of what the samples are made from: they are not made for it."""
        shared = {f.name for f in fields(DataConfig)} | {"samples", "test_fraction"}
        settings = {k: v for k, v in asdict(self.features.cfg).items() if k not in shared}
        digest = xxhash.xxh3_128(repr(settings).encode())
        for part in (self.features.vectors.numpy(), *(() if rows is None else (rows.numpy(),))):
            digest.update(part.data)
        return digest.hexdigest()


@register_dataset(SyntheticFeaturesConfig)
def load(cfg: SyntheticFeaturesConfig) -> tuple[Split, Split]:
    features = Features(cfg)
    source: Generated | Tensors = Generated(features)
    if 4 * cfg.samples * cfg.dim <= SMALL_BYTES:
        made = torch.cat([features.samples(number) for number in range(-(-cfg.samples // features.rows))])
        source = Tensors(made[: cfg.samples], None)
        source.features = features
    return hold_out(Split(source, Transform()), cfg.test_fraction)


def orthogonal(vectors: Tensor, steps: int) -> Tensor:
    """Vectors `[F, values]` of length 1 after steps of Adam on the squared cosines of all pairs; kept in the node's cache.

    Raises UserError where the cache cannot be used: processes might come to different roundings.
    """
    if not steps:
        return vectors
    try:
        path = cache_folder("vectors") / f"{xxhash.xxh3_128_hexdigest(vectors.numpy().tobytes())}_{steps}.bin"
        with FileLock(f"{path}.lock"):
            if not path.exists() or path.stat().st_size != vectors.nbytes:
                make_room(path.parent, vectors.nbytes, CACHED_BYTES)
                write_atomically(path, _orthogonal(vectors, steps).numpy().tobytes())
            return torch.from_numpy(np.fromfile(path, np.float32)).view_as(vectors)
    except OSError as error:
        raise UserError(f"--data.orthogonal-steps: {error}; set DISTAE_CACHE to another folder") from error


def _orthogonal(vectors: Tensor, steps: int) -> Tensor:
    """Minimises sum over i != j of (v_i v_j)^2 + F * sum over i of (|v_i|^2 - 1)^2 with a learning rate of 3e-4, as SAELens does.

    The first sum is that of all squares of V^T V less that of all |v_i|^4: no matrix of size F x F is needed.
    """
    v = vectors.double().clone().requires_grad_()
    adam = torch.optim.Adam([v], lr=3e-4)
    with torch.no_grad():
        for _ in range(steps):
            squares = v.square().sum(1, keepdim=True)
            v.grad = 4 * (v @ (v.T @ v) - squares * v) + 4 * len(v) * (squares - 1) * v
            adam.step()
        found: Tensor = v / v.norm(dim=1, keepdim=True)
        return ((found * GRID).round() / GRID).float()
