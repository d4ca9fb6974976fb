"""distae compress RUN FILES... --out X.dae: codes of images or arrays, entropy-coded in one file.

distae compress runs/a photos/*.png --out photos.dae
distae compress runs/a x.npy --step-size 0.25        # of continuous codes: finer steps, better pictures, more bytes
distae compress runs/a --split test                  # samples of the run's data, or of --data's
distae decompress photos.dae --model runs/a --out DIR
"""

import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distae.commands.trained import Trained, serve
from distae.commands.trained import arguments as shared
from distae.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from distae.compression import Tables
    from distae.compression.archive import Kind
    from distae.data import Split
    from distae.models import Codes

FILE = "compressed.dae"
FITTED_ON = 20_000
"""Training samples at most whose codes the tables are fitted on."""
AT_ONCE = 512
"""Images that are read and encoded at once."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
"""Of images, in a folder."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae compress") -> int:
    words = [*takewhile(lambda word: not word.startswith("-"), sys.argv[1:] if argv is None else argv)]
    return serve(argv, arguments(prog), compress, words=sys.maxsize, reads_data=len(words) < 2)


def arguments(prog: str, words: Sequence[str] = ()) -> ArgumentParser:
    """The parser of the command's own options."""
    about = "Write the codes of images, of an array, or of samples of the run's data to one small file."
    parser = shared(prog, about, "RUN [FILE ...]", output=FILE)
    parser.add_argument("--step-size", type=float, help="for continuous codes: size of a step in standard deviations; default: 0.5")
    return parser


def compress(run: Trained) -> None:
    """Write the file and what it is decoded with, and print how large they are. Raises UserError."""
    from distae.compression import Archive, write_archive
    from distae.evaluation.compression import numbers_of, why_not

    if why := why_not(run.saved.model):
        raise UserError(f"compress: {why}")
    target, files = run.target(FILE), _files(run.words)
    tables = _tables(run)
    codes, kind = _codes_of_files(run, files) if files else (_codes(run, run.split, sys.maxsize), kind_of(run.split.source.dtype))
    symbols, outside = tables.symbols(numbers_of(codes))
    names = tuple(path.name for path in files) if kind == kind.IMAGES else ()
    if not run.is_main:
        return
    archive = Archive(checksum_of(run), tables.digest, len(symbols), kind, tables.encode(symbols), names)
    size = write_archive(archive, target)
    if outside:
        run.say(f"{outside} of {symbols.size} values lie outside the training split's codes, and are cut to its range")
    run.say(f"wrote {target}: {len(symbols)} samples, {size} bytes, {size / len(symbols):.4g} each")
    run.say(f"the entropy of the codes is {tables.bits(symbols) / 8:.0f} bytes; decompressing needs the model and {_path(run)}")


def checksum_of(run: Trained) -> int:
    """Of the model's weights, 64 bits."""
    return int(run.saved.checksum[:16], 16)


def folder_of_tables(run: Trained) -> Path:
    return run.run / "evaluation" / "tables"


def _path(run: Trained) -> Path:
    """The file of the tables of this model and step size."""
    step = "" if run.saved.model.num_codes is not None else f"_{_step_size(run):g}"
    return folder_of_tables(run) / f"{run.saved.checksum[:16]}{step}.safetensors"


def _step_size(run: Trained) -> float:
    """Raises UserError where codes are discrete, and it is given."""
    from distae.evaluation.compression import STEP

    asked = run.options.step_size
    if asked is not None and run.saved.model.num_codes is not None:
        raise UserError(f"--step-size: the codes of {run.saved.model.cfg.name} are discrete; leave it out")
    return STEP if asked is None else float(asked)


def _tables(run: Trained) -> "Tables":
    """Those beside the model or, at the first use, new ones of the training split's codes."""
    from distae.compression import load_tables, save_tables
    from distae.evaluation.compression import fit

    path, step = _path(run), _step_size(run)
    if not run.on_main(path.exists):
        made = fit(run.model.module, _codes(run, run.own_splits["train"], FITTED_ON), step)
        run.on_main(lambda: save_tables(made, path))
    return load_tables(path)


