"""JSON that others may have damaged or forged, as typed values."""

from typing import TypeVar

import msgspec

T = TypeVar("T")


def decode(data: bytes, kind: type[T]) -> T:
    """JSON text as a `kind`, its types checked. Raises ValueError where it is anything else."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
