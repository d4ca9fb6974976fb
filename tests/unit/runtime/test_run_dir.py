"""A run folder that is opened, moved aside, or rejected."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import settings

from distae.errors import UserError
from distae.runtime import run_dir
from distae.runtime.outcome import Outcome
from distae.runtime.run_dir import accept, check_run_dir, open_run_dir


def test_a_run_that_cannot_be_moved_aside_is_rejected_and_its_lock_released(tmp_path: Path) -> None:
    """As where a file system is mounted on it, or the folder above is another user's."""
    cfg = settings(run_dir=str(tmp_path / "run"), fresh=True)
    open_run_dir(replace(cfg, fresh=False)).release()
    accept(cfg)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_dir, "_aside", lambda _: tmp_path / "not there" / "aside")
        with pytest.raises(UserError, match=r"--fresh: .* cannot be moved aside: No such file or directory"):
            open_run_dir(cfg)
    open_run_dir(cfg).release()
    assert len([*tmp_path.glob("run.*")]) == 1


def test_only_a_run_with_a_model_is_named_for_init_from(tmp_path: Path) -> None:
    cfg = settings(run_dir=str(tmp_path))
    open_run_dir(cfg).release()
    Outcome("stopped", 4, str(tmp_path)).write()
    with pytest.raises(UserError, match="deleted") as error:
        check_run_dir(cfg)
    assert "--init-from" not in str(error.value)
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="--init-from takes its model"):
        check_run_dir(cfg)
