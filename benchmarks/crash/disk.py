"""Full disks: run folders on file systems with few bytes or inodes, or filled at some moment; then there is room again."""

import ctypes
import os
import random
import resource
import shutil
import subprocess
import time
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.crash.compare import differences, leftovers, rows_of
from benchmarks.crash.flips import COMMON
from benchmarks.crash.processes import End, finish, run, start, text_of, wait

STEPS = "20"
LIMIT = 40
ROOM = 64 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")


def can_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None


@cache  # once: the server of processes, which starts later, has to be in the same namespace
def own_mounts() -> None:
    """Give this process a mount namespace of its own, which ends with it."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x20000):  # CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def mount(folder: Path, size: int, inodes: int, again: bool = False) -> None:
    options = f"{'remount,' if again else ''}size={size},nr_inodes={inodes}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def job(run_dir: Path) -> list[str]:
    return [*COMMON.split(), "--steps", STEPS, "--run-dir", str(run_dir)]


def _limited(argv: list[str], size: int, log: Path) -> End:
    """For users who may not mount: files cannot grow beyond `size`."""
    return run(argv, 1, log, LIMIT, partial(_limit_files, size))


def _limit_files(size: int, rank: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _filled(argv: list[str], ranks: int, room: Path, rng: random.Random, seconds: float, log: Path) -> End:
    """The disk is full from a moment on, for a while or to the end."""
    log.unlink(missing_ok=True)
    began, ballast = time.monotonic(), room / "ballast"
    processes = start(argv, ranks, log)
    time.sleep(rng.uniform(0, seconds))
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
    if rng.random() < 0.6:
        time.sleep(rng.uniform(0.02, seconds))
        ballast.unlink()
    took = wait(processes, LIMIT)
    ballast.unlink(missing_ok=True)
    return End(
        [None if t is None else p.exitcode for p, t in zip(processes, took, strict=True)], text_of(log), time.monotonic() - began
    )


def fault(
    kind: str, at: float, ranks: int, number: int, seed: int, reference: Path, needs: tuple[int, int, float], folder: Path
) -> dict[str, Any]:
    """A run on a disk that is too small (`at`: the share of what it needs), then the same command with room."""
    rng, size, inodes, seconds = random.Random(f"{seed} {number}"), *needs
    room, log = folder / f"room-{number}", folder / f"{number}.log"
    room.mkdir()
    argv = job(room / "run")
    if kind == "file size":
        end = _limited(argv, max(1, int(at * size)), log)
    else:
        small = max(PAGE, int(at * size) // PAGE * PAGE) if kind == "bytes" else (4 << 20 if kind == "moment" else ROOM)
        mount(room, small, max(2, int(at * inodes)) if kind == "inodes" else 10_000)
        end = _filled(argv, ranks, room, rng, seconds, log) if kind == "moment" else run(argv, ranks, log, LIMIT)
        mount(room, ROOM, 10_000, again=True)
    torn = [r for r in rows_of(room / "run") if isinstance(r, str)] if (room / "run/metrics.jsonl").exists() else []
    after = run(argv, ranks, log.with_suffix(".after.log"), 120)
    human = f"{after.codes}: {after.text[-300:]}" if any(c != 0 for c in after.codes) else ""
    found = ["it did not end"] if human else _different(reference, room / "run")
    if kind != "file size":
        subprocess.run(["umount", str(room)], check=True)
    return {
        "kind": kind,
        "ranks": ranks,
        "at": at,
        "codes": end.codes,
        "hung": end.hung,
        "traceback": "Traceback" in end.text,
        "torn": torn,
        "human": human,
        "differences": found,
        "text": end.text[-300:],
        "left": [] if found else leftovers(room / "run"),
    }


def _different(reference: Path, run_dir: Path) -> list[str]:
    """Differences, except for pictures that were not written because the disk was full, which is reported."""
    found = differences(reference, run_dir, steady_saves=False)
    return [d for d in found if not d.startswith(f"only in {reference.name}: images/")]


def batch(ranks: int, kinds: list[tuple[str, float]], seed: int, folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(parents=True)
    if can_mount():
        own_mounts()
    finish(job(folder / "warm"), ranks, folder / "warm")
    end = finish(job(folder / "straight"), ranks, folder / "straight")
    files = [p for p in (folder / "straight").rglob("*") if p.is_file()]
    size, folders = sum(-(-p.stat().st_size // PAGE) * PAGE for p in files), 12
    if not can_mount():
        kinds, size, folders = [("file size", at) for _, at in kinds], max(p.stat().st_size for p in files), 0
    needs = size, len(files) + folders, end.seconds
    return [fault(kind, at, ranks, i, seed, folder / "straight", needs, folder) for i, (kind, at) in enumerate(kinds)]


def tasks(count: int, seed: int, folder: Path) -> list[tuple[Any, ...]]:
    """Two in five by size, one in five by inodes, the others filled at a moment; three in ten with two ranks."""
    rng = random.Random(seed)
    kinds = [(("bytes", "inodes", "moment", "bytes", "moment")[i % 5], rng.uniform(0, 0.9)) for i in range(count)]
    parts = [kinds[i::10] for i in range(10)]
    return [(batch, 2 if i < 3 else 1, part, seed + i, folder / f"{i}") for i, part in enumerate(parts) if part]


def summary(results: list[list[dict[str, Any]]]) -> dict[str, Any]:
    faults = [f for part in results for f in part]
    bad = [
        f
        for f in faults
        if f["hung"] or f["traceback"] or f["torn"] or f["differences"] or f["left"] or not set(f["codes"]) <= {0, 1, 2}
    ]
    return {
        "count": len(faults),
        "faults": len(bad),
        "by_kind": dict(Counter(f["kind"] for f in faults)),
        "first_start_failed": sum(any(f["codes"]) for f in faults),
        "tracebacks": sum(f["traceback"] for f in faults),
        "hung": sum(f["hung"] for f in faults),
        "torn_rows": sum(bool(f["torn"]) for f in faults),
        "needed_a_human": sum(bool(f["human"]) for f in faults),
        "differ_with_room_again": sum(bool(f["differences"]) for f in faults),
        "left_over_files": sum(len(f["left"]) for f in faults),
        "bad": [
            f"{f['kind']} {f['at']:.2f}, {f['ranks']} ranks, {f['codes']}: "
            f"{f['differences'][:2]} {f['left']} {f['human']} {f['text']}"
            for f in bad
        ][:20],
    }


def rows(s: dict[str, Any]) -> list[tuple[str, str, str]]:
    kinds = ", ".join(f"{k} {n}" for k, n in s["by_kind"].items())
    return [
        (
            f"a full disk ({kinds}), then room again",
            str(s["count"]),
            f"{s['differ_with_room_again']} end otherwise, {s['needed_a_human']} needed a human; the first start failed in "
            f"{s['first_start_failed']}: {s['tracebacks']} tracebacks, {s['hung']} hangs, {s['torn_rows']} torn rows; "
            f"{s['left_over_files']} left-over files",
        )
    ]
