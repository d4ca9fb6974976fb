"""Reading checkpoints: which is the newest valid one, and what is in it. Every public method is called by all ranks together."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from distae import distributed as dist
from distae.checkpoint.retention import (
    STATE,
    Entry,
    checkpoints_in,
    manifest_of,
    name_of,
    step_of,
    usable_manifest,
)
from distae.checkpoint.shards import joined, parts_in, why_damaged
from distae.distributed.shards import is_sharded
from distae.errors import TrainingError
from distae.runtime.files import read_bytes, with_path

T = TypeVar("T")
Make = Callable[[str, torch.Size, torch.dtype], Tensor | None]
"""Of a stored tensor's name, size and type: a new tensor to read it into, or None to leave it out."""


def new_on_cpu(name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype)


class LatestCheckpoint(NamedTuple):
    """The newest valid checkpoint, and newer ones that are not valid."""

    step: int
    complaints: list[str]
    """Why each newer one is not used."""
    passed_over: list[Path]
    """Folders of the newer ones."""


class CheckpointReader:
    """The checkpoints in a folder. Only rank 0 checks markers and sizes; one rank of each node reads tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.group = folder, dist.world().background

    def newest(self) -> LatestCheckpoint | None:
        """The newest valid checkpoint, checksums included; None if there are no checkpoints.

        Raises TrainingError if there are some, but none is valid.
        """
        complaints: list[str] = []
        found = self._on_main(lambda: checkpoints_in(self.folder))
        for number, path in enumerate(found):
            if (why := self._why_unusable(path)) is None:
                return LatestCheckpoint(step_of(path), complaints, found[:number])
            complaints.append(f"{path.name} is not used: {why}")
        if complaints:
            raise TrainingError(f"no valid checkpoint in {self.folder}: {'; '.join(complaints)}")
        return None

    def why_unusable(self, step: int) -> str | None:
        """Why the checkpoint of a step is unusable, checksums included; None if it is valid."""
        return self._why_unusable(self.folder / name_of(step))

    def _why_unusable(self, path: Path) -> str | None:
        """Rank 0 alone checks marker and sizes; checksums are divided among the ranks by file."""

        def look() -> tuple[str | None, dict[str, Entry]]:
            try:
                return None, usable_manifest(path).files
            except ValueError as error:
                return str(error), {}

        why, files = self._on_main(look)
        if why is not None:
            return why
        world = dist.world()
        mine = dict(sorted(files.items())[world.rank :: world.world_size])
        return next(filter(None, dist.gather(why_damaged(path, mine))), None)

    def state(self, step: int) -> bytes:
        """The `state` given to `save`, read by rank 0."""
        return self._on_main(lambda: read_bytes(self.folder / name_of(step) / STATE))

    def load(self, step: int, into: dict[str, Tensor], prefix: str, make: Make = new_on_cpu) -> dict[str, Tensor]:
        """Fill the tensors of `into`, and return those whose names start with `prefix` as new tensors, which `make` makes.

        One rank of each node reads, the others get the tensors from it; but each reads its own parts of what is sharded. Only the
        files in the manifest are opened. Raises TrainingError if names, shapes or types differ from the checkpoint's.
        """
        path = self.folder / name_of(step)
        metadata = self._on_main(lambda: _Reader(path).read_metadata())
        target: dict[str, Tensor] = {}

        def read() -> None:
            target.update(_targets(path, metadata, into, prefix, make))
            reads = dist.world().reads_for_node
            _read(path, metadata, {name: t for name, t in target.items() if reads or is_sharded(t)})

        if error := self._agree(read):
            raise TrainingError(error)
        dist.broadcast_in_node([target[name] for name in sorted(target) if not is_sharded(target[name])])
        return {k: v for k, v in target.items() if k not in into}

    def _agree(self, work: Callable[[], None]) -> str | None:
        """Do `work` on every rank; returns the first rank's error, on every rank."""
        complaint = None
        try:
            work()
        except (OSError, TrainingError) as error:
            complaint = with_path(error)
        except CheckpointException as error:
            complaint = describe(error)
        return next((c for c in dist.gather(complaint, self.group) if c), None)

    def _on_main(self, work: Callable[[], T]) -> T:
        """`work`, done by rank 0 alone: its result on every rank, or a TrainingError on every rank."""
        result, error = None, None
        if dist.world().is_main:
            try:
                result = work()
            except (OSError, ValueError, TrainingError) as why:
                error = with_path(why)
        result, error = dist.broadcast((result, error))
        if error is not None:
            raise TrainingError(error)
        return result  # type: ignore[no-any-return]


