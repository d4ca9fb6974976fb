"""Where an array lies in a .npy, .npz or .safetensors file, as its header says: bounded, without reading the values. No torch."""

import io
import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

FILE_ERRORS = (
    ValueError, OSError, EOFError, LookupError, RuntimeError, MemoryError, NotImplementedError, SyntaxError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy and zipfile raise where a file is damaged, forged or encrypted."""
LONGEST_HEADER = 64 << 10
"""Largest header of an array in bytes; numpy's own have about 100."""
LONGEST_SAFETENSORS_HEADER = 16 << 20
"""Largest header of a .safetensors file in bytes: some 100,000 tensors."""
MOST_COMPRESSED = 200
"""Largest ratio of unpacked to packed size of an .npz file: deflate reaches 1,000, but only in a zip bomb."""
LOCAL_HEADER = 30
"""Bytes of the fixed part of a zip member's own header; the lengths of its name and its extra field are the last 4."""
SAFETENSORS = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2), "U8": ("uint8", 1),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "BOOL": ("bool", 1),
    "U64": ("uint64", 8), "U32": ("uint32", 4), "U16": ("uint16", 2), "F8_E4M3": ("float8_e4m3", 1), "F8_E5M2": ("float8_e5m2", 1),
}  # fmt: skip
"""Names of types, and bytes of a value."""


@dataclass(frozen=True)
class Stored:
    """One array of a file."""

    path: Path
    name: str
    """Inside the file; empty for .npy."""
    shape: tuple[int, ...]
    dtype: str
    """numpy's name of the type, or bfloat16."""
    itemsize: int
    offset: int | None
    """Where the values begin, if they are there in C order and this machine's byte order; None: they must be read and converted."""
    crc: int | None = None
    """CRC-32 of the member of a .npz file, and where that member begins."""
    begins: int = 0

    def __str__(self) -> str:
        return f"{self.path} ({self.name})" if self.name else str(self.path)

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.itemsize


def arrays_in(path: Path) -> dict[str, Callable[[], Stored]]:
    """What reads the header of each array of a file, by name. Raises one of FILE_ERRORS if it is no such file."""
    match path.suffix:
        case ".npy":
            return {"": partial(_npy, path)}
        case ".npz":
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"two arrays of the name {twice.removesuffix('.npy')!r}")
            return {name.removesuffix(".npy"): partial(_npz, path, name) for name in names}
        case _:
            return _safetensors(path)


def _npy(path: Path) -> Stored:
    with path.open("rb") as file:
        shape, dtype, header, plain = _npy_header(file, path.stat().st_size)
    return Stored(path, "", shape, dtype.name, dtype.itemsize, header if plain else None)


def _npz(path: Path, member: str) -> Stored:
    """The header of a member; its values can be mapped if it is stored uncompressed."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        info = archive.getinfo(member)
        if info.file_size > MOST_COMPRESSED * path.stat().st_size:
            times = info.file_size // path.stat().st_size
            raise ValueError(f"{member} takes {info.file_size} bytes, {times} times the file: save it uncompressed")
        mapped = info.compress_type == zipfile.ZIP_STORED
        shape, dtype, header, plain = _npy_header(file, info.file_size, unpacked=not mapped)
    with path.open("rb") as raw:
        raw.seek(info.header_offset)
        local = raw.read(LOCAL_HEADER)
    begins = info.header_offset + LOCAL_HEADER + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    if begins + info.file_size > path.stat().st_size and mapped:
        raise ValueError(f"it is truncated: {member} would end at byte {begins + info.file_size}")
    offset = begins + header if mapped and plain else None
    return Stored(path, member.removesuffix(".npy"), shape, dtype.name, dtype.itemsize, offset, info.CRC, begins)


def _npy_header(file: Any, size: int, unpacked: bool = False) -> tuple[tuple[int, ...], Any, int, bool]:
    """Shape, dtype, bytes of the header, and whether the values are in C order and native.

    Raises ValueError if the array that it announces is larger than the `size` bytes of the file; where it has to be `unpacked`
    also if it is larger than the memory.
    """
    from numpy.lib import format as npy

    head = io.BytesIO(file.read(LONGEST_HEADER))
    version = npy.read_magic(head)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(head)
    needed, memory = head.tell() + prod(shape) * dtype.itemsize, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if any(n < 0 for n in shape):
        raise ValueError(f"its header announces shape {list(shape)}")
    if not dtype.hasobject and needed > size:
        raise ValueError(f"it is truncated: shape {list(shape)} of {dtype.name} takes {needed} bytes, and it has {size}")
    if needed > memory and unpacked:
        raise ValueError(f"it takes {needed} bytes; this machine has {memory}")
    return shape, dtype, head.tell(), dtype.isnative and not fortran


def _safetensors(path: Path) -> dict[str, Callable[[], Stored]]:
    """By https://huggingface.co/docs/safetensors: 8 bytes with the length of a JSON header, the header, the values."""
    size = path.stat().st_size
    with path.open("rb") as file:
        table, begins = _safetensors_header(file, size)
    table.pop("__metadata__", None)
    return {name: partial(_tensor, path, name, entry, begins, size) for name, entry in sorted(table.items())}


def _safetensors_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The JSON header, and where the values begin."""
    length = int.from_bytes(file.read(8), "little")
    if length > LONGEST_SAFETENSORS_HEADER:
        raise ValueError(f"its header would have {length} bytes")
    if 8 + length > size:
        raise ValueError(f"it is truncated: its header has {length} bytes, and it has {size}")
    try:
        return msgspec.json.decode(file.read(length), type=dict[str, Any]), 8 + length
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error


def _tensor(path: Path, name: str, entry: Any, begins: int, size: int) -> Stored:
    try:
        dtype, itemsize = SAFETENSORS[entry["dtype"]]
        shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
        good = all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)) and end - start == prod(shape) * itemsize
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"its header says of {name!r}: {str(entry)[:100]}") from error
    if not good:
        raise ValueError(f"its header says of {name!r}: {str(entry)[:100]}")
    if begins + end > size:
        raise ValueError(f"it is truncated: {name} ends at byte {begins + end}, and it has {size}")
    return Stored(path, name, shape, dtype, itemsize, begins + start)


def metadata_of(path: Path) -> dict[str, str]:
    """The texts kept beside the tensors of a .safetensors file. Raises one of FILE_ERRORS if it is no whole one."""
    for read in _safetensors(path).values():
        read()
    with path.open("rb") as file:
        about = _safetensors_header(file, path.stat().st_size)[0].get("__metadata__")
    return {str(k): str(v) for k, v in about.items()} if isinstance(about, dict) else {}
