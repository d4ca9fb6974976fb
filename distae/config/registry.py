"""What plugins can add: variants, networks, data sets, likelihoods, perceptual networks, metrics, callbacks, sinks,
launchers."""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

REGISTRIES: "dict[str, Registry[Any, Any]]" = {}
"""All registries, by what they hold. A test checks that CONTRIBUTING.md has a section for each."""


def import_all(package: str) -> None:
    """Import every module of a package, so that a new file registers itself."""
    for module in pkgutil.iter_modules(sys.modules[package].__path__):
        importlib.import_module(f"{package}.{module.name}")


class Registry(dict[K, V]):
    """Implementations by key: a settings class, or a name if there are no settings."""

    def __init__(self, what: str, shipped: Iterable[K] = ()) -> None:
        """`shipped`: keys that are valid before the modules that register them are imported, because those import torch."""
        super().__init__()
        self.shipped = tuple(shipped)
        REGISTRIES[what] = self

    @property
    def keys_known(self) -> tuple[K, ...]:
        """The shipped keys, and those that plugins have added."""
        return tuple(dict.fromkeys((*self.shipped, *self)))

    def register(self, *keys: K) -> Callable[[T], T]:
        """A decorator that binds what it decorates to `keys`. Raises ValueError if one is taken."""

        def bind(value: T) -> T:
            for key in keys:
                if key in self:
                    raise ValueError(f"{getattr(key, '__name__', key)} is already registered")
            self.update(dict.fromkeys(keys, value))
            return value

        return bind
