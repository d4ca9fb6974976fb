"""How few bytes hold a sample's code, and how good the picture is that comes back: beside PNG, WebP and JPEG."""

import io
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from distae.compression import Archive, Tables, fit_discrete, fit_grid
from distae.compression.archive import Kind
from distae.errors import UserError
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.metrics import Figure, Skip, register_metric
from distae.models import Autoencoder, Codes
from distae.noise import Noise, Rows

STEP = 0.5
"""Size of a step of a quantised code, by default."""
PROBED = 1024
"""Training codes that the sensitivity is measured at."""
STEPS = (0.25, 0.5, 1.0, 2.0)
"""Those that the metrics are of."""
SIDE, MOST_SHEETS = 10, 20
"""Images are compared on sheets of SIDE x SIDE, so that a file's header counts for each alike."""

Pixels = NDArray[np.uint8]


def why_not(model: Autoencoder) -> str | None:
    """Why codes of this model cannot be compressed, if so."""
    if model.cfg.conditional:
        return f"{model.cfg.name} decodes codes with labels, which are not stored"
    return None


def numbers_of(codes: Codes) -> NDArray[np.floating] | NDArray[np.int64]:
    """What is compressed of codes: indices `[N, n]` where they are discrete, else `z` `[N, D]` float64."""
    found = codes.z.double() if codes.indices is None else codes.indices.long()
    return found.cpu().numpy()


def fit(model: Autoencoder, train: Codes, step_size: float) -> Tables:
    """Tables of the training split's codes; `step_size` counts where codes are continuous. Raises UserError as the fits do.

    A step of each value changes the reconstruction by as much as that of any other (its mean square; the best for a given number
    of bits where values are independent): step_size standard deviations of what a value contributes to it, on the average.
    """
    numbers = numbers_of(train)
    if model.num_codes is not None:
        return fit_discrete(numbers.astype(np.int64), model.num_codes)
    if not np.isfinite(step_size) or step_size <= 0:
        raise UserError(f"--step-size {step_size}: above 0, in standard deviations of the training split's codes")
    effect, std = sensitivity(model, train.z), numbers.std(0)
    contributed = np.sqrt(np.square(effect * std).mean()) or 1.0
    return fit_grid(numbers.astype(np.float64), step_size * contributed / np.maximum(effect, 1e-12 * contributed))


def sensitivity(model: Autoencoder, z: Tensor) -> NDArray[np.float64]:
    """`[D]`: the root mean square, over codes `z` `[N, D]`, of the derivative of the whole reconstruction by each value.

    Of the first PROBED codes, by Hutchinson 1990: for random signs v, E (J^T v)_d^2 is the sum of J_id^2 over the outputs i.
    """
    first = next(model.parameters())
    squares, parts = torch.zeros(z.shape[1], dtype=torch.float64), torch.split(z[:PROBED], 128)
    for number, part in enumerate(parts):
        code = part.to(first).requires_grad_()
        made = model.decode(code)
        noise = Noise(0, ("sensitivity", number), Rows(len(part)), first.device)
        sign = torch.where(noise.uniform(made) < 0.5, -1.0, 1.0).to(made)
        (slope,) = torch.autograd.grad((made * sign).sum(), code)
        squares += slope.double().square().sum(0).cpu()
    return (squares / sum(map(len, parts))).sqrt().numpy()


def codes_of(model: Autoencoder, tables: Tables, symbols: NDArray[np.int64]) -> Tensor:
    """`z` `[N, D]` of symbols `[N, n]`, on the model's device: of continuous codes, the value on the grid."""
    first, values = next(model.parameters()), torch.from_numpy(np.ascontiguousarray(tables.values(symbols)))
    return values.to(first) if model.num_codes is None else model.from_indices(values.to(first.device))


@register_metric("bits_per_pixel", task="compression", unit="bits", better="lower")
def bits_per_pixel(e: Evaluation) -> dict[str, Figure] | Figure:
    """8 * bytes of .dae files of 100 samples each, headers and CRC included, over the pixels (of other data: the values).

    The tables and the model are not counted. Beside PNG and lossless WebP of sheets of 100 images, where samples are images.
    """
    x = e.values()
    pixels = x[0].numel() if len(e.model.shape) != 3 else x[0, 0].numel()
    lossless = e.on_main(lambda: _lossless(_sheets(x)) if _is_image(x) else {})
    baselines = {name: 8 * n / (SIDE**2 * pixels) for name, n in lossless.items()}
    found = {}
    for name, (tables, symbols) in _coded(e).items():
        sizes = [len(_file(tables, part)) for part in _parts(symbols)]
        clear = 8 * sum(sizes) / (pixels * min(len(symbols), SIDE**2 * len(sizes)))
        found[name] = Figure(clear, baselines, protocol={"samples_per_file": SIDE**2, "step_size": name})
    return found.pop("", None) or found


@register_metric("compression_psnr", task="compression", unit="dB", better="higher")
def compression_psnr(e: Evaluation) -> dict[str, Figure] | Figure:
    """10 log10(255^2 / MSE) of sheets of 100 images, bytes, that are decoded from .dae files.

    Beside JPEG and WebP at the highest quality whose file of a sheet is not larger than its .dae file, or at their lowest.
    """
    x = e.values()
    if not _is_image(x):
        raise Skip("samples are not images of 1 or 3 channels in [0, 1]")
    sheets, found = _sheets(x)[:MOST_SHEETS], {}
    for name, (tables, symbols) in _coded(e).items():
        parts = [*_parts(symbols)][: len(sheets)]
        made = _sheets(_decoded(e.model, tables, np.concatenate(parts)))
        sizes = [len(_file(tables, part)) for part in parts]

        def others(sizes: list[int] = sizes) -> dict[str, float]:
            return dict(_beside(sheets, kind, sizes) for kind in ("JPEG", "WEBP"))

        figure = Figure(psnr(made, sheets), e.on_main(others))
        found[name] = figure._replace(protocol={"samples_per_file": SIDE**2, "files": len(sheets), "step_size": name})
    return found.pop("", None) or found


