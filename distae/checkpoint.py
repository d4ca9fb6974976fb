"""Checkpoints: torch.distributed.checkpoint into safetensors, one file per rank, no pickle.

step_00001000/
    shard-00001-model-00001-of-00001.safetensors    what rank 0 wrote: replicated tensors are shared out over the ranks
    state.json                                      everything that is no tensor
    COMMIT                                          size and checksum of each file; written last: without it, no checkpoint
"""

import contextlib
import json
import os
import re
import shutil
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as td
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from distae import dist
from distae.errors import TrainingError

COMMIT, STATE = "COMMIT", "state.json"
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class ShardWriter(HuggingFaceStorageWriter):
    """DCP's safetensors writer, with the bytes written once: no serialised copy in memory, checksummed on the way, then fsynced."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), save_distributed=True)
        self.folder = path
        self.manifest: dict[str, dict[str, Any]] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results: Future[list[WriteResult]] = Future()
        tensors = [(i.index, cast(Tensor, planner.resolve_data(i)).detach().cpu().contiguous()) for i in plan.items]
        if tensors:
            name = f"shard-{plan.storage_data['shard_index']:05}-model-00001-of-00001.safetensors"
            self.manifest[name] = _write_safetensors(self.folder / name, tensors)
        results.set_result([WriteResult(index=i, size_in_bytes=t.nbytes, storage_data=None) for i, t in tensors])
        return results


def _write_safetensors(path: Path, tensors: list[tuple[MetadataIndex, Tensor]]) -> dict[str, Any]:
    """Write the file, wide types first so that all values are aligned; return its size and checksum."""
    header: dict[str, Any] = {}
    offsets = {}
    end = 0
    ordered = sorted(tensors, key=lambda it: -it[1].element_size())
    for index, t in ordered:
        start, end = end, end + t.nbytes
        header[index.fqn] = {"dtype": _NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [start, end]}
        offsets[index.fqn] = {"saved_offsets": [0] * t.ndim}
    header["__metadata__"] = {"DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets), "format": "pt"}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    blocks = [struct.pack("<Q", len(head)) + head, *(t.reshape(-1).view(torch.uint8).numpy() for _, t in ordered)]
    return _write(path, blocks)


def _write(path: Path, blocks: list[Any]) -> dict[str, Any]:
    digest, size = xxhash.xxh3_128(), 0
    with path.open("wb", buffering=0) as file:
        for block in blocks:
            view = memoryview(block).cast("B")
            digest.update(view)
            size += len(view)
            while view:
                view = view[file.write(view) :]
        os.fsync(file.fileno())
    return {"size": size, "xxh3": digest.hexdigest()}


def _fsync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _name(step: int) -> str:
    return f"step_{step:08}"


def _steps(folder: Path) -> list[int]:
    """Steps of all checkpoint folders, newest first, whether valid or not."""
    found = (re.fullmatch(r"step_(\d+)", p.name) for p in folder.glob("step_*"))
    return sorted((int(m[1]) for m in found if m), reverse=True)


class Found(NamedTuple):
    """The newest valid checkpoint, and what is wrong with newer ones; step is -1 where none is valid."""

    step: int
    complaints: list[str]


class Checkpoints:
    """The checkpoints of a run folder. Every method is called by all ranks together."""

    def __init__(self, folder: Path, keep_latest_k: int) -> None:
        self.folder, self.keep_latest_k = folder, keep_latest_k

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any], best_step: int | None) -> None:
        """Write `tensors` (the same on every rank) and `state` (rank 0's), commit, and delete what is not kept."""
        final, fresh = self.folder / _name(step), self.folder / f".{_name(step)}.writing"
        main = dist.world().is_main
        if main:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        dist.broadcast(None)
        writer = ShardWriter(fresh)
        with _quiet():
            save(dict(tensors), storage_writer=writer, **_group())
        manifests = dist.gather(writer.manifest)
        if main:
            manifest = {name: entry for part in manifests for name, entry in part.items()}
            manifest[STATE] = _write(fresh / STATE, [json.dumps(state, indent=1).encode()])
            _write(fresh / COMMIT, [json.dumps({"step": step, "files": manifest}, indent=1).encode()])
            _fsync_folder(fresh)
            shutil.rmtree(final, ignore_errors=True)
            fresh.rename(final)
            _fsync_folder(self.folder)
            self._retain(best_step)
        dist.broadcast(None)

    def newest(self) -> Found | None:
        """The newest valid checkpoint, as rank 0 sees it. Raises TrainingError where there are checkpoints, but none is valid."""
        found: Found | None = dist.broadcast(self._newest() if dist.world().is_main else None)
        if found and found.step < 0:
            raise TrainingError(f"no valid checkpoint in {self.folder}: {'; '.join(found.complaints)}")
        return found

    def _newest(self) -> Found | None:
        complaints: list[str] = []
        for step in _steps(self.folder):
            if (why := why_invalid(self.folder / _name(step))) is None:
                return Found(step, complaints)
            complaints.append(f"{_name(step)} is not valid, an older one is used: {why}")
        return Found(-1, complaints) if complaints else None

    def state(self, step: int) -> dict[str, Any]:
        """What `save` was given as `state`."""
        return json.loads((self.folder / _name(step) / STATE).read_text())  # type: ignore[no-any-return]

    def load(self, step: int, into: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Fill the tensors of `into`, and return those whose names start with `prefix` as new CPU tensors.

        Raises TrainingError where names, shapes or types are not the checkpoint's.
        """
        reader = HuggingFaceStorageReader(str(self.folder / _name(step)))
        stored = reader.read_metadata().state_dict_metadata
        mine = {k for k in stored if not k.startswith(prefix)}
        if mine != set(into):
            odd = ", ".join(sorted(mine ^ set(into))[:4])
            raise TrainingError(f"checkpoint {_name(step)} is of another model: {odd} is only in one of them")
        target = dict(into)
        for name, meta in stored.items():
            assert isinstance(meta, TensorStorageMetadata)
            if name not in into:
                target[name] = torch.empty(meta.size, dtype=meta.properties.dtype)
            elif (into[name].shape, into[name].dtype) != (meta.size, meta.properties.dtype):
                raise TrainingError(f"checkpoint {_name(step)}: {name} is {meta.properties.dtype} {list(meta.size)} there")
        with _quiet():
            load(target, storage_reader=reader, **_group())
        return {k: v for k, v in target.items() if k not in into}

    def _retain(self, best_step: int | None) -> None:
        steps = _steps(self.folder)
        for step in steps[self.keep_latest_k :]:
            if step != best_step:
                shutil.rmtree(self.folder / _name(step), ignore_errors=True)


def why_invalid(path: Path) -> str | None:
    """What makes the checkpoint folder unusable, None where nothing does: marker, and presence and size of each file in it."""
    try:
        manifest = json.loads((path / COMMIT).read_text())["files"]
    except OSError:
        return f"no {COMMIT} marker"
    except (ValueError, KeyError, TypeError):
        return f"{COMMIT} is damaged"
    for name, entry in manifest.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["size"]:
            return f"{name} has {file.stat().st_size} bytes instead of {entry['size']}"
    return None


def _group() -> dict[str, Any]:
    group: td.ProcessGroup | None = dist.world().control
    return {"no_dist": True} if group is None else {"process_group": group}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DCP warns that there is no process group even where it is told so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
