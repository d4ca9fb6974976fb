"""The command from outside: exit codes, which rank prints what, and whole runs in real processes."""

import json
import os
import platform
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from unittest import mock

import numpy as np
import pytest
import torch
import wandb
from helpers import ROOT, metrics, start

import distae
from benchmarks.crash import timeless
from distae.commands import session
from distae.train import main

TINY = ["--model.latent-dim=3", "--net.hidden", "8", "--global-batch-size=24", "--device=cpu", "--threads=1", "--precision=fp64"]
TINY += ["--data.limit=100", "--steps=6", "--log-every=2", "--eval-every=3", "--save-every=3"]


def test_the_help_and_early_rejections_do_without_torch(tmp_path):
    """A login node on a slow disk answers at once."""
    script = """
import contextlib, io, sys
from distae.train import main
for line in ("--model no", "--precision fp8", "--epochs 2 --steps 3", "--global-batch-size 7 --grad-accum-steps 2",
             "--net conv --net.channels 4 4 4 4", "--config no.toml", "--data array --data.path a.npy"):
    assert main(line.split()) == 2, line
assert main(["--data", "array", "--data.path", "b.npy", "--print-config"]) == 0
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
    main(["--help", "all"])
assert "--model vae" in out.getvalue()
heavy = {"torch", "torchvision", "wandb", "sklearn", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    np.save(tmp_path / "a.npy", np.zeros((20, 5), np.int32))
    np.save(tmp_path / "b.npy", np.zeros((20, 5), np.float32))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^distae: ", done.stderr, re.MULTILINE)) == 7


def report(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What main says of a mistake: once, in one or two lines, with exit code 2."""
    assert main([*TINY, "--tracking", "none", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("distae: --")
    assert len(err.splitlines()) <= 2
    return err


@pytest.fixture
def array(tmp_path, monkeypatch):
    """A function that writes an array and gives the options that name it."""
    monkeypatch.chdir(tmp_path)

    def write(values: np.ndarray) -> list[str]:
        np.save("a.npy", values)
        return ["--data", "array", "--data.path", "a.npy", "--run-dir", "run"]

    return write


def test_bernoulli_outside_its_range(array, capsys):
    message = report(capsys, *array(np.linspace(-1, 3, 200 * 6, dtype=np.float32).reshape(200, 6)))
    assert re.search(
        r"--model.likelihood bernoulli needs data in \[0, 1\]; the \w+ split of --data array has values in \[-", message
    )
    assert "use gaussian or laplace" in message


def test_nan_in_the_data(array, capsys):
    values = np.zeros((200, 6), np.float32)
    values[3] = np.nan
    assert "--data.path: a.npy contains NaN or infinite values" in report(capsys, *array(values))


def test_fewer_samples_than_a_batch(array, capsys):
    message = report(capsys, *array(np.zeros((20, 6), np.uint8)))
    assert "--global-batch-size 24: the training split has only 16 samples; valid: at most that" in message


def test_a_data_root_without_files_or_network(tmp_path, monkeypatch, capsys):
    def unreachable(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    message = report(capsys, "--data", "fashion_mnist", "--data.root", str(tmp_path / "d"), "--run-dir", str(tmp_path / "run"))
    assert "FashionMNIST is not there and could not be downloaded" in message
    assert f"into {tmp_path}/d/FashionMNIST/raw" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path, capsys):
    assert (
        report(capsys, "--device", "cuda", "--run-dir", str(tmp_path))
        == "distae: --device cuda: torch finds no GPU here; valid: auto, cpu\n"
    )


def test_a_run_folder_that_cannot_be_written(tmp_path, capsys):
    assert "--run-dir: cannot write to /proc/distae" in report(capsys, "--run-dir", "/proc/distae/run")
    (tmp_path / "file").write_text("")
    assert "file is a file, not a folder" in report(capsys, "--run-dir", str(tmp_path / "file" / "run"))


def test_a_run_folder_of_other_settings(tmp_path, capsys):
    assert main([*TINY, "--tracking", "none", "--run-dir", str(tmp_path)]) == 0
    capsys.readouterr()
    message = report(capsys, "--run-dir", str(tmp_path), "--model.beta", "2", "--seed", "5")
    assert "model.beta is 1.0 there and 2.0 here; seed is 0 there and 5 here" in message
    assert "--fresh" in message


@pytest.mark.parametrize("argv", [["--model", "no"], ["--run-dir", "/proc/distae"], ["--global-batch-size", "25"]])
def test_every_rank_says_why_it_rejects(argv, monkeypatch, capsys, tmp_path):
    """It may be the only one that does. Which rank, and where, is in front. Then the others learn of it."""
    told_others = mock.Mock()
    monkeypatch.setattr(session, "tell_others", told_others)
    monkeypatch.chdir(tmp_path)
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    for rank, who in (("0", "distae: --"), ("1", f"distae: rank 1 ({platform.node()}): --")):
        monkeypatch.setenv("RANK", rank)
        assert main([*TINY, "--tracking", "none", *argv]) == 2
        err = capsys.readouterr().err
        assert err.startswith(who)
        assert len(err.splitlines()) == 1
    assert told_others.call_count == 2
    monkeypatch.setenv("RANK", "abc")
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("distae: RANK='abc' in the environment: a whole number from 0 to 1 is expected")


def test_a_rejected_run_leaves_no_folder(array, capsys, tmp_path):
    report(capsys, *array(np.zeros((20, 6), np.uint8)), "--run-dir", "runs/a")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]


def test_run_folders_that_cannot_be(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    deep = "/".join(["d" * 200] * 20)
    for run_dir, message in (
        ("n" * 300, "is too long: at most 230 bytes in its last part, 3900 in all"),
        (f"{'n' * 300}/run", "cannot be a folder (File name too long)"),
        (deep, "is too long"),
        ("~nobody-of-that-name/run", "names the home folder of an unknown user"),
        ("caf\udce9", r"'caf\udce9' is not UTF-8 text"),
    ):
        assert main([*TINY, "--tracking", "none", "--run-dir", run_dir]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert len(err.splitlines()) == 1
    (tmp_path / "zero.toml").write_text('run_dir = "a\\u0000b"')
    assert main([*TINY, "--config", "zero.toml"]) == 2
    assert r"'a\x00b' contains a null byte" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["zero.toml"]


def test_print_config_gives_back_itself(tmp_path, capsys):
    changes = "--net conv --net.channels 4 8 --schedule cosine --optim.max-grad-norm 1 --steps 3"
    argv = [*changes.split(), "--print-config"]
    assert main(argv) == 0
    first = capsys.readouterr().out
    assert "run_dir" not in first  # it would be kept when the file is edited, and is of these settings
    (tmp_path / "c.toml").write_text(first)
    assert main(["--config", str(tmp_path / "c.toml"), "--print-config"]) == 0
    assert capsys.readouterr().out == first
    assert not list(tmp_path.glob("runs*"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two ranks under torchrun, with W&B, but neither key nor network. The parent's W&B serves it, as a sweep agent's."""
    wandb.setup().ensure_service()
    folder = tmp_path_factory.mktemp("two")
    away = {"WANDB_MODE": None, "WANDB_API_KEY": None, "HOME": str(folder)}
    return start(*TINY, "--run-dir", "run", nproc=2, cwd=folder, timeout=240, **away), folder / "run"


def test_two_ranks_train_and_rank_0_writes(two):
    done, run_dir = two
    assert done.returncode == 0, done.stderr
    assert json.loads((run_dir / "outcome.json").read_text())["outcome"] == "done"
    rows = metrics(run_dir)
    assert [r["step"] for r in rows if "train/loss" in r] == [2, 4, 6]
    assert [r["step"] for r in rows if "val/loss" in r] == [3, 6]
    assert done.stderr.count(" step 2 ") == 1
    names = {p.name for p in (run_dir / "images").iterdir()}
    assert {"val_reconstructions_00000003.png", "val_samples_00000006.png", "test_reconstructions_00000006.png"} <= names
    assert distae.load(run_dir).encode(torch.rand(2, 1, 8, 8, dtype=torch.float64)).shape == (2, 3)


def test_without_a_key_one_line_says_how_to_sync(two):
    done, run_dir = two
    (line,) = [text for text in done.stderr.splitlines() if "W&B is offline" in text]
    (folder,) = re.findall(r"W&B is offline \(no key or no network\): sync later with `distae sync (.*?)`", line)
    assert (run_dir.parent / folder).is_dir()
    assert len(list((run_dir / "wandb").glob("offline-run-*"))) == 1


def test_wandb_reads_the_offline_run_back(two):
    (file,) = (two[1] / "wandb").glob("offline-run-*/*.wandb")
    read = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)], capture_output=True, text=True, check=False
    )
    if "No such command" in read.stderr:
        pytest.skip("this wandb has no offline reader (leet inspect)")
    assert read.returncode == 0, read.stderr
    records = [json.loads(line) for line in read.stdout.splitlines()]
    (run,) = [r["run"] for r in records if r["type"] == "run"]
    config = run["config"]["update"]
    assert (config["model"]["name"], config["model"]["latent_dim"]) == ("vae", 3)
    assert config["environment"]["world_size"] == 2
    assert config["environment"]["torch"] == torch.__version__
    assert run["run_id"] == (two[1] / "wandb_id").read_text()
    items = [r["history"]["item"] for r in records if r["type"] == "history"]
    mine = {(r["step"], k): v for r in metrics(two[1]) for k, v in r.items() if "/" in k}
    theirs = {(i["step"], k): v for i in items for k, v in i.items() if (i["step"], k) in mine}
    assert theirs == pytest.approx(mine)
    images = {k.removesuffix(".path") for i in items for k in i if k.endswith(".path")}
    assert images == {f"{split}/{name}" for split in ("val", "test") for name in ("reconstructions", "samples")}
    assert {r["metric"]["step_metric"] for r in records if r["type"] == "metric"} == {"step"}


def test_one_process_gives_the_same_numbers(two, tmp_path):
    """The command line without torchrun; and the two ranks' own config.toml makes the same run."""
    done = start("--config", str(two[1] / "config.toml"), "--run-dir", "run", "--tracking", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "wandb").exists()
    for a, b in zip(metrics(two[1]), metrics(tmp_path / "run"), strict=True):
        assert timeless(a) == pytest.approx(timeless(b), rel=1e-9)


@pytest.mark.parametrize("nproc", [0, 2])
def test_smoke_goes_through_every_phase_and_leaves_nothing(nproc, tmp_path):
    done = start("--smoke", "--device", "cpu", "--run-dir", "run", nproc=nproc, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "smoke: done at step 4 of 4"
    assert "resumed at step 2 of 4" in done.stderr
    assert " test/loss=" in done.stderr
    assert not list(tmp_path.iterdir())


def test_under_torchrun_a_late_rejection_is_printed_once_by_each_rank(tmp_path):
    np.save(tmp_path / "a.npy", np.full((200, 6), 2.0, np.float32))
    done = start(*TINY, "--data", "array", "--data.path", "a.npy", "--run-dir", "run", nproc=2, cwd=tmp_path)
    assert done.returncode == 1  # torchrun's own, whatever its processes return
    for who in ("", r"rank 1 \(.*\): "):
        assert len(re.findall(f"^distae: {who}--model.likelihood bernoulli", done.stderr, re.MULTILINE)) <= 1
    assert "--model.likelihood bernoulli" in done.stderr  # torchrun ends the slower one
    assert "distae/train.py" not in done.stderr  # torchrun prints a traceback of its own, not of ours


def test_a_port_in_use_is_reported(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        rank = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        done = start(*TINY, "--tracking", "none", nproc=0, cwd=tmp_path, timeout=240, **rank)
    assert done.returncode == 2, done.stderr
    report = [line for line in done.stderr.splitlines() if line.startswith("distae: ")]
    assert report == [
        f"distae: MASTER_ADDR 127.0.0.1, MASTER_PORT {port}: the port is in use by another program; choose another, or start again"
    ]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_says_where_it_is_and_why_it_ended_early_though_its_stdout_and_stderr_are_closed(tmp_path):
    """`2>&1 | head -n 1`: what is read first, and then nobody reads."""
    command = [sys.executable, "-m", "distae.train", *TINY, "--tracking", "none", "--early-stop.patience", "1", "--run-dir", "run"]
    command += ["--steps", "400", "--early-stop.min-delta", "1e9"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as job:
        assert job.stdout
        job.stdout.readline()
        job.stdout.close()
        assert job.wait(200) == 0
    end = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert (end["outcome"], end["step"]) == ("done", 6)
    assert end["reason"] == "early stop: val/loss has not improved for 1 evaluations"
    assert (tmp_path / "run" / "log.txt").read_text().count("test/loss") == 1
    again = start(*command[3:], "--fresh", cwd=tmp_path)
    assert again.stderr.splitlines()[-1].endswith(
        "done at step 6 (early stop: val/loss has not improved for 1 evaluations); model in run/model, "
        "of step 3, the best val/loss, "
        "pictures in run/images. Next: distae.load('run')"
    )
