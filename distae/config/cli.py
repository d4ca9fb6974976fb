"""From a command line and a TOML file to settings. The command line wins; every error names the key and the valid values."""

import argparse
import contextlib
import copy
import dataclasses
import difflib
import math
import sys
import types
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import msgspec

from distae.config import plugin, recipes
from distae.config.fields import SMALLEST, Field, Variant, fields_of, to_dict
from distae.config.help import render, render_short
from distae.config.toml import LARGEST, parse_toml
from distae.config.weights import Ramp
from distae.errors import UserError

T = TypeVar("T")
Table = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Command(Generic[T]):
    """What a command line asks for."""

    settings: T
    flags: frozenset[str]
    """Which of the entry's own switches (`--smoke`, `--print-config`) were given."""
    plugin: str | None = None
    """The file behind `--plugin`."""


def parse(
    cls: type[T], argv: Sequence[str], switches: dict[str, str], prog: str, file: str = "config", base: Table | None = None
) -> Command[T]:
    """Settings of class `cls` from `argv` and the TOML file that `--{file}` names, or the nested values `base` instead.

    Prints the help and exits on `--help`.

    Raises UserError on unknown options and keys, and on values that cannot be converted.
    """
    argv = [_kebab(_utf8(a)) for a in argv]
    if (file_of_plugin := value_of("plugin", argv)) and _variants(cls):
        plugin.load(file_of_plugin)
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(_help(cls, argv, switches, prog, file) + "\n")
        raise SystemExit(0)
    table = _table(cls, argv, file, base)
    parser = _parser(cls, table, switches, prog, file)
    given = vars(parser.parse_args(argv))
    for known in (file, "plugin"):
        given.pop(known, None)
    flags = frozenset(s for s in switches if given.pop(s, False))
    for dotted, value in given.items():
        put(table, dotted, value)
    drop_rivals(cls, table, given)
    return Command(build(cls, table), flags, file_of_plugin)


def parser_of(cls: type, argv: Sequence[str], switches: dict[str, str], file: str = "config") -> argparse.ArgumentParser:
    """The parser of a command line that begins with `argv`, for completion. Raises UserError as `parse` does."""
    if (file_of_plugin := value_of("plugin", argv)) and _variants(cls):
        plugin.load(file_of_plugin)
    return _parser(cls, _table(cls, argv, file), switches, "", file)


def _table(cls: type, argv: Sequence[str], file: str, base: Table | None = None) -> Table:
    """The TOML file's table, or `base`; a variant chosen on the command line replaces its table."""
    table = read_toml(value_of(file, argv), file) if base is None else copy.deepcopy(base)
    for field in _variants(cls):
        there, name = table.setdefault(field.name, {}), value_of(field.name, argv)
        if name and isinstance(there, dict) and name != there.get("name"):
            table[field.name] = {"name": name}
    return table


def _help(cls: type, argv: Sequence[str], switches: dict[str, str], prog: str, file: str) -> str:
    """The full help if asked for or short; else that of the chosen variants; else the common options."""
    variants = _variants(cls)
    if not variants or (*argv, "")[max(argv.index(h) for h in ("--help", "-h") if h in argv) + 1] == "all":
        return render(cls, switches, prog, file)
    if not any(value_of(name, argv) for name in (file, *(f.name for f in variants))):
        return render_short(cls, switches, prog, file)
    table = _table(cls, argv, file)
    return render(cls, switches, prog, file, {f.name: chosen(f, table[f.name], f.name) for f in variants})


def build(cls: type[T], table: Table, prefix: str = "") -> T:
    """Settings of class `cls` from nested plain values, strings converted. Raises UserError naming the dotted key."""
    fields = fields_of(cls)
    keys = [*fields, "name"] if issubclass(cls, Variant) else list(fields)
    removed = getattr(cls, "removed", {})
    for key, value in table.items():
        if key in removed:
            _check_removed(prefix + key, value, *removed[key])
        elif key not in keys:
            raise UserError(f"unknown key {prefix + key!r}{near(key, keys)}; valid: {', '.join(prefix + k for k in keys)}")
    values = {}
    for key, value in table.items():
        if key not in fields:
            continue
        field, dotted = fields[key], prefix + key
        if dataclasses.is_dataclass(field.type):
            values[key] = build(chosen(field, value, dotted), value, f"{dotted}.")
        else:
            values[key] = _convert(value, field, dotted)
    return cls(**values)


def _check_removed(dotted: str, value: Any, default: Any, instead: str) -> None:
    if value != default:
        raise UserError(f"{_flag(dotted)}: {value!r} is no longer valid, because {instead}: leave the setting out")


