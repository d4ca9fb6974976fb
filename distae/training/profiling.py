"""Where the time of a step goes: phases, always timed, and the breakdown and trace of --profile."""

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from distae import distributed as dist

TIMERS = ("data", "forward", "backward", "optimizer", "logging", "evaluation", "checkpoint")
WARM_UP, WINDOW, TRACED = 10, 50, 5
"""Numbers of steps that --profile skips, measures, and traces."""

PEAKS: dict[str, dict[str, float]] = {
    "H200": {"fp32": 66.9e12, "tf32": 494.7e12, "bf16": 989.4e12, "fp16": 989.4e12},
    "H100 80GB HBM3": {"fp32": 66.9e12, "tf32": 494.7e12, "bf16": 989.4e12, "fp16": 989.4e12},
    "H100 PCIe": {"fp32": 51.2e12, "tf32": 378e12, "bf16": 756e12, "fp16": 756e12},
    "A100": {"fp32": 19.5e12, "tf32": 156e12, "bf16": 312e12, "fp16": 312e12},
}
"""Dense floating point operations per second, by a part of the device's name and precision (NVIDIA's H100 and A100 data sheets)."""


def peak_flops(device: torch.device, precision: str, tf32: bool) -> float | None:
    """Peak floating point operations per second of the device; None if unknown."""
    if device.type != "cuda":
        return None
    kind = "tf32" if precision == "fp32" and tf32 else precision
    name = torch.cuda.get_device_name(device)
    return next((peaks.get(kind) for part, peaks in PEAKS.items() if part in name), None)


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the floating point operations of what is called while it is entered, by torch's own formulas.

    torch's `FlopCounterMode` also asks which module an operation is of, which fails in a forward pass that takes gradients.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # a tenth of the start-up, for the devices whose peak is known

        super().__init__()  # type: ignore[no-untyped-call]
        self.formulas, self.total = flop_registry, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, formula = func(*args, **(kwargs or {})), self.formulas.get(func._overloadpacket)
        if formula:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process has held: on the GPU if it trains on one, else resident in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Timer:
    """Adds up the host's seconds between entering and leaving."""

    def __init__(self) -> None:
        self.seconds = self.started = 0.0
        self.entering: Callable[[], None] | None = None
        self.leaving: Callable[[], None] | None = None

    def __enter__(self) -> None:
        if self.entering:
            self.entering()
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self.leaving:
            self.leaving()
        self.seconds += time.perf_counter() - self.started


class Timers(dict[str, Timer]):
    """The phases of a run by name."""

    def __init__(self) -> None:
        super().__init__({name: Timer() for name in TIMERS})

    def now(self) -> dict[str, float]:
        """Seconds in each phase so far, and `elapsed`, a clock with an arbitrary origin."""
        return {name: timer.seconds for name, timer in self.items()} | {"elapsed": time.perf_counter()}

    def since(self, then: dict[str, float]) -> dict[str, float]:
        """Seconds in each phase, and elapsed, since `then`, a result of `now`."""
        return {name: seconds - then[name] for name, seconds in self.now().items()}


class Profile:
    """The breakdown of a window of steps, and after it a torch.profiler trace of a few more.

    While it measures, it synchronizes the GPU at the end of each phase: times are exact, and the step is longer.
    """

    def __init__(self, timers: Timers, model: nn.Module, folder: Path, log: Callable[[str], None]) -> None:
        """Traces go to `folder`, one per rank; `log` receives the table and their paths."""
        self.timers, self.model, self.folder, self.log = timers, model, folder, log
        self.world = dist.world()
        self.activities = [torch.profiler.ProfilerActivity.CPU]
        if self.world.device.type == "cuda":
            self.activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.trace: torch.profiler.profile | None = None
        self.hooks: list[RemovableHandle] = []
        self.steps, self.exposed = 0, 0.0
        self.mark = self._now()
        self.opened = timers.now()

    def step(self) -> None:
        """Count a finished step, and open and close the windows when due."""
        self.steps += 1
        if self.steps == WARM_UP:
            self._measure()
        elif self.steps == WARM_UP + WINDOW:
            self._log_table()
            self._record()
        elif self.steps == WARM_UP + WINDOW + TRACED:
            self._export()

    def close(self) -> None:
        """End the profile with the run: report what was measured in an open window."""
        if WARM_UP < self.steps < WARM_UP + WINDOW:
            self._log_table()
        elif WARM_UP + WINDOW <= self.steps < WARM_UP + WINDOW + TRACED:
            self._export()
        elif self.steps <= WARM_UP:
            self.log(f"--profile: the run ended during the {WARM_UP} warm-up steps; nothing was measured")

    def _measure(self) -> None:
        for timer in self.timers.values():
            timer.leaving = dist.synchronize
        self.timers["backward"].leaving = self._end_backward
        for p in self.model.parameters():
            self.hooks.append(p.register_post_accumulate_grad_hook(self._gradient))  # type: ignore[no-untyped-call]
        self.opened = self.timers.now()

    def _gradient(self, _: Tensor) -> None:
        self.mark = self._now()

    def _end_backward(self) -> None:
        """The time after the last gradient is exchange that does not overlap with computation."""
        end = self._now()
        dist.synchronize()
        self.exposed += _between(self.mark, end)

    def _now(self) -> "float | torch.cuda.Event":
        """A point in time: an event in the device's queue, or the clock."""
        if self.world.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _log_table(self) -> None:
        """Log the table: milliseconds per step of each phase, and its share."""
        seconds, n = self.timers.since(self.opened), self.steps - WARM_UP
        elapsed = seconds.pop("elapsed")
        if self.world.world_size > 1:
            seconds["backward"] -= self.exposed
            seconds["gradient exchange, exposed"] = self.exposed
        seconds["other"] = elapsed - sum(seconds.values())
        rows = [f"  {name:28}{1e3 * s / n:10.3f} ms {s / elapsed:7.1%}" for name, s in seconds.items()]
        self.log("\n".join([f"profile of {n} steps on rank {self.world.rank}, per step:", *rows]))
        self._undo()

    def _record(self) -> None:
        for name, timer in self.timers.items():
            timer.entering, timer.leaving = _annotation(name)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # without a GPU it prints an error to stderr
        # There is one cycle only; without acc_events torch 2.11 warns that those before it are dropped.
        self.trace = torch.profiler.profile(activities=self.activities, acc_events=True)
        self.trace.start()

    def _export(self) -> None:
        assert self.trace
        dist.synchronize()
        self.trace.stop()
        self._undo()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"trace_rank_{self.world.rank}.json.gz"
        self.trace.export_chrome_trace(str(path))
        self.log(f"trace of {self.steps - WARM_UP - WINDOW} steps, one file per rank: {path} (ui.perfetto.dev opens it)")

    def _undo(self) -> None:
        for hook in self.hooks:
            hook.remove()
        for timer in self.timers.values():
            timer.entering = timer.leaving = None


def _annotation(name: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Functions that enter and leave a named range of a trace."""
    ranges: list[torch.profiler.record_function] = []

    def enter() -> None:
        ranges.append(torch.profiler.record_function(name))
        ranges[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave() -> None:
        ranges.pop().__exit__(None, None, None)

    return enter, leave


def _between(first: Any, last: Any) -> float:
    """Seconds between two results of `Profile._now`; on a GPU, both events must have completed."""
    return float(first.elapsed_time(last) / 1e3 if isinstance(first, torch.cuda.Event) else last - first)
