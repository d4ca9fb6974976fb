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
    """Train an autoencoder on `x` and return the run with its `model`, `history` and `metrics`.

    - `x`: `[N, D]`, `[N, H, W]`, `[N, C, H, W]`, or `[N, H, W, C]` with `layout="channels_last"`, of bytes or numbers: a numpy
      array, a tensor, nested lists, a torch Dataset (read into memory once; pairs are values and label), a `distae.data.Split`; a
      pandas DataFrame, read as by `--data table`; a path, with its kind in `data=` if that cannot be guessed; or the name of a
      data set, such as "digits".
    - `y`: labels `[N]`, integers from 0 on, for conditional variants.
    - `validation`, `test`: data in the form of `x`, or the share of `x` to hold out; by default 0.1 and 0.
    - `progress`: whether to show a bar.
    - `settings`: any of `distae train --help all`: `model="vae"`, `epochs=20`, `latent_dim=8`, `net="conv"`, `lr=1e-3`,
      `batch_size=64`, `run_dir="runs/a"`, or in full: `**{"model.latent_dim": 8}`, `model={"name": "vae", "beta": 4}`.

    Without `run_dir` or `name` the run folder is a temporary one, removed with the returned object; with one of them, a run that
    is already in the folder is resumed. `tracking="wandb"` turns W&B on. Ctrl-C saves and returns the stopped run; other signals
    save, and then reach the program. The default `batch_size` is reduced to the number of training samples if that is smaller.
    Works in any thread, in several at once on one device, and on every rank under torchrun. Imports torch only when called.

    Raises UserError on invalid data or settings, before training; TrainingError if training fails, for example on a NaN loss.
    """
    from distae.commands.fit import fit

    return fit(x, y, validation=validation, test=test, progress=progress, **settings)


def load(run_dir: str | Path) -> "Model":
    """The trained model of a run folder, or of a model folder, on the CPU. Imports torch only when called.

    Raises UserError if there is none, or if its files are damaged.
    """
    from distae.models import inference

    return inference.load(run_dir)
