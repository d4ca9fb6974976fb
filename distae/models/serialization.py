"""A trained model on disk: model.safetensors and config.json, read without running code and within bounds."""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import torch
import xxhash
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from distae import distributed as dist
from distae.checkpoint.retention import Entry
from distae.checkpoint.shards import DTYPE_NAMES, checksum
from distae.config import TrainConfig, build, to_dict
from distae.config.models import ModelConfig
from distae.config.models.diffusers import read as read_diffusers
from distae.config.nets import NetConfig
from distae.data import Identity, Transform
from distae.errors import TrainingError, UserError
from distae.models import base, diffusers, sae_lens, timm
from distae.models.size import build_on_meta
from distae.runtime import files

WEIGHTS, CONFIG = "model.safetensors", "config.json"
LONGEST_HEADER = 16 << 20
"""Maximum bytes of a safetensors header: enough for some 100,000 tensors."""
MOST_CONSTANT_BYTES = 64 << 20
"""Maximum bytes of a model's buffers that are not in its file."""

Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class About:
    """The part of config.json that builds the model."""

    model: dict[str, Any]
    net: dict[str, Any]
    shape: list[Annotated[int, Meta(ge=1)]]
    transform: Any = None
    """From stored values to the model's; older folders have none."""
    data: dict[str, Any] | None = None
    """The settings of the data."""
    step: int | None = None
    data_identity: Identity | None = None
    """What identifies the data that it was trained on; older folders have none."""
    weights: Entry | None = None
    """Size and checksum of model.safetensors; older folders have none."""
    xxh3: str | None = None
    """Checksum of all the rest of config.json; older folders have none."""


def export(
    model: base.Autoencoder, cfg: TrainConfig, folder: Path, step: int, transform: Transform | None, data: Identity | None
) -> None:
    """Write a model folder: weights, their step and data, and the settings to build the model; completely or not at all."""
    settings = to_dict(cfg)
    about = {key: settings[key] for key in ("model", "net", "data")}
    about |= {"shape": list(model.shape), "step": step, "transform": transform and transform.to_json(), "data_identity": data}
    with files.new_folder(folder) as fresh:
        _write(model, about, fresh)


def _write(model: base.Autoencoder, about: dict[str, Any], folder: Path) -> None:
    """The files of a model folder; `about` is config.json without checksums."""
    path = folder / WEIGHTS
    _save(model.state_dict(), path)
    about = about | {"weights": {"size": path.stat().st_size, "xxh3": checksum(path)}}
    about["xxh3"] = _digest(about)
    text = json.dumps(about, indent=1).encode() + b"\n"
    if len(text) > files.SMALL:
        raise TrainingError(f"{CONFIG} of the model would have {len(text)} bytes; at most {files.SMALL} can be read again")
    files.write_atomically(folder / CONFIG, text)
    path.chmod((folder / CONFIG).stat().st_mode)  # save_file makes it for its owner alone, whatever the umask
    files.sync(path)


def write_saved(saved: "SavedModel", folder: Path) -> None:
    """Write the files of a model folder again, into an empty folder."""
    keys = ("model", "net", "data", "shape", "step", "transform", "data_identity")
    _write(saved.model, {key: getattr(saved.about, key) for key in keys}, folder)


def _save(weights: dict[str, Tensor], path: Path) -> None:
    """Raises OSError if the file cannot be written: safetensors raises an error of its own with the errno in its message."""
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, path)
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise


def load(run_dir: str | Path) -> base.Autoencoder:
    """The trained model of a run folder, or of a model folder, in evaluation mode on the CPU. Raises UserError if there is none.

    `encode(x)`, `decode(z)`, `reconstruct(x)` take and give the model's own values (images in [0, 1]).
    """
    return load_with_transform(run_dir)[0]


class SavedModel(NamedTuple):
    """A model folder."""

    model: base.Autoencoder
    transform: Transform
    """From stored values to the model's."""
    about: About
    """What is saved beside the weights."""
    checksum: str
    """Of the weights."""


