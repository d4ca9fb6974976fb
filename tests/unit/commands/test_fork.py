"""A start from another run's checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import settings

from distae.commands import train
from distae.errors import UserError
from distae.runtime.environment import Environment


@pytest.mark.slow
def test_a_fork_from_another_model_is_a_users_mistake_and_says_both_shapes(tmp_path: Path) -> None:
    cfg = settings(data={"name": "digits", "limit": 96}, steps=2, save_every=2, run_dir=str(tmp_path / "a"))
    assert train.run(cfg, Environment()).outcome == "done"
    other = replace(cfg, fork_from=cfg.run_dir, run_dir=str(tmp_path / "b"))
    for changed, why in (
        (
            replace(other, model=replace(cfg.model, latent_dim=5)),
            r"--fork-from: .* is float32 \[8, 4\] there and float32 \[8, 5\] here",
        ),
        (replace(other, model=settings(model={"name": "vq_vae"}).model), "--fork-from: .* is in only one of the two"),
    ):
        with pytest.raises(UserError, match=why):
            train.run(replace(changed, fresh=True), Environment())
    (tmp_path / "a" / "outcome.json").unlink()
    assert train.run(replace(cfg, steps=1), Environment()).step == 2
    assert "resumed at step 2, which is more than the 1 steps asked for" in (tmp_path / "a" / "log.txt").read_text()
