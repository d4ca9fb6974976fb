"""A trained model on disk: model.safetensors and config.json, read without running code."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distae.config import TrainConfig, build, to_dict
from distae.config.models import ModelConfig
from distae.config.nets import NetConfig
from distae.data import Identity, Transform
from distae.errors import UserError
from distae.models import base
from distae.runtime.files import decode

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class About:
    """The part of config.json that builds the model."""

    model: dict[str, Any]
    net: dict[str, Any]
    shape: list[Annotated[int, Meta(ge=1)]]


def export(
    weights: dict[str, Tensor], cfg: TrainConfig, folder: Path, step: int, transform: Transform | None, data: Identity | None
) -> None:
    """Write a model's weights, the step and the data they are of, and what is needed to build it again: whole or not at all."""
    fresh = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, fresh / WEIGHTS)
    settings = to_dict(cfg)
    about = {
        "model": settings["model"],
        "net": settings["net"],
        "data": settings["data"],
        "shape": list(cfg.data.shape()),
        "step": step,
        "transform": transform and transform.to_json(),
        "data_identity": data,
    }
    (fresh / CONFIG).write_text(json.dumps(about, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def load(run_dir: str | Path) -> base.Autoencoder:
    """The trained model of a run folder, in evaluation mode on the CPU. Raises UserError where there is none.

    `encode(x)`, `decode(z)`, `reconstruct(x)` take and give floating point values as the data has them (images in [0, 1]).
    """
    folder = Path(run_dir) / "model"
    weights = load_weights(Path(run_dir))
    try:
        about = decode((folder / CONFIG).read_bytes(), About)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} is missing or damaged ({error})") from error
    cfg = build(TrainConfig, {"model": about.model, "net": about.net})
    return assemble(cfg.model, cfg.net, tuple(about.shape), weights).eval()


def assemble(model: ModelConfig, net: NetConfig, shape: tuple[int, ...], weights: dict[str, Tensor]) -> base.Autoencoder:
    """A model of these settings with these weights. Raises UserError where they do not fit."""
    try:
        made = base.build(model, net, shape, dtype=next((w.dtype for w in weights.values()), None))
        made.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"the weights do not fit the settings beside them: {what}") from error
    return made


def load_weights(run_dir: Path) -> dict[str, Tensor]:
    """The weights of a finished run. Raises UserError where there are none."""
    path = run_dir / "model" / WEIGHTS
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"no finished run in {run_dir}: cannot read {path} ({error})") from error
