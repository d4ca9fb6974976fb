"""`distae compare` and `distae plot` on run folders: rows, settings and spread against numbers that are computed here."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import settings
from PIL import Image

from distae.commands import compare, plot, runs
from distae.config import write_toml
from distae.runtime.outcome import Outcome

LOSSES = {"a": (3.0, 1.0, 2.0), "b": (3.0, 2.5, 2.0), "c": (4.0, 4.0, 4.0)}
"""val/loss at the steps 10, 20 and 30 of three runs."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a and b differ in their seed alone, c has another beta."""
    for name, losses in LOSSES.items():
        run_dir = tmp_path / "runs" / name
        run_dir.mkdir(parents=True)
        model = {"name": "vae", "beta": 4.0 if name == "c" else 1.0}
        cfg = settings(model=model, seed=int(name == "b"), run_dir=str(run_dir))
        (run_dir / "config.toml").write_text(write_toml(cfg))
        rows = [{"step": 10 * i, "epoch": i, "time": 100.0 + i, "val/loss": x, "val/mse": x / 2} for i, x in enumerate(losses, 1)]
        last = {"step": 30, "epoch": 3, "time": 104.0, "test/loss": losses[-1] + 1, "test/kl": None}
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, last]) + '{"step": 40, "val/lo')
        Outcome("done", 30, str(run_dir)).write()
    return tmp_path / "runs"


def test_the_table_has_what_differs_best_and_final_and_the_spread_over_seeds(folder, tmp_path, capsys):
    assert compare.main([str(folder), "--out", str(tmp_path / "t.csv")]) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == "run state best step model.beta seed best val/loss final val/loss final test/loss"
    assert shown[1:4] == [
        "a done at step 30 20 1 0 1 2 3", "b done at step 30 30 1 1 2 2 3", "c done at step 30 10 4 0 4 4 5"
    ]  # fmt: skip
    assert shown[5:8] == [
        "mean ± standard deviation over seeds", "seeds model.beta best val/loss final val/loss final test/loss",
        "2 1 1.5 ± 0.71 2 ± 0 3 ± 0",
    ]  # fmt: skip
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["a", "b", "c", "a", "a"]
    assert [float(row["best val/mse"]) for row in rows[:3]] == [0.5, 1.0, 2.0]  # at the step of the best loss
    mean, std = rows[3:]
    assert (mean["statistic"], mean["seeds"], mean["seed"], mean["model.beta"]) == ("mean", "2", "", "1.0")
    assert [float(row["best val/loss"]) for row in (mean, std)] == pytest.approx([1.5, 0.5**0.5])


def test_runs_of_other_variants_are_compared_by_what_one_of_them_lacks(folder, capsys):
    cfg = settings(model={"name": "ae"})
    (folder / "c" / "config.toml").write_text(write_toml(cfg))
    assert compare.main([str(folder / "a"), str(folder / "c"), "--metrics", "val/mse"]) == 0
    head, a, c, *rest = capsys.readouterr().out.splitlines()
    assert "model.name" in head
    assert "model.beta" in head
    assert " vae " in a
    assert " - " in c  # it has no beta
    assert not rest


