"""Checkpoints on disk: written whole, found again, rejected when damaged."""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_saver

from distae.checkpoint import CheckpointStore, read_tensors, share_out, staging, store
from distae.checkpoint.retention import name_of, steps_in, why_invalid
from distae.commands.checkpoint import main
from distae.errors import TrainingError

TENSORS = {
    "model.a": torch.arange(12, dtype=torch.float64).view(3, 4),
    "model.b": torch.tensor(2.5),
    "model.c": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
    "model.d": torch.tensor(7),
    "model.e": torch.tensor([True, False]),
    "model.f": torch.empty(0, 3),
    "optim.t.a.exp_avg": torch.full((3, 4), 0.25),
}


def saved(folder: Path, *steps: int, keep: int = 9, mode: str = "async", best: int | None = None) -> CheckpointStore:
    checkpoints = CheckpointStore(folder, keep, mode)
    for step in steps:
        checkpoints.save(step, {k: v + step if v.dtype != torch.bool else v for k, v in TENSORS.items()}, b'{"x": 1}', best)
        assert checkpoints.wait() is None
    return checkpoints


def shard(folder: Path, step: int) -> Path:
    return next((folder / name_of(step)).glob("*.safetensors"))


def loaded(checkpoints: CheckpointStore, step: int) -> dict[str, Tensor]:
    into = {k: torch.zeros_like(v) for k, v in TENSORS.items() if k.startswith("model.")}
    return into | checkpoints.load(step, into, "optim.")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_what_is_saved_is_loaded(tmp_path: Path, mode: str) -> None:
    checkpoints = saved(tmp_path, 0, mode=mode)
    assert checkpoints.state(0) == b'{"x": 1}'
    for tensors in (loaded(checkpoints, 0), read_tensors(tmp_path / name_of(0))):
        assert tensors.keys() == TENSORS.keys()
        assert all(torch.equal(tensors[k], v) and tensors[k].dtype == v.dtype for k, v in TENSORS.items())


def test_training_may_continue_while_a_save_is_written(tmp_path: Path) -> None:
    checkpoints, value = CheckpointStore(tmp_path, 1, "async"), torch.zeros(1000, 1000)
    checkpoints.save(1, {"model.a": value}, b"{}", None)
    value += 1
    assert checkpoints.wait() is None
    assert not read_tensors(tmp_path / name_of(1))["model.a"].any()


def test_runs_of_two_threads_save_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DCP's is ignored (pytest makes an error of it), also in a save that lasts while that of another thread ends."""
    begun, ended, write = [threading.Event(), threading.Event()], threading.Event(), state_dict_saver.save

    def overlapping(*args: Any, **kwargs: Any) -> Any:
        first = not begun[0].is_set()
        begun[not first].set()
        assert (begun[1] if first else ended).wait(20)
        return write(*args, **kwargs)

    monkeypatch.setattr(store, "save", overlapping)
    stores = [CheckpointStore(tmp_path / name, 9, "async") for name in ("first", "second")]
    for which, each in enumerate(stores):
        each.save(1, TENSORS, b"{}", None)
        assert begun[which].wait(20)
    assert stores[0].wait() is None
    ended.set()
    assert stores[1].wait() is None


def test_staging_buffers_are_kept(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    places = {k: v.data_ptr() for k, v in checkpoints.staging.buffers.items() if v.numel()}
    checkpoints.save(2, TENSORS, b"{}", None)
    checkpoints.wait()
    assert places == {k: v.data_ptr() for k, v in checkpoints.staging.buffers.items() if v.numel()}


def test_staging_takes_the_bytes_of_the_tensors_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also page-locked, for a GPU: torch's own pinned allocations are powers of two."""
    locked: dict[int, int] = {}

    def lock(at: int, size: int, flags: int) -> int:
        locked[at] = size
        return 0

    cuda = SimpleNamespace(cudaHostRegister=lock, cudaHostUnregister=locked.pop)

    class OnGPU(Tensor):
        is_cuda = True

    sizes = (65_536 + 100, 16_384, 3)
    tensors: dict[str, Tensor] = {f"t{i}": torch.empty(n, dtype=torch.uint8).as_subclass(OnGPU) for i, n in enumerate(sizes)}
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    stage = staging.Staging(tensors)
    buffers = stage.buffers
    assert {k: (b.shape, b.dtype) for k, b in buffers.items()} == {k: (t.shape, t.dtype) for k, t in tensors.items()}
    ((at, size),) = locked.items()
    assert sum(t.nbytes for t in tensors.values()) <= size <= sum(t.nbytes + staging.ALIGNMENT for t in tensors.values())
    assert all(at <= b.data_ptr() and b.data_ptr() + b.nbytes <= at + size for b in buffers.values())
    del stage
    assert not locked


def test_only_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, 5, keep=2, best=2)
    assert steps_in(tmp_path) == [5, 4, 2]


def test_damaged_ones_do_not_count_among_those_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    for step in (2, 3):
        (tmp_path / name_of(step) / "COMMIT").unlink()
    saved(tmp_path, 4, keep=2)
    assert 1 in steps_in(tmp_path)


