"""distae reconstruct RUN FILES: what the model makes of images, arrays and tables. distae denoise is the same, of noisy ones.

distae reconstruct runs/a photo.jpg --out out/
distae denoise runs/a scans/*.png --out clean/
distae reconstruct runs/a --split test
distae reconstruct runs/kl_f8 photo.jpg --tile 512 --out out/   # of any size, in tiles
"""

import io
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distae.commands.stored import npy, rows_as_csv
from distae.commands.trained import Trained, serve, tile_arguments
from distae.commands.trained import arguments as shared
from distae.config.data.paths import TABLES
from distae.errors import UserError
from distae.runtime.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from distae.models.inference import Model

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
    return tile_arguments(shared(prog, ABOUT, "RUN [FILE ...]", output=f"{FOLDER}/"))


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

    from distae.data import Transform
    from distae.data.images import image_for, square_for
    from distae.models.inference import Model

    read = image_for if run.options.tile is not None else square_for
    x = torch.tensor(read(run.saved.model.shape, path, str(path)))[None]
    made = _whole(run, x) if run.options.tile is not None else Model(run.model.module, Transform(255.0)).reconstruct(x)
    pixels = made[0].clamp(0, 255).round().byte().permute(1, 2, 0).squeeze(2).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _whole(run: Trained, x: "Tensor") -> "Tensor":
    """Of an image `[1, C, H, W]` of any size in bytes: its last row and column are repeated until the network's factor fits."""
    import torch.nn.functional as F

    from distae.data import Transform
    from distae.models.inference import Model
    from distae.models.tiles import factor_of

    height, width = x.shape[2:]
    factor = factor_of(run.model.module)
    x = F.pad(x.float(), (0, -width % factor, 0, -height % factor), "replicate")
    model = run.model_for(*x.shape[2:])
    made: Tensor = Model(model.module, Transform(255.0)).reconstruct(x)
    return made[:, :, :height, :width]


def _array(run: Trained, path: Path) -> bytes:
    import numpy as np

    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an array ({error})") from error
    try:
        return npy(_model_of(run, x).reconstruct(x))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _model_of(run: Trained, x: Any) -> "Model":
    """The model for samples as large as those of an array `[N, ...]`, with --tile."""
    if run.options.tile is None or x.ndim < 3:
        return run.model
    import torch

    return run.model_for(*run.saved.transform.in_layout(torch.empty((1, *x.shape[1:]), device="meta")).shape[2:])


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