def test_the_best_row_is_the_highest_where_higher_is_better(folder: Path) -> None:
    config = (folder / "a" / "config.toml").read_text()
    (folder / "a" / "config.toml").write_text(config.replace('"val/loss"', '"val/knn_accuracy"'))
    rows = [{"step": step, "val/knn_accuracy": x} for step, x in ((10, 0.5), (20, 0.9), (30, 0.7))]
    (folder / "a" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = runs.find([folder / "a"])
    assert run.config.best_metric == "val/knn_accuracy"
    assert run.best == {"step": 20, "val/knn_accuracy": 0.9}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nope"], "nope is not a folder"),
        (["."], "no run in .: neither config.toml nor metrics.jsonl"),
        (["runs", "--metrics", "val/los"], "unknown 'val/los' (did you mean 'val/loss'?); valid: val/loss, val/mse, test/loss"),
        (["runs", "--out", "there.csv"], "there.csv exists: give --force"),
    ],
)
def test_mistakes_of_compare_are_reported(folder, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(folder.parent)
    Path("there.csv").write_text("mine")
    assert compare.main(argv) == 2
    out, err = capsys.readouterr()
    assert words in err
    assert err.count("\n") == 1
    assert "wrote" not in out
    assert Path("there.csv").read_text() == "mine"
    assert compare.main(["runs", "--out", "there.csv", "--force"]) == 0


def test_a_run_without_rows_is_in_the_table(folder, capsys):
    (folder / "a" / "metrics.jsonl").unlink()
    assert compare.main([str(folder)]) == 0
    a = capsys.readouterr().out.splitlines()[1]
    assert a.split() == ["a", "done", "at", "step", "30", "-", "1", "0", "-", "-", "-"]
    for name in "bc":
        (folder / name / "metrics.jsonl").unlink()
    for command in (compare, plot):
        assert command.main([str(folder)]) == 2
        assert capsys.readouterr().err == "distae: no run has rows in its metrics.jsonl yet\n"


def test_a_step_that_was_repeated_counts_once(folder):
    (run,) = runs.find([folder / "a"])
    assert run.series("val/loss") == [(10, 3.0), (20, 1.0), (30, 2.0)]
    with (folder / "a" / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 30, "val/loss": 1.5}\n')
    (run,) = runs.find([folder / "a"])
    assert run.series("val/loss") == [(10, 3.0), (20, 1.0), (30, 1.5)]
    assert run.final["val/loss"] == 1.5


def test_panels_are_the_terms_of_validation(folder):
    found = runs.find([folder])
    assert plot.panels(found, []) == {"loss": ["val/loss", "test/loss"], "mse": ["val/mse"]}
    assert plot.panels(found, ["test/loss", "mse"]) == {"test/loss": ["test/loss"], "mse": ["val/mse"]}


def test_curves_have_the_values_of_the_rows(folder, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure
    kept = []
    monkeypatch.setattr(figure, "savefig", lambda self, *args, **kwargs: kept.append(self))
    plot.drawn(runs.find([folder]), [], "time", ".png")
    loss = kept[0].axes[0]
    assert [tuple(line.get_ydata()) for line in loss.lines[::2]] == [*LOSSES.values()]  # the others are test/loss
    assert [*loss.lines[0].get_xdata()] == [0, 1, 2]
    assert [text.get_text() for text in kept[0].legends[0].get_texts()] == ["a", "b", "c", "val", "test"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", plot.FORMATS)
def test_pictures_of_every_format(folder, tmp_path, suffix, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"curves{suffix}"
    assert plot.main([str(folder / "a"), str(folder / "b"), "--out", str(path), "--log"]) == 0
    assert capsys.readouterr().out == f"wrote {path}\n"
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml", b"%PDF-")


def test_pictures_go_into_the_folder_that_was_given(folder):
    pytest.importorskip("matplotlib")
    assert plot.main([str(folder / "a")]) == plot.main([str(folder)]) == 0
    assert (folder / "a" / "evaluation" / "curves.png").is_file()
    assert (folder / "curves.png").is_file()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["runs/a", "runs/b"], "--out: give the file of a picture of several runs"),
        (["runs/a", "--out", "x.jpeg"], "--out: x.jpeg ends in .jpeg; valid: .png, .svg, .pdf"),
        (["runs/a", "--out", "there.png"], "there.png exists: give --force"),
        (["runs", "--metrics", "kll"], "--metrics: unknown 'kll'; valid: loss, mse, val/loss, val/mse"),
    ],
)
def test_mistakes_of_plot_are_reported(folder, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(folder.parent)
    Path("there.png").write_text("mine")
    assert plot.main(argv) == 2
    out, err = capsys.readouterr()
    assert words in err
    assert not out
    assert Path("there.png").read_text() == "mine"


def test_without_matplotlib_the_extra_is_named(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot.main([str(folder)]) == 2
    assert capsys.readouterr().err == "distae: distae plot needs matplotlib, which is not installed: pip install 'distae[report]'\n"


def test_pictures_over_training_become_an_animation(folder, tmp_path, capsys):
    run = shutil.copytree(folder / "a", tmp_path / "a")
    (run / "images").mkdir(exist_ok=True)
    for step in (10, 2):
        Image.new("RGB", (64, 32), (20 * step, 0, 0)).save(run / "images" / f"val_samples_{step:08}.png")
    assert plot.main([str(run), "--pictures", "samples"]) == 0
    with Image.open(run / "evaluation" / "samples.gif") as made:
        assert (getattr(made, "n_frames", 1), made.size) == (2, (64, 32 + plot.STRIP))
        reds = []
        for frame in range(2):
            made.seek(frame)
            reds.append(np.asarray(made.convert("RGB"))[5, 5, 0])
    assert reds == [40, 200]
    (run / "images" / "val_samples_00000010.png").write_bytes(b"x")
    for argv, why in (
        ([str(run), "--pictures", "x"], "has no 'x'; valid: val/samples"),
        ([str(folder / "a"), str(folder / "b"), "--out", "x.gif", "--pictures", "samples"], "give one run, not 2"),
        ([str(run), "--pictures", "samples", "--out", "x.png"], "valid: .gif, .mp4"),
        ([str(run), "--pictures", "samples", "--force"], "cannot be read as a picture"),
    ):
        assert plot.main(argv) == 2
        assert why in capsys.readouterr().err
