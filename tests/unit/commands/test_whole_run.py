"""A run folder is complete, or is rejected before anything in it is overwritten."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import finished_run, metrics, settings, splits

import distae
from distae.commands import checkpoint as tool
from distae.commands import train
from distae.errors import UserError
from distae.runtime import lock as runlock
from distae.runtime.environment import Environment
from distae.runtime.run_dir import open_run_dir
from distae.runtime.signals import StopRequest
from distae.training.trainer import Trainer

CFG = settings(data={"name": "digits", "limit": 96}, steps=4, save_every=2, eval_every=2, log_every=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps, its checkpoints of steps 2 and 4."""
    return finished_run(CFG, tmp_path_factory.mktemp("whole"))


def resume(run_dir: Path, **changes: Any) -> str:
    """How a longer run ends: "done", or why it did not."""
    try:
        end = train.run(replace(CFG, run_dir=str(run_dir), **({"steps": 6} | changes)), Environment())
    except UserError as error:
        return str(error)
    return end.reason or end.outcome


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink()}


def test_without_config_toml_the_checkpoint_s_settings_count(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "config.toml").unlink()
    before = contents(run_dir)
    report = resume(run_dir, seed=7, optim=replace(CFG.optim, lr=0.5))
    assert "optim.lr is 0.01 there and 0.5 here; seed is 3 there and 7 here" in report
    assert contents(run_dir) == before
    assert resume(run_dir) == "done"
    assert "config.toml was missing; the settings are those of the newest checkpoint" in capsys.readouterr().err
    assert (run_dir / "config.toml").is_file()


def test_an_export_takes_the_settings_of_the_checkpoint_where_config_toml_is_gone(run_dir: Path) -> None:
    (run_dir / "config.toml").unlink()
    assert tool.main([str(run_dir), "--export", "best", str(run_dir.parent / "out")]) == 0
    assert distae.load(run_dir.parent / "out").module.cfg == CFG.model


def test_fresh_moves_a_run_without_config_toml_aside(run_dir: Path) -> None:
    (run_dir / "config.toml").unlink()
    open_run_dir(replace(CFG, run_dir=str(run_dir), fresh=True)).release()
    assert not [*run_dir.iterdir()]
    (aside,) = run_dir.parent.glob("run.*")
    assert (aside / "checkpoints").is_dir()


def test_an_empty_config_toml_is_reported_as_empty(run_dir: Path) -> None:
    (run_dir / "config.toml").write_text("")
    assert "config.toml is damaged: it is empty" in resume(run_dir)


@pytest.mark.parametrize("kind", ["dangling", "file", "forbidden"])
def test_checkpoints_that_cannot_be_listed_are_not_no_checkpoints(
    run_dir: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_dir / "checkpoints"
    if kind == "forbidden":  # root may list everything
        real = Path.iterdir

        def iterdir(path: Path) -> Any:
            if path == folder:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(Path, "iterdir", iterdir)
    else:
        folder.rename(run_dir.parent / "scratch")
        folder.symlink_to(run_dir.parent / "unmounted") if kind == "dangling" else folder.write_text("")
    before = contents(run_dir)
    assert "cannot be listed" in resume(run_dir)
    assert contents(run_dir) == before


def test_checkpoints_may_lie_elsewhere(run_dir: Path) -> None:
    (run_dir / "checkpoints").rename(run_dir.parent / "scratch")
    (run_dir / "checkpoints").symlink_to(run_dir.parent / "scratch")
    assert resume(run_dir) == "done"


@pytest.mark.parametrize("also", ["outcome.json", "model"])
def test_a_finished_run_without_its_checkpoints_does_not_start_over(run_dir: Path, also: str) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "outcome.json").unlink() if also == "outcome.json" else shutil.rmtree(run_dir / "model")
    before = contents(run_dir)
    assert "whose checkpoints were deleted" in resume(run_dir)
    assert contents(run_dir) == before
    assert resume(run_dir, fresh=True) == "done"


