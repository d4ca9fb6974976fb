"""TensorBoard and Trackio: what their own readers find of a run, and of one that is resumed; packages that are missing."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import fitted, metrics, settings

from distae.config.names import SINKS
from distae.errors import TrainingError, UserError
from distae.tracking import Extent, Start, Tracker
from distae.tracking.recorded import metrics_of, pictures, repeat


def recorded(run_dir: Path) -> list[tuple[int, str, Any]]:
    return sorted((int(row["step"]), k, pytest.approx(v, rel=1e-6)) for row in metrics(run_dir) for k, v in metrics_of(row).items())


def pictured(run_dir: Path) -> list[tuple[int, str]]:
    """Those of evaluations that have a row."""
    evaluated = {(int(row["step"]), k.partition("/")[0]) for row in metrics(run_dir) for k in row}
    return sorted((p.step, p.name) for p in pictures(run_dir) if (p.step, p.name.partition("/")[0]) in evaluated)


@pytest.mark.slow
def test_tensorboard_reads_each_row_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in (8, 16):
        fitted(settings(tracking="tensorboard", steps=steps), tmp_path)
        events = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0}).Reload()
        tags = events.Tags()
        assert sorted((e.step, tag, e.value) for tag in tags["scalars"] for e in events.Scalars(tag)) == recorded(tmp_path)
        images = [(e.step, tag, e) for tag in tags["images"] for e in events.Images(tag)]
        assert sorted((step, tag) for step, tag, _ in images) == pictured(tmp_path)
        assert images[0][2].encoded_image_string.startswith(b"\x89PNG")
        (text,) = events.Tensors("settings")
        assert '"latent_dim": 4' in text.tensor_proto.string_val[0].decode()


@pytest.mark.slow
def test_trackio_reads_each_row_once_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setenv("TRACKIO_PROJECT", "distae-test")
    for steps in (8, 16):
        fitted(settings(tracking="trackio", steps=steps), tmp_path)
        name = f"{tmp_path.name} {(tmp_path / 'trackio_id').read_text()}"
        logs = SQLiteStorage.get_logs("distae-test", name)
        found = [(log["step"], k, v) for log in logs for k, v in log.items() if isinstance(v, float) and "/" in k]
        assert sorted(found) == recorded(tmp_path)
        assert [run.name for run in trackio.Api().runs("distae-test")].count(name) == 1


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.images: list[tuple[str, int]] = []

    def row(self, row: Any) -> None:
        self.steps.append(row["step"])

    def image(self, name: str, path: Path, step: int) -> None:
        self.images.append((name, step))

    def close(self) -> None:
        pass


def test_what_is_repeated_is_what_is_recorded(tmp_path: Path) -> None:
    """Pictures of an evaluation whose row was cut are drawn again by the run that resumes."""
    (tmp_path / "images").mkdir()
    for step in (2, 4):
        (tmp_path / "images" / f"val_samples_{step:08}.png").touch()
    repeat(tmp_path, sink := Kept())
    assert (sink.steps, sink.images) == ([], [])
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "val/loss": 1}\n{"step": 4, "train/loss": 1}\n')
    repeat(tmp_path, sink)
    assert (sink.steps, sink.images) == ([2, 4], [("val/samples", 2)])


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_package_that_is_missing_is_named_before_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"--tracking {name} needs {name}, .* pip install 'distae\[{name}\]'"):
        settings(tracking=name)


class Broken(Kept):
    """A sink whose service is gone after the first row."""

    def __init__(self, start: Start) -> None:
        super().__init__()

    def row(self, row: Any) -> None:
        if self.steps:
            raise RuntimeError("no service")
        super().row(row)

    def close(self) -> None:
        raise RuntimeError("no service")


def test_a_sink_that_fails_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SINKS, "broken", Broken)
    fitted(settings(tracking="broken", steps=16), tmp_path)
    assert [row["step"] for row in metrics(tmp_path)] == [7, 8, 14, 16, 16, 16]
    assert (tmp_path / "log.txt").read_text().count("--tracking broken failed (no service): off until the next start") == 1


def test_a_sink_that_cannot_begin_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(start: Start) -> None:
        raise RuntimeError("no service")

    monkeypatch.setitem(SINKS, "broken", begin)
    tracker = Tracker()
    with pytest.raises(TrainingError, match="--tracking broken: no service; --tracking none leaves it out"):
        tracker.open(replace(settings(tracking="broken"), run_dir=str(tmp_path)), Extent(), (0, 9), {})
    tracker.close()
