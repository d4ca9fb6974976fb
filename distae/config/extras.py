"""Packages that only some uses need: the extras of pyproject.toml."""

import importlib
from types import ModuleType

from distae.errors import UserError


def needs(module: str, extra: str, what: str) -> ModuleType:
    """Import the module that `what`, such as `--data.path x.parquet`, needs. Raises UserError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(module, extra, what) from error


def missing(module: str, extra: str, what: str) -> UserError:
    """The error that says how to install it."""
    return UserError(f"{what} needs {module.partition('.')[0]}, which is not installed: pip install 'distae[{extra}]'")
