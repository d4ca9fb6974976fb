"""Building blocks of the settings classes: constrained types, variants chosen by name, docs under each field."""

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from msgspec import Meta

from distae.config.registry import Registry

Count = Annotated[int, Meta(ge=1)]
Index = Annotated[int, Meta(ge=0)]
SMALLEST = sys.float_info.min
"""msgspec takes gt=0 for "at least the smallest denormal", which is 0 once a run has had denormals flushed in this process."""
Positive = Annotated[float, Meta(ge=SMALLEST)]
NonNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]


class Variant:
    """A settings class that is one of several, chosen by `name`: `--model vae`, or `name = "vae"` in its TOML table."""

    name: ClassVar[str]

    @classmethod
    def choices(cls) -> dict[str, type[Self]]:
        """Every named subclass, those of plugins included."""
        found = {cls.name: cls} if "name" in cls.__dict__ else {}
        for sub in cls.__subclasses__():
            found |= sub.choices()
        return found


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Annotates a string that is a name in a registry, to which plugins add."""

    registry: Registry[str, Any]


@dataclasses.dataclass(frozen=True)
class SeveralWords:
    """Annotates a string that may be given as several words, or repeatedly: they are joined by commas."""


Joined = Annotated[str, SeveralWords()]


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a settings class, its type resolved and its doc read from under it."""

    name: str
    declared: Any
    doc: str
    default: Any

    @property
    def type(self) -> Any:
        """The type as declared; for a name in a registry, the names registered so far."""
        if self.is_joined:
            return str
        if get_origin(self.declared) is Annotated and isinstance(names := get_args(self.declared)[1], OneOf):
            return Literal[names.registry.keys_known]
        return self.declared

    @property
    def is_joined(self) -> bool:
        """Whether it is a string of several words."""
        return bool(self.declared == Joined)

    @property
    def is_variant(self) -> bool:
        return inspect.isclass(self.type) and issubclass(self.type, Variant)

    @property
    def choices(self) -> "dict[str, Any]":
        """The settings classes of a variant by name."""
        return self.type.choices() if self.is_variant else {}

    @property
    def is_group(self) -> bool:
        return dataclasses.is_dataclass(self.type) and not self.is_variant


@cache
def fields_of(cls: type) -> dict[str, Field]:
    """The fields of a settings class in order, inherited ones first."""
    hints = get_type_hints(cls, include_extras=True)
    docs = {name: doc for base in reversed(cls.__mro__) for name, doc in _docs(base).items()}
    return {f.name: Field(f.name, hints[f.name], docs.get(f.name, ""), _default(f)) for f in dataclasses.fields(cls)}


def leaves(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every setting, a variant's `name` included."""
    if isinstance(settings, Variant):
        yield f"{prefix}name", settings.name
    for field in fields_of(type(settings)).values():
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", str(value) if isinstance(value, str) else value  # a Ramp is stored as a string


def to_dict(settings: Any) -> dict[str, Any]:
    """Nested plain values, as a TOML file or a JSON file holds them; fields that are None are left out."""
    table: dict[str, Any] = {}
    for dotted, value in leaves(settings):
        *path, last = dotted.split(".")
        inner = table
        for part in path:
            inner = inner.setdefault(part, {})
        if value is not None:
            inner[last] = list(value) if isinstance(value, tuple) else value
    return table


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _docs(cls: type) -> dict[str, str]:
    """The string under each field, as written in the source."""
    if not dataclasses.is_dataclass(cls):
        return {}
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for above, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name) and isinstance(below, ast.Expr):
            docs[above.target.id] = inspect.cleandoc(ast.literal_eval(below.value))
    return docs