def test_a_run_killed_before_its_first_save_starts_over(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    shutil.rmtree(run_dir / "model")
    (run_dir / "outcome.json").unlink()
    (run_dir / "saved").unlink()
    assert resume(run_dir) == "done"


def test_missing_rows_are_reported_and_a_torn_one_is_cut(run_dir: Path) -> None:
    rows = (run_dir / "metrics.jsonl").read_bytes()
    (run_dir / "metrics.jsonl").write_bytes(rows[: len(rows) // 2])
    assert resume(run_dir) == "done"
    assert "of its " in (log := (run_dir / "log.txt").read_text())
    assert "metrics.jsonl is damaged" in log
    steps = [row["step"] for row in metrics(run_dir)]  # each line is whole
    assert steps[-1] == 6


def test_a_changed_row_is_reported(run_dir: Path) -> None:
    rows = bytearray((run_dir / "metrics.jsonl").read_bytes())
    rows[rows.index(b"loss") + 8] ^= 1
    (run_dir / "metrics.jsonl").write_bytes(rows)
    assert resume(run_dir) == "done"
    assert "rows from before this checkpoint were changed after it" in (run_dir / "log.txt").read_text()


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "log.txt", "events.jsonl", "config.toml", "outcome.json", "wandb_id", "lock", "images", "model"]
)
@pytest.mark.parametrize("kind", ["fifo", "zero", "link", "dangling"])
def test_something_else_in_the_place_of_a_file_is_rejected(run_dir: Path, name: str, kind: str) -> None:
    path, target = run_dir / name, run_dir.parent / "theirs"
    if os.path.lexists(path):
        path.rename(target)
    else:
        target.write_text("theirs")
    links = {"zero": Path("/dev/zero"), "link": target, "dangling": run_dir.parent / "nothing"}
    os.mkfifo(path) if kind == "fifo" else path.symlink_to(links[kind])
    before = contents(run_dir.parent)
    report = resume(run_dir)
    assert report.startswith(f"--run-dir: {path}")
    assert len(report.splitlines()) == 1
    assert contents(run_dir.parent) == before
    assert not links["dangling"].exists()


def trainer_with_lock(run_dir: Path) -> tuple[Trainer, runlock.RunLock]:
    run_dir.mkdir(exist_ok=True)
    cfg = replace(CFG, run_dir=str(run_dir), steps=50, log_every=1, save_every=1000, eval_every=1000)
    lock = open_run_dir(cfg).lock
    assert lock
    trainer = Trainer(cfg, splits(), StopRequest(), 1, lock)
    trainer.resume()
    return trainer, lock


def when_at(trainer: Trainer, step: int, act: Any) -> None:
    """Do something between two steps."""
    log = trainer.logger.log_if_due

    def logged() -> None:
        log()
        if trainer.state.step == step:
            act()

    trainer.logger.log_if_due = logged  # type: ignore[method-assign]


def test_a_run_that_lost_its_lock_stops_before_it_writes_another_row(tmp_path: Path) -> None:
    trainer, lock = trainer_with_lock(tmp_path / "run")
    when_at(trainer, 3, lambda: (tmp_path / "run" / "lock").write_text(json.dumps({"token": "theirs"})))
    with pytest.raises(Exception, match="another process has taken over the run folder"):
        trainer.fit()
    trainer.close()
    lock.release()
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2, 3]


def test_a_run_whose_folder_is_moved_stops_and_makes_nothing_anew(tmp_path: Path) -> None:
    trainer, lock = trainer_with_lock(tmp_path / "run")
    when_at(trainer, 3, lambda: (tmp_path / "run").rename(tmp_path / "moved"))
    with pytest.raises(Exception, match="was moved or removed during the run"):
        trainer.fit()
    trainer.close()
    lock.release()
    assert not (tmp_path / "run").exists()
    assert [row["step"] for row in metrics(tmp_path / "moved")] == [1, 2, 3]


def test_smoke_touches_only_what_it_made(tmp_path: Path) -> None:
    for name in ("a.smoke", "a.smoke_long", "a.smoke-mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "outcome.json").write_text('{"outcome": "stopped", "step": 1, "run_dir": "x"}')
    before = contents(tmp_path)
    cfg = replace(CFG, run_dir=str(tmp_path / "a"))
    assert train.smoke(cfg, Environment()).outcome == "done"
    assert contents(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 3
