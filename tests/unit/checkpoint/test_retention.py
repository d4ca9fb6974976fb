"""Which checkpoints are kept, which are skipped at a resume, and what happens to damaged ones."""

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run, settings

from distae.checkpoint import CheckpointStore, retention, shards, store
from distae.checkpoint.retention import COMMIT, STATE, name_of, steps_in
from distae.commands.checkpoint import main
from distae.errors import TrainingError
from distae.runtime.lock import RunLock


def state(step: int, best: int | None) -> bytes:
    return json.dumps({"world_size": 1, "state": {"step": step, "best_step": best}}).encode()


def save(checkpoints: CheckpointStore, step: int, best: int | None = None) -> str | None:
    checkpoints.save(step, {"model.a": torch.full((50,), float(step))}, state(step, best), best)
    return checkpoints.wait()


def saved(folder: Path, *steps: int, keep: int = 9, best: int | None = None) -> CheckpointStore:
    checkpoints = CheckpointStore(folder, keep, "sync")
    for step in steps:
        assert save(checkpoints, step, best) is None
    return checkpoints


def resume(folder: Path, keep: int) -> tuple[CheckpointStore, int, list[str]]:
    """A new start's store, where it stands, and what it reports."""
    checkpoints = CheckpointStore(folder, keep, "sync")
    found = checkpoints.newest()
    assert found is not None
    return checkpoints, found.step, [*found.complaints, *checkpoints.clean(found)]


def flip(folder: Path, step: int) -> None:
    """Of the right size: only a checksum tells."""
    shard = next((folder / name_of(step)).glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)


@pytest.mark.parametrize(("keep", "kept"), [(1, [700, 300]), (2, [700, 600, 300])])
def test_what_was_just_saved_outlives_newer_damaged_ones(tmp_path: Path, keep: int, kept: list[int]) -> None:
    """Each save is there for the next start, however far it gets: a job preempted early makes progress."""
    saved(tmp_path, 300, 500, 900, 1000, best=300)
    for step in (900, 1000):
        flip(tmp_path, step)
    for step in (600, 700):
        checkpoints, stands, _ = resume(tmp_path, keep)
        assert stands == {600: 500, 700: 600}[step]
        assert save(checkpoints, step, 300) is None
        assert step in steps_in(tmp_path)
    assert steps_in(tmp_path) == kept


