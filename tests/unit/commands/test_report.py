"""`distae report`: what a page has of a run that is trained here, of several, of damaged and of hostile folders."""

import json
import re
import shutil
from html import escape
from pathlib import Path

import numpy as np
import pytest
from helpers import StopAt, run, settings
from unit.report.test_html import HOSTILE, Parsed, png_of

from distae.commands import evaluate, report, train
from distae.report.page import MOST_BYTES
from distae.runtime import events, outcome

SMALL = [
    *(
        "--steps",
        "60",
        "--log-every",
        "10",
        "--eval-every",
        "20",
        "--save-every",
        "20",
        "--data.limit",
        "300",
        "--net.hidden",
        "32",
    ),
    *("--model.latent-dim", "3", "--tracking", "none", "--progress", "none", "--device", "cpu", "--threads", "1"),
]
VQ = ["--model", "vq_vae", "--model.latent-dim", "8", "--model.dim", "4", "--model.codebook-size", "16"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in their seed, one with another beta, each with its report."""
    folder = tmp_path_factory.mktemp("home")
    for name, options in {"a": [], "b": ["--seed", "1"], "c": ["--model.beta", "4"]}.items():
        assert train.main([*SMALL, *options, "--run-dir", str(folder / "runs" / name)]) == 0
    return folder


def written(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The page that the command says it wrote."""
    capsys.readouterr()
    assert report.main([*map(str, argv)]) == 0
    data = Path(capsys.readouterr().out.removeprefix("wrote ").rstrip()).read_bytes()
    assert len(data) < MOST_BYTES
    return data.decode()


def charts(page: str) -> dict[str, dict]:
    """The data of the charts by their titles."""
    found = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    return {chart["title"]: chart for chart in found}


def headings(page: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page)


def test_a_finished_run_has_its_report(home):
    page = (home / "runs" / "a" / "report.html").read_text()
    assert headings(page) == [
        "Run", "Figures", "Evaluation", "Curves", "Rate, speed and memory", "Time line", "KL by dimension", "Pictures over time",
        "Traversals", "Interpolations", "Map of codes", "Settings",
    ]  # fmt: skip
    assert "vae on digits, done at step 60." in page
    assert events.read(home / "runs" / "a")[0].environment["commit"] in page


def test_curves_have_every_value_of_the_rows(home):
    folder = home / "runs" / "a"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    drawn = charts((folder / "report.html").read_text())
    assert {"loss", "recon", "kl", "mse", "learning rate", "samples per second"} <= {*drawn}
    for term in ("loss", "kl"):
        for curve in drawn[term]["curves"]:
            expected = [(r["step"], r[f"{curve['kind']}/{term}"]) for r in rows if f"{curve['kind']}/{term}" in r]
            assert [(x, y) for x, _, y in curve["points"]] == [(x, pytest.approx(y, rel=1e-5)) for x, y in expected]
    assert [c["kind"] for c in drawn["loss"]["curves"]] == ["train", "val", "test"]
    assert {m["step"] for m in drawn["loss"]["marks"] if m["kind"] == "checkpoint"} >= {20, 40, 60}


def test_pictures_are_inline_described_and_of_the_steps_of_the_run(home):
    page = (home / "runs" / "a" / "report.html").read_text()
    images = [attributes for name, attributes in Parsed(page).tags if name == "img"]
    assert all(str(i["src"]).startswith("data:image/") and len(i["alt"] or "") > 20 for i in images)
    for step in (20, 40, 60):
        assert f"<figcaption>reconstructions, val split, step {step}</figcaption>" in page
        assert f"<figcaption>samples, val split, step {step}</figcaption>" in page
    assert len([i for i in images if "of the code rises" in str(i["alt"])]) == 3  # a row for each dimension


def test_the_map_has_every_test_sample_with_its_label(home):
    drawn = charts((home / "runs" / "a" / "report.html").read_text())["Map of codes"]
    assert drawn["labels"] == [*"0123456789"]
    assert [p[3] for p in drawn["points"]] == [*range(len(drawn["points"]))]
    assert len({p[2] for p in drawn["points"]}) == 10


def test_the_evaluation_is_a_table_with_its_baselines(home, tmp_path, capsys):
    shutil.copytree(home / "runs" / "a", tmp_path / "a")
    assert evaluate.main([str(tmp_path / "a"), "--tasks", "reconstruction", "--threads", "1"]) == 0
    page = written(capsys, tmp_path / "a", "--threads", "1")
    figures = json.loads((tmp_path / "a" / "evaluation" / "metrics.json").read_text())["figures"]
    for figure in figures:
        assert f'<th scope="row">{figure["metric"]}</th>' in page
        for value in (figure["value"], *figure["baselines"].values()):
            assert f"{value:.5g}" in page
    assert "baseline pca" in page
    assert "Not evaluated" not in page


def test_several_runs_are_compared(home, capsys):
    page = written(capsys, home / "runs")
    assert headings(page) == ["Runs", "Over seeds", "Best", "Curves", "Rate, speed and memory", "Last pictures"]
    table = page[page.index('<h2 id="runs">') : page.index('<h2 id="curves">')]
    assert "model.beta" in table
    assert "±" in table
    assert [c["run"] for c in charts(page)["loss"]["curves"]] == [name for name in "abc" for _ in range(3)]
    assert (home / "runs" / "report.html").is_file()


def test_the_use_of_a_codebook_is_drawn(tmp_path, capsys):
    assert train.main([*SMALL, *VQ, "--run-dir", str(tmp_path / "vq")]) == 0
    page = (tmp_path / "vq" / "report.html").read_text()
    (curve,) = charts(page)["Share of each code, the most used first"]["curves"]
    shares = [y for _, y in curve["points"]]
    assert len(shares) == 16
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert shares == sorted(shares, reverse=True)
    assert "Traversals" not in headings(page)


def test_a_table_has_values_in_the_units_of_the_data(tmp_path):
    lines = ["size,kind", *(f"{i % 7 + 40},{'abc'[i % 3]}" for i in range(200))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    data = ["--data", "table", "--data.path", str(tmp_path / "t.csv"), "--model.likelihood", "mixed"]
    options = [word for word in SMALL if word not in ("--data.limit", "300")]
    assert train.main([*options, *data, "--run-dir", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    traversals = page[page.index('<h2 id="traversals">') : page.index('<h2 id="map-of-codes">')]
    sizes = [float(v) for v in re.findall(r"<td>([\d.]+) → ", traversals)]
    assert sizes
    assert all(30 < v < 60 for v in sizes)
    assert re.search("<td>[abc] → [abc]</td>", traversals)


def test_a_run_whose_data_are_gone_keeps_the_rest(home, tmp_path, capsys):
    shutil.copytree(home / "runs" / "a", tmp_path / "a")
    config = tmp_path / "a" / "model" / "config.json"
    config.write_text(config.read_text().replace('"digits"', '"no_such_data"'))
    page = written(capsys, tmp_path / "a", "--threads", "1")
    assert "The codes are left out: " in page
    assert {"Curves", "Pictures over time"} <= {*headings(page)}


def test_a_run_that_goes_on_is_written_again_until_it_ends(home, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "a"
    shutil.copytree(home / "runs" / "a", folder)
    end = outcome.read(folder)
    assert end
    (folder / "outcome.json").unlink()
    shutil.rmtree(folder / "model")  # the codes are those of the newest checkpoint
    pages = []

    def ends(_: float) -> None:
        pages.append((folder / "report.html").read_text())
        if len(pages) == 2:
            outcome.Outcome("done", 60, str(folder)).write()

    monkeypatch.setattr("time.sleep", ends)
    page = written(capsys, folder, "--watch", "--every", "5", "--threads", "1")
    assert len(pages) == 2
    assert all('<body data-refresh="5">' in p and "step 60, not ended" in p and "Map of codes" in headings(p) for p in pages)
    assert "<body>" in page
    assert 'http-equiv="refresh"' not in page


def test_nothing_of_a_hostile_folder_becomes_markup(home, tmp_path, capsys):
    folder = tmp_path / """<img src=x onerror=alert(1)>"'&amp;"""
    shutil.copytree(home / "runs" / "a", folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 60, "time": 1e400, f"val/{HOSTILE}": 1.0, "val/kl_dim/<b>": 1.0}) + "\n")
        file.write(json.dumps({"step": 60, f"val/{HOSTILE}": 1.0, "val/kl_dim/<b>": 1.0, "test/kl_dim/<b>": 0.5}) + "\n")
    events.record(folder, "start", 60, commit=HOSTILE, device=HOSTILE)
    figure = {"task": HOSTILE, "metric": HOSTILE, "value": 1.0, "baselines": {HOSTILE: 2.0}, "unit": HOSTILE, "better": HOSTILE}
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "metrics.json").write_text(
        json.dumps({"figures": [figure, {"metric": 3}, {}], "skipped": {HOSTILE: HOSTILE}})
    )
    (folder / "images" / "val_samples_00000060.png").write_bytes(b"<svg onload=alert(1)>")
    (folder / "images" / "val_reconstructions_00000061.png").symlink_to("/etc/passwd")
    other = tmp_path / "b"
    shutil.copytree(home / "runs" / "b", other)
    pages = [written(capsys, folder, "--threads", "1"), written(capsys, folder, other, "--out", tmp_path / "both.html")]
    plain = [written(capsys, home / "runs" / "a", "--threads", "1"), written(capsys, home / "runs", "--force")]
    known = {name for page in plain for name, _ in Parsed(page).tags}
    for page in pages:
        found = Parsed(page)
        assert {name for name, _ in found.tags} <= known | {"p"}
        assert not [k for _, attributes in found.tags for k in attributes if k.startswith("on")]
        assert all(str(a["src"]).startswith("data:image/") for name, a in found.tags if name == "img")
        assert len([s for s in found.scripts if s.startswith('"use strict"')]) == 1
        assert "root:" not in page
    assert escape(HOSTILE) in pages[0]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nope"], "nope is not a folder"),
        (["runs/a", "runs/b"], "--out: give the file of a report of several runs"),
        (["runs/a", "--out", "a.pdf"], "--out: a.pdf ends in .pdf; valid: .html"),
        (["runs/a", "--out", "mine.html"], "mine.html exists: give --force"),
        (["runs/a", "--nonsense"], "unknown option '--nonsense'"),
        (["--watch"], "needs RUN, a run folder"),
    ],
)
def test_invalid_input_is_an_error_of_a_line(home, argv, words, capsys, monkeypatch):
    monkeypatch.chdir(home)
    (home / "mine.html").write_text("<p>mine")
    assert report.main(argv) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_a_report_that_fails_does_not_fail_the_run(tmp_path, capsys, monkeypatch):
    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(report, "content", fails)
    assert train.main([*SMALL, "--run-dir", str(tmp_path / "a")]) == 0
    assert "distae: report.html could not be written: MemoryError\n" in capsys.readouterr().err
    assert outcome.read(tmp_path / "a") == outcome.Outcome("done", 60, str(tmp_path / "a"))


