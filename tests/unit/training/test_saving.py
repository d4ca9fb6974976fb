"""When to save: the formula, what each save measures, and that all ranks save together without a change to any result."""

import math
from pathlib import Path

import pytest
from helpers import RICH, StopAt, fitted, metrics, run, settings, start

from benchmarks import crash
from distae.checkpoint.retention import steps_in
from distae.training.save_schedule import FIRST, GPU_HOURS_PER_FAILURE, REMEMBERED, SaveSchedule, best_interval

MINUTE, HOUR = 60.0, 3600.0


@pytest.mark.parametrize(("mtbf", "minutes"), [(24 * HOUR, 117), (6 * HOUR, 57), (15 * MINUTE, 9.1)])
def test_the_interval_is_what_dalys_figures_3_to_5_say(mtbf, minutes):
    assert best_interval(5 * MINUTE, mtbf) / MINUTE == pytest.approx(minutes, abs=0.5 if minutes > 10 else 0.05)


def expected_time(between: float, cost: float, mtbf: float) -> float:
    """Wall time per second of training with exponential failures, but for a factor (Daly 2006)."""
    return math.expm1((between + cost) / mtbf) / between


@pytest.mark.parametrize("ratio", [1e-8, 1e-5, 1e-3, 0.02, 0.1, 0.3])
def test_no_other_interval_costs_less(ratio):
    mtbf = 10 * HOUR
    cost = ratio * mtbf
    low, high = math.log(1e-6 * mtbf), math.log(10 * mtbf)
    for _ in range(200):  # ternary search: the expected time has one minimum
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if expected_time(math.exp(a), cost, mtbf) < expected_time(math.exp(b), cost, mtbf) else (a, high)
    ours, best = best_interval(cost, mtbf), math.exp(low)
    assert ours == pytest.approx(best, rel=0.01)
    assert expected_time(ours, cost, mtbf) <= expected_time(best, cost, mtbf) * (1 + 1e-4)


def test_a_save_that_costs_more_than_failures_allow_comes_once_per_failure():
    assert best_interval(50.0, 10.0) == 10.0
    assert best_interval(1e-6, 1e6) == pytest.approx(math.sqrt(2), rel=1e-5)  # Young's, where a save is cheap


class Simulated:
    """Training with steps of 0.1 s and saves of a given cost, on a clock of its own."""

    def __init__(self, mtbf: float, step: int = 0) -> None:
        self.clock = SaveSchedule("auto", mtbf)
        self.now, self.step = 1000.0, step
        self.clock.start(self.step, self.now)

    def until_saved(self, cost: float) -> int:
        """Steps up to the next save."""
        before = self.step
        while not self.clock.due(self.step):
            self.step += 1
            self.now += 0.1
        began, self.now = self.now, self.now + cost
        self.clock.next = self.clock.after(self.step, began, self.now)
        return self.step - before


def test_the_interval_follows_the_measured_cost_and_step_time():
    training = Simulated(mtbf=10 * HOUR, step=123)
    assert [training.until_saved(5.0), training.until_saved(0.2)] == [FIRST, FIRST]  # the first allocates buffers: not counted
    assert training.until_saved(0.2) == round(best_interval(0.2, 10 * HOUR) / 0.1)
    training.until_saved(60.0)
    assert training.until_saved(0.2) == round(best_interval(0.2, 10 * HOUR) / 0.1)
    for _ in range(REMEMBERED):
        training.until_saved(0.8)
    assert training.until_saved(0.8) == round(best_interval(0.8, 10 * HOUR) / 0.1)


def test_a_save_between_delays_the_next_one():
    training = Simulated(mtbf=HOUR)
    training.until_saved(0.1)
    training.until_saved(0.1)
    every = training.clock.next - training.step
    training.clock.next = training.step + 7  # a new best was found there
    assert training.until_saved(0.1) == 7
    assert training.until_saved(0.1) == every


def test_a_number_of_steps_is_kept():
    assert [n for n in range(1, 13) if SaveSchedule(4, HOUR).due(n)] == [4, 8, 12]


AUTO = {"save_every": "auto", "steps": 60, "checkpoint": {"mtbf_hours": 1e-9, "keep_latest_k": 99}}
"""Failures that often that every step is saved, once the cost is known."""


@pytest.mark.slow
def test_saves_change_no_result(tmp_path: Path) -> None:
    """Neither the parameters nor the rows but for their times, also where the run is stopped at moments that are timed, too."""
    assert run(settings(**RICH | {"steps": 60, "save_every": 1000}), tmp_path / "never").outcome == "done"
    assert run(settings(**RICH | AUTO), tmp_path / "auto").outcome == "done"
    assert len(steps_in(tmp_path / "auto" / "checkpoints")) > 30
    for look in (25, 40):
        run(settings(**RICH | AUTO), tmp_path / "stopped", StopAt(look))
    run(settings(**RICH | AUTO), tmp_path / "stopped")
    assert not crash.differences(tmp_path / "never", tmp_path / "auto", steady_saves=False)
    assert not crash.differences(tmp_path / "never", tmp_path / "stopped", steady_saves=False)


def test_by_default_failures_are_those_of_llama_3(tmp_path: Path) -> None:
    trainer = fitted(settings(save_every="auto", data={"val_fraction": 0}), tmp_path / "run")
    assert trainer.checkpoints.schedule.mtbf == GPU_HOURS_PER_FAILURE * HOUR
    assert round(GPU_HOURS_PER_FAILURE) == 50_677
    assert metrics(tmp_path / "run")[-1]["step"] == 20


OTHER_CLOCK = """
import os
from distae.training import save_schedule
after = save_schedule.SaveSchedule.after
save_schedule.SaveSchedule.after = lambda self, step, *times: after(self, step, *times) + 3 * int(os.environ["RANK"])
"""


@pytest.mark.spawn
def test_ranks_whose_clocks_differ_save_at_the_same_steps(tmp_path: Path) -> None:
    """A rank that went by its own clock would wait for the others in a save of its own, up to the timeout."""
    (tmp_path / "other_clock.py").write_text(OTHER_CLOCK)
    options = (
        "--plugin other_clock.py --save-every auto --checkpoint.mtbf-hours 1e-9 --checkpoint.keep-latest-k 99 --steps 40 "
        "--timeout 20 --data.limit 200 --global-batch-size 24 --eval-every 1000 --tracking none --device cpu --run-dir run"
    )
    done = start(*options.split(), nproc=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    saved = steps_in(tmp_path / "run" / "checkpoints")
    assert sorted(saved) == [FIRST, *range(2 * FIRST, 41)]
