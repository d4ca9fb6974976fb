"""Samples that cannot be read: their substitutes, that evaluation leaves them out, and that a resume knows them."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import fitted, metrics, settings, splits
from PIL import Image
from torch import Tensor

from distae.config import TrainConfig
from distae.data import Loader, Source, Split, load
from distae.data import bad_rows as module
from distae.data.bad_rows import BadRows
from distae.data.runs import Rows
from distae.data.source import BadRowsError
from distae.errors import TrainingError
from distae.evaluation.exact import evaluate
from distae.models import build
from distae.training.step import TrainStep


class Damaged(Source):
    """The values of another source, of which some rows cannot be read."""

    decodes = True

    def __init__(self, whole: Source, bad: set[int]) -> None:
        self.whole, self.bad = whole, bad
        self.shape, self.dtype, self.label = whole.shape, whole.dtype, whole.label
        self.limits = 0.0, 255.0

    def __len__(self) -> int:
        return len(self.whole)

    def read(self, rows: Tensor) -> Tensor:
        if found := {row: f"file {row} is broken" for row in rows.tolist() if row in self.bad}:
            raise BadRowsError(found)
        return self.whole.read(rows)

    def checksum(self, rows: Rows | None) -> str:
        return self.whole.checksum(rows)


def damaged(n: int, bad: set[int], skip: bool = True) -> Any:
    x = torch.arange(n, dtype=torch.uint8)[:, None].expand(n, 4).contiguous()
    whole = Split.of(x, torch.arange(n))
    return replace(whole, source=Damaged(whole.source, bad), bad=BadRows() if skip else None)


def data_of(bad: dict[str, set[int]], skip: bool = True) -> dict[str, Split]:
    made = splits()
    return {k: replace(v, source=Damaged(v.source, bad.get(k, set())), bad=BadRows() if skip else None) for k, v in made.items()}


def test_a_bad_row_ends_the_run_by_default():
    with pytest.raises(BadRowsError, match="file 3 is broken; file 5 is broken"):
        damaged(10, {3, 5}, skip=False).read(torch.tensor([1, 3, 5]))


def test_one_reason_of_many_rows_is_said_once():
    assert str(BadRowsError(dict.fromkeys(range(9), "x.npy is gone") | {9: "y"})) == "x.npy is gone; y"
    assert str(BadRowsError({row: f"row {row}" for row in range(7)})).endswith("row 4; and 2 more")


def test_a_substitute_follows_from_the_row_and_the_bad_ones_alone():
    bad = {3, 5, 8, 11, 12}
    once = damaged(20, bad).read(torch.arange(20))
    split = damaged(20, bad)
    parts = [split.read(part) for part in torch.randperm(20).split(3)]
    assert torch.equal(once[0].sort(0).values, torch.cat([x for x, _ in parts]).sort(0).values)
    for row in range(20):
        values, label = split.read(torch.tensor([row]))
        assert values[0, 0] == label == once[1][row]  # labels are those of the substitutes
        assert (int(label) == row) == (row not in bad)
        assert int(label) not in bad


def test_threads_that_find_the_same_row_at_once_agree():
    split = damaged(200, set(range(0, 200, 2)))
    with ThreadPoolExecutor(8) as pool:
        parts = [*pool.map(lambda _: split.read(torch.arange(200))[1], range(16))]
    assert all(torch.equal(part, parts[0]) for part in parts)


def test_substitutes_are_of_the_split():
    split = damaged(100, {10, 11}).take(torch.arange(10, 20))
    assert set(split.read(torch.arange(10))[1].tolist()) == set(range(12, 20))


def test_too_many_bad_rows_end_the_run(monkeypatch):
    with pytest.raises(TrainingError, match="almost no sample can be read: file 0"):
        damaged(10, set(range(10))).read(torch.tensor([0]))
    monkeypatch.setattr(module, "MOST", 3)
    with pytest.raises(TrainingError, match="more than 3 samples cannot be read, such as: file 0"):
        damaged(100, set(range(10))).read(torch.arange(10))


def test_evaluation_is_that_of_the_readable_rows():
    cfg = settings()
    model = build(cfg.model, cfg.net, (1, 8, 8), 0, dtype=torch.float64)
    bad = {0, 7, 49}
    val = data_of({"val": bad})["val"]
    good = splits()["val"].take(torch.tensor([i for i in range(50) if i not in bad]))
    found, expected = (evaluate(model, Loader(s, "none", torch.device("cpu"), torch.float64), 50, 0) for s in (val, good))
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_run_skips_counts_and_reports(tmp_path, capsys):
    trainer = fitted(settings(steps=16, data={"on_error": "skip"}), tmp_path / "run", data_of({"train": {3, 70}, "val": {1}}))
    rows = metrics(tmp_path / "run")
    assert [row["train/skipped_rows"] for row in rows if "train/loss" in row][-1] == 2
    assert [row["val/skipped_rows"] for row in rows if "val/loss" in row] == [1, 1]
    text = capsys.readouterr().err
    assert "train: " in text
    assert "file 70 is broken" in text
    assert "val: 1 samples skipped so far; now file 1 is broken" in text
    saved = json.loads((tmp_path / "run/checkpoints/step_00000016/state.json").read_text())["bad_rows"]
    broken = {"train": (3, 70), "val": (1,)}
    assert saved == {name: {str(row): f"file {row} is broken" for row in rows} for name, rows in broken.items()}
    assert trainer.logger.skipped.counts("train") == {"skipped_rows": 2}


def test_a_row_that_was_bad_stays_so_after_a_resume(tmp_path):
    """The file is whole again in the second part: the run ends as if it were not."""
    cfg = settings(steps=24, data={"on_error": "skip"})
    straight = fitted(cfg, tmp_path / "straight", data_of({"train": {3, 70}, "val": {1}}))
    fitted(replace(cfg, steps=12), tmp_path / "parts", data_of({"train": {3, 70}, "val": {1}}))
    resumed = fitted(cfg, tmp_path / "parts", data_of({}))
    for name, value in straight.train_step.model.state_dict().items():
        assert torch.equal(value, resumed.train_step.model.state_dict()[name])
    last = [{k: v for k, v in metrics(tmp_path / run)[-1].items() if k.startswith("test/")} for run in ("straight", "parts")]
    assert last[0] == last[1]


def test_raise_names_the_row_and_ends_the_run(tmp_path):
    with pytest.raises(TrainingError, match="file 70 is broken"):
        fitted(settings(steps=16), tmp_path / "run", data_of({"train": {70}}, skip=False))


def test_files_that_vanish_or_change_during_a_run_leave_it_resumable(tmp_path, monkeypatch):
    """Stopped after step 8, two files gone, resumed: as a run that goes on while they go."""
    for part in ("straight", "parts"):
        for i in range(60):
            draw(tmp_path / part / f"{i:02}.png", i)
    monkeypatch.setenv("DISTAE_CACHE", str(tmp_path / "cache"))

    def job(part: str, steps: int) -> TrainConfig:
        data = {"name": "image_folder", "path": str(tmp_path / part), "size": 8, "mode": "L", "on_error": "skip", "workers": 0}
        return settings(steps=steps, data=data, eval_every=4)

    def damage(part: str) -> None:
        for i in range(0, 60, 5):
            (tmp_path / part / f"{i:02}.png").unlink()
            (tmp_path / part / f"{i + 1:02}.png").write_bytes(b"")

    step = TrainStep.__call__

    def damaging(self: TrainStep, number: int, rows: Tensor) -> None:
        if number == 8 and self.cfg.run_dir == str(tmp_path / "a"):
            damage("straight")
        step(self, number, rows)

    monkeypatch.setattr(TrainStep, "__call__", damaging)
    straight = fitted(job("straight", 16), tmp_path / "a", load(job("straight", 16).data))
    first = load(job("parts", 8).data)
    (tmp_path / "b").mkdir()
    first["train"].source.remember(tmp_path / "b")
    fitted(job("parts", 8), tmp_path / "b", first)
    damage("parts")
    again = load(job("parts", 16).data, tmp_path / "b")
    assert any("the folder has changed since the run began" in note for note in again["train"].notes)
    resumed = fitted(job("parts", 16), tmp_path / "b", again)
    for name, value in straight.train_step.model.state_dict().items():
        assert torch.equal(value, resumed.train_step.model.state_dict()[name])
    last = [{k: v for k, v in metrics(tmp_path / run)[-1].items() if k.startswith("test/")} for run in "ab"]
    assert last[0] == last[1]
    assert resumed.logger.skipped.counts("train")["skipped_rows"] > 5


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