def test_no_report_where_it_is_off_or_the_run_was_stopped(tmp_path):
    assert train.main([*SMALL, "--no-report", "--run-dir", str(tmp_path / "off")]) == 0
    assert not (tmp_path / "off" / "report.html").exists()
    assert run(settings(report=True), tmp_path / "stopped", StopAt(12)).outcome == "stopped"
    assert not (tmp_path / "stopped" / "report.html").exists()
    assert run(settings(report=True), tmp_path / "stopped").outcome == "done"
    assert {"restart at step"} <= {
        m["text"][:15] for m in charts((tmp_path / "stopped" / "report.html").read_text())["loss"]["marks"]
    }


@pytest.mark.slow
def test_many_long_runs_still_fit(tmp_path, capsys):
    noise = png_of(np.random.default_rng(0).integers(0, 256, (300, 546, 3), np.uint8))
    for number in range(12):
        folder = tmp_path / "runs" / str(number)
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "test_samples_00000010.png").write_bytes(noise)
        names = [f"{split}/{term}" for split in ("train", "val") for term in ("loss", "recon", "kl", "mse", "a", "b", "c")]
        with (folder / "metrics.jsonl").open("w") as file:
            file.writelines(
                json.dumps({"step": 10 * i, "time": float(i), **{n: i**0.5 + k for k, n in enumerate(names)}}) + "\n"
                for i in range(2000)
            )
        (folder / "config.toml").write_text("steps = 10\n")
    page = written(capsys, tmp_path / "runs")
    assert len(page.encode()) < MOST_BYTES
    assert len(charts(page)["loss"]["curves"]) == 24
