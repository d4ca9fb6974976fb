"""docs/sparse_autoencoders.md: its commands, one after the other, as a reader types them, and its table."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

from distae.__main__ import main
from distae.config.models import ModelConfig
from distae.config.models.sparse_dictionary import DictionaryConfig

TEXT = (ROOT / "docs/sparse_autoencoders.md").read_text()


def test_the_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name, values in (("in", 6), ("out", 4)):
        np.save(f"{name}.npy", np.random.default_rng(0).standard_normal((200, values)).astype(np.float32))
    small = ["--device", "cpu", "--threads", "1"]
    short = [*small, "--steps", "3", "--tracking", "none"]
    of = {"train": short, "sweep": short, "prepare": ["--data.limit", "200"]}
    for command in re.findall(r"^    distae (.*)$", TEXT, re.MULTILINE):
        words = shlex.split(command)
        fewer = ["--data.samples", "2000"] if "synthetic_features" in words and words[0] in ("train", "sweep") else []
        assert main([*words, *of.get(words[0], small), *fewer]) == 0, (command, capsys.readouterr().err)
    figures = json.loads((tmp_path / "runs/sae/evaluation/metrics.json").read_text())["figures"]
    expected = {
        "l0",
        "explained_variance",
        "fvu",
        "dead_share",
        "shrinkage",
        "latent_density",
        "max_cosine",
        "uniqueness",
        "mcc",
        "f1",
    }
    assert {f["metric"].partition("/")[0] for f in figures} == expected


def test_the_table_has_every_dictionary() -> None:
    table = TEXT.split("## Which one")[1].split("##")[0]
    names = {name for name, cls in ModelConfig.choices().items() if issubclass(cls, DictionaryConfig)}
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == names
