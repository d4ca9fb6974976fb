"""Distributed training of autoencoders.

model = distae.load("runs/a")   # a finished run
z = model.encode(x)             # x: arrays or tensors [N, ...] as the data has them
y = model.decode(z)
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distae.models.inference import Model

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name == "Model":
        from distae.models.inference import Model

        return Model
    if name != "dist":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from distae import deprecation, distributed

    deprecation.warn("distae.dist", "distae.distributed")
    return distributed


def load(run_dir: str | Path) -> "Model":
    """The trained model of a run folder: see distae.models.inference. Imports torch only when called."""
    from distae.models import inference

    return inference.load(run_dir)
