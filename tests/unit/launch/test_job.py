"""Who requeues a job of Slurm, when, and how often."""

import signal
import subprocess
import sys

import pytest
from helpers import STEP

from distae.config import TrainConfig, check, write_toml
from distae.runtime.outcome import Outcome
from launch import job, settings, slurm

CANCELLED = job.cancelled


@pytest.fixture
def in_a_job(monkeypatch):
    """A task of a Slurm step, with submitit's handler in place; what happens to the job is recorded."""
    happened = []
    before = {s: signal.getsignal(s) for s in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGUSR2, lambda signum, _: happened.append("requeued"))
    for name, value in (STEP | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(job, "cancelled", lambda: False)
    monkeypatch.setattr(job, "REQUEUE_PAUSE", 0.0, raising=False)
    monkeypatch.setattr(job, "wait_to_be_ended", lambda: happened.append("waited"))
    yield happened
    for signum, handler in before.items():
        signal.signal(signum, handler)


def job_that_ends(monkeypatch, outcome, name="", max_requeues=3):
    monkeypatch.setattr(job, "run", lambda cfg, env: Outcome(outcome, 7, "run", signal=name))
    return job.TrainJob(write_toml(check(TrainConfig(), 2)), max_requeues)


def test_rank_0_requeues_after_usr2(in_a_job, monkeypatch):
    with pytest.raises(SystemExit) as end:
        job_that_ends(monkeypatch, "stopped", "SIGUSR2")()
    assert (end.value.code, in_a_job) == (75, ["requeued"])


def test_other_ranks_wait_to_be_ended(in_a_job, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(SystemExit):
        job_that_ends(monkeypatch, "stopped", "SIGUSR2")()
    assert in_a_job == ["waited"]


@pytest.mark.parametrize(("outcome", "name", "code"), [("stopped", "SIGTERM", 75), ("failed", "", 1)])
def test_nothing_else_requeues(in_a_job, monkeypatch, outcome, name, code):
    with pytest.raises(SystemExit) as end:
        job_that_ends(monkeypatch, outcome, name)()
    assert (end.value.code, in_a_job) == (code, [])


def test_a_run_that_is_done_is_not_requeued_even_by_a_late_signal(in_a_job, monkeypatch):
    assert job_that_ends(monkeypatch, "done")()["step"] == 7
    signal.raise_signal(signal.SIGUSR2)
    assert in_a_job == []


def test_a_job_that_was_cancelled_while_it_saved_stays_cancelled(in_a_job, monkeypatch):
    monkeypatch.setattr(job, "cancelled", lambda: True)
    with pytest.raises(SystemExit):
        job_that_ends(monkeypatch, "stopped", "SIGUSR2")()
    assert in_a_job == []


BUSY = subprocess.TimeoutExpired("scontrol", 60)


@pytest.mark.parametrize("trouble", [BUSY, FileNotFoundError("scontrol")])
def test_a_busy_or_absent_scontrol_does_not_cost_the_requeue(in_a_job, monkeypatch, trouble):
    """Asking whether the job was cancelled fails as it does where the controller is busy, or a container has no Slurm in it."""

    def fails(*args, **kwargs):
        raise trouble

    monkeypatch.setattr(job, "cancelled", CANCELLED)
    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(SystemExit) as end:
        job_that_ends(monkeypatch, "stopped", "SIGUSR2")()
    assert (end.value.code, in_a_job) == (75, ["requeued"])


@pytest.mark.parametrize(
    ("troubles", "happened", "said"),
    [([BUSY, BUSY], ["requeued"], ""), ([BUSY] * 9, [], "not requeued, rerun to resume"), ([OSError("gone")], [], "gone")],
)
def test_the_requeue_itself_is_tried_again_while_the_controller_is_busy(in_a_job, monkeypatch, capsys, troubles, happened, said):
    waiting = list(troubles)

    def requeue(signum, frame):
        if waiting:
            raise waiting.pop()
        in_a_job.append("requeued")

    signal.signal(signal.SIGUSR2, requeue)
    with pytest.raises(SystemExit) as end:
        job_that_ends(monkeypatch, "stopped", "SIGUSR2")()
    assert (end.value.code, in_a_job) == (75, happened)
    assert said in capsys.readouterr().err


def test_the_cap_counts_slurms_restarts(in_a_job, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    with pytest.raises(SystemExit) as end:
        job_that_ends(monkeypatch, "stopped", "SIGUSR2")()
    assert (end.value.code, in_a_job) == (75, [])
    assert "not requeued after 3 restarts (--max-requeues)" in capsys.readouterr().err


def test_a_signal_before_training_listens_is_not_lost(in_a_job, monkeypatch):
    from distae.runtime.signals import listening

    def run(cfg, env):
        signal.raise_signal(signal.SIGUSR2)
        with listening() as request:
            return Outcome("stopped", 0, "run", signal=signal.Signals(request.signum).name)

    task = job_that_ends(monkeypatch, "done")
    monkeypatch.setattr(job, "run", run)
    with pytest.raises(SystemExit):
        task()
    assert in_a_job == ["requeued"]


def test_a_plugin_goes_with_the_job(in_a_job, monkeypatch, tmp_path):
    (tmp_path / "mine_of_launch.py").write_text("loaded = True\n")
    one = settings.SlurmConfig(gpus_per_node=0)
    _, plugin = slurm.training(["--plugin", str(tmp_path / "mine_of_launch.py")], one)
    assert plugin == str(tmp_path / "mine_of_launch.py")
    sys.modules.pop("mine_of_launch")  # as in the fresh process of a job
    sys.path.remove(str(tmp_path))
    job.TrainJob(job_that_ends(monkeypatch, "done").settings, 0, plugin)()
    assert sys.modules["mine_of_launch"].loaded


def test_nothing_about_progress_is_in_what_submitit_stores(in_a_job, monkeypatch):
    task = job_that_ends(monkeypatch, "done")
    assert task.checkpoint().function == task
    assert "step" not in {line.split(" = ")[0] for line in task.settings.splitlines()}