def load_saved(run_dir: str | Path) -> SavedModel:
    """As `load`, and what is saved beside the weights. The folder may be one of SAELens, or of diffusers."""
    if (path := Path(run_dir).expanduser() / sae_lens.WEIGHTS).is_file():
        return _of_sae_lens(path)
    if (path := path.with_name(diffusers.WEIGHTS)).is_file():
        return _of_diffusers(path)
    folder = _model_folder(Path(run_dir).expanduser())
    about = _about(folder)
    cfg = _settings(about, folder / CONFIG)
    shapes = _stored_shapes(folder / WEIGHTS)
    _check_fit(cfg.model, cfg.net, tuple(about.shape), shapes)
    model = assemble(cfg.model, cfg.net, tuple(about.shape), _weights(folder, about)).eval()
    transform = _transform(about, folder / CONFIG, tuple(about.shape))
    return SavedModel(model, transform, about, checksum(folder / WEIGHTS))


def _of_sae_lens(path: Path, scale: float = 1.0) -> SavedModel:
    """The dictionary whose tensors are in `path`, of stored values divided by `scale`.

    Raises UserError if a file is damaged, or the dictionary cannot be read.
    """
    _stored_shapes(path)
    try:
        config = files.decode(files.read_bytes(path.with_name(sae_lens.CONFIG)), dict[str, Any])
    except (OSError, ValueError) as error:
        raise UserError(f"{path.with_name(sae_lens.CONFIG)} is missing or damaged ({files.in_words(error)})") from error
    model, weights = sae_lens.imported(config, _finite(path), scale)
    about = About(model, {}, [len(weights["bias"]) + model.get("inputs", 0)])
    cfg = _settings(about, path)
    return SavedModel(assemble(cfg.model, cfg.net, tuple(about.shape), weights).eval(), Transform(), about, checksum(path))


def write_sae_lens(saved: SavedModel, folder: Path) -> None:
    """Write the files of a folder of SAELens, into an empty folder. Raises UserError if the model is not a dictionary."""
    _write_peers(*sae_lens.exported(saved.model, saved.transform, saved.about.step), folder / sae_lens.CONFIG, sae_lens.WEIGHTS)


def _of_diffusers(path: Path) -> SavedModel:
    """The tokenizer whose tensors are in `path`, of images as bytes; its discriminator is a new one.

    Raises UserError if a file is damaged, or the model cannot be read.
    """
    about, weights = _diffusers_weights(path)
    cfg, shape = _settings(about, path), tuple(about.shape)
    model = base.build(cfg.model, cfg.net, shape)
    model.load_state_dict({k: weights.get(k, t) for k, t in model.state_dict().items()})
    return SavedModel(model.eval(), Transform(255.0), about, checksum(path))


def _diffusers_weights(path: Path) -> tuple[About, dict[str, Tensor]]:
    """The settings of the model whose tensors are in `path`, and those of its codec. Raises UserError as `_of_diffusers`."""
    stored, found = _stored_shapes(path), read_diffusers(path.parent)
    about = About(found.model(), found.net(), [*found.shape])
    cfg = _settings(about, path)
    try:
        made = build_on_meta(cfg.model, cfg.net, found.shape, None, 2 * len(stored) + 100)
    except ValueError as error:
        raise UserError(f"{path}: not the weights of the model that {diffusers.CONFIG} describes ({error})") from error
    weights = diffusers.imported(found, _finite(path), made)
    whole = {k: weights.get(k, t) for k, t in made.state_dict().items()}
    _check_fit(cfg.model, cfg.net, found.shape, {k: (t.dtype, tuple(t.shape)) for k, t in whole.items()})
    return about, weights


def write_diffusers(saved: SavedModel, folder: Path, scaling_factor: float, shift_factor: float | None) -> None:
    """Write the files of a folder of diffusers, into an empty folder. Raises UserError if diffusers cannot express the model."""
    found = diffusers.exported(saved.model, scaling_factor, shift_factor)
    _write_peers(*found, folder / diffusers.CONFIG, diffusers.WEIGHTS)


