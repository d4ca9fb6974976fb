"""Hostile inputs, each to be answered within 1 s and 1 GB beyond importing torch, in words, with exit code 1 or 2."""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.crash.flips import COMMON, load
from benchmarks.crash.processes import Plant, finish, fork, kill, text_of, tool, train

SECONDS, BYTES = 1.0, 1 << 30
PATIENCE, MOST_BYTES = 8.0, 3 << 30
"""Where the harness puts an end to it."""
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


def _measured(work: Callable[..., Any], args: tuple[Any, ...], out: Path) -> Any:
    """Do it in this process; its seconds and peak memory, beyond what it began with, go to `out`."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, began = _memory("VmRSS"), time.perf_counter()
    try:
        return work(*args)
    finally:
        report = {"seconds": time.perf_counter() - began, "bytes": _memory("VmHWM") - before}
        out.write_text(json.dumps(report))


def _memory(what: str, pid: int | str = "self") -> int:
    with contextlib.suppress(OSError):
        found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) << 10 if found else 0
    return 0


def attempt(name: str, case: Case, folder: Path, base: Path, plant: Plant | None = None) -> dict[str, Any]:
    """One hostile input and the answer to it."""
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
    seconds, peak = _watch(process)
    report = json.loads(out.read_text()) if out.exists() else {"seconds": seconds, "bytes": peak}
    report |= {"name": name, "group": case.group, "code": process.exitcode, "text": text_of(log)}
    report["problems"] = _problems(case, report, _content(place, case.intact) != before)
    shutil.rmtree(place, ignore_errors=True)
    return report


def attempt_calmly(name: str, case: Case, folder: Path, base: Path, times: int = 3) -> dict[str, Any]:
    """Again where the answer was right but slow, which other work on the machine may be the cause of; the quickest counts."""
    report = attempt(name, case, folder, base)
    for _ in range(times - 1):
        if report["problems"] != ["slow"]:
            break
        report = min(report, attempt(name, case, folder, base), key=lambda t: t["seconds"])
    return report


def _content(place: Path, name: str) -> bytes | None:
    path = place / name
    return path.read_bytes() if name and path.is_file() else None


def _watch(process: Any) -> tuple[float, int]:
    """Wait, and end what takes too long or too much; seconds, and bytes beyond the first look."""
    began, first, peak = time.monotonic(), _memory("VmRSS", process.pid), 0
    while process.exitcode is None:
        peak = max(peak, _memory("VmRSS", process.pid) - first)
        if time.monotonic() - began > PATIENCE or peak > MOST_BYTES:
            kill([process])
            process.join()
            break
        time.sleep(0.004)
    return time.monotonic() - began, peak


def _problems(case: Case, report: dict[str, Any], changed: bool) -> list[str]:
    text, trained = report["text"], report["code"] == 0 and 0 in case.codes
    found = {
        "hangs" if report["seconds"] > PATIENCE - 1 else "slow": report["seconds"] > (PATIENCE - 1 if trained else SECONDS),
        "memory": report["bytes"] > BYTES,
        "traceback": "Traceback" in text,
        f"exit code {report['code']}": report["code"] not in case.codes,
        "no words": not WORDS.search(text),
        "another file was changed": changed,
        f"output has {case.wrong}": bool(case.wrong) and bool(re.search(case.wrong, text, re.MULTILINE)),
    }
    return [what for what, is_so in found.items() if is_so]


def batch(names: list[str], folder: Path) -> list[dict[str, Any]]:
    from benchmarks.crash.hostile_cases import cases

    folder.mkdir(parents=True)
    base, table = folder / "base", cases()
    finish([*JOB, "--run-dir", str(base)], 1, base)
    return [attempt_calmly(name, table[name], folder, base) for name in names]


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
        "slowest_seconds": round(max((t["seconds"] for t in fine), default=0), 2),
        "most_bytes": max((t["bytes"] for t in fine), default=0),
        "bad": [f"{t['group']}: {t['name']}: {', '.join(t['problems'])} ({t['seconds']:.2f} s, {t['bytes'] >> 20} MiB): "
                f"{t['text'].strip()[-160:]}" for t in report if t["problems"]],
    }  # fmt: skip


def rows(s: dict[str, Any]) -> list[tuple[str, str, str]]:
    groups = ", ".join(f"{n} {g}" for g, n in s["groups"].items())
    return [
        (
            f"hostile inputs ({groups}): answered within 1 s and 1 GB beyond importing torch, in words, with code 1 or 2",
            str(s["count"]),
            f"{s['count'] - s['faults']} so, within {s['slowest_seconds']} s and {s['most_bytes'] >> 20} MiB; {s['faults']} not",
        )
    ]
