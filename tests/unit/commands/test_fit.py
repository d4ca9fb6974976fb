"""`distae.fit`: the run of `distae train`, from any thread, on data in memory; nothing is left behind."""

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import fitted

import distae
from distae import data as data_
from distae import distributed as dist
from distae.commands.fit import fit
from distae.config import TrainConfig, build, check
from distae.data import Split
from distae.training.callbacks import Callbacks

X = np.random.default_rng(0).random((120, 6))
SMALL: dict[str, Any] = {
    "steps": 6, "latent_dim": 3, "hidden": (8,), "batch_size": 32, "threads": 1, "device": "cpu", "progress": False,
    "precision": "fp64",
}  # fmt: skip


@pytest.fixture(scope="module")
def run() -> distae.Run:
    return fit(X, **SMALL)


def test_it_is_the_run_of_the_command_line(run, tmp_path):
    np.save(tmp_path / "x.npy", X)
    table = {
        "data": {"name": "array", "path": str(tmp_path / "x.npy"), "test_fraction": 0.0}, "model": {"latent_dim": 3}, "steps": 6,
        "net": {"hidden": [8]}, "global_batch_size": 32, "threads": 1, "device": "cpu", "tracking": "none", "precision": "fp64",
    }  # fmt: skip
    cfg = check(build(TrainConfig, table), 1)
    trained = fitted(cfg, tmp_path / "run", data_.load(cfg.data))
    theirs = trained.train_step.model.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in run.model.module.state_dict().items())


def test_what_a_run_holds(run):
    assert (run.stopped, run.step, run.outcome.outcome) == (False, 6, "done")
    assert run.model.encode(X).shape == (120, 3)
    assert run.metrics["val/mse"] > 0
    rows = run.history if isinstance(run.history, list) else run.history.to_dict("records")
    assert [r["step"] for r in rows] == [6, 6]
    assert re.fullmatch(r"distae\.Run\(vae, done at step 6, val/loss [\d.]+\)", repr(run))


def test_it_continues_where_it_stopped(run):
    longer, whole = run.resume(steps=9), fit(X, **SMALL | {"steps": 9})
    assert (longer.step, run.step) == (9, 6)
    assert np.array_equal(longer.model.encode(X), whole.model.encode(X))
    with pytest.raises(distae.UserError, match=r"contains a run with other settings: seed is 0 there and 1 here"):
        longer.resume(seed=1)


@pytest.mark.slow
def test_a_folder_that_is_given_stays_and_is_resumed(tmp_path, run):
    first = fit(X, **SMALL, run_dir=tmp_path / "a")
    assert np.array_equal(first.model.encode(X), run.model.encode(X))
    del first
    again = fit(X, **SMALL | {"steps": 9}, run_dir=tmp_path / "a")
    assert [row["step"] for row in again._rows] == [6, 6, 9, 9]
    assert distae.load(tmp_path / "a").encode(X).shape == (120, 3)
    with pytest.raises(distae.UserError, match="the data differ from those of the checkpoint"):
        fit(X * 0.999, **SMALL | {"steps": 12}, run_dir=tmp_path / "a")


