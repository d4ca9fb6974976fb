"""TOML with limits: tomllib's time grows with the square of a dotted key's length."""

import re
import tomllib
from typing import Any

LARGEST = 256 << 10
"""Bytes of a file of settings: 0.1 s of parsing."""
MOST_PARTS = 16
"""Parts of a dotted key."""
_PART = rb"""(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+"""
_DEEP = re.compile(rb"(?<![\w\\-])(?:%b\.[ \t]*+){%d}" % (_PART, MOST_PARTS))


def parse_toml(data: bytes) -> dict[str, Any]:
    """The table of a TOML file. Raises ValueError if it is not valid, too large, or nested too deeply."""
    if len(data) > LARGEST:
        raise ValueError(f"it has {len(data)} bytes; at most {LARGEST} are allowed")
    if _DEEP.search(data):
        raise ValueError("it is nested too deeply")
    try:
        return tomllib.loads(data.decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
