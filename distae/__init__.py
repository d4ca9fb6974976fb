"""Distributed training of autoencoders.

model = distae.load("runs/a")   # a finished run
z = model.encode(x).z           # x: [B, *shape] in [0, 1]
y = model.decode(z)
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distae.models import Autoencoder

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name != "dist":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from distae import deprecation, distributed

    deprecation.warn("distae.dist", "distae.distributed")
    return distributed


def load(run_dir: str | Path) -> "Autoencoder":
    """The trained model of a run folder: see distae.models.serialization.load. Imports torch only when called."""
    from distae.models import serialization

    return serialization.load(run_dir)
