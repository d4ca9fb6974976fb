"""Several runs on this machine, each a process of its own, some at a time: a sweep without Slurm."""

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from distae.config import TrainConfig, write_toml
from distae.errors import UserError
from distae.runtime import outcome
from distae.runtime.run_dir import read_settings
from distae.runtime.signals import heard

from .local import gpus

STOPPED = outcome.EXIT_CODES["stopped"]
BESIDES = ("run_dir", "threads", "timeout")
"""Settings that do not make a finished run another one."""


@dataclass(frozen=True)
class Task:
    """One run of a sweep."""

    name: str
    cfg: TrainConfig

    @property
    def run_dir(self) -> Path:
        return Path(self.cfg.run_dir or ".")

    def file(self, suffix: str) -> Path:
        """Its settings (.toml) and what its process prints (.log), in a folder of the sweep."""
        return self.run_dir.parent / "sweep" / f"{self.name}{suffix}"

    @property
    def is_done(self) -> bool:
        """Whether the run has ended, with these very settings: with more steps, it is to be continued."""
        end = outcome.read(self.run_dir)
        if self.cfg.fresh or not end or end.outcome != "done":
            return False
        try:
            there = read_settings(self.run_dir)
        except UserError:
            return False
        return replace(there, **{k: getattr(self.cfg, k) for k in BESIDES}) == self.cfg


class Workers:
    """Runs in order, `jobs` at once, each with a GPU of its own as long as there are enough."""

    def __init__(self, tasks: Sequence[Task], jobs: int, plugin: str | None) -> None:
        self.tasks, self.jobs, self.plugin = tasks, jobs, plugin
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.asked = 0
        """The signal that has asked to stop: no further run begins."""
        self.slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(jobs):
            self.slots.put(slot)

    def run(self) -> int:
        """The exit code: 0 all are done, 1 or 2 one failed or was invalid, 75 stopped by a signal, which each run has received."""
        before = {s: signal.signal(s, self._stop) for s in heard()}
        try:
            with ThreadPoolExecutor(self.jobs) as pool:
                codes = [*pool.map(self._one, self.tasks)]
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
        return next((code for code in codes if code not in (0, STOPPED)), max(codes))

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        self.asked = self.asked or signum
        for process in [*self.running.values()]:
            process.send_signal(signum)

    def _one(self, task: Task) -> int:
        if self.asked:
            return STOPPED
        if task.is_done:
            self._say(task, "done before")
            return 0
        slot, began = self.slots.get(), time.monotonic()
        try:
            code = self._train(task, slot)
        finally:
            self.slots.put(slot)
        end = outcome.read(task.run_dir)
        how = f"{end.outcome} at step {end.step}" if end else "no outcome"
        self._say(task, f"{how if code in (0, STOPPED) else _last_line(task)} ({time.monotonic() - began:.0f} s)")
        return code

    def _train(self, task: Task, slot: int) -> int:
        """The process's exit code, as a shell counts signals."""
        task.file(".log").parent.mkdir(parents=True, exist_ok=True)
        task.file(".toml").write_text(write_toml(task.cfg))
        command = [sys.executable, "-m", "distae.train", "--config", str(task.file(".toml"))]
        command += ["--plugin", self.plugin] if self.plugin else []
        with task.file(".log").open("ab") as log:
            # In a session of its own: a terminal's Ctrl-C reaches it once, through us.
            process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment(task, slot), start_new_session=True)
        self.running[task.name] = process
        if self.asked:  # since this began
            process.send_signal(self.asked)
        code = process.wait()
        del self.running[task.name]
        return code if code >= 0 else 128 - code

    @staticmethod
    def _environment(task: Task, slot: int) -> dict[str, str]:
        there = gpus()
        one = {"CUDA_VISIBLE_DEVICES": there[slot % len(there)]} if len(there) > 1 and task.cfg.device != "cpu" else {}
        return os.environ | one

    def _say(self, task: Task, text: str) -> None:
        sys.stdout.write(f"[{self.tasks.index(task) + 1}/{len(self.tasks)}] {task.name}: {text}\n")
        sys.stdout.flush()


def _last_line(task: Task) -> str:
    lines = task.file(".log").read_text(errors="replace").splitlines()
    return f"failed: {next((line for line in reversed(lines) if line.strip()), '')} (all of it: {task.file('.log')})"
