"""A start that is rejected leaves everything as it was."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import settings

from distae import data
from distae.checkpoint.reader import LatestCheckpoint
from distae.checkpoint.retention import steps_in
from distae.checkpoint.store import CheckpointStore
from distae.commands import train
from distae.config import TrainConfig
from distae.errors import TrainingError, UserError
from distae.runtime import outcome
from distae.runtime.environment import Environment
from distae.runtime.outcome import Outcome
from distae.runtime.run_dir import SAVED, accept, open_run_dir

CFG = settings(data={"name": "digits", "limit": 96}, steps=4, save_every=2, eval_every=2, log_every=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps."""
    run_dir = tmp_path_factory.mktemp("rejected") / "run"
    assert train.run(replace(CFG, run_dir=str(run_dir)), Environment()).outcome == "done"
    return run_dir


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy, as if it was stopped at step 4 of more."""
    shutil.copytree(finished, tmp_path / "run")
    Outcome("stopped", 4, str(tmp_path / "run"), signal="SIGTERM").write()
    return tmp_path / "run"


def everything(folder: Path) -> dict[str, Any]:
    """Every file and folder, with times of the former."""
    return {str(p.relative_to(folder)): p.is_file() and (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*")}


def rejected(cfg: TrainConfig, env: Environment | None = None) -> str:
    with pytest.raises(UserError) as why:
        train.run(cfg, env or Environment())
    return str(why.value)


OTHER = replace(CFG.model, latent_dim=5)


@pytest.mark.parametrize("way", ["fork_from", "init_from"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_start_from_a_run_of_another_model(run_dir: Path, way: str, fresh: bool) -> None:
    """Nothing is left in a new folder, not even those above it; a run that --fresh has moved aside comes back."""
    target = run_dir.parent / "new" / "deep" / "run"
    if fresh:
        shutil.copytree(run_dir, target)
    before = everything(run_dir.parent)
    start: dict[str, Any] = {way: str(run_dir)}
    cfg = replace(CFG, **start, run_dir=str(target), model=OTHER, fresh=fresh)
    message = rejected(cfg)
    assert message.startswith(f"--{way.replace('_', '-')}: ")
    assert "encoder" in message or "decoder" in message  # the first tensor that does not fit
    assert everything(run_dir.parent) == before


def test_a_fork_from_a_run_whose_checkpoints_are_all_damaged(run_dir: Path) -> None:
    for marker in (run_dir / "checkpoints").glob("*/COMMIT"):
        marker.unlink()
    before = everything(run_dir.parent)
    told = rejected(replace(CFG, fork_from=str(run_dir), run_dir=str(run_dir.parent / "new")))
    assert told.startswith("--fork-from: no valid checkpoint in")
    assert everything(run_dir.parent) == before


def no_data(*how: object) -> None:
    raise UserError("--data.path: no such file")


def test_data_that_are_not_there_and_data_that_differ(run_dir: Path) -> None:
    """How the run ended is kept, also where torchrun repeats the command that is rejected: it must not take the end for its own."""
    cfg, before = replace(CFG, steps=6, run_dir=str(run_dir)), everything(run_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", no_data)
        assert rejected(cfg) == "--data.path: no such file"
        assert everything(run_dir) == before
        for restarts in range(3):
            assert rejected(cfg, Environment(restarts=restarts, restarts_left=2 - restarts)) == "--data.path: no such file"
            assert (run_dir / outcome.FILE).exists() == (restarts == 2)
    assert everything(run_dir) == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distae.training.restore.changed_data", lambda *_: "the data differ")
        assert "the data differ" in rejected(cfg)
    assert everything(run_dir) == before


def test_a_start_that_was_killed_before_it_was_accepted_hides_nothing(run_dir: Path) -> None:
    before = everything(run_dir)
    outcome.set_aside(run_dir)
    rejected(replace(CFG, run_dir=str(run_dir), seed=77))
    assert everything(run_dir) == before
    assert train.run(replace(CFG, run_dir=str(run_dir), steps=6), Environment()).outcome == "done"
    assert not (run_dir / outcome.FORMER).exists()


def test_settings_are_written_where_the_run_is_accepted(run_dir: Path) -> None:
    cfg = replace(CFG, run_dir=str(run_dir / "new"))
    folder = open_run_dir(cfg)
    assert [p.name for p in (run_dir / "new").iterdir()] == ["lock"]
    accept(cfg)
    folder.withdraw()
    assert [p.name for p in (run_dir / "new").iterdir()] == ["config.toml"]
    (run_dir / "new" / "config.toml").unlink()
    (run_dir / "new" / "config.toml").mkdir()
    with pytest.raises(TrainingError, match=r"cannot write to .*config\.toml"):
        accept(cfg)


@pytest.mark.parametrize("what", ["steps", "folder"])
def test_a_killed_run_whose_checkpoints_were_deleted_does_not_start_over(run_dir: Path, what: str) -> None:
    for name in (outcome.FILE, "model/config.json", "model/model.safetensors"):
        (run_dir / name).unlink()
    (run_dir / "model").rmdir()
    shutil.rmtree(run_dir / "checkpoints")
    if what == "steps":
        (run_dir / "checkpoints").mkdir()
    before = everything(run_dir)
    told = rejected(replace(CFG, run_dir=str(run_dir), steps=6))
    assert "contains a run (killed after step 4) whose checkpoints were deleted: it cannot be resumed" in told
    assert "--fresh" in told
    assert everything(run_dir) == before
    (run_dir / "metrics.jsonl").write_text("torn")
    assert "contains a run (killed) whose" in rejected(replace(CFG, run_dir=str(run_dir), steps=6))
    assert train.run(replace(CFG, run_dir=str(run_dir), fresh=True), Environment()).outcome == "done"


def test_a_run_of_an_earlier_version_notes_that_it_has_checkpoints(run_dir: Path) -> None:
    (run_dir / SAVED).unlink()
    CheckpointStore(run_dir / "checkpoints", 2, "sync").clean(LatestCheckpoint(4, [], []))
    assert (run_dir / SAVED).exists()


def test_a_resume_deletes_what_the_last_save_had_still_to_delete(run_dir: Path) -> None:
    """Killed between the commit of step 4 and the deletion of step 2; not where the start is rejected."""
    outcome.forget(run_dir)
    cfg = replace(CFG, run_dir=str(run_dir), checkpoint=replace(CFG.checkpoint, keep_latest_k=1))
    before = steps_in(run_dir / "checkpoints")
    rejected(replace(cfg, seed=77))
    assert steps_in(run_dir / "checkpoints") == before == [4, 2]
    assert train.run(cfg, Environment()).outcome == "done"
    assert steps_in(run_dir / "checkpoints") == [4]
