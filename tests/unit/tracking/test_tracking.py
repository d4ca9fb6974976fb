"""The sinks of metrics and pictures: metrics.jsonl, log and progress bar, W&B."""

import io
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import wandb
from helpers import fitted, metrics, settings, splits, spy

from distae import distributed as dist
from distae.runtime.signals import StopRequest
from distae.tracking import Console, Jsonl, Tracker, describe_environment
from distae.tracking.console import shown
from distae.tracking.wandb import _wandb_mode, _where
from distae.training.restore import RunRestorer
from distae.training.trainer import Trainer

WHERE = {"step", "epoch", "samples_seen", "time"}


@pytest.mark.parametrize("model", ["ae", "vae"])
def test_rows_of_a_run(model, tmp_path):
    """Names are the same for everyone who reads them."""
    cfg = settings(model={"name": model}, steps=16)
    fitted(cfg, tmp_path)
    rows = metrics(tmp_path)
    terms = ["loss", *cfg.model.terms]
    speed = {"samples_per_second", "data_wait_fraction", "checkpoint_blocked_seconds", "peak_memory_bytes"}
    train = {f"train/{t}" for t in [*terms, "lr", "grad_norm", *speed]}
    shapes = [(row["step"], {*row} - WHERE) for row in rows]
    seen = ["active_units", "mi", *(f"kl_dim/{d:03}" for d in range(4))] if model == "vae" else []
    evaluated = {split: {f"{split}/{t}" for t in [*terms, "mse", *seen]} for split in ("val", "test")}
    assert shapes == [
        (7, train), (8, evaluated["val"]), (14, train), (16, train), (16, evaluated["val"]), (16, evaluated["test"])
    ]  # fmt: skip
    for row in rows:
        assert set(row) >= WHERE
        assert (row["epoch"], row["samples_seen"]) == (row["step"] / 8, row["step"] * 24)
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)


def test_each_line_is_there_at_once(tmp_path):
    sink = Jsonl(tmp_path / "metrics.jsonl", 0)
    for step in range(3):
        sink.row({"step": step, "train/loss": 0.1 + 0.2})
        assert metrics(tmp_path)[-1] == {"step": step, "train/loss": 0.1 + 0.2}
    sink.close()


def test_a_resumed_file_loses_what_its_checkpoint_does_not_know(tmp_path):
    sink = Jsonl(tmp_path / "metrics.jsonl", 0)
    sink.row({"step": 2})
    size = sink.sync().size
    sink.row({"step": 4})
    sink.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "tra')
    sink = Jsonl(tmp_path / "metrics.jsonl", size)
    sink.row({"step": 3})
    sink.close()
    assert [row["step"] for row in metrics(tmp_path)] == [2, 3]


def test_lines_are_timed_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", err := io.StringIO())
    console = Console(tmp_path / "log.txt", 0, 10)
    console.line("hello")
    console.row({"step": 5, "epoch": 0.5, "samples_seen": 120, "time": 1.0, "train/loss": 1.25, "train/step_seconds": 3.0})
    console.close()
    first, second = err.getvalue().splitlines()
    assert first.endswith(" hello")
    assert second.endswith(" step 5 epoch 0.50 train/loss=1.25")
    assert (tmp_path / "log.txt").read_text() == err.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_the_log_the_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", err := Terminal())
    console = Console(tmp_path / "log.txt", 0, 10)
    console.row({"step": 5, "epoch": 0.5, "train/loss": 1.25})
    console.row({"step": 10, "epoch": 1.0, "val/loss": 1.5})
    console.close()
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in log] == ["step 5 epoch 0.50 train/loss=1.25", "step 10 epoch 1.00 val/loss=1.5"]
    assert "10/10" in err.getvalue()
    assert "val/loss=1.5" in err.getvalue()