@pytest.mark.parametrize("keep", [1, 2])
def test_that_holds_where_they_cannot_be_set_aside(tmp_path: Path, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Path:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(store, "set_aside", refuse, raising=False)
    saved(tmp_path, 500, 900, 1000)
    for step in (900, 1000):
        flip(tmp_path, step)
    checkpoints, _, reports = resume(tmp_path, keep)
    assert f"{name_of(1000)} cannot be set aside (Operation not permitted)" in reports
    for step in (600, 700):
        assert save(checkpoints, step) is None
    assert steps_in(tmp_path) == [1000, 900, 700, 600][: 2 + keep]


def test_damaged_newer_ones_are_set_aside_and_reported(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    flip(tmp_path, 3)
    for name in ("damaged_step_00000003", "damaged_step_00000003.2"):
        _, stands, reports = resume(tmp_path, 2)
        assert stands == 2
        assert "checksum mismatch" in reports[0]
        assert reports[1] == f"{name_of(3)} is set aside as {name}"
        assert (tmp_path / name / COMMIT).is_file()
        shutil.copytree(tmp_path / name, tmp_path / name_of(3))
    assert steps_in(tmp_path) == [3, 2, 1]


def test_a_resume_removes_what_an_interrupted_deletion_left(tmp_path: Path) -> None:
    """Only older folders without a marker: a newer one is set aside, and a damaged one keeps its bytes."""
    saved(tmp_path, 1, 2, 3, 4, 5)
    flip(tmp_path, 2)
    for step in (1, 3, 5):
        (tmp_path / name_of(step) / COMMIT).unlink()
    assert resume(tmp_path, 2)[1] == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"damaged_{name_of(5)}", name_of(2), name_of(4)]


def test_where_none_is_valid_nothing_is_renamed(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    flip(tmp_path, 1)
    flip(tmp_path, 2)
    with pytest.raises(TrainingError, match="no valid checkpoint"):
        CheckpointStore(tmp_path, 2, "sync").newest()
    assert steps_in(tmp_path) == [2, 1]


def test_the_former_best_stays_until_the_new_one_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save of the new best, 30, fails. Over a restart too, until one is saved."""
    checkpoints = saved(tmp_path / "checkpoints", 10, 20, keep=1, best=10)
    with monkeypatch.context() as patch:
        patch.setattr(store, "sync", lambda path: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        assert save(checkpoints, 30, 30) is not None
    for step in (40, 50):
        assert save(checkpoints, step, 30) is None
    for step in (60, 70):
        assert save(resume(tmp_path / "checkpoints", 1)[0], step, 30) is None
    assert steps_in(tmp_path / "checkpoints") == [70, 10]
    assert main([str(tmp_path)]) == 0
    assert save(checkpoints, 80, 80) is None
    assert save(checkpoints, 90, 80) is None
    assert steps_in(tmp_path / "checkpoints") == [90, 80]


def rename(folder: Path) -> None:
    (folder / name_of(3)).rename(folder / name_of(4))


def rename_oddly(folder: Path) -> None:
    (folder / name_of(3)).rename(folder / "step_4")


def other_state(folder: Path) -> None:
    shutil.rmtree(folder / name_of(3))
    CheckpointStore(folder, 9, "sync").save(3, {"model.a": torch.zeros(50)}, state(2, None), None)


def link(folder: Path) -> None:
    (folder / name_of(3)).rename(folder / "elsewhere")
    (folder / name_of(3)).symlink_to("elsewhere")


def link_shard(folder: Path) -> None:
    shard = next((folder / name_of(3)).glob("*.safetensors"))
    shard.rename(folder / "elsewhere")
    shard.symlink_to(folder / "elsewhere")


def pipe(folder: Path) -> None:
    (folder / name_of(3) / COMMIT).unlink()
    os.mkfifo(folder / name_of(3) / COMMIT)


def endless(folder: Path) -> None:
    os.truncate(folder / name_of(3) / COMMIT, 1 << 40)


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder / name_of(3))
    (folder / name_of(3)).write_text("a file")


def step_as_text(folder: Path) -> None:
    marker = folder / name_of(3) / COMMIT
    marker.write_bytes(marker.read_bytes().replace(b'"step": 3', b'"step": "3"'))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (rename, f"{name_of(4)} is not used: it contains step 3"),
        (rename_oddly, "step_4 is not used: it contains step 3"),
        (other_state, f"{STATE} is of step 2"),
        (link, "it is a link"),
        (link_shard, "safetensors is not a regular file"),
        (pipe, f"{COMMIT} cannot be read (it is a named pipe, not a file)"),
        (endless, f"{COMMIT} cannot be read (it has 1099511627776 bytes"),
        (no_folder, f"{COMMIT} cannot be read (Not a directory)"),
        (step_as_text, f"{COMMIT} is damaged"),
    ],
)
@pytest.mark.timeout(20)
def test_a_newest_that_is_not_one_is_passed_over(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    saved(tmp_path, 1, 2, 3)
    damage(tmp_path)
    _, stands, reports = resume(tmp_path, 2)
    assert stands == 2
    assert words in reports[0]
    assert steps_in(tmp_path) == [2, 1]


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("name", ["shard-00001-model-00001-of-00001.safetensors", STATE, COMMIT])
def test_a_newest_that_cannot_be_read_is_passed_over(tmp_path: Path, code: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1, 2)
    lost = tmp_path / name_of(2) / name

    def failing(opened: Callable[..., Any]) -> Callable[..., Any]:
        def fail(path: Path, *args: Any, **kwargs: Any) -> Any:
            if Path(path) == lost:
                raise OSError(code, os.strerror(code), str(path))
            return opened(path, *args, **kwargs)

        return fail

    monkeypatch.setattr(os, "open", failing(os.open))
    monkeypatch.setattr(Path, "open", failing(Path.open))
    _, stands, reports = resume(tmp_path, 2)
    assert stands == 1
    assert reports[0] == f"{name_of(2)} is not used: {name} cannot be read ({os.strerror(code)})"


def test_a_linked_checkpoint_of_another_run_is_left_whole(tmp_path: Path) -> None:
    """By retention, by the save of that step, and by setting it aside."""
    saved(tmp_path / "theirs", 1, 2)
    checkpoints = saved(tmp_path / "ours", 1, keep=1)
    for step in (1, 2):
        shutil.rmtree(tmp_path / "ours" / name_of(step), ignore_errors=True)
        (tmp_path / "ours" / name_of(step)).symlink_to(tmp_path / "theirs" / name_of(step))
    for step in (2, 3, 4):
        assert save(checkpoints, step) is None
    assert not (tmp_path / "ours" / name_of(2)).is_symlink()
    for step in (1, 2):
        assert (tmp_path / "theirs" / name_of(step) / COMMIT).is_file()


@pytest.mark.parametrize("damage", ["link", "permission"])
def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    folder.symlink_to(tmp_path / "not mounted")
    if damage == "permission":

        def refuse(self: Path) -> Any:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "iterdir", refuse)
        monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    with pytest.raises(TrainingError, match=r"No such file|Permission denied"):
        CheckpointStore(folder, 1, "sync").newest()


def test_the_first_save_makes_its_folder_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = [], os.fsync

    def note(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").resolve())
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    saved(tmp_path / "checkpoints", 1, 2)
    assert synced[0] == tmp_path
    assert synced.count(tmp_path) == 1


def test_a_run_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    """It was renamed while training: checkpoints alone under the old name, without settings and lock, are of no use."""
    (tmp_path / "run").mkdir()
    checkpoints = saved(tmp_path / "run" / "checkpoints", 1)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert "No such file" in str(save(checkpoints, 2))
    assert not (tmp_path / "run").exists()


def test_a_failed_run_commits_nothing_once_it_let_its_folder_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save is held up until the run, which failed meanwhile, has released its lock: the next one may be at work in the folder."""
    released, failed, release, write = threading.Event(), [], RunLock.release, shards.write_file

    def held_up(path: Path, blocks: list[Any]) -> Any:
        assert released.wait(20)
        return write(path, blocks)

    def note(self: RunLock) -> None:
        release(self)
        released.set()

    def fail(self: Any, *args: Any) -> None:
        failed.append(1)
        raise TrainingError("a reason")

    monkeypatch.setattr(store, "write_file", held_up)
    monkeypatch.setattr(RunLock, "release", note)
    monkeypatch.setattr("distae.training.validation.Validator.evaluate", fail)
    end = run(settings(steps=8, save_every=4, eval_every=5), tmp_path / "run")
    assert (end.outcome, end.reason, failed) == ("failed", "a reason", [1])
    for thread in threading.enumerate():
        if thread.name.startswith("checkpoint"):
            thread.join(0.5)
    assert steps_in(tmp_path / "run" / "checkpoints") == []


def test_a_damaged_best_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped byte in its weights: the last model is exported, and that is said."""

    def flip_best(folder: Path, keep: int, committed: int, best: int | None) -> None:
        retention.retain(folder, keep, committed, best)
        if committed == 20:
            assert best is not None
            flip(folder, best)

    monkeypatch.setattr(store, "retain", flip_best)
    cfg = settings(steps=20, export="best", eval_every=5, early_stop={"min_delta": 1e9}, optim={"lr": 1e-3})
    assert run(cfg, tmp_path / "run").outcome == "done"
    assert "the best model, of step 5, cannot be exported, so the last is" in capsys.readouterr().err


def test_a_checkpoint_saved_again_is_there_at_every_moment(tmp_path, monkeypatch):
    """Killed between the two renames, the one before is put back."""
    store = CheckpointStore(tmp_path, 1, "sync")
    store.save(5, {"x": torch.zeros(3)}, b"first", None)
    assert store.wait() is None
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name.endswith(".writing"):
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        store.save(5, {"x": torch.ones(3)}, b"second", None)
        with pytest.raises(KeyboardInterrupt):
            store.wait()
    store.pending = None
    assert not (tmp_path / name_of(5)).exists()
    store.recover()
    latest = store.newest()
    assert latest is not None
    assert latest.step == 5
    assert store.state(5) == b"first"
    store.save(5, {"x": torch.ones(3)}, b"second", None)
    assert store.wait() is None
    assert store.state(5) == b"second"
    assert [p.name for p in tmp_path.iterdir()] == [name_of(5)]
