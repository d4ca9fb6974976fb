"""A user's own Python file, whose settings classes and variants work like those of distae."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distae.errors import UserError


def function(text: str, option: str) -> Callable[..., Any]:
    """The function that `option` names as FILE:FUNCTION. Raises UserError if there is none."""
    file, _, name = text.rpartition(":")
    if not file:
        raise UserError(f"{option} {text}: expected FILE.py:FUNCTION")
    load(file, option)
    found = getattr(sys.modules[Path(file).stem], name, None)
    if not callable(found):
        raise UserError(f"{option} {text}: {file} has no function {name!r}")
    return found  # type: ignore[no-any-return]


def load(file: str, option: str = "--plugin") -> None:
    """Import the file by its name without `.py`. Only the command line names it: saved files cannot run code.

    Raises UserError if it cannot be imported.
    """
    path = Path(file).resolve()
    if not path.is_file() or path.suffix != ".py" or not path.stem.isidentifier():
        raise UserError(f"{option}: {file} is not a Python file that can be imported; expected NAME.py, NAME an identifier")
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return
    other = importlib.util.find_spec(path.stem)
    if other is not None and Path(other.origin or "").resolve() != path:  # its folder may be on the path, as that of `python -m` is
        raise UserError(f"{option}: a module {path.stem!r} exists already; rename {file}")
    sys.path.append(str(path.parent))
    try:
        importlib.import_module(path.stem)
    except Exception as error:
        line = next((f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(path)), "?")
        raise UserError(f"{option}: {file}, line {line}: {type(error).__name__}: {error}") from error


def files(file: str) -> dict[Path, Path]:
    """A loaded plugin and what it has imported from its own folder: names in that folder, and where they are."""
    folder = Path(file).resolve().parent
    found = {}
    for name, module in sys.modules.copy().items():
        place, source = folder.joinpath(*name.split(".")), Path(getattr(module, "__file__", None) or "").resolve()
        if source in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            found[source.relative_to(folder)] = source
    return found
