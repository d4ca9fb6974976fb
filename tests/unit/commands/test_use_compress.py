"""docs/use_compress.md: its commands, one after the other, as a reader types them."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

from distae.__main__ import main

COMMANDS = re.findall(r"^    distae (.*)$", (ROOT / "docs/use_compress.md").read_text(), re.MULTILINE)
SMALL = "--epochs 1 --data.limit 300 --net.hidden 16 --tracking none --device cpu --threads 1"


@pytest.mark.slow
def test_the_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("digits.npy", np.random.default_rng(0).integers(0, 17, (5, 1, 8, 8), np.uint8))
    for command in COMMANDS:
        words = shlex.split(command)
        assert main([*words, *(SMALL.split() if words[0] == "train" else [])]) == 0, (command, capsys.readouterr().err)
    assert {p.name for p in tmp_path.iterdir()} >= {"test.dae", "fine.dae", "back", "model", "graphs", "onnx", "hub"}
    assert np.load("back/decompressed.npy").shape == (5, 1, 8, 8)
