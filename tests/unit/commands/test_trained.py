"""The commands that use a trained model: encode, detect, reconstruct and evaluate over a run folder."""

import csv
import json
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

import distae
from distae.commands import detect, encode, evaluate, explore, reconstruct, train
from distae.config.names import METRICS
from distae.evaluation import metrics
from distae.report.explorer.server import Server

Run = tuple[int, str, str]
OPTIONS = {"--steps": "20", "--global-batch-size": "32", "--model.latent-dim": "3", "--tracking": "none", "--progress": "none"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on digits, one on a table, and the table's file."""
    folder = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    rows = [(f"p{i}", rng.normal(), rng.normal() * 9 + 4, "abc"[i % 3], i % 2) for i in range(90)]
    write_csv(folder / "t.csv", [("id", "u", "v", "kind", "y"), *rows])
    small = [word for option in OPTIONS.items() for word in option] + ["--device", "cpu", "--threads", "1"]
    digits = [*small, "--data.limit", "200", "--run-dir", str(folder / "digits"), "--save-every", "10"]
    table = [*small, "--data", "table", "--data.path", str(folder / "t.csv"), "--data.id", "id", "--data.label", "y"]
    assert train.main(digits) == 0
    assert train.main([*table, "--model.likelihood", "mixed", "--run-dir", str(folder / "table")]) == 0
    return folder


def write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def call(main: Any, capsys: pytest.CaptureFixture[str], *argv: object) -> Run:
    """Exit code, stdout and stderr."""
    code = main([*map(str, argv), "--threads", "1"])  # the tests that follow have this process's threads
    out, err = capsys.readouterr()
    return code, out, err


def test_encode_gives_the_codes_of_the_model(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sklearn.datasets import load_digits

    assert call(encode.main, capsys, home / "digits", "--split", "train", "--out", tmp_path / "z.npz")[0] == 0
    found, x, y = np.load(tmp_path / "z.npz"), load_digits().images[:, None], load_digits().target
    assert np.allclose(found["z"], distae.load(home / "digits").encode(x[found["id"]]), atol=1e-5)
    assert (found["label"] == y[found["id"]]).all()
    assert len(found["z"]) == len(set(found["id"])) == 200
    assert (found["z"] == found["mu"]).all()


def test_encode_finds_the_largest_of_latents(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("distae.commands.largest.AT_ONCE", 64)
    shared = (home / "digits", "--split", "train", "--eval-batch-size", "32")
    assert call(encode.main, capsys, *shared, "--out", tmp_path / "z.npz")[0] == 0
    assert call(encode.main, capsys, *shared, "--top", "7", "--latents", "2", "0", "--out", tmp_path / "top.csv")[0] == 0
    found, rows = np.load(tmp_path / "z.npz"), rows_of(tmp_path / "top.csv")
    assert [*rows[0]] == ["latent", "id", "activation", "label"]
    for latent, mine in ((2, rows[:7]), (0, rows[7:])):
        order = (-found["z"][:, latent]).argsort(kind="stable")[:7]
        assert [int(row["latent"]) for row in mine] == [latent] * 7
        assert [int(row["id"]) for row in mine] == found["id"][order].tolist()
        assert [int(row["label"]) for row in mine] == found["label"][order].tolist()
        assert np.allclose([float(row["activation"]) for row in mine], found["z"][order, latent])
    for words, named in (
        (["--top", "0"], "--top 0: valid from 1 on"), (["--latents", "1"], "--latents is for --top N"),
        (["--top", "2", "--latents", "3"], "--latents 3: valid from 0 to 2"),
        (["--top", "2", "--out", "x.npz"], "valid with --top: .csv, .json"),
    ):  # fmt: skip
        code, _, err = call(encode.main, capsys, home / "digits", *words)
        assert code == 2
        assert named in err


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_encode_writes_other_files(suffix: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(encode.main, capsys, home / "digits", "--out", tmp_path / "z.npz")
    z = np.load(tmp_path / "z.npz")["z"]
    if suffix == ".npy":
        call(encode.main, capsys, home / "digits", "--out", tmp_path / "z.npy")
        assert (np.load(tmp_path / "z.npy") == z).all()
        return
    pq = pytest.importorskip("pyarrow.parquet")
    call(encode.main, capsys, home / "digits", "--out", tmp_path / "z.parquet")
    table = pq.read_table(tmp_path / "z.parquet")
    assert (np.stack(table["z"].to_pylist()).astype(np.float32) == z).all()
    assert table.column_names == ["z", "mu", "logvar", "label", "id"]


def test_encode_resumes(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "PART", 64)
    argv = (home / "digits", "--split", "train", "--eval-batch-size", 64)
    call(encode.main, capsys, *argv, "--out", tmp_path / "whole.npz")
    real, done = encode._encoded, list[int]()

    def interrupted(run: Any, samples: range) -> Any:
        if samples.start == 128 and 128 not in done:
            done.append(128)
            raise KeyboardInterrupt
        done.append(samples.start)
        return real(run, samples)

    monkeypatch.setattr(encode, "_encoded", interrupted)
    assert call(encode.main, capsys, *argv, "--out", tmp_path / "z.npz")[0] == 130
    assert not (tmp_path / "z.npz").exists()
    assert call(encode.main, capsys, *argv, "--out", tmp_path / "z.npz")[0] == 0
    assert done == [0, 64, 128, 128, 192]
    whole, resumed = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "z.npz")
    assert all((whole[k] == resumed[k]).all() for k in whole.files)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole.npz", "z.npz"]


def test_the_largest_are_one_file(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(encode.main, capsys, home / "digits", "--top", "2", "--sharded", "--out", tmp_path / "o.csv")
    assert (code, "--sharded is for codes: --top writes one file" in err) == (2, True)


def test_encode_leaves_the_parts(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = (home / "digits", "--out", tmp_path / "parts", "--sharded")
    assert call(encode.main, capsys, *argv)[0] == 0
    assert np.load(tmp_path / "parts" / "part-000000.npz")["z"].shape == (200, 3)
    code, _, err = call(encode.main, capsys, *argv)
    assert (code, "give --force" in err) == (2, True)
    assert call(encode.main, capsys, *argv, "--force")[0] == 0


def test_codes_of_dictionaries_are_sparse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from scipy.sparse import load_npz

    monkeypatch.setattr(encode, "PART", 64)
    words = OPTIONS | {"--steps": "2", "--model": "topk_sae", "--model.latent-dim": "24", "--model.k": "3", "--data.limit": "200"}
    run = tmp_path / "sae"
    argv = [word for option in words.items() for word in option]
    assert train.main([*argv, "--device", "cpu", "--threads", "1", "--run-dir", str(run)]) == 0
    options = (run, "--split", "train", "--eval-batch-size", 64)
    for name in ("z.npz", "z.npy"):
        code, out, err = call(encode.main, capsys, *options, "--out", tmp_path / name)
        assert code == 0, err
        assert "z [200, 24]" in out
    z, dense = load_npz(tmp_path / "z.npz"), np.load(tmp_path / "z.npy")
    assert (z.toarray() == dense).all()
    assert 0 < z.nnz <= 3 * len(dense)
    assert len(np.load(tmp_path / "z.npz")["id"]) == len(dense)
    assert call(encode.main, capsys, *options, "--out", tmp_path / "parts", "--sharded")[0] == 0
    parts = [load_npz(path).toarray() for path in sorted((tmp_path / "parts").glob("*.npz"))]
    assert len(parts) == 4
    assert (np.concatenate(parts) == dense).all()


def test_new_rows_of_a_table_have_the_columns_of_the_model(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Categories and normalisation are those of training, whatever the new file holds."""
    write_csv(tmp_path / "new.csv", [("kind", "id", "v", "u"), ("c", "q0", 4, 0.5), ("c", "q1", 13, -1)])
    argv = (home / "table", "--data", tmp_path / "new.csv", "--data.label", "none", "--out", tmp_path / "z.npz")
    assert call(encode.main, capsys, *argv)[0] == 0
    found = np.load(tmp_path / "z.npz")
    assert found["id"].tolist() == ["q0", "q1"]
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"u": [0.5, -1.0], "v": [4.0, 13.0], "kind": ["c", "c"]})
    assert np.allclose(found["z"], distae.load(home / "table").encode(frame), atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("u", "v"), (1.5, 2)], "have no column 'kind' of the model"),
        ([("u", "v", "kind"), (1.5, 2, "a"), (2.5, 3, "z")], "new.csv row 2, column 'kind': 'z' is unknown to the model"),
        ([("u", "v", "kind"), ("a", 2, "a"), ("b", 3, "b")], "new.csv row 1, column 'u': 'a' is unknown to the model"),
    ],
)
def test_rows_that_the_model_cannot_take(
    rows: list[Any], words: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "new.csv", rows)
    argv = (home / "table", "--data", tmp_path / "new.csv", "--data.label", "none", "--data.id", "--out", tmp_path / "z.npz")
    code, _, err = call(encode.main, capsys, *argv)
    assert (code, words in err) == (2, True), err


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 9, 9), np.uint8), "have samples of uint8 [9, 9]"),
        (np.random.default_rng(0).random((4, 8, 8), np.float32), "store them in the same units"),
    ],
)
def test_arrays_that_the_model_cannot_take(
    array: np.ndarray, words: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", array)
    code, _, err = call(encode.main, capsys, home / "digits", "--data", tmp_path / "x.npy", "--out", tmp_path / "z.npz")
    assert (code, words in err) == (2, True), err


def test_detect_counts_the_samples_above_the_quantile(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = (home / "table", "--split", "train", "--quantile", "0.9", "--out", tmp_path / "s.csv")
    code, out, _ = call(detect.main, capsys, *argv)
    rows = rows_of(tmp_path / "s.csv")
    scores = np.array([float(row["score"]) for row in rows])
    flagged = np.array([row["anomaly"] == "1" for row in rows])
    assert code == 0
    assert np.abs(flagged.mean() - 0.1) < 0.02
    assert scores[flagged].min() > scores[~flagged].max()
    assert rows[0]["id"].startswith("p")
    values = [np.mean([float(row[k]) for k in ("u", "v", "kind", "kind", "kind")]) for row in rows]  # 3 one-hot values
    assert np.allclose(values, scores, rtol=1e-4)
    assert "AUROC" in out


def test_detect_scores_as_the_model_does(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sklearn.datasets import load_digits

    call(detect.main, capsys, home / "digits", "--out", tmp_path / "s.npz", "--threshold", "0.05")
    found = np.load(tmp_path / "s.npz")
    x = load_digits().images[found["id"]][:, None]
    assert np.allclose(found["score"], distae.load(home / "digits").score(x), atol=1e-6)
    assert np.allclose(found["value"].mean((1, 2, 3)), found["score"], atol=1e-6)
    assert ((found["score"] > 0.05) == found["anomaly"]).all()


def test_reconstruct_files_of_every_kind(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "a.jpg")
    x = np.random.default_rng(0).integers(0, 17, (5, 1, 8, 8), np.uint8)
    np.save(tmp_path / "x.npy", x)
    argv = (home / "digits", tmp_path / "a.jpg", tmp_path / "x.npy", "--out", tmp_path / "out")
    assert call(reconstruct.main, capsys, *argv)[0] == 0
    assert size_of(tmp_path / "out" / "a.png") == (8, 8)
    assert np.allclose(np.load(tmp_path / "out" / "x.npy"), distae.load(home / "digits").reconstruct(x), atol=1e-3)
    assert call(reconstruct.main, capsys, home / "table", home / "t.csv", "--out", tmp_path / "rows")[0] == 0
    rows = rows_of(tmp_path / "rows" / "t.csv")
    assert len(rows) == 90
    assert {row["kind"] for row in rows} <= {"a", "b", "c"}
    assert np.std([float(row["v"]) for row in rows]) > 0


def test_reconstruct_samples_of_the_run(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(reconstruct.main, capsys, home / "digits", "--out", tmp_path / "out")[0] == 0
    assert np.load(tmp_path / "out" / "reconstructions.npy").shape == (200, 1, 8, 8)
    assert size_of(tmp_path / "out" / "reconstructions.png")[0] > 500


def test_evaluate_writes_what_the_run_has_measured(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(evaluate.main, capsys, home / "digits", "--tasks", "objective", "--out", tmp_path / "m.json")
    assert code == 0, err
    figures = {f["metric"]: f for f in json.loads((tmp_path / "m.json").read_text())["figures"]}
    rows = [json.loads(line) for line in (home / "digits" / "metrics.jsonl").read_text().splitlines()]
    measured = next(row["test/mse"] for row in rows if "test/mse" in row)
    assert figures["objective/mse"]["value"] == pytest.approx(measured, rel=1e-6)
    assert f"wrote {tmp_path / 'm.json'}" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["missing"], "no finished run in missing: there is no such folder"),
        ([], "needs RUN"),
        (["{run}", "--step", "7"], "no valid checkpoint '7'"),
        (["{run}", "--lr", "1"], "unknown option '--lr'"),
        (["{run}", "--data", "missing.npy"], "no file, folder or data set missing.npy"),
        (["{run}", "--out", "x.txt"], "unknown ending '.txt'; valid: .npz, .parquet, .npy"),
        (["{run}", "--data.limt", "3"], "did you mean '--data.limit'?"),
    ],
)
def test_mistakes_are_named(
    argv: list[str], words: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if not argv:
        monkeypatch.setattr("sys.argv", ["distae"])
        argv = ["--split", "test"]
    code, _, err = call(encode.main, capsys, *(a.replace("{run}", str(home / "digits")) for a in argv))
    assert (code, words in err) == (2, True), err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("step", ["last", "best", "10"])
def test_the_model_of_a_step(step: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(encode.main, capsys, home / "digits", "--step", step, "--out", tmp_path / "z.npz")[0] == 0
    same = np.array_equal(np.load(tmp_path / "z.npz")["z"], _final(home, tmp_path, capsys))
    assert same == (step != "10")


def _final(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    call(encode.main, capsys, home / "digits", "--out", tmp_path / "final.npz")
    return np.load(tmp_path / "final.npz")["z"]


def test_tasks_that_are_not_there(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(evaluate.main, capsys, home / "digits", "--tasks", "objectiv", "--out", tmp_path / "m.json")
    assert (code, "--tasks: unknown 'objectiv'; valid: all, " in err) == (2, True)
    code, _, err = call(evaluate.main, capsys, home / "digits", "--sampler", "pixel", "--out", tmp_path / "m.json")
    assert (code, "--sampler pixel does not fit vae; valid: normal, gmm, " in err) == (2, True), err


def test_an_interrupted_evaluation_keeps_what_it_has(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures of the tasks that were done, printed and written."""

    def interrupted(e: Any) -> float:
        raise KeyboardInterrupt

    metrics.load_all()
    monkeypatch.setitem(METRICS, "elbo", METRICS["elbo"]._replace(compute=interrupted))
    options = ("--tasks", "reconstruction,likelihood", "--out", tmp_path / "m.json")
    code, out, _ = call(evaluate.main, capsys, home / "digits", *options)
    report = json.loads((tmp_path / "m.json").read_text())
    assert report["tasks"] == ["reconstruction"]
    assert {f["task"] for f in report["figures"]} == {"reconstruction"}
    assert (code, "reconstruction_mse" in out) == (130, True)


def figures_of(path: Path) -> dict[str, float]:
    return {f["metric"]: f["value"] for f in json.loads(path.read_text())["figures"]}


def test_evaluate_measures_the_training_split_of_other_data(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not that of the run, which baselines are fitted on."""
    argv = (home / "digits", "--data.limit", "50", "--split", "train")
    assert call(detect.main, capsys, *argv, "--threshold", "1", "--out", tmp_path / "s.npz")[0] == 0
    assert call(evaluate.main, capsys, *argv, "--tasks", "reconstruction", "--out", tmp_path / "m.json")[0] == 0
    scores = np.load(tmp_path / "s.npz")["score"]
    assert len(scores) == 50
    assert figures_of(tmp_path / "m.json")["reconstruction_mse"] == pytest.approx(scores.mean(), rel=1e-5)


def test_evaluate_where_the_data_of_the_run_are_gone(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Metrics that need the training samples are skipped; those of an array in memory cannot be read again."""
    rng = np.random.default_rng(0)
    distae.fit(rng.random((60, 5)), run_dir=str(tmp_path / "run"), steps=5, latent_dim=2, hidden=[4], progress=False)
    np.savez(tmp_path / "new.npz", x=rng.random((40, 5), np.float32), y=np.arange(40) % 2)
    argv = (tmp_path / "run", "--data", tmp_path / "new.npz", "--data.label-key", "y", "--out", tmp_path / "m.json")
    code, out, err = call(evaluate.main, capsys, *argv)
    assert code == 0, err
    skipped = json.loads((tmp_path / "m.json").read_text())["skipped"]
    assert {"knn_accuracy", "auroc"} <= skipped.keys()
    assert "objective/loss" in figures_of(tmp_path / "m.json")
    assert "skipped knn_accuracy: the training samples of the run cannot be read" in out


@pytest.mark.parametrize("option", ["quantile", "threshold"])
def test_detect_names_the_option_that_is_not_valid(
    option: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(detect.main, capsys, home / "digits", f"--{option}", "high", "--out", tmp_path / "s.csv")
    assert (code, err) == (2, f"distae: --{option}: 'high' is not valid; expected a number\n")


def test_an_option_may_be_given_with_an_equals_sign(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = (home / "digits", "--out", tmp_path / "z.npz", "--timeout=60", "--data", "digits", "--data.limit=20", "--split=test")
    code, out, err = call(encode.main, capsys, *argv)
    assert code == 0, err
    assert "z [20, 3]" in out


def explored(monkeypatch: pytest.MonkeyPatch, names: Sequence[str]) -> list[Any]:
    """What the server answers: the page, then `sample` 0 by name; after that Ctrl-C is pressed."""
    found: list[Any] = []

    def serve(server: Server) -> None:
        thread = threading.Thread(target=TCPServer.serve_forever, args=(server, 0.01))
        thread.start()
        try:
            found.append(urlopen(server.url).read().decode())
            found.extend(json.load(urlopen(server.url + name, b'{"number": 0}')) for name in names)
        finally:
            server.shutdown()
            thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", serve)
    return found


def test_explore_serves_pictures_of_digits_until_it_is_interrupted(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = explored(monkeypatch, ["sample"])
    code, out, err = call(explore.main, capsys, home / "digits", "--port", 0)
    assert (code, err) == (0, "")
    url, tunnel, _, end = out.splitlines()
    port = url.removeprefix("http://127.0.0.1:").partition("/")[0]
    assert f": ssh -N -L {port}:127.0.0.1:{port} " in tunnel
    assert end == "ended"
    assert "<h1>Explore digits</h1>" in found[0]
    assert found[1]["shown"]["picture"].startswith("data:image/png;base64,")


def test_explore_shows_rows_of_a_table_as_values(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = explored(monkeypatch, ["sample"])
    assert call(explore.main, capsys, home / "table", "--port", 0)[0] == 0
    assert 'id="file"' not in found[0]
    given = found[1]["input"]["values"]
    stored = [r for r in rows_of(home / "t.csv") if float(r["u"]) == pytest.approx(float(given["u"]), rel=1e-3)]
    assert [r["kind"] for r in stored] == [given["kind"]]
    assert {*found[1]["shown"]["values"]} == {"u", "v", "kind"}


def test_explore_rejects_a_taken_port_and_too_few_samples(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = call(explore.main, capsys, home / "digits", "--port", port)
    assert (code, err) == (2, f"distae: --port {port}: Address already in use; --port 0 takes any free one\n")
    assert call(explore.main, capsys, home / "digits", "--limit", 2)[0] == 2