def truncate(folder: Path) -> str:
    os.truncate(shard(folder, 3), 100)
    return "has 100 bytes instead of"


def flip(folder: Path) -> str:
    data = bytearray(shard(folder, 3).read_bytes())
    data[-3] ^= 1
    shard(folder, 3).write_bytes(data)
    return "is damaged \\(checksum mismatch\\)"


def flip_state(folder: Path) -> str:
    (folder / name_of(3) / "state.json").write_bytes(b'{"x": 2}')
    return "state.json is damaged"


def lose_marker(folder: Path) -> str:
    (folder / name_of(3) / "COMMIT").unlink()
    return "no COMMIT marker"


def tear_marker(folder: Path) -> str:
    marker = folder / name_of(3) / "COMMIT"
    marker.write_bytes(marker.read_bytes()[:40])
    return "COMMIT is damaged"


def lose_shard(folder: Path) -> str:
    shard(folder, 3).unlink()
    return "is missing"


FAULTS = [truncate, flip, flip_state, lose_marker, tear_marker, lose_shard]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_newest_is_reported_and_the_one_before_used(tmp_path: Path, fault: Callable[[Path], str]) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3)
    words = fault(tmp_path)
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 2
    assert len(found.complaints) == 1
    assert re.search(words, found.complaints[0])


@pytest.mark.parametrize("fault", FAULTS)
def test_where_none_is_valid_nothing_starts(tmp_path: Path, fault: Callable[[Path], str]) -> None:
    checkpoints = saved(tmp_path, 3)
    with pytest.raises(TrainingError, match=fault(tmp_path)):
        checkpoints.newest()


def test_an_interrupted_save_leaves_nothing_that_looks_valid(tmp_path: Path) -> None:
    """Every state a save passes through before its rename: the folder's name is not that of a checkpoint."""
    checkpoints = saved(tmp_path, 1)
    shutil.copytree(tmp_path / name_of(1), tmp_path / f".{name_of(2)}.writing")
    found = checkpoints.newest()
    assert found is not None
    assert (found.step, found.complaints) == (1, [])
    checkpoints.clean(found)
    assert [p.name for p in tmp_path.iterdir()] == [name_of(1)]


def test_a_step_saved_again_replaces_its_folder(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / name_of(1) / "stale.safetensors").write_bytes(b"old")
    saved(tmp_path, 1)
    assert not (tmp_path / name_of(1) / "stale.safetensors").exists()


def test_files_outside_the_manifest_are_not_opened(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    (tmp_path / name_of(1) / "zzz.safetensors").write_bytes(b"not a safetensors file")
    assert loaded(checkpoints, 1).keys() == TENSORS.keys()


def test_another_model_is_rejected(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    with pytest.raises(TrainingError, match="of another model: model"):
        checkpoints.load(1, {"model.a": torch.zeros(3, 4, dtype=torch.float64)}, "optim.")
    into = {k: torch.zeros_like(v) for k, v in TENSORS.items() if k.startswith("model.")}
    with pytest.raises(TrainingError, match="float64"):
        checkpoints.load(1, into | {"model.a": torch.zeros(3, 4)}, "optim.")


def test_a_commit_that_is_forbidden_leaves_no_checkpoint(tmp_path: Path) -> None:
    def forbid() -> None:
        raise TrainingError("taken over")

    checkpoints = CheckpointStore(tmp_path, 1, "async", forbid)
    checkpoints.save(1, TENSORS, b"{}", None)
    assert checkpoints.wait() == "taken over"
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_shared_out_evenly() -> None:
    sizes = {f"t{i}": (i * 37) % 101 for i in range(200)}
    owners = share_out(sizes, 7)
    loads = [sum(size for name, size in sizes.items() if owners[name] == rank) for rank in range(7)]
    assert owners.keys() == sizes.keys()
    assert max(loads) - min(loads) <= max(sizes.values())


def test_files_are_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is durable at the moment of the rename: each file and the folder, then the parent folder."""
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(fd: int) -> None:
        events.append(Path(f"/proc/self/fd/{fd}").resolve().name)
        fsync(fd)

    def note_rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    saved(tmp_path, 1)
    writing = f".{name_of(1)}.writing"
    assert events == ["shard-00001-model-00001-of-00001.safetensors", "state.json", "COMMIT", writing, "rename", tmp_path.name]


def test_listing_and_verifying(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = json.dumps({"world_size": 2, "state": {"best_step": 1}}).encode()
    checkpoints = CheckpointStore(tmp_path / "checkpoints", 5, "sync")
    for step in (1, 3):
        checkpoints.save(step, TENSORS, state, 1)
        checkpoints.wait()
    assert main([str(tmp_path)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == ["step", "3", "1"]
    assert listed[2].endswith("valid, best")
    flip(tmp_path / "checkpoints")
    assert why_invalid(tmp_path / "checkpoints" / name_of(3)) is None
    assert main([str(tmp_path), "--verify"]) == 1
    assert "not valid: shard" in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere")]) == 2
