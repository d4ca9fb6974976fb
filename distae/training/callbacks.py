"""A user's own code at fixed points of a run."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from distae.config.registry import Registry

if TYPE_CHECKING:
    from distae.training.trainer import Trainer


class Callback:
    """Called by the trainer; override the methods you need.

    Every rank has its own instance and calls it at the same points in the same order, so a callback may use collectives if all
    ranks do. It must leave the model, the optimizers and the noise as they are: a run's result does not depend on it. Files are for
    one rank to write (`trainer.world.is_main`). An error in a callback ends the run.
    """

    def on_start(self, trainer: "Trainer") -> None:
        """Before the first step; `trainer.state.step` is where the run starts."""

    def on_log(self, row: Mapping[str, float]) -> None:
        """A row of training metrics, `train/...`. Speeds and memory in it are this rank's; the rest is the same on all."""

    def on_evaluate(self, split: str, metrics: Mapping[str, float]) -> None:
        """After an evaluation of `val` or `test`; the same numbers on all ranks."""

    def on_save(self, step: int) -> None:
        """A checkpoint of this step was handed to the writer; it may not be on disk yet."""

    def on_end(self, finished: bool) -> None:
        """Training has ended: finished, or stopped after a save. Not called if the run fails."""


C = TypeVar("C", bound=type[Callback])
_CALLBACKS: Registry[str, type[Callback]] = Registry("callback")


def register_callback(name: str) -> Callable[[C], C]:
    """Add a Callback to every run that loads its `--plugin`."""
    return _CALLBACKS.register(name)


class Callbacks(Callback):
    """One of each registered callback, in the order of their names: the same on all ranks."""

    def __init__(self) -> None:
        self.each = [_CALLBACKS[name]() for name in sorted(_CALLBACKS)]

    def on_start(self, trainer: "Trainer") -> None:
        for callback in self.each:
            callback.on_start(trainer)

    def on_log(self, row: Mapping[str, float]) -> None:
        for callback in self.each:
            callback.on_log(row)

    def on_evaluate(self, split: str, metrics: Mapping[str, float]) -> None:
        for callback in self.each:
            callback.on_evaluate(split, metrics)

    def on_save(self, step: int) -> None:
        for callback in self.each:
            callback.on_save(step)

    def on_end(self, finished: bool) -> None:
        for callback in self.each:
            callback.on_end(finished)
