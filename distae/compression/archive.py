"""A .dae file: a header, names of files, entropy-coded codes, and a CRC of all that.

bytes   little-endian
4       "DAE" and the version, 1
8       checksum of the model's weights        (xxh3_64)
8       checksum of the tables of frequencies  (xxh3_64 of their numbers)
4       number of samples
1       what was given: 0 an array of floats, 1 of bytes, 2 image files
4       bytes of the names of files, deflated
...     these names, one a line; the codes of `coder`
4       CRC-32 of everything before
"""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from distae.errors import UserError
from distae.runtime import files

MAGIC, VERSION = b"DAE", 1
HEADER, CRC = struct.Struct("<3sBQQIBI"), struct.Struct("<I")
OVERHEAD = HEADER.size + CRC.size
"""Bytes besides names and codes."""
LARGEST = 1 << 32
MOST_NAMES = 64 << 20
"""Bytes of all names."""


class Kind(IntEnum):
    """What was compressed, and is given back."""

    FLOATS = 0
    BYTES = 1
    IMAGES = 2


@dataclass(frozen=True)
class Archive:
    """What a .dae file holds."""

    model: int
    """Checksum of the model's weights, 64 bits."""
    tables: int
    """Checksum of the tables, 64 bits."""
    count: int
    """Samples."""
    kind: Kind
    codes: bytes
    names: tuple[str, ...] = ()
    """Of image files, in order."""

    def to_bytes(self) -> bytes:
        names = zlib.compress("\n".join(self.names).encode(), 9) if self.names else b""
        head = HEADER.pack(MAGIC, VERSION, self.model, self.tables, self.count, self.kind, len(names))
        whole = head + names + self.codes
        return whole + CRC.pack(zlib.crc32(whole))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Archive":
        """Raises ValueError where it is no whole .dae file."""
        if len(data) < OVERHEAD or data[:3] != MAGIC:
            raise ValueError("it is not a .dae file" if data[:3] != MAGIC[: len(data)] else "it is truncated")
        if data[3] != VERSION:
            raise ValueError(f"it has version {data[3]}; this distae reads version {VERSION}")
        whole, (crc,) = memoryview(data)[: -CRC.size], CRC.unpack(data[-CRC.size :])
        if zlib.crc32(whole) != crc:
            raise ValueError("it is truncated or damaged (CRC mismatch)")
        _, _, model, tables, count, kind, size = HEADER.unpack_from(data)
        names = whole[HEADER.size : HEADER.size + size]
        return cls(model, tables, count, Kind(kind), bytes(whole[HEADER.size + size :]), _names(names, count))


def _names(data: memoryview, count: int) -> tuple[str, ...]:
    if not data:
        return ()
    unpacked = zlib.decompressobj()
    text = unpacked.decompress(data, MOST_NAMES)
    found = tuple(text.decode().split("\n"))
    if unpacked.unconsumed_tail or len(found) != count or any(Path(name).name != name or name in ("", "..") for name in found):
        raise ValueError("its names of files are damaged")
    return found


def write_archive(archive: Archive, path: Path) -> int:
    """Write it whole or not at all; returns its bytes."""
    data = archive.to_bytes()
    files.write_atomically(path, data)
    return len(data)


def read_archive(path: Path) -> Archive:
    """Raises UserError where there is no whole .dae file."""
    try:
        return Archive.from_bytes(files.read_bytes(path, LARGEST))
    except (OSError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: {files.in_words(error)}") from error
