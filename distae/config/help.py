"""The text of `--help`: every variant, data set and field with its doc."""

import dataclasses
import textwrap
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from distae.config.fields import Field, fields_of
from distae.config.weights import Ramp

WIDTH, INDENT, LONGEST_METAVAR = 118, 36, 60


def render(cls: type, switches: dict[str, str], prog: str, file: str = "config", chosen: Mapping[str, type] | None = None) -> str:
    """Help of a command with the settings `cls` and its own `switches`; only of the `chosen` variants, if given."""
    rows = _head(cls, switches, prog, file)
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
            rows += _variant(field, prefix, chosen[field.name] if chosen else None)
    return "\n".join(rows)


def render_short(cls: type, switches: dict[str, str], prog: str, file: str = "config") -> str:
    """Help of a command with very many settings: the groups in its `common`, the names of all variants, and how to see more."""
    rows, every = _head(cls, switches, prog, file), _dotted(cls)
    for title, names in cls.common.items():  # type: ignore[attr-defined]
        rows += ["", f"{title}:"]
        for name in names:
            prefix = name.rpartition(".")[0] + "." if "." in name else ""
            rows += _choice(every[name]) if every[name].is_variant else _rows([every[name]], prefix)
    rows += ["", "more:"]
    rows += _row(
        "--model NAME --help", "settings of that variant, of the chosen network and data set, and those that all variants share"
    )
    return "\n".join([*rows, *_row("--help all", "every variant, network, data set and setting")])


def _dotted(cls: type) -> dict[str, Field]:
    """The fields of `cls` and those shared by each group's variants, by dotted name."""
    fields = fields_of(cls)
    inner = {f"{f.name}.{k}": v for f in fields.values() if f.is_group or f.is_variant for k, v in fields_of(f.type).items()}
    return fields | inner


def _head(cls: type, switches: dict[str, str], prog: str, file: str) -> list[str]:
    rows = [f"usage: {prog} [--{file} FILE.toml] [--option VALUE ...]", "", _oneline(cls.__doc__), ""]
    recipe = "; recipe:NAME is one of those that come with distae" if file == "config" else ""
    rows += _row(
        f"--{file} FILE",
        f"TOML file of settings{recipe}. Options on the command line override it; "
        "a different variant there replaces the file's whole table",
    )
    if any(f.is_variant for f in fields_of(cls).values()):
        rows += _row("--plugin FILE.py", "your Python file that adds variants, networks, data sets and more: see CONTRIBUTING.md")
    for switch, doc in switches.items():
        rows += _row(f"--{switch}", doc)
    return rows


def _choice(field: Field) -> list[str]:
    return _row(f"--{field.name} NAME", f"{field.doc} One of {', '.join(field.type.choices())} (default {field.default.name})")


def _variant(field: Field, prefix: str, chosen: type | None) -> list[str]:
    flag, choices, shared = f"--{field.name}", field.type.choices(), fields_of(field.type)
    rows = ["", f"{field.name}: {field.doc}"]
    rows += _row(f"{flag} NAME", f"one of {', '.join(choices)} (default {field.default.name})")
    rows += _rows(shared.values(), prefix)
    for name, variant in choices.items():
        if chosen not in (None, variant):
            continue
        rows += ["", *textwrap.wrap(f"{flag} {name}: {_oneline(variant.__doc__)}", WIDTH, subsequent_indent="  ")]
        rows += _rows((f for f in fields_of(variant).values() if f.name not in shared), prefix)
    return rows


def _rows(fields: Iterable[Field], prefix: str) -> list[str]:
    rows = []
    for field in fields:
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        flag, doc = f"--{prefix}{field.name}".replace("_", "-"), field.doc
        metavar = "" if field.type is bool else f" {_metavar(field.type)}"
        if len(metavar) > LONGEST_METAVAR:
            metavar, doc = " NAME", f"{doc} One of {', '.join(metavar.strip().split('|'))}."
        rows += _row(flag + metavar, f"{doc} (default {'none' if default in (None, '') else default})")
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
