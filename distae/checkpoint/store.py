"""Checkpoints: written by all ranks through torch.distributed.checkpoint in the background, committed completely or not at all."""

import contextlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from distae import distributed as dist
from distae.checkpoint.retention import (
    COMMIT,
    STATE,
    Entry,
    checkpoints_in,
    manifest_of,
    name_of,
    recover,
    remove,
    remove_remains,
    replace,
    retain,
    set_aside,
    step_of,
    usable_manifest,
)
from distae.checkpoint.shards import ShardWriter, why_damaged, write_file
from distae.checkpoint.staging import Staging
from distae.errors import TrainingError
from distae.runtime.files import read_bytes, sync

T = TypeVar("T")


class LatestCheckpoint(NamedTuple):
    """The newest valid checkpoint, and what is wrong with newer ones."""

    step: int
    complaints: list[str]
    passed_over: list[Path]
    """The newer ones."""


class Job(NamedTuple):
    """A pending save."""

    step: int
    tensors: dict[str, Tensor]
    state: bytes
    best_step: int | None


class CheckpointStore:
    """The checkpoints of a run folder. Every public method is called by all ranks together.

    A save copies this rank's share of the tensors into buffers that are allocated once; a thread with a process group of its own
    writes them while training continues. At most one save is pending.
    """

    def __init__(self, folder: Path, keep_latest_k: int, mode: str, may_commit: Callable[[], None] = lambda: None) -> None:
        """`may_commit` is asked on rank 0 before each commit and raises TrainingError if the run folder is no longer ours."""
        self.folder, self.keep_latest_k, self.mode, self.may_commit = folder, keep_latest_k, mode, may_commit
        self.group = dist.world().background
        self.staging = Staging({})
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future[str | None] | None = None
        self.committing, self.abandoned = threading.Lock(), False

    def save(self, step: int, tensors: dict[str, Tensor], state: bytes, best_step: int | None) -> None:
        """Start to write `tensors` (the same on every rank) and `state` (rank 0's). The save before must have been waited for."""
        assert self.pending is None
        world = dist.world()
        owners = share_out({k: t.nbytes for k, t in tensors.items()}, world.world_size)
        mine = {k: t.detach() for k, t in tensors.items() if owners[k] == world.rank}
        job = Job(step, self._staged(mine) if self.mode == "async" else mine, state, best_step)
        self.pending = self.pool.submit(self._write, job, world)
        if self.mode == "sync":
            self.pending.exception()

    def wait(self) -> str | None:
        """Wait for the pending save: None if it is valid on disk or there is none, else the error, on every rank."""
        if self.pending is None:
            return None
        error = self.pending.result()
        self.pending = None
        return error

    @property
    def busy(self) -> bool:
        return self.pending is not None and not self.pending.done()

    def close(self) -> None:
        """Wait for the writer. Safe if other ranks are lost."""
        self.pool.shutdown()

    def abandon(self) -> None:
        """No commits from now on; a pending one is finished first. For a run that failed, before it releases its folder."""
        with self.committing:
            self.abandoned = True

    def _staged(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the host, in buffers that are kept: fresh pages cost several times the copy itself."""
        if not self.staging.fits(tensors):
            self.staging = Staging(tensors)
        if tensors:
            torch._foreach_copy_(list(self.staging.buffers.values()), list(tensors.values()), non_blocking=True)
            dist.synchronize()
        return dict(self.staging.buffers)

    def _write(self, job: Job, world: dist.World) -> str | None:
        """Write, commit, delete old ones. Returns the error, the same on every rank; raises if ranks are lost."""
        tmp_path = self.folder / f".{name_of(job.step)}.writing"
        error = self._agree(lambda: self._prepare(tmp_path, world))
        writer = ShardWriter(tmp_path)
        if error is None:
            error = self._agree(lambda: self._save_shards(job, writer))
        manifests = dist.gather(writer.manifest, self.group)
        if error is None:
            files = {name: entry for part in manifests for name, entry in part.items()}
            error = self._agree(lambda: self._commit(job, tmp_path, files) if world.is_main else None)
        if error is not None and world.is_main:
            shutil.rmtree(tmp_path, ignore_errors=True)
        return error

    def _agree(self, work: Callable[[], None]) -> str | None:
        """Do `work` on every rank; returns the first rank's error, on every rank."""
        complaint = None
        try:
            work()
        except (OSError, TrainingError) as error:
            complaint = str(error)
        except CheckpointException as error:
            complaint = _describe(error)
        return next((c for c in dist.gather(complaint, self.group) if c), None)

    def _prepare(self, tmp_path: Path, world: dist.World) -> None:
        if world.is_main:
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir()  # not its parents: a run folder that is gone was renamed or deleted under us
                sync(self.folder.parent)
            shutil.rmtree(tmp_path, ignore_errors=True)
            tmp_path.mkdir()

    def _save_shards(self, job: Job, writer: ShardWriter) -> None:
        with _quiet():
            save(dict(job.tensors), storage_writer=writer, **self._kwargs())

    def _commit(self, job: Job, tmp_path: Path, files: dict[str, Any]) -> None:
        files[STATE] = write_file(tmp_path / STATE, [job.state])
        write_file(tmp_path / COMMIT, [json.dumps({"step": job.step, "files": files}, indent=1).encode()])
        sync(tmp_path)
        with self.committing:
            if self.abandoned:
                raise TrainingError("the run has ended")
            self.may_commit()
            final = self.folder / name_of(job.step)
            if final.is_dir() and not final.is_symlink():
                replace(final, tmp_path)
            else:
                remove(final)
                tmp_path.rename(final)
            sync(self.folder)
            retain(self.folder, self.keep_latest_k, job.step, job.best_step)

    def recover(self) -> None:
        """Finish what a save that was killed had begun. For the run's own folder, before `newest`."""
        if dist.world().is_main:
            recover(self.folder)

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

    def clean(self, found: LatestCheckpoint | None) -> list[str]:
        """Remove what interrupted saves and deletions left, and rename what `newest` skipped; returns notes on that.

        Rank 0 does it.

        If left in place, the next start would check them again, and a later one could use one as the newest.
        """
        if not dist.world().is_main:
            return []
        for left in self.folder.glob(".step_*.writing"):
            shutil.rmtree(left, ignore_errors=True)
        if found:
            remove_remains(self.folder, found.step)
        notes = []
        for path in found.passed_over if found else []:
            try:
                notes.append(f"{path.name} is set aside as {set_aside(path).name}")
            except OSError as error:
                notes.append(f"{path.name} cannot be set aside ({error.strerror})")
        return notes

    def state(self, step: int) -> bytes:
        """The `state` given to `save`, read by rank 0."""
        return self._on_main(lambda: read_bytes(self.folder / name_of(step) / STATE))

    def load(self, step: int, into: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Fill the tensors of `into`, and return those whose names start with `prefix` as new CPU tensors.

        One rank of each node reads; the others get the tensors from it. Only the files in the manifest are opened.
        Raises TrainingError if names, shapes or types differ from the checkpoint's.
        """
        path = self.folder / name_of(step)
        metadata = self._on_main(lambda: _Reader(path).read_metadata())
        target: dict[str, Tensor] = {}

        def read() -> None:
            target.update(_targets(path, metadata, into, prefix))
            if dist.world().reads_for_node:
                _read(path, metadata, target)

        if error := self._agree(read):
            raise TrainingError(error)
        dist.broadcast_in_node([target[name] for name in sorted(target)])
        return {k: v for k, v in target.items() if k not in into}

    def _on_main(self, work: Callable[[], T]) -> T:
        """`work`, done by rank 0 alone: its result on every rank, or a TrainingError on every rank."""
        result, error = None, None
        if dist.world().is_main:
            try:
                result = work()
            except (OSError, ValueError, TrainingError) as why:
                error = str(why)
        result, error = dist.broadcast((result, error))
        if error is not None:
            raise TrainingError(error)
        return result  # type: ignore[no-any-return]

    def _kwargs(self) -> dict[str, Any]:
        return {"no_dist": True} if self.group is None else {"process_group": self.group}


def _read(path: Path, metadata: Metadata, target: dict[str, Tensor]) -> None:
    """All tensors of `target`, by this process; each file is opened once."""
    try:
        with _quiet():
            load(target, storage_reader=_Reader(path, metadata), no_dist=True)
    except CheckpointException as error:
        raise TrainingError(f"{path} cannot be read: {_describe(error)}") from error


class _Reader(HuggingFaceStorageReader):
    """Opens the files of the manifest only, and none for what is known from `metadata`."""

    def __init__(self, path: Path, metadata: Metadata | None = None) -> None:
        super().__init__(str(path))
        self.fs, self.metadata = _Manifest(), metadata

    def read_metadata(self) -> Metadata:
        """Raises TrainingError if a header is not as `save` writes it."""
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
        return {k: v for shard in shards for k, v in load_file(shard).items()}
    except (SafetensorError, OSError) as error:
        raise TrainingError(f"{path} cannot be read: {error}") from error


def _targets(path: Path, metadata: Metadata, into: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """`into`, and an empty tensor for each stored name that starts with `prefix`."""
    stored = metadata.state_dict_metadata
    mine = {k for k in stored if not k.startswith(prefix)}
    if mine != set(into):
        odd = ", ".join(sorted(mine ^ set(into))[:4])
        raise TrainingError(f"{path} is a checkpoint of another model: {odd} is in only one of the two")
    target = dict(into)
    for name, meta in stored.items():
        assert isinstance(meta, TensorStorageMetadata)
        if name not in into:
            target[name] = torch.empty(meta.size, dtype=meta.properties.dtype)
        elif (into[name].shape, into[name].dtype) != (meta.size, meta.properties.dtype):
            there, here = (
                f"{str(dtype).removeprefix('torch.')} {list(shape)}"
                for dtype, shape in ((meta.properties.dtype, meta.size), (into[name].dtype, into[name].shape))
            )
            raise TrainingError(f"{path} is a checkpoint of another model: {name} is {there} there and {here} here")
    return target


def share_out(sizes: dict[str, int], world_size: int) -> dict[str, int]:
    """Which rank writes which tensor: the largest first, each to the rank with the fewest bytes so far."""
    loads = [0] * world_size
    owners = {}
    for name, size in sorted(sizes.items(), key=lambda it: (-it[1], it[0])):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += size
    return owners


def _describe(error: CheckpointException) -> str:
    """Without the traceback of each rank."""
    return "; ".join(f"rank {r}: {e[0]}" for r, e in error.failures.items())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DCP warns that there is no process group even with `no_dist=True`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
