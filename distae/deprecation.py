"""Names that plugins may still use for one release, each with a DeprecationWarning."""

import warnings
from collections.abc import Callable
from typing import Any

REMOVED_IN = "0.3"


def warn(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that `old` is now called `new`."""
    warnings.warn(f"{old} is now {new}; the old name works until distae {REMOVED_IN}", DeprecationWarning, stacklevel=stacklevel)


def renamed(module: str, names: dict[str, tuple[str, Any]]) -> Callable[[str], Any]:
    """A module's `__getattr__` for names that were renamed: old name to new name and object."""

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new, value = names[name]
        warn(f"{module}.{name}", new)
        return value

    return get
