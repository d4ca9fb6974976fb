"""CelebA: faces, decoded from their files."""

from pathlib import Path

import torch
from torch import Tensor

from distae.config.data import CelebAConfig
from distae.data.datasets.base import register_dataset
from distae.data.datasets.image_folder import image_splits
from distae.data.datasets.torchvision import fetch
from distae.data.image_index import ImageIndex, image_index
from distae.data.images import ImageFiles
from distae.data.splits import Split
from distae.errors import UserError

PART = 148 / 178
"""Share of the shorter side: the central 148x148 pixels, mostly face, as in PyTorch-VAE (github.com/AntixK/PyTorch-VAE)."""


@register_dataset(CelebAConfig)
def load(cfg: CelebAConfig) -> dict[str, Split]:
    folder = Path(cfg.root).expanduser() / "celeba"
    if not (folder / "img_align_celeba").is_dir() or not (folder / "list_eval_partition.txt").is_file():
        import torchvision.datasets as tv

        fetch(cfg.root, tv.CelebA)
    index = image_index(folder / "img_align_celeba")
    if index.problems and cfg.on_error == "raise":
        row, why = next(iter(index.problems.items()))
        raise UserError(f"--data.root: {index.path(row)} cannot be read ({why}); leave out such files with --data.on-error skip")
    of_row = _values(index, folder / "list_eval_partition.txt", None)
    of_row[list(index.problems)] = -1
    rows = {name: (of_row == number).nonzero().squeeze(1) for number, name in enumerate(("train", "val", "test"))}
    if not len(rows["train"]):
        raise UserError(f"--data.root: {folder / 'img_align_celeba'} has no images for training")
    label = (_values(index, folder / "list_attr_celeba.txt", cfg.attribute) > 0).long() if cfg.attribute else None
    source = ImageFiles(index, "RGB", cfg.stored_side, label, ("no", cfg.attribute) if cfg.attribute else (), PART)
    notes = (f"{len(index.problems)} images cannot be read; left out (--data.on-error skip)",) if index.problems else ()
    return image_splits(cfg, source, rows, notes)


def _values(index: ImageIndex, file: Path, name: str | None) -> Tensor:
    """`[N]` int64, the number of each image in a file's column of this name, or in its only column. Raises UserError."""
    values, names = _column(file, name), index.names()
    if missing := [name for name in names if name not in values]:
        raise UserError(f"--data.root: {file} does not list {missing[0]}, which is in img_align_celeba")
    return torch.tensor([values[name] for name in names], dtype=torch.int64)


def _column(file: Path, name: str | None) -> dict[str, int]:
    """The number of each image in the column of this name, or in the only column. Raises UserError."""
    try:
        lines = file.read_text().splitlines()
        header, body = (lines[1].split(), lines[2:]) if name else ([], lines)
        if name and name not in header:
            raise UserError(f"--data.attribute: {name!r} is not in {file}; it has {', '.join(header)}")
        at = 1 + (header.index(name) if name else 0)
        return {cells[0]: int(cells[at]) for line in body if (cells := line.split())}
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"--data.root: {file} cannot be read ({error})") from error
