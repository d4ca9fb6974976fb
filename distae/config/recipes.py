"""The recipes by name: `--config recipe:vae_mnist`, from a checkout and from a wheel."""

import difflib
from pathlib import Path

from distae.errors import UserError

PREFIX = "recipe:"
PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """`distae/recipes` in a wheel, `recipes` beside the package in a checkout."""
    inside = PACKAGE / "recipes"
    return inside if inside.is_dir() else PACKAGE.parent / "recipes"


def names() -> list[str]:
    """`vae_mnist`, ..., `variants/vae`, ..."""
    found = [p.relative_to(folder()).with_suffix("").as_posix() for p in folder().rglob("*.toml")]
    return sorted(found, key=lambda name: ("/" in name, name))


def find(name: str) -> Path:
    """The file of a recipe. Raises UserError that lists the valid names."""
    if name not in (known := names()):
        near = difflib.get_close_matches(name, known, 1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"--config: no recipe {name!r}{meant}; valid: {', '.join(known)}")
    return folder() / f"{name}.toml"
