"""Settings of a user's own arrays, and what is known without reading them."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal

from distae.config.data.base import DataConfig
from distae.config.data.manifest import Manifest, manifest_in
from distae.config.data.paths import ARRAYS, expanded, files_of, hint
from distae.config.data.stored import FILE_ERRORS, Stored, arrays_in
from distae.config.fields import Fraction, Joined, Positive
from distae.errors import UserError

StoredLayout = Literal["as_stored", "no_channel", "channels_last"]
"""Layout of samples in a file: as the model takes them (`[C, H, W]` or `[D]`), as `[H, W]`, or as `[H, W, C]`."""
IMAGE_CHANNELS = (1, 3, 4)
"""Channels that images usually have: grey, RGB, RGBA."""

DTYPES = ("uint8", "float16", "bfloat16", "float32", "float64")


def as_the_model_sees(stored: tuple[int, ...], layout: StoredLayout) -> tuple[int, ...]:
    """Shape `[C, H, W]` or `[D]` that the model sees, of a sample of shape `stored` in that layout."""
    match layout:
        case "no_channel":
            return (1, *stored)
        case "channels_last":
            return (stored[2], *stored[:2])
        case _:
            return stored


@dataclass(frozen=True, kw_only=True)
class ArrayConfig(DataConfig):
    """Your own arrays in .npy, .npz or .safetensors files, of uint8 or floating point: `[N, D]`, `[N, H, W]`, `[N, C, H, W]` or
    `[N, H, W, C]`; or a folder of `distae prepare`. Files are memory-mapped, not copied, unless they are compressed: do not change
    them while a run uses them."""

    name: ClassVar[str] = "array"

    path: Joined = ""
    """A .npy, .npz or .safetensors file, several that are one set (a list, a folder or a quoted glob), or a folder of
    `distae prepare`."""
    test: Joined = ""
    """Files of the test split, as for --data.path; by default it is held out from --data.path."""
    target: Joined = ""
    """Files of what is to be reconstructed of each sample of --data.path, by a transcoder: a sample of the model is both, flat, one
    after the other."""
    key: str | None = None
    """Name of the array inside .npz or .safetensors files; optional if they hold one array besides the labels."""
    label_key: str | None = None
    """Name of the labels inside .npz or .safetensors files, `[N]` integers from 0 on; or a .npy file of them. Needed by
    conditional models."""
    scale: Literal["auto"] | Positive = "auto"
    """The model's values are the stored ones divided by this: 255 for bytes, 1 for values as they are. auto: 255 for uint8 with
    values above 1, else 1; the run says which."""
    layout: Literal["auto", "channels_first", "channels_last"] = "auto"
    """Meaning of an array of 4 dimensions: channels_first is `[N, C, H, W]`, channels_last is `[N, H, W, C]`. auto: the former,
    and an error where the shape looks like the latter."""
    test_fraction: Fraction = 0.1
    """Share of the samples held out for the test split."""

    def shape(self) -> tuple[int, ...]:
        if manifest := self.manifest():
            return tuple(manifest.shape)
        if self.target:
            return (self._values("path") + self._values("target"),)
        stored = self.stored(self.files()[0])
        shape, dtype = stored.shape, stored.dtype
        if dtype not in DTYPES:
            raise UserError(f"--data.path: {stored} contains {dtype}; valid are {', '.join(DTYPES[:-1])} and {DTYPES[-1]}")
        if len(shape) not in (2, 3, 4) or min(shape) < 1:
            raise UserError(
                f"--data.path: {stored} has shape {list(shape)}; "
                "valid are [N, D], [N, H, W] and [N, C, H, W], or [N, H, W, C] with --data.layout channels_last"
            )
        return as_the_model_sees(shape[1:], self.stored_layout(shape))

    def for_model(self) -> dict[str, Any]:
        manifest = self.manifest()
        if self.target:
            return {"inputs": self._values("path")}
        return {} if manifest is None else {k: tuple(v) if isinstance(v, list) else v for k, v in manifest.for_model.items()}

    def _values(self, setting: Literal["path", "target"]) -> int:
        """The number of values of a sample of these files. Raises UserError if they are not numbers."""
        if self.test or self.layout != "auto":
            raise UserError("--data.target: --data.test and --data.layout cannot be given with it")
        stored = self.stored(self.files(setting)[0])
        if stored.dtype not in DTYPES or len(stored.shape) < 2 or min(stored.shape) < 1:
            raise UserError(f"--data.{setting}: {stored} is {stored.dtype} {list(stored.shape)}; valid are [N, ...] of numbers")
        return prod(stored.shape[1:])

    def stored_layout(self, shape: tuple[int, ...]) -> StoredLayout:
        """Layout of the samples of a stored array of `shape`. Raises UserError if that needs `--data.layout`."""
        if len(shape) != 4:
            if self.layout == "channels_last":
                raise UserError(f"--data.layout channels_last needs an array [N, H, W, C]; {self.path} has shape {list(shape)}")
            return "no_channel" if len(shape) == 3 else "as_stored"
        if self.layout == "auto" and shape[3] in IMAGE_CHANNELS and shape[1] not in IMAGE_CHANNELS:
            raise UserError(
                f"--data.layout: {self.path} has shape {list(shape)}: give channels_last for {shape[1]}x{shape[2]} images of "
                f"{shape[3]} channels ([N, H, W, C]),\nor channels_first for {shape[2]}x{shape[3]} images of {shape[1]} channels "
                "([N, C, H, W])"
            )
        return "channels_last" if self.layout == "channels_last" else "as_stored"

    def manifest(self) -> Manifest | None:
        """Of a folder that `distae prepare` made; None for files. Raises UserError on settings that it already decides."""
        if not self.path or (manifest := manifest_in(expanded(self.path, "--data.path"))) is None:
            return None
        if not manifest.splits:
            raise UserError(f"--data.path: distae prepare did not finish {self.path}: rerun it to resume")
        decided = {"target": "", "key": None, "label_key": None, "scale": "auto", "layout": "auto", "test": ""}
        if given := next((k for k, default in decided.items() if getattr(self, k) != default), None):
            raise UserError(
                f"--data.{given.replace('_', '-')}: {self.path} was made by distae prepare, which decided that: leave it out"
            )
        return manifest

    def files(self, setting: Literal["path", "test", "target"] = "path") -> list[Path]:
        """The files of the training or the test set. Raises UserError if there are none, or they are of another type."""
        text, flag = getattr(self, setting), f"--data.{setting}"
        if not text:
            raise UserError(
                f"{flag}: --data array needs the .npy, .npz or .safetensors file; make one of an array x: numpy.save('x.npy', x)"
            )
        files = files_of(text, flag, ARRAYS)
        for path in files:
            if path.suffix not in ARRAYS:
                raise UserError(f"{flag}: {path} is not a .npy, .npz or .safetensors file{hint(path, flag) or _conversion(path)}")
            if self.label_key and path.suffix == ".npy" and not self.label_file():
                raise UserError(
                    f"--data.label-key: a .npy file has no labels; make a .npz: numpy.savez('x.npz', x=x, {self.label_key}=y), "
                    "or give a .npy file of the labels"
                )
        return files

    def label_file(self) -> Path | None:
        """The .npy file of the labels; None if they are in the files of the samples, or there are none."""
        if not self.label_key or not self.label_key.endswith(".npy"):
            return None
        path = expanded(self.label_key, "--data.label-key")
        if not path.is_file():
            raise UserError(f"--data.label-key: no file {path}")
        return path

    def stored(self, path: Path) -> Stored:
        """Where the samples of a file are. Raises UserError if it is damaged, or does not say which array it is."""
        return self._in_file(path, lambda names: self._key(path, names))

    def stored_labels(self, path: Path) -> Stored:
        """Where the labels are that `--data.label-key` names."""
        return self._in_file(path, lambda names: "" if path.suffix == ".npy" else str(self.label_key))

    def _in_file(self, path: Path, choose: Any) -> Stored:
        try:
            arrays = arrays_in(path)
            key = choose([*arrays])
            return arrays[key]()
        except FILE_ERRORS as error:
            raise UserError(f"--data.path: {path} is not a .npy, .npz or .safetensors file of numbers ({error})") from error

    def _key(self, path: Path, names: list[str]) -> str:
        """The name of the one array besides the labels, or of the one asked for."""
        if path.suffix == ".npy":
            return ""
        inside = None if self.label_file() else self.label_key
        if inside and inside not in names:
            raise UserError(f"--data.label-key: {inside!r} is not in {path}; it contains {', '.join(names)}")
        others = [n for n in names if n != inside]
        key = self.key or (others[0] if len(others) == 1 else None)
        if not others:
            raise UserError(f"--data.path: {path} contains no array" + " besides the labels" * bool(inside))
        if key is None:
            more = "" if self.label_key else ", and --data.label-key for labels among them"
            raise UserError(f"--data.key: {path} contains several arrays, {', '.join(names)}: give one{more}")
        if key not in names:
            raise UserError(f"--data.key: {key!r} is not in {path}; it contains {', '.join(names)}")
        return key


def _conversion(path: Path) -> str:
    """How to make an array of a file that no `--data` reads."""
    if path.suffix.lower() not in (".pt", ".pth"):
        return ""
    return f"; make one:\nnumpy.save('x.npy', torch.load('{path}', weights_only=True).numpy())"
