"""Checkpoints: written by all ranks through torch.distributed.checkpoint in the background, committed completely or not at all."""

import contextlib
import dataclasses
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import save

from distae import distributed as dist
from distae.checkpoint.reader import CheckpointReader, LatestCheckpoint, be_quiet
from distae.checkpoint.retention import (
    COMMIT,
    STATE,
    name_of,
    recover,
    remove,
    remove_remains,
    replace,
    retain,
    set_aside,
)
from distae.checkpoint.shards import Part, ShardWriter, part_of, write_file
from distae.checkpoint.staging import Staging
from distae.distributed.shards import is_sharded
from distae.errors import TrainingError
from distae.runtime import events
from distae.runtime.files import SMALL, sync
from distae.runtime.run_dir import mark_saved


class Job(NamedTuple):
    """A pending save."""

    step: int
    parts: dict[str, Part]
    """What this rank writes."""
    state: bytes
    best_step: int | None


class CheckpointStore(CheckpointReader):
    """The checkpoints of a run folder. Every public method is called by all ranks together.

    A save copies this rank's share of the tensors into buffers that are allocated once; a thread with a process group of its own
    writes them while training continues. At most one save is pending.
    """

    last: ClassVar[Future[str | None] | None] = None
    """The save that was started last in this process. All stores write in one process group: only one may at a time."""

    def __init__(self, folder: Path, keep_latest_k: int, mode: str, may_commit: Callable[[], None] = lambda: None) -> None:
        """`may_commit` is called on rank 0 before each commit; it raises TrainingError if the run folder is no longer ours."""
        super().__init__(folder)
        self.keep_latest_k, self.mode, self.may_commit = keep_latest_k, mode, may_commit
        self.staging = Staging({})
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future[str | None] | None = None
        self.committing, self.abandoned = threading.Lock(), False

    def save(self, step: int, tensors: dict[str, Tensor], state: bytes, best_step: int | None) -> None:
        """Start to write `tensors` and `state` (rank 0's). The save before must have been waited for.

        Each rank writes its share of the tensors that are the same on every rank, and its parts of those that are sharded.
        """
        assert self.pending is None
        world = dist.world()
        owners = share_out({k: t.nbytes for k, t in tensors.items() if not is_sharded(t)}, world.world_size)
        mine = {k: part for k, t in tensors.items() if owners.get(k, world.rank) == world.rank and (part := part_of(t))}
        if self.mode == "async":
            staged = self._staged({k: part.tensor for k, part in mine.items()})
            mine = {k: dataclasses.replace(part, tensor=staged[k]) for k, part in mine.items()}
        job = Job(step, mine, state, best_step)
        CheckpointStore.last = self.pending = self.pool.submit(self._write, job, world)
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
        writer = ShardWriter(tmp_path, job.parts)
        if error is None:
            error = self._agree(lambda: self._save_shards(job, writer))
        manifests = dist.gather(writer.manifest, self.group)
        if error is None:
            files = {name: entry for part in manifests for name, entry in part.items()}
            error = self._agree(lambda: self._commit(job, tmp_path, files) if world.is_main else None)
        if error is not None and world.is_main:
            shutil.rmtree(tmp_path, ignore_errors=True)
        return error

    def _prepare(self, tmp_path: Path, world: dist.World) -> None:
        if world.is_main:
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir()  # not its parents: a run folder that is gone was renamed or deleted under us
                sync(self.folder.parent)
            shutil.rmtree(tmp_path, ignore_errors=True)
            tmp_path.mkdir()

    def _save_shards(self, job: Job, writer: ShardWriter) -> None:
        be_quiet()
        save(dict(job.parts), storage_writer=writer, **self._kwargs())

    def _commit(self, job: Job, tmp_path: Path, files: dict[str, Any]) -> None:
        if len(job.state) > SMALL:
            raise TrainingError(f"{STATE} would have {len(job.state)} bytes; at most {SMALL} can be read again")
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
            mark_saved(self.folder.parent)
            events.record(self.folder.parent, "checkpoint", job.step)
            retain(self.folder, self.keep_latest_k, job.step, job.best_step)

    def recover(self) -> None:
        """Finish what a save that was killed had begun. For the run's own folder, before `newest`."""
        if dist.world().is_main:
            recover(self.folder)

    def clean(self, found: LatestCheckpoint | None) -> list[str]:
        """Remove what interrupted saves and deletions left, and rename what `newest` skipped; returns notes on that. On rank 0.

        If they stayed, the next start would check them again, and a later one could use one as the newest.
        """
        if not dist.world().is_main:
            return []
        for left in self.folder.glob(".step_*.writing"):
            shutil.rmtree(left, ignore_errors=True)
        if found:
            mark_saved(self.folder.parent)
            remove_remains(self.folder, found.step)
        notes = []
        for path in found.passed_over if found else []:
            try:
                notes.append(f"{path.name} is set aside as {set_aside(path).name}")
            except OSError as error:
                notes.append(f"{path.name} cannot be set aside ({error.strerror})")
        return notes

    def tidy(self, step: int, best_step: int | None) -> None:
        """Delete what the save of `step` should have deleted, if it was killed before. For a run that resumes there."""
        if dist.world().is_main:
            retain(self.folder, self.keep_latest_k, step, best_step)

    def _kwargs(self) -> dict[str, Any]:
        return {"no_dist": True} if self.group is None else {"process_group": self.group}


def share_out(sizes: dict[str, int], world_size: int) -> dict[str, int]:
    """Which rank writes which tensor: the largest first, each to the rank with the fewest bytes so far."""
    loads = [0] * world_size
    owners = {}
    for name, size in sorted(sizes.items(), key=lambda it: (-it[1], it[0])):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += size
    return owners
