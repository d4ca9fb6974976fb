"""One rank's tensors in one safetensors file, through torch.distributed.checkpoint: checksummed on the way, fsynced, no pickle."""

import json
import os
import struct
from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from distae.checkpoint.folder import Entry, manifest_of

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class ShardWriter(HuggingFaceStorageWriter):
    """DCP's safetensors writer with the bytes written once, straight from the tensors, instead of serialised in memory first."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), save_distributed=True)
        self.folder = path
        self.manifest: dict[str, Entry] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results: Future[list[WriteResult]] = Future()
        tensors = [(i.index, cast(Tensor, planner.resolve_data(i)).detach().cpu().contiguous()) for i in plan.items]
        if tensors:
            name = f"shard-{plan.storage_data['shard_index']:05}-model-00001-of-00001.safetensors"
            self.manifest[name] = _write_safetensors(self.folder / name, tensors)
        results.set_result([WriteResult(index=i, size_in_bytes=t.nbytes, storage_data=None) for i, t in tensors])
        return results


def _write_safetensors(path: Path, tensors: list[tuple[MetadataIndex, Tensor]]) -> Entry:
    """Write the file, wide types first so that all values are aligned."""
    header: dict[str, Any] = {}
    offsets = {}
    end = 0
    ordered = sorted(tensors, key=lambda it: (-it[1].element_size(), it[0].fqn))
    for index, t in ordered:
        start, end = end, end + t.nbytes
        header[index.fqn] = {"dtype": _NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [start, end]}
        offsets[index.fqn] = {"saved_offsets": [0] * t.ndim}
    header["__metadata__"] = {"DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets), "format": "pt"}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    blocks = [struct.pack("<Q", len(head)) + head, *(t.reshape(-1).view(torch.uint8).numpy() for _, t in ordered)]
    return write_file(path, blocks)


def write_file(path: Path, blocks: list[Any]) -> Entry:
    """Write the buffers one after another and fsync; the checksum is of what was handed to the disk."""
    digest, size = xxhash.xxh3_128(), 0
    with path.open("wb", buffering=0) as file:
        for block in blocks:
            view = memoryview(block).cast("B")
            size += len(view)
            for start in range(0, len(view), _PIECE):
                piece = view[start : start + _PIECE]
                digest.update(piece)
                while piece:
                    piece = piece[file.write(piece) :]
        os.fsync(file.fileno())
    return {"size": size, "xxh3": digest.hexdigest()}


_PIECE = 8 << 20


def damaged_file(folder: Path, names: list[str]) -> str | None:
    """The first of the files whose checksum is not the manifest's."""
    files = manifest_of(folder)
    return next((name for name in names if checksum(folder / name) != files[name]["xxh3"]), None)


def checksum(path: Path) -> str:
    """The xxh3 checksum of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def fsync_folder(path: Path) -> None:
    """Make renames and new names in the folder durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
