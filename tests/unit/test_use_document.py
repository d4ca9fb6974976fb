"""docs/use.md, use_generate.md, report.md and explore.md: their commands, one after the other, as a reader types them."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from distae.__main__ import main
from distae.report.explorer.server import Server

COMMANDS, OF_RUNS, OF_REPORTS, OF_EXPLORER = (
    re.findall(r"^    distae (.*)$", (ROOT / "docs" / f"{name}.md").read_text(), re.MULTILINE)
    for name in ("use", "use_generate", "report", "explore")
)
SMALL = "--epochs 1 --data.limit 300 --model.latent-dim 4 --net.hidden 16 --tracking none --device cpu --threads 1"


@pytest.mark.slow
def test_the_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save("photo.png")
    np.save("digits.npy", np.random.default_rng(0).integers(0, 17, (5, 1, 8, 8), np.uint8))
    for command in COMMANDS:
        words = shlex.split(command)
        more = {"train": SMALL, "compare": ""}.get(words[0], "--threads 1")
        assert main([*words, *more.split()]) == 0, (command, capsys.readouterr().err)
    assert {p.name for p in tmp_path.iterdir()} >= {"codes.npz", "metrics.json", "reconstructed", "scores.csv"}


@pytest.mark.spawn
def test_the_commands_of_runs_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for command in OF_RUNS:
        words = shlex.split(command)
        more = {"train": SMALL, "sweep": SMALL, "generate": "--threads 1"}.get(words[0], "")
        assert main([*words, *more.split()]) == 0, (command, capfd.readouterr().err)
    assert {p.name for p in (tmp_path / "walks").iterdir()} >= {"interpolation.gif", "traversal.png", "dimensions.csv"}
    assert (tmp_path / "runs/sweep/compare.csv").read_text().count(",mean,") == 2


def test_the_commands_of_reports_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for command in OF_REPORTS:
        words = shlex.split(command)
        more = SMALL if words[0] == "train" else "--threads 1"
        assert main([*words, *more.split()]) == 0, (command, capsys.readouterr().err)
    assert all((tmp_path / name).is_file() for name in ("runs/digits/report.html", "runs/digits_1/report.html", "both.html"))


@pytest.mark.slow
def test_the_commands_of_the_explorer_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(server: Server) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Server, "serve_forever", interrupted)
    for command in OF_EXPLORER:
        words = shlex.split(command)
        more = SMALL if words[0] == "train" else "--threads 1 --port 0"  # the default may be taken here
        assert main([*words, *more.split()]) == 0, (command, capsys.readouterr().err)
