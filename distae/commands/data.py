"""distae data SOURCE: what data is, and what training would do with it.

distae data photos/ --data.size 64
distae data --data array --data.path x.npy --data.layout channels_last
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distae.commands.sources import given, settings_of
from distae.config import TrainConfig
from distae.errors import DistaeError, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from distae.data import Split

LOOKED_AT = 512
"""Number of samples of a split that are read, evenly spaced."""
ON_THE_SHEET, COLUMNS = 64, 8
"""Images on the contact sheet."""
SHOWN = 12
"""Most classes whose counts are printed, and most unreadable samples that are named."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae data") -> int:
    try:
        words, options, rest = given(argv, arguments(prog), 1)
        cfg = settings_of(words[0] if words else None, rest, prog)
        for line in look(cfg, Path(options.sheet), options.force):
            sys.stdout.write(f"{line}\n")
        return 0
    except DistaeError as error:
        sys.stderr.write(f"distae: {error}\n")
        return 2 if isinstance(error, UserError) else 1


def arguments(prog: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of the command's own options."""
    usage = f"{prog} [SOURCE] [--data NAME] [--data.OPTION VALUE ...] [--sheet FILE] [--force]"
    about = "Shape, range, counts, classes and missing values of data, a contact sheet of images, and what training would do."
    parser = argparse.ArgumentParser(prog, usage, about, "SOURCE: a path, a URL, or the name of a data set.", allow_abbrev=False)
    parser.add_argument("--sheet", default="contact_sheet.png", metavar="FILE", help="PNG file of the contact sheet")
    parser.add_argument("--force", action="store_true", help="replace that file if it exists")
    return parser


def look(cfg: TrainConfig, sheet: Path, force: bool) -> Iterator[str]:
    """Describe the data line by line; writes the contact sheet if the samples are images. Raises UserError."""
    import torch

    from distae import data

    shape = cfg.data.shape()
    is_image = len(shape) == 3 and shape[0] in (1, 3)
    if is_image and sheet.exists() and not force:
        raise UserError(f"--sheet: {sheet} already exists; give a different file, or --force to replace it")
    splits = data.load(cfg.data)
    train = splits["train"]
    yield f"--data {cfg.data.name}" + (f" --data.path {path}" if (path := getattr(cfg.data, "path", "")) else "")
    yield from (f"  {note}" for note in train.notes)
    yield f"stored      {_shape(train.source.shape)} {str(train.source.dtype).removeprefix('torch.')}"
    seen = {name: _some(split) for name, split in splits.items()}
    for name, split in splits.items():
        yield f"{name:<12}{len(split)} samples" + (f", {_values(split, seen[name][0])}" if len(split) else "")
    yield from _classes(train)
    yield from _unread(train, seen["train"][1])
    yield from _what_would_be_done(cfg, splits)
    images = train.transform.apply(seen["train"][0][_evenly(len(seen["train"][0]), ON_THE_SHEET)], torch.float32)
    if is_image and len(images):
        _draw(images, sheet)
        yield f"pictures    {sheet}: {len(images)} training samples, as the model sees them"


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _evenly(n: int, most: int) -> "Tensor":
    """Up to `most` of n numbers, evenly spaced."""
    import torch

    return torch.linspace(0, n - 1, min(n, most), dtype=torch.float64).round().long()


def _some(split: "Split") -> "tuple[Tensor, dict[int, str]]":
    """Stored samples, evenly spaced, and why some could not be read, by row number."""
    stored, _, bad = split.source.read_good(split.rows_at(_evenly(len(split), LOOKED_AT)))
    return stored, bad


def _values(split: "Split", stored: "Tensor") -> str:
    """Range and missing values of the samples looked at, as the model sees them."""
    import torch

    if not len(stored):
        return "none of the samples inspected can be read"
    seen = split.transform.apply(stored, torch.float32)
    known = seen[~seen.isnan()]
    missing = f", {1 - len(known) / seen.numel():.1%} of the values missing" if len(known) < seen.numel() else ""
    span = f"from {float(known.min()):.4g} to {float(known.max()):.4g}" if len(known) else "no values"
    return f"{_shape(split.shape)} {span} in {len(stored)} of them{missing}"


def _classes(split: "Split") -> Iterator[str]:
    import torch

    label = split.label
    if label is None or not len(label):
        yield "classes     none"
        return
    counts = torch.bincount(label)
    names = split.source.classes or tuple(map(str, range(len(counts))))
    parts = [f"{name} {n}" for name, n in zip(names, counts.tolist(), strict=False) if n]
    yield f"classes     {int((counts > 0).sum())}: {', '.join(parts[:SHOWN])}{', …' if len(parts) > SHOWN else ''}"


def _unread(split: "Split", bad: Mapping[int, str]) -> Iterator[str]:
    reasons = [*(f"{name}: {why}" for name, why in split.source.left_out.items()), *bad.values()]
    if reasons:
        yield f"unreadable  {len(reasons)} of the samples inspected"
        yield from (f"  {reason}" for reason in reasons[:SHOWN])


def _what_would_be_done(cfg: TrainConfig, splits: "dict[str, Split]") -> Iterator[str]:
    """Transform, order and storage."""
    import torch

    from distae.data import Loader, Reading, order_of
    from distae.data.storage import decodes_once

    train, transform = splits["train"], splits["train"].transform
    done = [f"divided by {transform.scale:g}"] * (transform.scale != 1) + [f"layout {transform.layout}"]
    done += [f"{len(transform.columns)} columns normalised as the run's notes say"] * bool(transform.columns)
    yield f"the model   sees {_shape(train.shape)}: {', '.join(done)}"
    for key, value in cfg.data.for_model().items():
        yield f"            --model.{key.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
    reading = Reading(cfg.data.storage, cfg.data.workers, cfg.data.prefetch, torch.get_num_threads())
    loader = Loader(train, "none", torch.device("cpu"), torch.float32, reading=reading)
    where = "decoded once into this node's cache, then mapped" if decodes_once(cfg.data, splits) else loader.where
    yield f"storage     {where}, {sum(s.nbytes for s in splits.values()) / 1e9:.3g} GB as read"
    order = type(order_of(cfg, train)).__name__.removesuffix("Order").lower() if len(train) else "none"
    yield f"order       {order} shuffle, a function of --seed and the epoch"


def _draw(images: "Tensor", path: Path) -> None:
    from torchvision.utils import save_image

    images = (
        images.clamp(0, 1) if images.min() >= 0 and images.max() <= 1 else (images - images.min()) / (images.max() - images.min())
    )
    save_image(images, path, nrow=COLUMNS, pad_value=0.5)
