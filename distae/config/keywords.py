"""From keyword arguments of Python to settings: `model="vae", latent_dim=8, lr=1e-3`, by the names of the command line."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from distae.config.cli import ALIASES, Table, build, chosen, drop_rivals, near, put
from distae.config.fields import Field, fields_of, to_dict
from distae.errors import UserError

T = TypeVar("T")


def from_keywords(cls: type[T], given: Mapping[str, Any], base: Table | None = None) -> T:
    """Settings of class `cls`, changed from the nested values `base`.

    Keys are dotted (`model.latent_dim`), or the last part alone if it is unambiguous (`latent_dim`), or the name in other
    libraries (`batch_size`). A variant is a name, a dict with one, or a settings object. Raises UserError with a hint.
    """
    table, groups = copy.deepcopy(base or {}), {k: f for k, f in fields_of(cls).items() if dataclasses.is_dataclass(f.type)}
    for key in [k for k in given if k in groups]:
        table[key] = _group(key, given[key], groups[key], table.get(key, {}))
    known, names = _known(groups, table, cls), []
    for key, value in given.items():
        if key not in groups:
            names.append(_resolved(key, known, groups))
            put(table, names[-1], _plain(value))
        elif isinstance(value, Mapping):
            names += [f"{key}.{inner}" for inner in value]
    drop_rivals(cls, table, names)
    return build(cls, table)


def _group(key: str, value: Any, field: Field, there: Table) -> Table:
    """The table of a group of settings; choosing a different variant drops the settings of the one before."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, str) and field.is_variant:
        value = {"name": value}
    if not isinstance(value, Mapping):
        valid = ", ".join(field.choices) if field.is_variant else f"a dict of {', '.join(fields_of(field.type))}"
        raise UserError(f"{key} is {value!r}; valid: {valid}")
    same = value.get("name", there.get("name")) == there.get("name")
    return (there if same else {}) | {k: _plain(v) for k, v in value.items()}


def _known(groups: Mapping[str, Field], table: Table, cls: type) -> list[str]:
    """Dotted names of all settings of the chosen variants."""
    plain = [k for k in fields_of(cls) if k not in groups]
    return plain + [f"{k}.{inner}" for k, f in groups.items() for inner in fields_of(chosen(f, table.get(k, {}), k))]


def _resolved(key: str, known: list[str], groups: Mapping[str, Field]) -> str:
    alias = ALIASES.get(key.replace("_", "-"), "").replace("-", "_")
    found = [key] if key in known else [alias] if alias in known else [k for k in known if k.rpartition(".")[2] == key]
    if len(found) > 1:
        raise UserError(f"{key!r} is ambiguous: {' or '.join(found)}; write **{{{found[0]!r}: ...}}")
    if not found:
        short = {k.rpartition(".")[2] for k in known} | {a.replace("-", "_") for a in ALIASES} | {*groups}
        hint = near(key, known) if "." in key else near(key, groups) or near(key, short)
        raise UserError(f"unknown setting {key!r}{hint}; `distae train --help all` lists all")
    return found[0]


def _plain(value: Any) -> Any:
    """Paths, numpy scalars and arrays as plain Python values."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist") and not isinstance(value, str):
        return value.tolist()
    return value
