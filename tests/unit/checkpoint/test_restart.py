"""What a restart asks of the file system, counted over threads that stand for ranks."""

import io
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import safetensors
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex

from distae import distributed as dist
from distae.checkpoint import CheckpointStore
from distae.checkpoint.retention import COMMIT, STATE, name_of
from distae.checkpoint.shards import _write_safetensors, write_file
from distae.distributed import collectives
from distae.errors import TrainingError

SHARDS, LOCAL = 64, 8


class Group:
    """A process group of threads; `td` functions are replaced by its methods."""

    here = threading.local()

    def __init__(self, ranks: Sequence[int]) -> None:
        self.first, self.inboxes = ranks[0], [SimpleQueue[Any]() for _ in ranks]

    def size(self) -> int:
        return len(self.inboxes)

    def rank(self) -> int:
        return self.here.rank - self.first

    def from_first(self, value: Any) -> Any:
        if self.rank():
            return self.inboxes[self.rank()].get(timeout=250)
        for inbox in self.inboxes[1:]:
            inbox.put(value)
        return value

    @staticmethod
    def all_gather_object(boxes: list[Any], value: Any, group: "Group") -> None:
        boxes[group.rank()] = value
        if group.rank():
            group.inboxes[0].put((group.rank(), value))
        else:
            for _ in range(group.size() - 1):
                rank, given = group.inboxes[0].get(timeout=250)
                boxes[rank] = given
        boxes[:] = group.from_first(boxes)

    @staticmethod
    def broadcast_object_list(box: list[Any], group: "Group", group_src: int) -> None:
        box[0] = group.from_first(box[0])

    @staticmethod
    def broadcast(t: Tensor, group: "Group", group_src: int) -> None:
        t.copy_(group.from_first(t.clone()))


class Simulated:
    """`ranks` threads on nodes of `LOCAL`, and what each of them does to the files of a folder."""

    def __init__(self, ranks: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ranks, self.folder, self.counts = ranks, str(folder), Counter[tuple[int, str]]()
        control = Group(range(ranks))
        nodes = [Group(range(first, min(first + LOCAL, ranks))) for first in range(0, ranks, LOCAL)]
        self.worlds: list[dist.World] = [
            dist.World(r, ranks, torch.device("cpu"), control=control, node=nodes[r // LOCAL])  # type: ignore[arg-type]
            for r in range(ranks)
        ]
        for module in (dist, collectives):
            monkeypatch.setattr(module, "world", lambda: self.worlds[Group.here.rank])
        monkeypatch.setattr(collectives, "td", Group)
        for module, name in ((io, "open"), (os, "stat"), (safetensors, "safe_open")):
            monkeypatch.setattr(module, name, self._counting(getattr(module, name), name))

    def _counting(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            path = args[0] if args else kwargs["filename"]
            if not isinstance(path, int) and str(path).startswith(self.folder):
                self.counts[Group.here.rank, name] += 1
            return call(*args, **kwargs)

        return counted

    def __call__(self, work: Callable[[], Any]) -> list[Any]:
        """What `work` gives on each rank, an error included."""
        results: list[Any] = [None] * self.ranks

        def as_rank(rank: int) -> None:
            Group.here.rank = rank
            try:
                results[rank] = work()
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=as_rank, args=(rank,)) for rank in range(self.ranks)]
        for each in (threading.Thread.start, threading.Thread.join):
            for thread in threads:
                each(thread)
        return results

    def opened(self, rank: int) -> int:
        return self.counts[rank, "open"] + self.counts[rank, "safe_open"]


def tensors() -> dict[str, Tensor]:
    return {f"{'model' if i % 2 else 'optim'}.{i}": torch.arange(i, i + 5.0) for i in range(SHARDS)}


def written(folder: Path, step: int) -> None:
    """A checkpoint of 64 shards of a tensor each."""
    path = folder / name_of(step)
    path.mkdir(parents=True)
    files = {}
    for i, (name, tensor) in enumerate(tensors().items(), 1):
        shard = f"shard-{i:05}-model-00001-of-00001.safetensors"
        files[shard] = _write_safetensors(path / shard, [(MetadataIndex(name), tensor)])
    files[STATE] = write_file(path / STATE, [b"{}"])
    (path / COMMIT).write_text(json.dumps({"step": step, "files": files}))


def restart(folder: Path) -> dict[str, Tensor]:
    """What each rank does: find the newest, read its state and its tensors."""
    store = CheckpointStore(folder, 2, "sync")
    found = store.newest()
    assert found is not None
    assert found.step == 7
    assert store.state(7) == b"{}"
    into = {k: torch.zeros_like(v) for k, v in tensors().items() if k.startswith("model.")}
    loaded = into | store.load(7, into, "optim.")
    store.close()
    return loaded


@pytest.mark.parametrize("ranks", [1, 12, pytest.param(256, marks=pytest.mark.slow)])
def test_file_operations_do_not_grow_with_the_ranks(tmp_path: Path, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 looks at all files and their headers, one rank reads each file for its checksum, one rank of each node loads it."""
    written(tmp_path, 7)
    world = Simulated(ranks, tmp_path, monkeypatch)
    for result in world(lambda: restart(tmp_path)):
        assert isinstance(result, dict), result
        assert all(torch.equal(result[k], v) for k, v in tensors().items())
    nodes = -(-ranks // LOCAL)
    opens = [world.opened(rank) for rank in range(ranks)]
    assert sum(opens) <= nodes * SHARDS + 2 * (SHARDS + 1) + 8
    share = -(-(SHARDS + 1) // ranks)
    assert all(opens[rank] <= share for rank in range(ranks) if rank % LOCAL)
    assert all(world.counts[rank, "stat"] == 0 for rank in range(1, ranks))
    assert world.counts[0, "stat"] <= SHARDS + 12


def test_a_node_that_cannot_read_ends_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checksums were right elsewhere; nobody is left waiting."""
    written(tmp_path, 7)
    world = Simulated(12, tmp_path, monkeypatch)
    opened = safetensors.safe_open

    def fail(*args: Any, **kwargs: Any) -> Any:
        if Group.here.rank == 8:
            raise OSError(5, "Input/output error")
        return opened(*args, **kwargs)

    monkeypatch.setattr(safetensors, "safe_open", fail)
    for result in world(lambda: restart(tmp_path)):
        assert isinstance(result, TrainingError)
        assert "Input/output error" in str(result)


def test_a_rank_of_another_model_ends_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 7)

    def load() -> None:
        into = {k: torch.zeros_like(v) for k, v in tensors().items() if k.startswith("model.")}
        if dist.world().rank == 3:
            del into["model.1"]
        CheckpointStore(tmp_path, 2, "sync").load(7, into, "optim.")

    for result in Simulated(12, tmp_path, monkeypatch)(load):
        assert isinstance(result, TrainingError)
        assert "of another model: model.1" in str(result)