@register_metric("coding_overhead", task="compression", unit="share of the entropy", better="lower")
def coding_overhead(e: Evaluation) -> dict[str, Figure] | Figure:
    """Bytes of one .dae file of all samples over the entropy of the codes under the tables, less 1."""
    found = {}
    for name, (tables, symbols) in _coded(e).items():
        entropy = tables.bits(symbols) / 8
        if entropy == 0:
            raise Skip("all codes are the same")
        found[name] = Figure(len(_file(tables, symbols)) / entropy - 1, protocol={"step_size": name})
    return found.pop("", None) or found


def psnr(made: list[Pixels], true: list[Pixels]) -> float:
    """Of all pixels together, in dB; at most 100, where no pixel differs."""
    error = np.mean([np.square(a.astype(np.float64) - b).mean() for a, b in zip(made, true, strict=True)])
    return float(10 * np.log10(255**2 / max(error, 255**2 * 1e-10)))


def _beside(sheets: list[Pixels], kind: str, sizes: list[int]) -> tuple[str, float]:
    """PSNR of another format at these sizes in bytes; its name says by how much it is larger, if so, at its lowest quality."""
    files = [lossy(sheet, kind, size) for sheet, size in zip(sheets, sizes, strict=True)]
    share = sum(map(len, files)) / sum(sizes)
    made = [np.asarray(Image.open(io.BytesIO(file)).convert("L" if sheets[0].ndim == 2 else "RGB")) for file in files]
    return kind.lower() + (f", {share:.2f} times the bytes" if share > 1 else ""), psnr(made, sheets)


def lossy(sheet: Pixels, kind: str, most: int) -> bytes:
    """A JPEG or WEBP file of `sheet` `[H, W]` or `[H, W, 3]` of the highest quality that takes at most `most` bytes."""
    low, high = 1, 95
    while low < high:
        quality = (low + high + 1) // 2
        low, high = (quality, high) if len(_saved(sheet, kind, quality=quality)) <= most else (low, quality - 1)
    return _saved(sheet, kind, quality=low)


def _coded(e: Evaluation) -> Mapping[str, tuple[Tables, NDArray[np.int64]]]:
    """Tables and the split's symbols by step size; under "" where codes are discrete. Raises Skip."""
    return e.once("coded", lambda: _coded_anew(e), of_model=True)


def _coded_anew(e: Evaluation) -> Mapping[str, tuple[Tables, NDArray[np.int64]]]:
    if why := why_not(e.model):
        raise Skip(why)
    train, codes = e.codes("train"), e.codes()
    found = {}
    for step in STEPS if e.model.num_codes is None else (STEP,):
        try:
            tables = fit(e.model, train, step)
        except UserError as error:
            raise Skip(str(error)) from error
        found[f"{step:g}" if e.model.num_codes is None else ""] = tables, tables.symbols(numbers_of(codes))[0]
    return found


def _parts(symbols: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Those of each whole sheet; all of them where there is none."""
    n = len(symbols) // SIDE**2 * SIDE**2 or len(symbols)
    return [symbols[i : i + SIDE**2] for i in range(0, n, SIDE**2)]


def _file(tables: Tables, symbols: NDArray[np.int64]) -> bytes:
    return Archive(0, tables.digest, len(symbols), Kind.BYTES, tables.encode(symbols)).to_bytes()


@torch.no_grad()
def _decoded(model: Autoencoder, tables: Tables, symbols: NDArray[np.int64]) -> Tensor:
    parts = np.array_split(symbols, max(1, len(symbols) // 500))
    return torch.cat([model.decode(codes_of(model, tables, part)).cpu() for part in parts])


def _is_image(x: Tensor) -> bool:
    """`x` `[N, C, H, W]` in [0, 1], enough for a sheet."""
    return x.ndim == 4 and x.shape[1] in (1, 3) and len(x) >= SIDE**2 and bool(((x >= 0) & (x <= 1)).all())


def _sheets(x: Tensor) -> list[Pixels]:
    """Whole sheets of `x` `[N, C, H, W]` in [0, 1] as bytes: `[SIDE * H, SIDE * W]`, or with 3 channels last."""
    images = (x.clamp(0, 1) * 255).round().to(torch.uint8)[: len(x) // SIDE**2 * SIDE**2]
    _, c, h, w = images.shape
    sheets = images.view(-1, SIDE, SIDE, c, h, w).permute(0, 1, 4, 2, 5, 3).reshape(-1, SIDE * h, SIDE * w, c).cpu().numpy()
    return [sheet[:, :, 0] if c == 1 else sheet for sheet in sheets]


def _lossless(sheets: list[Pixels]) -> dict[str, float]:
    """Mean bytes of a sheet."""
    sheets = sheets[:MOST_SHEETS]
    kinds = {"png": ("PNG", {"optimize": True}), "webp": ("WEBP", {"lossless": True})}
    return {name: float(np.mean([len(_saved(s, kind, **how)) for s in sheets])) for name, (kind, how) in kinds.items()}


def _saved(sheet: Pixels, kind: str, **how: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, kind, **({"optimize": True} if kind == "JPEG" else {}), **how)
    return file.getvalue()
