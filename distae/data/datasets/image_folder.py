"""A folder of images."""

import csv
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distae.config.data.image_folder import ImageFolderConfig, ImageSettings
from distae.config.data.paths import SPLIT_NAMES
from distae.data.augment import Augment
from distae.data.datasets import splitting
from distae.data.datasets.base import RUN_DIR, register_dataset
from distae.data.datasets.splitting import Rows
from distae.data.image_index import ImageIndex, image_index, kept_index, printable
from distae.data.images import ImageFiles
from distae.data.source import Source
from distae.data.splits import Split
from distae.data.transform import Transform
from distae.errors import UserError

CHANGED = "the folder has changed since the run began: the run keeps its images, except those that vanished (--data.on-error skip)"
SOME_FORMATS = ".jpg, .png, .webp, .tif, .bmp, .gif and more"
SHOWN = 5
"""Maximum number of names in a message."""


@register_dataset(ImageFolderConfig)
def load(cfg: ImageFolderConfig) -> dict[str, Split]:
    index, still_true = kept_index(cfg.folder(), RUN_DIR.get())
    began = (CHANGED,) if index and not still_true else ()
    index = index or image_index(cfg.folder())
    if not len(index):
        raise UserError(f"--data.path: {cfg.path} contains no images, only {index.others} other files; Pillow reads {SOME_FORMATS}")
    folders = _Folders(cfg, index)
    good = np.ones(len(index), bool)
    good[list(index.problems)] = False
    notes = _reported(cfg, index, "cannot be read", [f"{n} ({why})" for n, why in _named(index, index.problems)])
    label, classes, unlabeled = folders.labels(good)
    good &= ~unlabeled
    notes += _reported(cfg, index, "are next to class folders and have no class", [n for n, _ in _named(index, _rows(unlabeled))])
    notes += _reported(cfg, index, "contain no image", folders.empty_classes, "class folders")
    if not good.any():
        raise UserError(f"--data.path: none of the {len(index)} images of {cfg.path} can be used")
    rows = {name: part[torch.from_numpy(good)[part]] for name, part in _split(cfg, index, folders, good).items()}
    if not len(rows["train"]):
        raise UserError(f"--data.path: {cfg.path} has no images for training")
    notes += began
    source = ImageFiles(index, cfg.mode, cfg.stored_side, label, classes)
    return image_splits(cfg, source, rows, (*_found(cfg, index, good, classes), *notes))


def image_splits(cfg: ImageSettings, source: Source, rows: Rows, notes: tuple[str, ...]) -> dict[str, Split]:
    """Splits of a source of squares `[C, side, side]`: training samples are cropped and flipped as the settings say."""
    transform = Transform(255.0 if source.dtype == torch.uint8 else 1.0, crop=cfg.size if cfg.crop == "random" else 0)
    augment = Augment(transform.crop, cfg.flip) if transform.crop or cfg.flip else None
    return {k: Split(source, transform, rows[k], notes, augment if k == "train" else None) for k in ("train", "val", "test")}


class _Folders:
    """Splits and classes by the names of the folders."""

    def __init__(self, cfg: ImageFolderConfig, index: ImageIndex) -> None:
        self.cfg, self.index = cfg, index
        self.parts = [name.split("/") if name else [] for name in index.folders]
        tops = {parts[0] for parts, held in zip(self.parts, index.with_images, strict=True) if parts and held}
        named = sorted(top for top in tops if top.lower() in SPLIT_NAMES)
        others = sorted(tops - {*named}) + [f"images that lie in {cfg.path} itself"] * bool((index.folder == 0).any())
        self.are_splits = any(SPLIT_NAMES[top.lower()] == "train" for top in named) and not others
        if len(named) > 1 and others and not cfg.split_list and not cfg.split_by:
            raise UserError(
                f"--data.path: {cfg.path} has folders {', '.join(named)}, and besides them {_shown(others)}: "
                "move those away, or choose the training images by --data.split-list or --data.split-by"
            )

    def splits(self) -> list[str] | None:
        """`train`, `val` or `test` for each folder; None if the folders are not splits."""
        return [SPLIT_NAMES[parts[0].lower()] if parts else "" for parts in self.parts] if self.are_splits else None

    def labels(self, good: NDArray[np.bool_]) -> tuple[Tensor | None, tuple[str, ...], NDArray[np.bool_]]:
        """Labels `[N]` int64, names of the classes, and which files `[N]` have no class although others do."""
        depth = int(self.are_splits)
        of_folder = [parts[depth] if len(parts) > depth else None for parts in self.parts]
        none = np.zeros(len(self.index), bool)
        held = {of_folder[i] for i in np.unique(self.index.folder[good])} - {None}
        if self.cfg.labels == "none" or not held:
            return None, (), none
        classes = sorted(str(name) for name in held)
        number = {name: i for i, name in enumerate(classes)}
        label = np.array([number.get(str(name), -1) if name is not None else -1 for name in of_folder])[self.index.folder]
        return torch.from_numpy(label.clip(0).astype(np.int64)), tuple(classes), good & (label < 0)

    @property
    def empty_classes(self) -> list[str]:
        """Folders at the level of classes that hold no image."""
        depth = 1 + self.are_splits
        if self.cfg.labels == "none" or not any(len(parts) >= depth for parts in self.parts):
            return []
        pairs = zip(self.parts, self.index.with_images, strict=True)
        return ["/".join(parts) for parts, held in pairs if len(parts) == depth and not held]


