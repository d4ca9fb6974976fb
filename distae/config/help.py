"""The text of `--help`: every variant, data set and field with its doc."""

import dataclasses
import textwrap
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from distae.config.fields import Field, fields_of
from distae.config.weights import Ramp

WIDTH, INDENT = 118, 36


def render(cls: type, switches: dict[str, str], prog: str, file: str = "config") -> str:
    """Help of an entry whose settings are `cls` and whose own switches are `switches`."""
    rows = [f"usage: {prog} [--{file} FILE.toml] [--option VALUE ...]", "", _oneline(cls.__doc__), ""]
    rows += _row(
        f"--{file} FILE",
        "TOML file of settings. The command line wins over it; another variant chosen there replaces the file's whole table",
    )
    if any(f.is_variant for f in fields_of(cls).values()):
        rows += _row("--plugin FILE.py", "Python file of yours with further variants or networks: docs/variants.md")
    for switch, doc in switches.items():
        rows += _row(f"--{switch}", doc)
    fields = fields_of(cls).values()
    rows += _rows((f for f in fields if not dataclasses.is_dataclass(f.type)), "")
    for field in fields:
        prefix = f"{field.name}."
        if field.is_group:
            rows += [
                "",
                f"{field.name}: {_oneline(field.type.__doc__)}",
                *_rows(fields_of(field.type).values(), prefix),
            ]
        elif field.is_variant:
            rows += _variant(field, prefix)
    return "\n".join(rows)


def _variant(field: Field, prefix: str) -> list[str]:
    flag, choices, shared = f"--{field.name}", field.type.choices(), fields_of(field.type)
    rows = ["", f"{field.name}: {field.doc}"]
    rows += _row(f"{flag} NAME", f"one of {', '.join(choices)} (default {field.default.name})")
    rows += _rows(shared.values(), prefix)
    for name, variant in choices.items():
        rows += ["", *textwrap.wrap(f"{flag} {name}: {_oneline(variant.__doc__)}", WIDTH, subsequent_indent="  ")]
        rows += _rows((f for f in fields_of(variant).values() if f.name not in shared), prefix)
    return rows


def _rows(fields: Iterable[Field], prefix: str) -> list[str]:
    rows = []
    for field in fields:
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        flag = f"--{prefix}{field.name}".replace("_", "-")
        metavar = "" if field.type is bool else f" {_metavar(field.type)}"
        rows += _row(flag + metavar, f"{field.doc} (default {'none' if default in (None, '') else default})")
    return rows


def _row(flag: str, doc: str) -> list[str]:
    lines = textwrap.wrap(_oneline(doc), WIDTH - INDENT)
    head = f"  {flag}"
    first = [head.ljust(INDENT) + lines[0]] if len(head) < INDENT else [head, " " * INDENT + lines[0]]
    return first + [" " * INDENT + line for line in lines[1:]]


def _metavar(tp: Any) -> str:
    if get_origin(tp) is Annotated:
        return _metavar(get_args(tp)[0])
    if get_origin(tp) is tuple:
        return f"{_metavar(get_args(tp)[0])} ..."
    if get_origin(tp) in (Union, types.UnionType):
        return "|".join(_metavar(t) for t in get_args(tp) if t is not type(None))
    if get_origin(tp) is Literal:
        return "|".join(map(str, get_args(tp)))
    return {int: "N", float: "X", str: "TEXT", Ramp: "FROM:TO@STEPS"}[tp]


def _oneline(doc: str | None) -> str:
    return " ".join((doc or "").split())
