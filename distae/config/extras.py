"""Packages that only some uses need: the extras of pyproject.toml."""

import importlib
from types import ModuleType

from distae.errors import UserError


def needs(module: str, extra: str, what: str) -> ModuleType:
    """Import the module that `what`, such as `--data.path x.parquet`, needs. Raises UserError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f"{what} needs {package}, which is not installed: pip install 'distae[{extra}]'") from error
