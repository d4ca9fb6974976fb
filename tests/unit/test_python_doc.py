"""The blocks of docs/python.md are one program, and it runs."""

import re
from typing import Any

import pytest
from helpers import ROOT


@pytest.mark.slow
def test_the_document_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block.replace("hidden=[64]", "hidden=[64], threads=1"), "docs/python.md", "exec"), names)
    assert names["outliers"].mean() == pytest.approx(0.05, abs=0.001)
    assert (tmp_path / "runs" / "digits" / "model").is_dir()
    assert "distae.Run(vae, done at step 30, val/loss" in capfd.readouterr().out