def _read(path: Path, metadata: Metadata, target: dict[str, Tensor]) -> None:
    """All tensors of `target`, by this process; each file is opened once."""
    if not target:
        return
    try:
        be_quiet()
        load(target, storage_reader=_Reader(path, metadata), no_dist=True)
    except CheckpointException as error:
        raise TrainingError(f"{path} cannot be read: {describe(error)}") from error


class _Reader(HuggingFaceStorageReader):
    """Opens only files that are in the manifest, and none for metadata if that is given."""

    def __init__(self, path: Path, metadata: Metadata | None = None) -> None:
        super().__init__(str(path))
        self.fs, self.metadata = _Manifest(), metadata

    def read_metadata(self) -> Metadata:
        """Shapes and types of all tensors. Raises TrainingError if a file's header is not as `save` writes it."""
        if self.metadata is not None:
            return self.metadata
        try:
            return super().read_metadata()
        except (SafetensorError, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise TrainingError(f"{self.path} cannot be read: {type(error).__name__}: {error}") from error


class _Manifest(FileSystem):
    """Lists a checkpoint's files by its manifest."""

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        return [str(Path(path) / name) for name in manifest_of(Path(path)).files]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a valid checkpoint, on the CPU, by one process. Raises TrainingError if they cannot be read."""
    try:
        shards = [path / name for name in manifest_of(path).files if name.endswith(".safetensors")]
        return joined([part for shard in shards for part in parts_in(shard)])
    except (SafetensorError, OSError, ValueError, LookupError, RuntimeError) as error:
        raise TrainingError(f"{path} cannot be read: {error}") from error


def _targets(path: Path, metadata: Metadata, into: dict[str, Tensor], prefix: str, make: Make) -> dict[str, Tensor]:
    """`into`, and what `make` makes of each stored name that starts with `prefix`. Raises TrainingError if `into` does not fit."""
    stored = metadata.state_dict_metadata
    mine = {k for k in stored if not k.startswith(prefix)}
    if mine != set(into):
        odd = ", ".join(sorted(mine ^ set(into))[:4])
        raise TrainingError(f"{path} is a checkpoint of another model: {odd} is in only one of the two")
    target = dict(into)
    for name, meta in stored.items():
        assert isinstance(meta, TensorStorageMetadata)
        if name not in into:
            if (made := make(name, meta.size, meta.properties.dtype)) is not None:
                target[name] = made
        elif (into[name].shape, into[name].dtype) != (meta.size, meta.properties.dtype):
            there, here = (
                f"{str(dtype).removeprefix('torch.')} {list(shape)}"
                for dtype, shape in ((meta.properties.dtype, meta.size), (into[name].dtype, into[name].shape))
            )
            raise TrainingError(f"{path} is a checkpoint of another model: {name} is {there} there and {here} here")
    return target


def describe(error: CheckpointException) -> str:
    """The message of an error without the ranks' tracebacks; names the rank if there are several."""
    several = dist.world().world_size > 1
    return "; ".join((f"rank {r}: " if several else "") + with_path(e[0]) for r, e in error.failures.items())


def be_quiet() -> None:
    """DCP warns of a missing process group even with `no_dist=True`. No `catch_warnings`: runs of other threads would undo it."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
