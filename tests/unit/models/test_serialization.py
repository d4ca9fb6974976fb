"""The export of a model."""

import errno
from pathlib import Path

import pytest
from helpers import settings
from safetensors import SafetensorError

from distae.models import build, serialization


def test_a_full_disk_at_the_export_has_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes `train` report it in words."""

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(serialization, "save_file", full)
    cfg = settings()
    with pytest.raises(OSError, match="No space left") as error:
        serialization.export(build(cfg.model, cfg.net, (1, 8, 8), 0), cfg, tmp_path / "model", 1, None, None)
    assert error.value.errno == errno.ENOSPC
