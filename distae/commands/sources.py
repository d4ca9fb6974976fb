"""What the commands that read data share: SOURCE and `--data` options to settings."""

import argparse
import glob
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from distae.config import TrainConfig, parse
from distae.config.data import DataConfig
from distae.config.data.paths import kind_of
from distae.config.data.remote import is_url
from distae.errors import UserError


def given(argv: Sequence[str] | None, own: argparse.ArgumentParser, words: int) -> tuple[list[str], argparse.Namespace, list[str]]:
    """The words before the first option (at most `words`), the command's own options, and those of training."""
    argv = sys.argv[1:] if argv is None else [*argv]
    if not argv or "--help" in argv or "-h" in argv:
        own.print_help()
        raise SystemExit(0)
    leading = [*takewhile(lambda word: not word.startswith("-"), argv)]
    if len(leading) > words:
        raise UserError(f"{own.prog}: unexpected argument {leading[words]!r}; {own.format_usage().strip()}")
    options, rest = own.parse_known_args(argv[len(leading) :])
    return leading, options, rest


def settings_of(source: str | None, options: Sequence[str], prog: str) -> TrainConfig:
    """Settings whose data is SOURCE: a path or a URL, whose kind is guessed unless `--data` gives it, or the name of a data set.

    Raises UserError.
    """
    if source is None:
        return parse(TrainConfig, options, {}, prog).settings
    if any(word == "--data" or word.startswith("--data=") for word in options):
        return parse(TrainConfig, [*options, "--data.path", source], {}, prog).settings
    if not _is_there(source) and source in DataConfig.choices():
        return parse(TrainConfig, ["--data", source, *options], {}, prog).settings
    return parse(TrainConfig, ["--data", guessed(source), "--data.path", source, *options], {}, prog).settings


def guessed(source: str) -> str:
    """The kind of data (`--data`) that a path looks like. Raises UserError if nothing is there, or the kind is unknown."""
    first = source if _is_there(source) else source.split(",", maxsplit=1)[0]
    matching = sorted(glob.glob(str(Path(first).expanduser()))) if not is_url(first) else [first]  # noqa: PTH207 - absolute patterns
    if not matching:
        raise UserError(f"no file, folder or data set {source}; valid names: {', '.join(DataConfig.choices())}")
    kind = "parquet" if is_url(first) else kind_of(Path(matching[0]))
    if kind is None:
        raise UserError(f"{source} is of an unknown kind of data; give --data, one of {', '.join(DataConfig.choices())}")
    return kind


def _is_there(source: str) -> bool:
    return is_url(source) or Path(source).expanduser().exists()
