"""distae reconstruct RUN FILES: what the model makes of images, arrays and tables. distae denoise is the same, of noisy ones.

distae reconstruct runs/a photo.jpg --out out/
distae denoise runs/a scans/*.png --out clean/
distae reconstruct runs/a --split test
"""

import io
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from distae.commands.stored import npy, rows_as_csv
from distae.commands.trained import Trained, serve
from distae.commands.trained import arguments as shared
from distae.config.data.paths import TABLES
from distae.errors import UserError
from distae.runtime.files import write_atomically

FOLDER = "reconstructions"
ABOUT = (
    "Reconstructions of FILES: images become PNG files, .npy arrays [N, ...] .npy, tables .csv, each in the units of the input. "
    "Without FILES, of the run's samples or those of --data: reconstructions.npy or .csv, and for images a grid of inputs over "
    "reconstructions."
)
MOST_FILES = 1_000_000


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae reconstruct") -> int:
    return serve(argv, arguments(prog), reconstruct, MOST_FILES, reads_data=False)


def arguments(prog: str, words: Sequence[str] = ()) -> ArgumentParser:
    """The parser of the command's own options."""
    return shared(prog, ABOUT, "RUN [FILE ...]", output=f"{FOLDER}/")


def reconstruct(run: Trained) -> None:
    """Write the reconstruction of every file, or of the samples. Raises UserError on files that the model cannot take."""
    folder = run.target(FOLDER)
    if not run.words:
        _of_samples(run, folder)
        return
    paths = [Path(word).expanduser() for word in run.words]
    _check(paths)
    run.on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
    problem = None
    try:
        for path in paths[run.rank :: run.world_size]:
            kind = OF_KIND[_kind(path)]
            write_atomically(folder / f"{path.stem}{kind.suffix}", kind.reconstructed(run, path))
    except UserError as error:
        problem = str(error)
    if problem := next(filter(None, run.gather(problem)), None):
        raise UserError(problem)
    run.say(f"wrote {len(paths)} files to {folder}")


def _kind(path: Path) -> str:
    return "array" if path.suffix == ".npy" else "table" if path.suffix in TABLES else "image"


def _check(files: Sequence[Path]) -> None:
    """Raises UserError where a file is missing, and on two files whose results would have one name."""
    if absent := next((path for path in files if not path.is_file()), None):
        raise UserError(f"no file {absent}")
    seen: dict[tuple[str, str], Path] = {}
    for path in files:
        first = seen.setdefault((path.stem, _kind(path)), path)
        if first is not path:
            raise UserError(f"{first} and {path} would give one file: reconstruct them into separate folders")


def _of_samples(run: Trained, folder: Path) -> None:
    """Of the split: one array or table, and a grid of images."""
    from distae.evaluation.pictures import first, is_image, pairs, png

    model = run.model.module
    _, (values,) = run.gathered(run.loader, lambda x, label: [model.reconstruct(x, label)])
    assert values is not None
    if not run.is_main:
        return
    folder.mkdir(parents=True, exist_ok=True)
    transform = run.split.transform
    stored = transform.invert(values).numpy()
    name, text = (
        ("reconstructions.csv", rows_as_csv(stored, transform)) if transform.columns else ("reconstructions.npy", npy(stored))
    )
    write_atomically(folder / name, text)
    written = [name]
    if is_image(model.shape):
        x, _ = first(run.loader, run.settings.seed)
        write_atomically(folder / "reconstructions.png", png(pairs(x[: len(values)].cpu(), values[: len(x)])))
        written.append("reconstructions.png")
    run.say(f"wrote {', '.join(written)} of {len(values)} samples to {folder}")


def _image(run: Trained, path: Path) -> bytes:
    import torch
    from PIL import Image

    from distae.config.data.image_folder import CHANNELS
    from distae.data.decode import decode
    from distae.data.image_index import why
    from distae.models.inference import Model

    shape = run.saved.model.shape
    modes = [mode for mode, channels in CHANNELS.items() if channels == shape[0] and mode != "F"]
    if len(shape) != 3 or shape[1] != shape[2] or not modes:
        raise UserError(f"{path}: the model takes samples of shape {[*shape]}, not square images")
    try:
        image = decode(path, modes[0], shape[1])
    except Exception as error:  # decoders raise anything on damaged files
        raise UserError(f"{path} cannot be read as an image ({why(error)})") from error
    from distae.data import Transform

    made = Model(run.model.module, Transform(255.0)).reconstruct(torch.tensor(image)[None])[0]
    pixels = made.clamp(0, 255).round().byte().permute(1, 2, 0).squeeze(2).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _array(run: Trained, path: Path) -> bytes:
    import numpy as np

    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an array ({error})") from error
    try:
        return npy(run.model.reconstruct(x))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _rows(run: Trained, path: Path) -> Iterator[bytes]:
    """A table's reconstruction."""
    from dataclasses import replace

    import torch

    from distae.config.data import TableConfig
    from distae.data import load
    from distae.data.trained import as_trained

    asked = run.settings.data
    base = asked if isinstance(asked, TableConfig) else TableConfig()
    cfg = replace(base, path=str(path), label=None, test_fraction=0.0, val_fraction=0.0, split=None, group=None, time=None)
    split = as_trained(load(cfg), run.saved.transform, run.saved.model.shape)["train"]
    stored = run.model.reconstruct(split.read(torch.arange(len(split)))[0].numpy())
    return rows_as_csv(stored, split.transform)


class Kind(NamedTuple):
    """A kind of file."""

    suffix: str
    """Of the result."""
    reconstructed: Callable[[Trained, Path], bytes | Iterator[bytes]]
    """The result's contents."""


OF_KIND = {"image": Kind(".png", _image), "array": Kind(".npy", _array), "table": Kind(".csv", _rows)}