def chosen(field: Field, table: Any, dotted: str) -> type[Any]:
    """The settings class that a table is for: the variant that it names, else the class of the default."""
    if not isinstance(table, dict):
        raise UserError(f"{dotted} = {table!r} is not valid; expected a table, as in [{dotted}]")
    if not field.is_variant:
        return field.type  # type: ignore[no-any-return]
    if "name" not in table:
        return type(field.default)
    choices = field.type.choices()
    if str(table["name"]) not in choices:
        raise UserError(
            f"{_flag(dotted)}: unknown {table['name']!r}{near(str(table['name']), choices)}; valid: {', '.join(choices)}"
        )
    return choices[table["name"]]  # type: ignore[no-any-return]


def _convert(value: Any, field: Field, dotted: str) -> Any:
    if value in ("none", "None") and type(None) in _members(field.type):
        return None
    members = _members(field.type)
    if Ramp in members and isinstance(value, str) and "@" in value:
        with contextlib.suppress(ValueError):
            return Ramp(value)
    plain: Any = Union[tuple(m for m in members if m is not Ramp)]  # noqa: UP007 - made at run time
    try:
        found = msgspec.convert(value, plain, strict=not _from_text(value))
        if found in (math.inf, -math.inf):
            raise msgspec.ValidationError("infinite")
        return found
    except msgspec.ValidationError as error:
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        spaced = " ".join(shown.replace(",", " ").split()) if isinstance(value, list) else shown
        advice = f"; write {spaced}" if spaced != shown else ""
        raise UserError(f"{_flag(dotted)}: {shown!r} is not valid; expected {_expected(field.type)}{advice}") from error


def _from_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def _members(tp: Any) -> tuple[Any, ...]:
    return get_args(tp) if get_origin(tp) in (Union, types.UnionType) else (tp,)


def _expected(tp: Any) -> str:
    """A type as text: `an integer >= 1`, `one of adam, sgd`."""
    if get_origin(tp) in (Union, types.UnionType):
        return " or ".join(_expected(t) for t in get_args(tp))
    if get_origin(tp) is Literal:
        return ("one of " if len(get_args(tp)) > 1 else "") + ", ".join(map(str, get_args(tp)))
    if get_origin(tp) is Annotated:
        inner, meta = get_args(tp)
        signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
        bounds = [f"{sign} {getattr(meta, k)}" for k, sign in signs.items() if getattr(meta, k) is not None]
        bounds = ["> 0" if bound == f">= {SMALLEST}" else bound for bound in bounds]
        return f"{_expected(inner)} {' and '.join(bounds)}"
    if get_origin(tp) is tuple:
        args = get_args(tp)
        return f"a list of {_expected(args[0])}" if args[-1] is ... else f"{len(args)} times {_expected(args[0])}"
    words = {
        int: "an integer",
        float: "a number",
        str: "a string",
        bool: "true or false",
        type(None): "none",
        Ramp: "a ramp FROM:TO@STEPS[xCYCLES], as in 0:1@1000",
    }
    return words[tp]


ALIASES = {
    "batch-size": "global-batch-size", "bs": "global-batch-size", "lr": "optim.lr", "learning-rate": "optim.lr",
    "optimizer": "optim.name", "wd": "optim.weight-decay", "grad-clip": "optim.max-grad-norm",
    "clip-grad-norm": "optim.max-grad-norm",
    "gradient-accumulation-steps": "grad-accum-steps", "accumulation-steps": "grad-accum-steps", "scheduler": "schedule",
    "num-epochs": "epochs", "max-epochs": "epochs", "n-epochs": "epochs", "max-steps": "steps", "iterations": "steps",
    "latent-size": "model.latent-dim", "z-dim": "model.latent-dim", "latent": "model.latent-dim", "bottleneck": "model.latent-dim",
    "hidden-dims": "net.hidden", "hidden-dim": "net.hidden", "hidden-size": "net.hidden", "layers": "net.hidden",
    "arch": "net", "network": "net", "dataset": "data", "data-path": "data.path", "data-dir": "data.root",
    "output": "run-dir", "output-dir": "run-dir", "out-dir": "run-dir", "save-dir": "run-dir", "log-dir": "run-dir",
    "logdir": "run-dir",
    "random-seed": "seed", "patience": "early-stop.patience", "amp": "precision", "dtype": "precision", "overwrite": "fresh",
}  # fmt: skip
"""Names of options in other libraries."""


def _meant(flag: str, known: Sequence[str]) -> str:
    """A hint at the option that was probably meant: by its name in other libraries, its last part, or its spelling."""
    word = flag.removeprefix("--")
    alias = f"--{ALIASES.get(word, '')}"
    found = [alias] if alias in known else [k for k in known if k.rpartition(".")[2] == word]
    return f" (did you mean {' or '.join(map(repr, found))}?)" if found else near(flag, known)