def write_timm(saved: "SavedModel", folder: Path) -> None:
    """Write the files of a model of timm, into an empty folder. Raises UserError if the model is not a masked autoencoder."""
    _write_peers(*timm.exported(saved.model, saved.transform), folder / timm.CONFIG, timm.WEIGHTS)


def _write_peers(settings: dict[str, Any], tensors: dict[str, Tensor], config: Path, weights: str) -> None:
    """The two files of another library, side by side."""
    path = config.with_name(weights)
    _save(tensors, path)
    files.write_atomically(config, json.dumps(settings, indent=1).encode() + b"\n")
    path.chmod(config.stat().st_mode)
    files.sync(path)


def load_with_transform(run_dir: str | Path) -> tuple[base.Autoencoder, Transform]:
    """As `load`, and the transform from stored values to the model's."""
    saved = load_saved(run_dir)
    return saved.model, saved.transform


def stored_shape(transform: Transform, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in the data's own layout of a sample that has `shape` for the model."""
    if transform.columns:
        return (len(transform.columns),)
    return tuple(transform.invert(torch.empty((1, *shape), device="meta")).shape[1:])


def _transform(about: About, path: Path, shape: tuple[int, ...]) -> Transform:
    """The transform in config.json. Raises UserError if it is damaged, or does not make samples of this shape."""
    try:
        transform = Transform() if about.transform is None else Transform.from_json(about.transform)
        made = transform.shape(stored_shape(transform, shape))
    except (UserError, RuntimeError, IndexError) as error:
        raise UserError(f"{path}: {error}") from error
    if made != shape:
        raise UserError(f"{path}: the transform does not make samples of shape {list(shape)}")
    return transform


def load_weights(run_dir: Path, scale: float = 1.0) -> dict[str, Tensor]:
    """The weights of a finished run. Raises UserError if there are none, or they are damaged or not finite.

    Folders of SAELens are of stored values: the weights become those of these values divided by `scale`. Those of diffusers have
    no discriminator (`is_partial`).
    """
    if (path := run_dir / sae_lens.WEIGHTS).is_file():
        return _of_sae_lens(path, scale).model.state_dict()
    if is_partial(run_dir):
        return _diffusers_weights(run_dir / diffusers.WEIGHTS)[1]
    folder = _model_folder(run_dir)
    return _weights(folder, _about(folder))


def is_partial(run_dir: Path) -> bool:
    """Whether a folder has a part of a model's weights: those of diffusers, which a run completes with its own new ones."""
    return (run_dir / diffusers.WEIGHTS).is_file()


def assemble(model: ModelConfig, net: NetConfig, shape: tuple[int, ...], weights: dict[str, Tensor]) -> base.Autoencoder:
    """A model of these settings with these weights. Raises UserError if they do not match, before the model is built."""
    _check_fit(model, net, shape, {k: (t.dtype, tuple(t.shape)) for k, t in weights.items()})
    made = base.build(model, net, shape, dtype=_dtype(t.dtype for t in weights.values()))
    made.load_state_dict(weights)
    return made


def _model_folder(path: Path) -> Path:
    """`path` if it is a model folder, or the model of the run folder `path`. Raises UserError that says how to export one."""
    folder = path if (path / CONFIG).is_file() or (path / WEIGHTS).is_file() else path / "model"
    if folder.is_dir():
        return folder
    if (path / "checkpoints").is_dir():
        raise UserError(
            f"no finished run in {path}: it has checkpoints but no model yet. "
            f"Export one: python -m distae.checkpoint {path} --export best DIR, then distae.load(DIR)"
        )
    raise UserError(f"no finished run in {path}: {'model/ is missing' if path.is_dir() else 'there is no such folder'}")


def _about(folder: Path) -> About:
    try:
        values = files.decode(files.read_bytes(folder / CONFIG), dict[str, Any])
        about = msgspec.convert(values, About)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} is missing or damaged ({files.in_words(error)})") from error
    if about.xxh3 not in (None, _digest(values)):
        raise UserError(f"{folder / CONFIG} was changed (checksum mismatch); if that was on purpose, remove xxh3 from it")
    return about