def _codes(run: Trained, split: "Split", most: int) -> "Codes":
    """Of the first `most` samples of a split, on the CPU of every rank; computed by all ranks."""
    from distae.evaluation.exact import gathered
    from distae.models import Codes

    loader, settings = run.loader if split is run.split else run.loader_of(split), run.settings
    rows = range(min(most, len(split)))
    _, found = gathered(loader, rows, settings.eval_batch_size, settings.seed, run.model.module.encode)
    return Codes(*found)  # type: ignore[arg-type]


def kind_of(dtype: Any) -> "Kind":
    """Of an array of this type, numpy's or torch's."""
    from distae.compression.archive import Kind

    return Kind.BYTES if str(dtype).endswith("uint8") else Kind.FLOATS


def _files(words: Sequence[str]) -> list[Path]:
    """The files that are named, folders as the images in them. Raises UserError."""
    found: list[Path] = []
    for path in map(Path, words):
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside or not all(p.is_file() for p in inside):
            raise UserError(f"{path}: {'no images in this folder' if path.is_dir() else 'no such file'}")
        found += inside
    stems: dict[str, Path] = {}
    for path in found:
        if (other := stems.setdefault(path.stem, path)) != path:
            raise UserError(f"{other} and {path} would both become {path.stem}.png: compress them separately")
    return found


def _codes_of_files(run: Trained, paths: list[Path]) -> "tuple[Codes, Kind]":
    """Of an array or of images. Raises UserError where they are not what the model takes."""
    import torch

    from distae.compression.archive import Kind
    from distae.models import Codes

    arrays = [path for path in paths if path.suffix == ".npy"]
    if arrays and len(paths) > 1:
        raise UserError(f"{arrays[0]}: give one array, or images alone")
    if arrays:
        x = _array(arrays[0])
        codes = run.model.codes(x)
        tensors: Any = (None if column is None else torch.from_numpy(column) for column in codes)
        return Codes(*tensors), kind_of(x.dtype)
    with torch.no_grad():
        parts = [run.model.module.encode(x.to(run.device)) for x in _images(run, paths)]
    columns: Any = (None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True))
    return Codes(*columns), Kind.IMAGES


def _array(path: Path) -> "np.ndarray[Any, Any]":
    import numpy as np

    try:
        found: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return found
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not an array of numbers ({error})") from error


def _images(run: Trained, paths: Sequence[Path]) -> Iterator[Any]:
    """Values in [0, 1] `[B, C, H, W]`. Raises UserError where the model takes no images, or others than these."""
    import numpy as np
    import torch

    from distae.data import Transform
    from distae.data.decode import decode

    shape = run.saved.model.shape
    modes = {1: "L", 3: "RGB"}
    if len(shape) != 3 or shape[0] not in modes or shape[1] != shape[2] or not takes_pixels(run):
        raise UserError(
            f"{paths[0]}: the model takes samples of shape {list(run.model.shape)}, not images of bytes; give a .npy file"
        )
    for start in range(0, len(paths), AT_ONCE):
        here = paths[start : start + AT_ONCE]
        try:
            pixels = np.stack([decode(_checked(path, shape), modes[shape[0]], shape[1]) for path in here])
        except UserError:
            raise
        except Exception as error:  # decoders raise anything on damaged files
            raise UserError(f"an image of {here[0]} to {here[-1].name} cannot be read ({error})") from error
        yield Transform(255.0).rescale(torch.from_numpy(pixels), run.model.dtype)


def takes_pixels(run: Trained) -> bool:
    """Whether the model's values are a picture's bytes over 255."""
    from distae.config.names import TRAITS, Traits

    scale, likelihood = run.saved.transform.scale, run.saved.model.cfg.likelihood
    return not run.saved.transform.columns and (scale == 255 or (scale == 1 and TRAITS.get(likelihood, Traits()).support == "unit"))


def _checked(path: Path, shape: tuple[int, ...]) -> Path:
    """Raises UserError on an image of another size: one that was cut or resized would not come back."""
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
    if (height, width) != shape[1:]:
        raise UserError(f"{path} has {width}x{height} pixels; the model takes {shape[2]}x{shape[1]}")
    return path