def test_nothing_is_left_behind(monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    torch.set_flush_denormal(False)  # as another test may have left it
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    state, threads, _ = torch.get_rng_state(), torch.get_num_threads(), capfd.readouterr()
    made = fit(X, **SMALL | {"threads": 2})
    assert made.run_dir.parent == tmp_path
    del made
    with pytest.raises(distae.TrainingError, match="non-finite"):
        fit(X, **SMALL, lr=1e30, likelihood="gaussian")
    with pytest.raises(distae.UserError):
        fit(X - 1, **SMALL)
    assert not list(tmp_path.iterdir())
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == handlers
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert float(torch.tensor(1e-310, dtype=torch.float64) * 1) != 0
    assert capfd.readouterr() == ("", "")
    assert dist.world().device.type == "cpu"


def test_threads_that_train_at_the_same_time(run):
    made: dict[int, distae.Run] = {}
    threads = [threading.Thread(target=lambda i=i: made.update({i: fit(X, **SMALL, seed=i % 2)})) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = [made[i].model.encode(X) for i in range(3)]
    assert np.array_equal(codes[0], run.model.encode(X))
    assert np.array_equal(codes[2], codes[0])
    assert not np.array_equal(codes[1], codes[0])


@pytest.fixture
def signal_at(monkeypatch):
    """Sends this process a signal at a step's row of metrics."""

    def at(signum: int, times: int = 1) -> None:
        sent: list[Any] = []

        def on_log(self, row):
            if len(sent) < times:
                sent.append(row)
                os.kill(os.getpid(), signum)

        monkeypatch.setattr(Callbacks, "on_log", on_log)

    return at


def test_ctrl_c_saves_and_returns_the_run(signal_at):
    signal_at(signal.SIGINT)
    stopped = fit(X, **SMALL | {"steps": 9, "log_every": 4})
    assert (stopped.stopped, stopped.step) == (True, 4)
    assert stopped.model.encode(X).shape == (120, 3)
    whole = fit(X, **SMALL | {"steps": 9, "log_every": 4})
    assert np.array_equal(stopped.resume().model.encode(X), whole.model.encode(X))


def test_a_second_ctrl_c_interrupts_at_once(monkeypatch):
    def twice(self, row):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        handler: Any = signal.getsignal(signal.SIGINT)
        handler.since -= 2  # one Ctrl-C may arrive twice
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr(Callbacks, "on_log", twice)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(X, **SMALL)
    assert signal.getsignal(signal.SIGINT) is before
    assert dist.world().group is None


def test_in_another_thread_signals_are_the_programs(signal_at):
    signal_at(signal.SIGUSR1)
    seen: list[Any] = []
    before = signal.signal(signal.SIGUSR1, lambda signum, frame: seen.append(signum))
    try:
        thread = threading.Thread(target=lambda: seen.append(fit(X, **SMALL).stopped))
        thread.start()
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sorted(seen) == [False, signal.SIGUSR1]


def test_a_bar_alone(capfd):
    fit(X, **SMALL | {"progress": True})
    out, err = capfd.readouterr()
    assert (out, "6/6" in err, "loss=" in err) == ("", True, True)
    assert "W&B" not in err


def test_other_signals_are_saved_first_and_reach_the_program(signal_at):
    signal_at(signal.SIGTERM)
    seen = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: seen.append(signum))
    try:
        stopped = fit(X, **SMALL | {"steps": 9, "log_every": 4})
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]
    assert (stopped.stopped, stopped.step) == (True, 4)


def test_a_bug_in_a_callback_is_a_training_error(monkeypatch, capfd):
    monkeypatch.setattr(Callbacks, "on_start", lambda self, trainer: 1 / 0)
    with pytest.raises(distae.TrainingError, match="ZeroDivisionError: division by zero") as caught:
        fit(X, **SMALL)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert capfd.readouterr() == ("", "")