def test_a_piped_log_has_few_rows_of_training_and_all_evaluations(tmp_path, monkeypatch):
    """The first, one each 10 s, the last and, before a message, the newest; log.txt has all."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", err := io.StringIO())
    console = Console(tmp_path / "log.txt", 0, 100)
    for step in range(1, 101):
        now[0] += 1.0
        console.row({"step": step, "epoch": step / 50, "train/loss": 1.0})
        if step == 30:
            console.row({"step": step, "epoch": 0.6, "val/loss": 2.0, "val/mse": 0.25})
        if step == 48:
            console.line("a note")
    console.close()
    printed = [line.split(" ", 2)[2] for line in err.getvalue().splitlines()]
    steps = [int(line.split()[1]) for line in printed if line.startswith("step") and "val/loss" not in line]
    assert steps == [1, 11, 21, 31, 41, 48, 51, 61, 71, 81, 91, 100]
    assert printed[3] == "step 30 epoch 0.60 val/loss=2 val/mse=0.25"
    assert printed[-1] == "step 100 epoch 2.00 train/loss=1 val/mse=0.25"
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 102


def test_a_line_is_for_people():
    row = {"step": 1, "train/loss": 3.0, "train/recon": 3.0, "train/kl": 0.0, "train/peak_memory_bytes": 3 << 29}
    assert shown(row) == "train/loss=3 train/kl=0 train/peak_memory=1.50GiB"
    assert shown({"train/recon": 2.0, "train/loss": 3.0, "train/peak_memory_bytes": 5 << 20}) == (
        "train/recon=2 train/loss=3 train/peak_memory=5MiB"
    )


@pytest.mark.parametrize(
    ("mode", "variable", "said"),
    [
        ("online", None, "W&B is online: https://wandb.example/r; WANDB_MODE=offline keeps the run here, --tracking none"),
        ("offline", None, "W&B is offline (no key or no network): sync later with `distae sync run`; wandb"),
        ("offline", "offline", "W&B is offline (WANDB_MODE): sync later"),
        ("disabled", "disabled", "W&B is off (WANDB_MODE=disabled); WANDB_MODE=online or offline turns it on"),
    ],
)
def test_one_line_says_where_the_run_goes_and_how_to_change_that(mode, variable, said, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert _where(mode, OnlineRun(), Path("run")).startswith(said)


def test_without_wandb_a_line_says_how_to_turn_it_on(tmp_path, capsys):
    fitted(settings(steps=1), tmp_path)
    assert capsys.readouterr().err.count("W&B is off; --tracking wandb turns it on") == 1


class FakeWandb:
    class Settings:
        base_url = "https://wandb.example"


class NoSocket:
    def __init__(self, answers: bool) -> None:
        self.answers, self.asked = answers, list[tuple[tuple[str, int], float]]()

    def __call__(self, address: tuple[str, int], timeout: float) -> socket.socket:
        self.asked.append((address, timeout))
        if not self.answers:
            raise OSError("unreachable")
        return socket.socket()


@pytest.fixture
def key(monkeypatch, tmp_path):
    """A function that leaves a key where the user may have left it; else there is none."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def leave(place: str) -> None:
        if place == "environment":
            monkeypatch.setenv("WANDB_API_KEY", "k")
        if place == "netrc":
            (tmp_path / "netrc").write_text("machine wandb.example login user password k\n")

    return leave


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("place", ["nowhere", "environment", "netrc"])
def test_without_a_key_or_a_server_wandb_is_offline_and_nobody_waits(place, answers, key, monkeypatch):
    key(place)
    monkeypatch.setattr(socket, "create_connection", connect := NoSocket(answers))
    assert _wandb_mode(FakeWandb()) == ("online" if answers and place != "nowhere" else "offline")
    assert connect.asked == ([] if place == "nowhere" else [(("wandb.example", 443), 3)])


@pytest.mark.parametrize(
    ("asked", "mode"), [("offline", "offline"), ("dryrun", "offline"), ("online", "online"), ("disabled", "disabled")]
)
def test_wandb_mode_is_the_users(asked, mode, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", asked)
    monkeypatch.setattr(socket, "create_connection", None)
    assert _wandb_mode(FakeWandb()) == mode


def test_another_server_is_asked_at_its_own_address(key, monkeypatch):
    key("environment")
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.local:8080")
    monkeypatch.setattr(socket, "create_connection", connect := NoSocket(True))
    assert _wandb_mode(FakeWandb()) == "online"
    assert connect.asked[0][0] == ("wandb.local", 8080)


class OnlineRun:
    """A W&B run that keeps the steps it receives, as the server would."""

    url = "https://wandb.example/r"

    def __init__(self) -> None:
        self.steps: list[float] = []

    def log(self, row: dict[str, float]) -> None:
        self.steps += [row["step"]] if "train/loss" in row else []

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def finish(self) -> None:
        pass


def test_online_one_run_continues_over_restarts(tmp_path, monkeypatch):
    """With the id that it had, at the step after its checkpoint's."""
    run, asked = OnlineRun(), list[tuple[str, str, str]]()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "init", spy(lambda **how: run, lambda **how: asked.append((how["mode"], how["resume"], how["id"]))))
    for steps in (3, 7):
        fitted(settings(tracking="wandb", steps=steps, log_every=1), tmp_path / "run")
    assert asked == 2 * [("online", "allow", (tmp_path / "run" / "wandb_id").read_text())]
    assert run.steps == [1, 2, 3, 4, 5, 6, 7]


def test_only_rank_0_has_sinks(tmp_path, monkeypatch):
    monkeypatch.setattr(Tracker, "open", lambda self, *args: self.sinks.append(None))
    monkeypatch.setattr(RunRestorer, "restore", lambda self: 0)
    cfg = replace(settings(), run_dir=str(tmp_path))
    for rank, sinks in ((0, [None]), (1, [])):
        with dist.use(dist.World(rank, 2, torch.device("cpu"))):
            trainer = Trainer(cfg, splits(), StopRequest(), 1)
            trainer.resume()
        assert trainer.tracker.sinks == sinks


def test_no_sinks_take_everything_and_do_nothing():
    tracker = Tracker()
    tracker.line("hello")
    tracker.row({"step": 1})
    tracker.close()


def test_the_environment_is_recorded():
    about = describe_environment(4, 2, "cpu")
    assert (about["world_size"], about["threads"]) == (4, 2)
    assert about["torch"]
    assert set(about) >= {"commit", "python", "torch", "device", "host"}
