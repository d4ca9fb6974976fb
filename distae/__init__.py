"""Distributed training of autoencoders.

run = distae.fit(x, model="vae", epochs=20)
model = run.model               # or distae.load("runs/a"), of a finished run
z = model.encode(x)             # x: arrays or tensors [N, ...] in the data's own units
y = model.decode(z)
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distae.commands.fit import Run as Run
    from distae.errors import TrainingError as TrainingError
    from distae.errors import UserError as UserError
    from distae.models.inference import Model as Model

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name == "Model":
        from distae.models.inference import Model

        return Model
    if name == "Run":
        from distae.commands.fit import Run

        return Run
    if name in ("UserError", "TrainingError"):
        from distae import errors

        return getattr(errors, name)
    if name != "dist":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from distae import deprecation, distributed

    deprecation.warn("distae.dist", "distae.distributed")
    return distributed


def fit(x: Any, y: Any = None, *, validation: Any = None, test: Any = None, progress: bool = True, **settings: Any) -> "Run":
    """Train an autoencoder on `x` and return the run: see distae.commands.fit. Imports torch only when called."""
    from distae.commands.fit import fit

    return fit(x, y, validation=validation, test=test, progress=progress, **settings)


def load(run_dir: str | Path) -> "Model":
    """The trained model of a run folder: see distae.models.inference. Imports torch only when called."""
    from distae.models import inference

    return inference.load(run_dir)
