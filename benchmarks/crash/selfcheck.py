"""A check of the harness itself: faults of every kind are planted, and it must find each."""

import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.crash import flips, frozen, hostile, kills
from benchmarks.crash.compare import beyond, differences, last_checkpoint, leftovers, rows_of
from benchmarks.crash.processes import fork

WEIGHTS = "model/model.safetensors"


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def _state(run: Path) -> None:
    path = last_checkpoint(run) / "state.json"
    report = json.loads(path.read_bytes())
    report["state"]["bad_evals"] += 1
    path.write_text(json.dumps(report))


def _row(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[3])
    row["epoch"] += 1e-6
    (run / "metrics.jsonl").write_text("\n".join([*lines[:3], json.dumps(row), *lines[4:]]) + "\n")


def _doubled_row(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines, lines[-1]]) + "\n")


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a bit of the model": lambda run: _flip(run / WEIGHTS),
    "a bit of the last checkpoint": lambda run: _flip(next(last_checkpoint(run).glob("*.safetensors"))),
    "a number of state.json": _state,
    "a value of a row": _row,
    "a doubled row": _doubled_row,
    "a picture that is missing": lambda run: next((run / "images").iterdir()).unlink(),
    "a file too many": lambda run: (run / "checkpoints/step_00000001").touch(),
}


def _sleep(seconds: float, run_dir: Path) -> Any:
    time.sleep(seconds)
    return _honest(run_dir)


def _work(seconds: float, run_dir: Path) -> Any:
    while time.process_time() < seconds:
        pass
    return _honest(run_dir)


def _honest(run_dir: Path) -> Any:
    from distae.errors import UserError

    raise UserError(f"no model in {run_dir}")


def _eat(run_dir: Path) -> Any:
    bytearray(3 << 29)
    return _honest(run_dir)


def _raise(run_dir: Path) -> Any:
    raise RuntimeError("planted")


def _other_weights(load: Callable[[Path], Any], run_dir: Path) -> Any:
    model = load(run_dir)
    next(iter(model.module.parameters())).data += 1e-6
    return model


def _load_by(replacement: Callable[[Path], Any] | None, rank: int) -> None:
    """A plant: `distae.load` does something else; by default it changes a weight."""
    import distae

    mock.patch.object(distae, "load", replacement or partial(_other_weights, distae.load)).start()


def check(folder: Path) -> list[tuple[str, bool]]:
    """Every planted fault, and whether it was found."""
    folder.mkdir(parents=True)
    reference = kills.Reference("vae", 1, folder)
    base = reference.run_dir
    chained = kills.chain(reference, 2, 0, folder / "chain")
    found = [("nothing, in a run that was killed", not chained["differences"] and not chained["human"])]
    for name, plant in DAMAGE.items():
        copy = folder / "copy"
        shutil.copytree(base, copy)
        plant(copy)
        found.append((name, bool(differences(base, copy))))
        shutil.rmtree(copy)
    shutil.copytree(base, folder / "other")
    (folder / "other/checkpoints/.step_00000009.writing").mkdir()
    with (folder / "other/metrics.jsonl").open("a") as file:
        file.write('{"st')
    found += [
        ("a save that was left", bool(leftovers(folder / "other"))),
        ("a torn row", any(isinstance(r, str) for r in rows_of(folder / "other"))),
        ("a row beyond the tolerance", bool(beyond(base, folder / "other", 1e-9))),
    ]
    return found + _flips(folder / "flips") + _hostile(folder, base) + [("a rank that stays", _stays(folder))]


def _flips(folder: Path) -> list[tuple[str, bool]]:
    folder.mkdir()
    unharmed, verdicts = flips.Unharmed(1, folder), {}
    with mock.patch.object(flips, "LIMIT", 5):
        for verdict, plant in {
            flips.SILENT: None, flips.TRACEBACK: _raise, flips.HANG: partial(_sleep, 9), flips.REFUSED: _honest,
        }.items():  # fmt: skip
            copy = folder / f"planted-{verdict}"
            shutil.copytree(unharmed.base, copy)
            end = unharmed.go("load", copy, partial(_load_by, plant))
            verdicts[f"a load that is {verdict}"] = unharmed.judge("load", copy, end, WEIGHTS) == verdict
    return list(verdicts.items())


def _hostile(folder: Path, base: Path) -> list[tuple[str, bool]]:
    case = hostile.Case("planted", lambda place: None)
    plants: list[tuple[str, Callable[[Path], Any] | None]]
    plants = [("slow", partial(_sleep, 1.5)), ("slow", partial(_work, 1.5)), ("memory", _eat), ("traceback", _raise)]
    plants += [("exit code 0", None), ("hangs", partial(_sleep, 60))]
    with mock.patch.object(hostile, "PATIENCE", 6):
        return [
            (
                f"an answer with: {problem}",
                problem in hostile.attempt(problem, case, folder, base, partial(_load_by, plant))["problems"],
            )
            for problem, plant in plants
        ]


def _stays(folder: Path) -> bool:
    with mock.patch.object(frozen, "LIMIT", 2):
        return bool(frozen._others_end([fork(time.sleep, (60,), folder / "stays.log") for _ in range(2)], 0)["hung"])


def tasks(count: int, seed: int, folder: Path) -> list[tuple[Any, ...]]:
    return [(check, folder)]


def summary(results: list[list[tuple[str, bool]]]) -> dict[str, Any]:
    found = [f for part in results for f in part]
    missed = [name for name, seen in found if not seen]
    return {"count": len(found), "faults": len(missed), "missed": missed}


def rows(s: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [("faults planted to check the harness itself", str(s["count"]), f"{s['count'] - s['faults']} found")]