def near(word: str, known: Iterable[str]) -> str:
    """A hint at the known word most similar to this one; empty if none is similar."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _kebab(arg: str) -> str:
    name, eq, value = arg.partition("=")
    return name.replace("_", "-") + eq + value if arg.startswith("--") else arg


def _utf8(arg: str) -> str:
    """`arg`, if it is UTF-8 text. Raises UserError."""
    try:
        arg.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{arg!r} is not UTF-8 text") from error
    return arg


def value_of(name: str, argv: Sequence[str]) -> str | None:
    """The last value of `--name` in argv."""
    flag, found = _flag(name), None
    for arg, after in pairwise([*argv, "--"]):
        if arg == flag and not after.startswith("--"):
            found = after
        elif arg.startswith(flag + "="):
            found = arg.partition("=")[2]
    return found


def read_toml(path: str | None, option: str = "config") -> Table:
    if path is None:
        return {}
    if option == "config" and path.startswith(recipes.PREFIX):
        path = str(recipes.find(path.removeprefix(recipes.PREFIX)))
    file = Path(path)
    try:
        if file.exists() and not file.is_file():  # opening a FIFO waits forever, reading /dev/zero fills the memory
            raise UserError(f"--{option}: {path} is not a file")
        if file.stat().st_size > LARGEST:
            raise UserError(f"--{option}: {path} has {file.stat().st_size} bytes; at most {LARGEST} are allowed")
        return parse_toml(file.read_bytes())
    except OSError as error:
        raise UserError(f"--{option}: cannot read {path} ({error.strerror})") from error
    except ValueError as error:  # also for a number of 5,000 digits
        raise UserError(f"--{option}: {path} is not valid TOML: {error}") from error


def put(table: Table, dotted: str, value: Any) -> None:
    """Set a value in nested tables. Raises UserError if a part of the path is not a table."""
    *path, last = dotted.split(".")
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UserError(f"--config: {part} must be a table, as in [{part}]")
    table[last] = value


def drop_rivals(cls: type, table: Table, given: Iterable[str]) -> None:
    """Remove from nested tables the settings that exclude one of `given`, dotted names, unless they are given too."""
    names = {*given}
    for pair in getattr(cls, "exclusive", ()):
        for one, rival in (pair, pair[::-1]):
            group, _, last = rival.rpartition(".")
            there = table.get(group) if group else table
            if one in names and rival not in names and isinstance(there, dict):
                there.pop(last, None)


def _variants(cls: type) -> list[Field]:
    return [f for f in fields_of(cls).values() if f.is_variant]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))

    def parse_args(self, argv: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(argv, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            known = [o for a in self._actions for o in a.option_strings if a.help != argparse.SUPPRESS]
            group = flag.partition(".")[0] + "."
            valid = [k for k in known if k.startswith(group)] or ["see --help"]
            raise UserError(f"unknown option {flag!r}{_meant(flag, known)}; valid: {', '.join(valid)}")
        return found


class _Join(argparse.Action):
    """Several words, and those of the same option given before, joined by commas."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, ",".join([*filter(None, [getattr(namespace, self.dest, "")]), *values]))


def _parser(cls: type, table: Table, switches: dict[str, str], prog: str, file: str) -> _Parser:
    """Options of the chosen variants only."""
    parser = _Parser(prog=prog, allow_abbrev=False, add_help=False, argument_default=argparse.SUPPRESS)
    parser.add_argument(f"--{file}")
    if _variants(cls):
        parser.add_argument("--plugin")
    for switch in switches:
        parser.add_argument(f"--{switch}", dest=switch, action="store_true")
    for name in getattr(cls, "removed", {}):
        parser.add_argument(_flag(name), dest=name, help=argparse.SUPPRESS)
    for field in fields_of(cls).values():
        if not dataclasses.is_dataclass(field.type):
            _add(parser, field, field.name)
            continue
        if field.is_variant:
            _complete(parser.add_argument(_flag(field.name), dest=f"{field.name}.name"), field.choices)
        for inner in fields_of(chosen(field, table.get(field.name, {}), field.name)).values():
            _add(parser, inner, f"{field.name}.{inner.name}")
    return parser


def _add(parser: _Parser, field: Field, dotted: str) -> None:
    if field.type is bool:
        parser.add_argument(_flag(dotted), dest=dotted, action=argparse.BooleanOptionalAction)
    elif field.is_joined:
        parser.add_argument(_flag(dotted), dest=dotted, nargs="+", action=_Join)
    else:
        option = parser.add_argument(_flag(dotted), dest=dotted, nargs="*" if get_origin(field.type) is tuple else None)
        _complete(option, [str(v) for m in _members(field.type) if get_origin(m) is Literal for v in get_args(m)])


def _complete(option: argparse.Action, words: Iterable[str]) -> None:
    """The values that argcomplete offers for the option; without any it offers files."""
    if words := tuple(words):
        option.completer = lambda **_: words  # type: ignore[attr-defined]


def _flag(dotted: str) -> str:
    return f"--{dotted.replace('_', '-')}"


def write_toml(settings: Any) -> str:
    """The settings as TOML, to be given back with `--config`."""
    import tomli_w

    return tomli_w.dumps(to_dict(settings))