def _split(cfg: ImageFolderConfig, index: ImageIndex, folders: _Folders, good: NDArray[np.bool_]) -> Rows:
    """Splits by the first of these that applies: a list, a group or a time, folders, at random. Bad rows do not matter."""
    mine = torch.from_numpy(good.nonzero()[0])
    if cfg.split_list:
        return _listed(cfg, index)
    if by := cfg.splitting():
        kind, pattern = by
        texts = [_matched(cfg, pattern, index.name(row)) for row in mine.tolist()]
        if kind == "group":
            rows = splitting.by_group(texts, cfg.test_fraction, cfg.val_fraction, f"--data.split-by {cfg.split_by}")
        else:
            rows = splitting.by_time(_ranks(texts), cfg.test_fraction, cfg.val_fraction)
        return {name: mine[part] for name, part in rows.items()}
    if (names := folders.splits()) is None:
        return {name: mine[part] for name, part in splitting.at_random(len(mine), cfg.test_fraction, cfg.val_fraction).items()}
    of_row = np.array(names)[index.folder]
    given = {name: torch.from_numpy(((of_row == name) & good).nonzero()[0]) for name in ("train", "val", "test")}
    test = 0.0 if len(given["test"]) else cfg.test_fraction
    val = 0.0 if len(given["val"]) else cfg.val_fraction
    cut = splitting.at_random(len(given["train"]), test, val)
    return {name: given[name] if len(given[name]) and name != "train" else given["train"][part] for name, part in cut.items()}


def _listed(cfg: ImageFolderConfig, index: ImageIndex) -> Rows:
    """The rows that `--data.split-list` names. Raises UserError if it names no image, or another split."""
    file = Path(str(cfg.split_list)).expanduser()
    rows = {name: row for row, name in enumerate(index.names())}
    found: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, cells in enumerate(csv.reader(lines), 1):
                if not cells or (number == 1 and [c.strip().lower() for c in cells] == ["path", "split"]):
                    continue
                path, split = (cells[0].strip(), SPLIT_NAMES.get(cells[1].strip().lower())) if len(cells) == 2 else ("", None)
                row = rows.pop(path.removeprefix("./"), None)
                if split is None or row is None:
                    problem = "is not path,split with split one of train, val, test" if split is None else (
                        f"names {printable(path)!r} twice, or it is not an image below {cfg.path}"
                    )  # fmt: skip
                    raise UserError(f"--data.split-list: {file}, line {number} {problem}")
                found[split].append(row)
    except (OSError, csv.Error) as error:
        raise UserError(f"--data.split-list: {file} cannot be read ({error})") from error
    return {name: torch.tensor(sorted(part), dtype=torch.int64) for name, part in found.items()}


def _matched(cfg: ImageFolderConfig, pattern: re.Pattern[str], name: str) -> str:
    found = pattern.search(name)
    text = found and (found.group(1) if pattern.groups else found.group())
    if text is None:
        raise UserError(f"--data.split-by: {pattern.pattern!r} does not match {printable(name)!r}")
    return text


def _ranks(texts: list[str]) -> NDArray[np.int64]:
    """Ranks in time `[N]`: sorted as numbers if all are numbers, else as strings, which is right for ISO dates."""
    try:
        keys: list[float] | list[str] = [float(text) for text in texts]
    except ValueError:
        keys = texts
    return np.unique(np.array(keys), return_inverse=True)[1].astype(np.int64)


def _rows(which: NDArray[np.bool_]) -> dict[int, str]:
    return dict.fromkeys(which.nonzero()[0].tolist(), "")


def _named(index: ImageIndex, rows: Mapping[int, str]) -> list[tuple[str, str]]:
    return [(printable(index.name(row)), text) for row, text in rows.items()]


def _reported(cfg: ImageFolderConfig, index: ImageIndex, what: str, names: list[str], things: str = "images") -> tuple[str, ...]:
    """A note on what is left out. Raises UserError unless --data.on-error is skip."""
    if not names:
        return ()
    text = f"{len(names)} {things} of {cfg.path} {what}: {_shown(names)}"
    if cfg.on_error == "raise":
        raise UserError(f"--data.path: {text};\nfix or remove them, or leave them out with --data.on-error skip")
    return (f"{text}; left out (--data.on-error skip)",)


def _found(cfg: ImageFolderConfig, index: ImageIndex, good: NDArray[np.bool_], classes: tuple[str, ...]) -> tuple[str, ...]:
    """Notes on what the images are, and how they are converted."""
    counts = Counter(
        {m: int(n) for m, n in zip(index.modes, np.bincount(index.mode[good], minlength=len(index.modes)), strict=True)}
    )
    total, same = int(good.sum()), counts[cfg.mode]
    notes = [f"{total} images" + (f" of {len(classes)} classes: {_shown(list(classes))}" if classes else ", without classes")]
    if total > same:
        kinds = ", ".join(f"{n} {mode}" for mode, n in counts.most_common() if n and mode != cfg.mode)
        depth = "; 16 bits become 8" if any(m.startswith("I") for m in counts) and cfg.mode != "F" else ""
        notes.append(f"{total - same} of them converted to {cfg.mode} (--data.mode): {kinds}{depth}")
    if small := int((index.short_side[good] < cfg.stored_side).sum()):
        notes.append(f"{small} of them are smaller than {cfg.stored_side} pixels, and enlarged (--data.size)")
    if index.others:
        notes.append(f"{index.others} files of other kinds are ignored")
    return tuple(notes)


def _shown(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
