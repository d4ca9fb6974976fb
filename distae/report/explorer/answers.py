"""What a model answers: pictures or values of codes, codes of samples and images, nearest and top samples."""

import io
import math
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, NamedTuple, Self

import torch
from PIL import Image
from torch import Tensor

from distae.data import Loader, Transform
from distae.data.images import square_for
from distae.errors import UserError
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.exact import gathered
from distae.evaluation.pictures import is_image, png
from distae.evaluation.samplers import labels_of, posterior_samples
from distae.evaluation.sparse_codes import are_sparse
from distae.evaluation.walks import REACH, between, decoded, dimensions, is_spherical
from distae.models import Codes
from distae.noise import Noise, Rows
from distae.report.codes import as_text, plane
from distae.report.explorer import asked

Answer = dict[str, Any]
MOST_SLIDERS, MOST_ACTIVE, MOST_COLUMNS = 64, 16, 64
SAMPLES = 8
"""Nearest, or top, samples."""
MOST_VALUES = 1 << 24
"""Values of codes that are kept."""
MOST_IMAGE_BYTES, MOST_PIXELS = 16 << 20, 64_000_000
"""Of an image that is sent."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class Known(NamedTuple):
    """The codes of a split."""

    name: str
    loader: Loader
    positions: Tensor
    """`[n]`: of the samples, which can be read, in the split."""
    codes: Codes
    """float64, on the CPU."""

    @classmethod
    def of(cls, e: Evaluation, split: str) -> Self:
        """Of the first `limit` samples."""
        loader, width = e.loaders[split], math.prod(e.model.code_shape)
        n = min(len(loader), e.limit, max(2, MOST_VALUES // width))
        positions, found = gathered(loader, range(n), e.chunk, e.seed, e.model.encode)
        return cls(split, loader, positions, Codes(*(x.double() if x is not None and x.is_floating_point() else x for x in found)))  # type: ignore[arg-type]

    def labels(self) -> Tensor:
        """`[n]` int64, 0 where there are none."""
        label = self.loader.split.label
        return torch.zeros_like(self.positions) if label is None else label.cpu()[self.positions]


class Explorer:
    """Answers about one model; the requests of several threads wait for each other."""

    def __init__(self, e: Evaluation) -> None:
        """Encodes samples of the split of `e`, and of its training split if it has one."""
        self.e, self.model, self.lock = e, e.model, Lock()
        self.here = Known.of(e, e.split)
        has_training = e.split != "train" and len(e.splits.get("train", ())) > 0
        self.training = Known.of(e, "train") if has_training else self.here
        z = self.here.codes.z
        self.plane = plane(z)
        self.is_sparse = self.model.num_codes is None and are_sparse(z)
        sampled = posterior_samples(self.here.codes, e.seed)
        self.dimensions = dimensions(self.model, self.here.codes, sampled, MOST_SLIDERS)
        self.start = self.here.codes.z[0] if self.model.num_codes is not None or self.is_sparse else self.dimensions.mean

    @property
    def routes(self) -> dict[str, tuple[type, Callable[[Any], Answer]]]:
        """What can be asked for by name, and what answers it."""
        return {
            "decode": (asked.Decode, self.decode), "move": (asked.Move, self.move), "morph": (asked.Morph, self.morph),
            "tokens": (asked.Tokens, self.tokens), "sample": (asked.Sample, self.sample), "encode": (asked.Encode, self.encode),
            "near": (asked.Near, self.near), "top": (asked.Top, self.top),
        }  # fmt: skip

    def answer(self, name: str, question: Any) -> Answer:
        """Raises UserError on what the model cannot take."""
        with self.lock, torch.no_grad():
            return self.routes[name][1](question)

    def ranges(self) -> list[Answer]:
        """Of the sliders: of sparse codes what occurs, of others REACH standard deviations about the mean."""
        d, z = self.dimensions, self.here.codes.z
        low, high = (z.amin(0), z.amax(0)) if self.is_sparse else (d.mean - REACH * d.std, d.mean + REACH * d.std)
        return [
            {"number": i, "importance": share, "low": float(low[i]), "high": float(high[i])}
            for i, share in zip(d.order.tolist(), d.importance.tolist(), strict=True)
            if high[i] > low[i]
        ]

    def decode(self, q: asked.Decode) -> Answer:
        return self._state(self._code(q.code), q.label)

    def move(self, q: asked.Move) -> Answer:
        z = self._code(q.code)
        return self._state(z + (torch.tensor(q.to, dtype=z.dtype) - self._at(z)) @ self.plane.basis, q.label)

    def morph(self, q: asked.Morph) -> Answer:
        share = torch.tensor([min(1.0, max(0.0, q.share))], dtype=torch.float64)
        return self._state(between(self._code(q.a), self._code(q.b), share, is_spherical(self.model))[0], q.label)

    def tokens(self, q: asked.Tokens) -> Answer:
        """Raises UserError on indices that the model does not have."""
        of, size = self.here.codes.indices, self.model.num_codes
        if of is None or size is None:
            raise UserError(f"{self.model.cfg.name} has no discrete codes")
        if len(q.indices) != of.shape[1] or not all(0 <= i < size for i in q.indices):
            raise UserError(f"expected {of.shape[1]} codes from 0 to {size - 1}")
        indices = torch.tensor([q.indices], device=self.here.loader.device)
        return self._state(self.model.from_indices(indices)[0].double().cpu(), q.label, indices[0])

    def sample(self, q: asked.Sample) -> Answer:
        known = self.training if q.is_training else self.here
        if not 0 <= q.number < len(known.loader):
            raise UserError(f"the {known.name} samples are 0 to {len(known.loader) - 1}")
        x, label = self._read(known, torch.tensor([q.number]))
        state = self._encoded(x, 0 if label is None else int(label[0]))
        return state | {"sample": q.number, "split": known.name}

    def encode(self, q: asked.Encode) -> Answer:
        """Raises UserError on what is not an image, or one that is too large."""
        image = torch.from_numpy(square_for(self.model.shape, _checked(q.image), "this file").copy())[None]
        loader = self.here.loader
        return self._encoded(Transform(255.0).apply((255 - image if q.invert else image).to(loader.device), loader.dtype), q.label)

    def near(self, q: asked.Near) -> Answer:
        known = self.training
        apart = torch.linalg.vector_norm(known.codes.z - self._code(q.code), dim=1)
        return self._samples(known, *apart.topk(min(SAMPLES, len(apart)), largest=False))

    def top(self, q: asked.Top) -> Answer:
        known = self.training
        if not 0 <= q.latent < known.codes.z.shape[1]:
            raise UserError(f"the latents are 0 to {known.codes.z.shape[1] - 1}")
        values, rows = known.codes.z[:, q.latent].topk(min(SAMPLES, len(known.codes.z)))
        return self._samples(known, values[values > 0], rows[values > 0])

    def _code(self, values: Sequence[float]) -> Tensor:
        """`[D]` float64. Raises UserError on any other number of values, and on infinite ones in the model's type."""
        z, size = torch.tensor(values, dtype=torch.float64), len(self.dimensions.mean)
        if len(z) != size or not bool(z.to(self.here.loader.dtype).isfinite().all()):
            raise UserError(f"expected a code of {size} finite numbers")
        return z

    def _read(self, known: Known, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values and labels of samples at positions `[n]` of the split."""
        noise = Noise(self.e.seed, ("explore",), Rows(len(positions)), known.loader.device)
        return known.loader.batch(positions.to(known.loader.storage_device), noise)

    def _encoded(self, x: Tensor, label: int) -> Answer:
        labels = labels_of(self.model.cfg, 1, label, x.device) if self.model.cfg.conditional else None
        codes = self.model.encode(x, labels)
        state = self._state(codes.z[0].double().cpu(), label, None if codes.indices is None else codes.indices[0])
        return state | {"input": self._shown(x.cpu())[0]}

    def _state(self, z: Tensor, label: int, indices: Tensor | None = None) -> Answer:
        """A code, what it is decoded to, and where it is on the map; its indices where it is one of discrete codes."""
        state = {"code": _numbers(z), "label": label, "at": _numbers(self._at(z)), "shown": self._shown(self._decoded(z, label))[0]}
        active = z.nonzero().flatten()[z[z != 0].abs().argsort(descending=True)][:MOST_ACTIVE].tolist() if self.is_sparse else []
        return state | {"indices": None if indices is None else indices.tolist(), "active": [[i, float(z[i])] for i in active]}

    def _decoded(self, z: Tensor, label: int) -> Tensor:
        """The model's values `[1, *shape]`. Raises UserError where they are not finite."""
        values = decoded(self.model, z[None].to(self.here.loader.device), label)
        if not bool(values.isfinite().all()):
            raise UserError("this code decodes to NaN or infinite values")
        return values

    def _at(self, z: Tensor) -> Tensor:
        return (z - self.plane.origin) @ self.plane.basis.T

    def _shown(self, values: Tensor) -> list[Answer]:
        """Samples `[n, *shape]` in the model's values: each a picture as a data URI, or texts by name."""
        if is_image(self.model.shape):
            return [{"picture": f"data:image/png;base64,{b64encode(png(one[None])).decode()}"} for one in values]
        return [{"values": of} for of in as_text(self.e, values, MOST_COLUMNS)]

    def _samples(self, known: Known, values: Tensor, rows: Tensor) -> Answer:
        if not len(rows):
            return {"split": known.name, "samples": []}
        positions = known.positions[rows]
        x, label = self._read(known, positions)
        labels = [None] * len(x) if label is None else label.tolist()
        columns = zip(positions.tolist(), labels, values.tolist(), self._shown(x.cpu()), strict=True)
        names = ("number", "label", "value", "shown")
        return {"split": known.name, "samples": [dict(zip(names, of, strict=True)) for of in columns]}


def _numbers(z: Tensor) -> list[float]:
    """With the digits that float32 has."""
    return [float(f"{v:.9g}") for v in z.tolist()]


def _checked(text: str) -> io.BytesIO:
    """The file of base64 text. Raises UserError unless it is an image of a common format and a bounded size."""
    try:
        file = io.BytesIO(b64decode(text, validate=True))
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        width = height = MOST_PIXELS
    except Exception as error:  # decoders raise anything on damaged files
        raise UserError(f"this file is not an image; valid: {', '.join(FORMATS)}") from error
    if width * height > MOST_PIXELS:
        raise UserError(f"this image has more than {MOST_PIXELS // 1_000_000} million pixels")
    file.seek(0)
    return file