def _digest(about: dict[str, Any]) -> str:
    """Checksum of the values of config.json; their order and white space do not matter."""
    values = {k: v for k, v in about.items() if k != "xxh3"}
    return str(xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode()))


def _settings(about: About, path: Path) -> TrainConfig:
    try:
        return build(TrainConfig, {"model": about.model, "net": about.net})
    except UserError as error:
        asked = ((about.model.get("name"), list(ModelConfig.choices())), (about.net.get("name"), list(NetConfig.choices())))
        own = [name for name, known in asked if name is not None and name not in known]
        hint = f"; if {own[0]!r} is from a plugin, import that file before distae.load" if own else ""
        raise UserError(f"{path}: {error}{hint}") from error


def _stored_shapes(path: Path) -> Shapes:
    """Dtype and shape of each tensor, from the file's header. Raises UserError if it is not a safetensors file."""
    try:
        size, memory = files.size_of(path), dist.memory_of(torch.device("cpu"))
        if size > memory:
            raise ValueError(f"it has {size} bytes, more than this machine's memory of {memory}")
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > min(LONGEST_HEADER, size):
            raise ValueError(f"its header has {header} bytes; at most {min(LONGEST_HEADER, size)} are expected")
        with safe_open(path, "pt") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 - it has no __iter__
            return {name: (_DTYPES[s.get_dtype()], tuple(s.get_shape())) for name, s in slices.items()}
    except (OSError, SafetensorError, ValueError, LookupError) as error:
        raise UserError(f"no finished run in {path.parent.parent}: cannot read {path} ({files.in_words(error)})") from error


_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def _weights(folder: Path, about: About) -> dict[str, Tensor]:
    """The file's tensors. Raises UserError if its checksum is not that in config.json, or it holds NaN or infinite values."""
    path = folder / WEIGHTS
    _stored_shapes(path)
    if about.weights and (path.stat().st_size, checksum(path)) != (about.weights["size"], about.weights["xxh3"]):
        raise UserError(f"no finished run in {folder.parent}: {path} is damaged (checksum mismatch)")
    return _finite(path)


def _finite(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises UserError if they hold NaN or infinite values."""
    weights = load_file(path)
    bad = next((name for name, t in weights.items() if t.is_floating_point() and not t.isfinite().all()), None)
    if bad:
        raise UserError(f"{path}: {bad} contains NaN or infinite values")
    return weights


def _check_fit(model: ModelConfig, net: NetConfig, shape: tuple[int, ...], stored: Shapes) -> None:
    """Raises UserError if a model of these settings has other tensors than `stored`. Allocates no memory for them."""
    try:
        made = build_on_meta(model, net, shape, _dtype(dtype for dtype, _ in stored.values()), 2 * len(stored) + 100)
    except ValueError as error:
        raise UserError(f"the weights do not match the model's settings: {error}") from error
    needed = {k: (t.dtype, tuple(t.shape)) for k, t in made.state_dict().items()}
    if odd := [k for k in needed | stored if needed.get(k) != stored.get(k)]:
        shown = f"{odd[0][:80]} is {_shown(stored.get(odd[0]))}, expected {_shown(needed.get(odd[0]))}"
        raise UserError(f"the weights do not match the model's settings: {shown}")
    buffers = sum(b.nbytes for b in made.buffers())
    limit = MOST_CONSTANT_BYTES + sum(dtype.itemsize * math.prod(dims) for dtype, dims in stored.values())
    if buffers > limit:
        raise UserError(f"the model's settings need {buffers} bytes of buffers; at most {limit} are expected with these weights")


def _dtype(dtypes: Iterator[torch.dtype]) -> torch.dtype | None:
    """The type of a model's parameters: that of the first floating point tensor."""
    return next((dtype for dtype in dtypes if dtype.is_floating_point), None)


def _shown(tensor: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return f"{str(tensor[0]).removeprefix('torch.')} {list(tensor[1])}" if tensor else "missing"
