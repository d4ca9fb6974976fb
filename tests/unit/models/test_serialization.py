"""The export of a model."""

import errno
from pathlib import Path

import pytest
import torch
from helpers import settings
from safetensors import SafetensorError

from distae.models import serialization


def test_a_full_disk_at_the_export_has_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes `train` report it in words."""

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(serialization, "save_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        serialization.export({"a": torch.zeros(1)}, settings(), tmp_path / "model", 1, None, None)
    assert error.value.errno == errno.ENOSPC
