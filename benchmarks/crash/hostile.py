"""Hostile inputs: each must give a message and exit code 1 or 2, within 1 s and 1 GB beyond importing torch.

Seconds are CPU time (user and system, all threads and children), or time asleep if that is more: waiting for a core of a busy
machine is neither, so other work on the machine causes no false alarm.
"""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.crash.flips import COMMON, load
from benchmarks.crash.processes import Plant, finish, fork, kill, text_of, tool, train

SECONDS, BYTES = 1.0, 1 << 30
PATIENCE, MOST_BYTES = 40.0, 3 << 30
"""Wall seconds, and bytes, at which the harness kills the process."""
TICK = 1 / os.sysconf("SC_CLK_TCK")
JOB = [*COMMON.split(), "--steps", "20"]
WORDS = re.compile(r"[A-Za-z]{3,}")


class Case(NamedTuple):
    """One hostile input."""

    group: str
    make: Callable[[Path], Any]
    """Spoils a copy of a finished run's folder `run`, or of a model or a file beside it."""
    argv: Callable[[Path], list[str]] | None = None
    """Arguments of `python -m module`; None is `distae.load`."""
    module: str = "distae.train"
    env: dict[str, str] = {}  # noqa: RUF012
    codes: tuple[int, ...] = (1, 2)
    intact: str = ""
    """A file beside the run that must not change."""
    wrong: str = ""
    """A pattern that must not be in the output."""
    right: str = ""
    """A pattern that must be in the output."""


def _measured(work: Callable[..., Any], args: tuple[Any, ...], out: Path) -> Any:
    """Run `work` in this process; writes its CPU seconds and peak memory, beyond those at the start, to `out`."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, began = _memory("VmRSS"), sum(os.times()[:4])
    try:
        return work(*args)
    finally:
        report = {"cpu": sum(os.times()[:4]) - began, "bytes": _memory("VmHWM") - before}
        out.write_text(json.dumps(report))


def _memory(what: str, pid: int | str = "self") -> int:
    with contextlib.suppress(OSError):
        found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) << 10 if found else 0
    return 0


def attempt(name: str, case: Case, folder: Path, base: Path, plant: Plant | None = None) -> dict[str, Any]:
    """Try one hostile input; returns a report."""
    place, out, log = folder / re.sub(r"\W+", "-", name), folder / "report.json", folder / "case.log"
    shutil.copytree(base, place / "run")
    log.unlink(missing_ok=True)
    out.unlink(missing_ok=True)
    case.make(place)
    before = _content(place, case.intact)
    work: tuple[Callable[..., Any], tuple[Any, ...]] = (load, (place / "run", place / "out", plant))
    if case.argv and case.module == "distae.train":
        work = train, (case.argv(place), 0, plant)
    elif case.argv:
        work = tool, (case.module, case.argv(place))
    process = fork(_measured, (*work, out), log, case.env)
    report: dict[str, Any] = {**_watch(process)}
    report |= json.loads(out.read_text()) if out.exists() else {}
    report |= {"seconds": max(report["cpu"], report["asleep"])}
    report |= {"name": name, "group": case.group, "code": process.exitcode, "text": text_of(log)}
    report["problems"] = _problems(case, report, _content(place, case.intact) != before)
    shutil.rmtree(place, ignore_errors=True)
    return report


def _content(place: Path, name: str) -> bytes | None:
    path = place / name
    return path.read_bytes() if name and path.is_file() else None


def _watch(process: Any) -> dict[str, float]:
    """Wait for a process, and kill it at PATIENCE or MOST_BYTES; returns seconds of wall, CPU and sleep, and peak bytes."""
    began = before = time.monotonic()
    first, report = _memory("VmRSS", process.pid), {"wall": 0.0, "cpu": 0.0, "asleep": 0.0, "bytes": 0.0}
    while process.exitcode is None:
        state, report["cpu"] = _clock(process.pid) or ("", report["cpu"])
        report["bytes"] = max(report["bytes"], _memory("VmRSS", process.pid) - first)
        now = time.monotonic()
        report["asleep"] += (now - before) * (state == "S")
        report["wall"], before = now - began, now
        if report["wall"] > PATIENCE or report["bytes"] > MOST_BYTES:
            kill([process])
            process.join()
            break
        time.sleep(0.004)
    return report


def _clock(pid: int) -> tuple[str, float] | None:
    """The state of a process, S if it sleeps, and its CPU seconds; None if it has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return fields[0], sum(map(int, fields[11:15])) * TICK
    return None


def _problems(case: Case, report: dict[str, Any], changed: bool) -> list[str]:
    text, trained = report["text"], report["code"] == 0 and 0 in case.codes
    found = {
        "hangs": report["wall"] > PATIENCE,
        "slow": report["seconds"] > SECONDS and report["wall"] <= PATIENCE and not trained,
        "memory": report["bytes"] > BYTES,
        "traceback": "Traceback" in text,
        f"exit code {report['code']}": report["code"] not in case.codes,
        "no message": not WORDS.search(text),
        "another file was changed": changed,
        f"output has {case.wrong}": bool(case.wrong) and bool(re.search(case.wrong, text, re.MULTILINE)),
        f"output lacks {case.right}": not re.search(case.right, text),
    }
    return [what for what, is_so in found.items() if is_so]


def batch(names: list[str], folder: Path) -> list[dict[str, Any]]:
    from benchmarks.crash.hostile_cases import cases

    folder.mkdir(parents=True)
    base, table = folder / "base", cases()
    finish([*JOB, "--run-dir", str(base)], 1, base)
    return [attempt(name, table[name], folder, base) for name in names]


def tasks(count: int, seed: int, folder: Path) -> list[tuple[Any, ...]]:
    from benchmarks.crash.hostile_cases import cases

    names = list(cases())[:count]
    return [(batch, names[i::8], folder / f"{i}") for i in range(8) if names[i::8]]


def summary(results: list[list[dict[str, Any]]]) -> dict[str, Any]:
    report = [t for part in results for t in part]
    groups = {g: sum(t["group"] == g for t in report) for g in sorted({t["group"] for t in report})}
    fine = [t for t in report if not t["problems"]]
    return {
        "count": len(report),
        "faults": len(report) - len(fine),
        "groups": groups,
        "trained": sum(t["code"] == 0 for t in fine),
        "slowest": {t["name"]: round(t["seconds"], 2) for t in sorted(report, key=lambda t: -t["seconds"])[:20] if t["code"]},
        "slowest_seconds": round(max((t["seconds"] for t in fine if t["code"]), default=0), 2),
        "most_bytes": max((t["bytes"] for t in fine), default=0),
        "bad": [f"{t['group']}: {t['name']}: {', '.join(t['problems'])} ({t['seconds']:.2f} s, {int(t['bytes']) >> 20} MiB): "
                f"{t['text'].strip()[-160:]}" for t in report if t["problems"]],
    }  # fmt: skip


def rows(s: dict[str, Any]) -> list[tuple[str, str, str]]:
    groups = ", ".join(f"{n} {g}" for g, n in s["groups"].items())
    return [
        (
            f"hostile inputs ({groups}): a message within 1 s (CPU, or asleep) and 1 GB beyond importing torch",
            str(s["count"]),
            f"{s['count'] - s['faults']} so, within {s['slowest_seconds']} s and {int(s['most_bytes']) >> 20} MiB, "
            f"with code 1 or 2 ({s['trained']} by a resume that says what it skipped, code 0); {s['faults']} not",
        )
    ]