class Squares(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 60

    def __getitem__(self, i: int) -> Any:
        return torch.full((4, 4), i / 60), i % 10


def kinds() -> dict[str, Any]:
    bytes_ = (X[:, :4].reshape(120, 2, 2) * 255).astype(np.uint8)
    return {
        "list": (X.tolist(), {}, (6,), 1.0),
        "integers": ((X * 9).astype(int) // 9, {}, (6,), 1.0),
        "float32 tensor": (torch.from_numpy(X).float(), {}, (6,), 1.0),
        "bytes": (bytes_, {}, (2, 2), 255.0),
        "channels last": (np.stack([bytes_] * 3, -1), {"layout": "channels_last"}, (2, 2, 3), 255.0),
        "a share": (X, {"validation": 0.5, "test": 0.25}, (6,), 1.0),
        "splits of their own": (X[:60], {"validation": X[60:90], "test": (X[90:], None)}, (6,), 1.0),
        "a Split": (Split.of(torch.from_numpy(bytes_), transform=data_.Transform(300.0, "no_channel")), {}, (2, 2), 300.0),
        "a Dataset": (Squares(), {"model": "cvae"}, (4, 4), 1.0),
        "labels": (X, {"model": "cvae", "y": np.arange(120) % 10}, (6,), 1.0),
        "a name": ("digits", {"steps": 1}, (1, 8, 8), 16.0),
    }


@pytest.mark.parametrize("kind", kinds())
def test_data_of_any_kind(kind):
    x, more, shape, scale = kinds()[kind]
    made = fit(x, **SMALL | {"steps": 2} | more)
    assert (made.model.shape, made.model.transform.scale) == (shape, scale)


@pytest.mark.slow
def test_the_splits_that_are_asked_for():
    def sizes(x: Any, **more: Any) -> tuple[int, ...]:
        return tuple(len(split) for split in fit(x, **SMALL | {"steps": 1} | more)._load().values())

    assert sizes(X) == (108, 12, 0)
    assert sizes(X, validation=0.5, test=0.25) == (45, 45, 30)
    assert sizes(X, validation=0, test=X[:7]) == (120, 0, 7)
    assert sizes(X[:5], batch_size=5, val_fraction=0.0) == (5, 0, 0)
    assert fit(X[:20], **{k: v for k, v in SMALL.items() if k != "batch_size"}).settings.global_batch_size == 18


@pytest.mark.slow
def test_a_frame_is_a_table(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": X[:, 0], "b": X[:, 1] * 1000, "kind": ["x", "y", "z"] * 40})
    made = fit(frame, **SMALL)
    assert (made.settings.model.likelihood, made.model.shape) == ("mixed", (3,))
    assert made.resume(steps=8).step == 8
    codes = made.model.encode(frame.iloc[::2, ::-1].assign(other="not used"))
    np.testing.assert_allclose(codes, made.model.encode(frame)[::2], rtol=1e-12)
    back = made.model.reconstruct(frame)
    assert 0 < np.abs(back[:, 1] - frame["b"]).mean() < 500
    assert set(back[:, 2]) <= {0.0, 1.0, 2.0}
    for wrong, message in (
        (frame.assign(kind="w"), "x, column 'kind' contains 'w'; expected x, y, z"),
        (frame.assign(a="w"), "x, column 'a' contains strings; expected numbers"),
        (frame.drop(columns="b"), "x has no column 'b'; expected a, b, kind"),
        (frame.assign(a=np.nan), "x contains NaN or infinite values, first in sample 0"),
    ):
        with pytest.raises(distae.UserError, match=f"^{message}"):
            made.model.encode(wrong)
    assert fit(frame[["a", "b"]], **SMALL, likelihood="gaussian").settings.model.likelihood == "gaussian"
    frame.to_csv(tmp_path / "x.csv", index=False)
    assert fit(tmp_path / "x.csv", **SMALL, likelihood="mixed").model.shape == (3,)


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "shape": (X[0], {}, "x has shape [6]; expected [N, D], [N, H, W], [N, C, H, W] or [N, H, W, C]"),
    "no samples": (X[:0], {}, "x has shape [0, 6]; expected"),
    "dimensions": (np.zeros((2, 2, 2, 2, 2)), {}, "x has samples of shape [2, 2, 2, 2]; valid are [D]"),
    "NaN": (np.full((40, 6), np.nan), {}, "x contains NaN or infinite values"),
    "text": (np.array([["a"] * 6] * 40), {}, "x is of type <U1; expected integers or floating point numbers"),
    "channels": (np.zeros((40, 8, 8, 3), np.uint8), {}, "data.layout: x has shape [1, 8, 8, 3]: give channels_last for 8x8"),
    "range": (X * 2, {}, "model.likelihood bernoulli needs data in [0, 1]; the train split of data memory has values in"),
    "batch": (X, {"batch_size": 1000}, "global_batch_size 1000: the training split has only 108 samples; valid: at most that"),
    "label": (X, {"y": X[:, 0]}, "y is float64 [120]; expected [120] integers >= 0, one per sample"),
    "labels": (X, {"model": "cvae"}, "model cvae needs labels; data memory has none"),
    "share": (X, {"validation": 1.5}, "validation is 1.5; expected data, or a share >= 0 and < 1"),
    "other shape": (X, {"test": X[:, :3]}, "test has samples of float64 [3]; those of x are float64 [6]"),
    "no file": ("no.npy", {}, "data.path: no file no.npy"),
    "kind of file": ("x.xyz", {}, "x is 'x.xyz', whose kind is unknown: give data=, one of "),
    "name": ("digts", {}, "x is 'digts', whose kind is unknown: give data=, one of "),
    "source": (X, {"data": "mnist"}, "data='mnist' is read from files: pass a path as x, or leave data out"),
    "setting": (X, {"modle": "vae"}, "unknown setting 'modle' (did you mean 'model'?)"),
    "value": (X, {"latent_dim": 0}, "model.latent_dim: 0 is not valid; expected an integer >= 1"),
    "both": (X, {"epochs": 3}, "epochs 3 and steps 6 exclude each other: give one"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case, monkeypatch, tmp_path):
    x, more, message = WRONG[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(distae.UserError, match="^" + re.escape(message)):
        fit(x, **SMALL | more)
    assert not list(Path().iterdir())


def test_the_command_line_has_no_data_in_memory():
    with pytest.raises(distae.UserError, match=r"--data memory is for distae\.fit in Python"):
        check(build(TrainConfig, {"data": {"name": "memory"}}), 1)
