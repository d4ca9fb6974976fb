"""One rank's tensors in one safetensors file, through torch.distributed.checkpoint: with a checksum, fsynced, no pickle."""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from distae.checkpoint.retention import Entry
from distae.distributed.shards import is_sharded, local, offsets_of
from distae.runtime.files import in_words

DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Names of types in the header of a safetensors file."""


@dataclass(frozen=True)
class Part:
    """What one rank writes of a tensor: all of it, or its part. torch.distributed.checkpoint calls its method."""

    tensor: Tensor
    offsets: torch.Size
    """Where it begins in the whole tensor."""
    size: torch.Size
    """Of the whole tensor."""

    def __create_write_items__(self, fqn: str, _: Any) -> list[WriteItem]:
        chunk = ChunkStorageMetadata(self.offsets, self.tensor.size())
        about = TensorWriteData(chunk, TensorProperties.create_from_tensor(self.tensor), self.size)
        return [WriteItem(MetadataIndex(fqn, self.offsets), WriteItemType.SHARD, tensor_data=about)]


def part_of(t: Tensor) -> Part | None:
    """What this rank writes of `t`; None if its part is empty, or another rank's too."""
    if not is_sharded(t):
        return Part(t.detach(), torch.Size([0] * t.ndim), t.size())
    offsets = offsets_of(t)
    return None if offsets is None else Part(local(t), offsets, t.size())


class ShardWriter(HuggingFaceStorageWriter):
    """DCP's safetensors writer, but the bytes are written directly from the tensors, not serialised in memory first."""

    def __init__(self, path: Path, parts: dict[str, Part]) -> None:
        super().__init__(str(path), save_distributed=True)
        self.folder, self.parts = path, parts
        self.manifest: dict[str, Entry] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results: Future[list[WriteResult]] = Future()
        tensors = [(i.index, self.parts[i.index.fqn].tensor.detach().cpu().contiguous()) for i in plan.items]
        if tensors:
            name = f"shard-{plan.storage_data['shard_index']:05}-model-00001-of-00001.safetensors"
            self.manifest[name] = _write_safetensors(self.folder / name, tensors)
        results.set_result([WriteResult(index=i, size_in_bytes=t.nbytes, storage_data=None) for i, t in tensors])
        return results


def _write_safetensors(path: Path, tensors: list[tuple[MetadataIndex, Tensor]]) -> Entry:
    """Write the file, the widest types first, so that all values are aligned."""
    header: dict[str, Any] = {}
    offsets = {}
    end = 0
    ordered = sorted(tensors, key=lambda it: (-it[1].element_size(), it[0].fqn))
    for index, t in ordered:
        start, end = end, end + t.nbytes
        header[index.fqn] = {"dtype": DTYPE_NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [start, end]}
        offsets[index.fqn] = {"saved_offsets": list(index.offset or [0] * t.ndim)}
    header["__metadata__"] = {"DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets), "format": "pt"}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    blocks = [struct.pack("<Q", len(head)) + head, *(t.reshape(-1).view(torch.uint8).numpy() for _, t in ordered)]
    return write_file(path, blocks)


def parts_in(path: Path) -> list[tuple[str, list[int], Tensor]]:
    """Name, offsets and values of each tensor, or part of one, in a file. Raises SafetensorError, OSError, ValueError."""
    with safe_open(path, "pt") as stored:
        about = json.loads((stored.metadata() or {}).get("DCP_SHARDING_INFO", "{}"))
    return [(name, about.get(name, {}).get("saved_offsets", [0] * t.ndim), t) for name, t in load_file(path).items()]


def joined(parts: list[tuple[str, list[int], Tensor]]) -> dict[str, Tensor]:
    """Whole tensors by name. Raises ValueError if parts of one are missing."""
    by_name: dict[str, list[tuple[list[int], Tensor]]] = {}
    for name, offsets, t in parts:
        by_name.setdefault(name, []).append((offsets, t))
    return {name: _joined(name, of) for name, of in by_name.items()}


def _joined(name: str, parts: list[tuple[list[int], Tensor]]) -> Tensor:
    """Parts are rows of the whole tensor."""
    parts = sorted(parts, key=lambda part: part[0])
    end = 0
    for offsets, t in parts:
        if any(offsets[1:]) or (offsets and offsets[0] != end):
            raise ValueError(f"a part of {name} is missing")
        end += len(t) if t.ndim else 0
    return parts[0][1] if len(parts) == 1 else torch.cat([t for _, t in parts])


def write_file(path: Path, blocks: list[Any]) -> Entry:
    """Write the buffers (bytes, or arrays of bytes) one after another and fsync; the checksum is of what was handed to the disk.

    Bypasses the page cache if the file system can: that takes a fifth of the CPU time, and leaves training's data in the cache.
    """
    digest, size = xxhash.xxh3_128(), sum(map(len, blocks))
    buffer = memoryview(mmap.mmap(-1, _CHUNK))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
        for used in _fill(buffer, blocks):
            digest.update(buffer[:used])
            _write(fd, buffer[: -(-used // mmap.PAGESIZE) * mmap.PAGESIZE])
        os.ftruncate(fd, size)
        os.fsync(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # a write does not name its file
    finally:
        os.close(fd)
    return {"size": size, "xxh3": digest.hexdigest()}


def _fill(buffer: memoryview, blocks: list[Any]) -> Iterator[int]:
    """Copy the blocks into `buffer`, page-aligned for direct writes; each time it is full, and at the end: the bytes in it."""
    target, used = np.frombuffer(buffer, np.uint8), 0
    for block in blocks:
        rest = np.frombuffer(block, np.uint8) if isinstance(block, bytes) else block
        while len(rest):
            part, rest = rest[: len(buffer) - used], rest[len(buffer) - used :]
            target[used : used + len(part)] = part  # numpy lets other threads run meanwhile
            used += len(part)
            if used == len(buffer):
                yield used
                used = 0
    if used:
        yield used


def _write(fd: int, data: memoryview) -> None:
    """Write all of it; through the page cache from the point where the file system rejects direct writes."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                raise
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)


_CHUNK = 8 << 20


def why_damaged(folder: Path, files: dict[str, Entry]) -> str | None:
    """The first of the files that cannot be read or does not have the manifest's checksum, and why; None if all are fine."""
    for name, entry in files.items():
        try:
            if checksum(folder / name) != entry["xxh3"]:
                return f"{name} is damaged (checksum mismatch)"
        except OSError as error:
            return f"{name} cannot be read ({in_words(error)})"
    return None


def checksum(path: Path) -> str:
    """The xxh3 checksum of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
