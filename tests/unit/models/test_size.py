"""A model that does not fit into memory is rejected before it is built."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import settings

from distae.commands import train
from distae.errors import UserError
from distae.models import size
from distae.models.size import check_size
from distae.runtime.environment import Environment


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": {"latent_dim": 10**12}}, "weights and gradients take"),
        ({"net": {"hidden": [10**12]}}, "weights and gradients take"),
        ({"net": {"hidden": [10**12, 10**12]}}, "cannot be built"),
        ({"net": {"name": "resnet", "blocks": 10**9}}, "more than 2000 parameter tensors"),
    ],
)
def test_a_model_that_cannot_fit_is_rejected_before_a_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], why: str
) -> None:
    monkeypatch.setattr(size, "MOST_PARAMETERS", 2000)  # 100,000 take half a minute
    cfg = settings(data={"name": "digits", "limit": 96}, steps=2, **change)
    with pytest.raises(UserError, match=why):
        train.run(replace(cfg, run_dir=str(tmp_path / "run")), Environment())
    assert not list(tmp_path.iterdir())


def test_the_size_is_weights_and_gradients() -> None:
    cfg = settings(model={"latent_dim": 1}, net={"hidden": [2]})
    weights = (8 * 2 + 2) + (2 * 1 + 1) + (1 * 2 + 2) + (2 * 8 + 8)
    check_size(cfg, (8,), 2 * 4 * weights)
    with pytest.raises(UserError, match="weights and gradients take"):
        check_size(cfg, (8,), 2 * 4 * weights - 1)
