"""One fault in one file of a finished run: using the run then gives the same result as before, or reports what is wrong."""

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.crash.compare import differences
from benchmarks.crash.processes import End, Plant, finish, fork, run, text_of, tool, wait

COMMON = (
    "--model vae --model.latent-dim 4 --net.hidden 16 --net.norm batch --net.dropout 0.1 --ema 0.9 --global-batch-size 24 "
    "--data.limit 240 --log-every 5 --eval-every 5 --save-every 5 --tracking none --device cpu --threads 1 --timeout 8"
)
STEPS, MORE = "20", "30"
LIMIT = 30
"""Seconds after which an answer counts as a hang."""
SAME, REFUSED, REPORTED, SILENT, TRACEBACK, HANG = "same", "refused", "reported", "SILENT", "TRACEBACK", "HANG"
BAD = (SILENT, TRACEBACK, HANG)


def kind_of(name: str) -> str:
    """What a file of a run folder is, for the table."""
    path = Path(name)
    if path.parts[0] == "checkpoints":
        return "shards" if path.suffix == ".safetensors" else path.name
    return f"model/{path.name}" if path.parts[0] == "model" else ("images" if path.parts[0] == "images" else path.name)


def damage(path: Path, rng: random.Random) -> str:
    """Flip a bit, zero a sector, or cut the file; returns what was done, or "" if the file is unchanged."""
    data = bytearray(path.read_bytes())
    before = bytes(data)
    how = rng.choices(("flip", "zero", "cut"), (6, 2, 2))[0]
    at = rng.randrange(len(data)) if data else 0
    if how == "flip" and data:
        data[at] ^= 1 << rng.randrange(8)
    elif how == "zero":
        at -= at % 512
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    else:
        del data[at:]
    path.write_bytes(data)
    return "" if bytes(data) == before else f"{how} at {at}"


class Unharmed:
    """The finished run, and the result of each way of using it."""

    def __init__(self, ranks: int, folder: Path) -> None:
        self.folder, self.ranks, self.base = folder, ranks, folder / "base"
        finish([*COMMON.split(), "--steps", STEPS, "--run-dir", str(self.base)], ranks, self.base)
        self.ways: dict[str, tuple[Path, End]] = {}
        for way in ("resume", "again", "load", "init", "export"):
            copy = folder / f"unharmed-{way}"
            shutil.copytree(self.base, copy)
            self.ways[way] = copy, self.go(way, copy)
            if any(c != 0 for c in self.ways[way][1].codes):
                raise SystemExit(f"{way}: {self.ways[way][1].text[-2000:]}")

    def files(self) -> list[str]:
        """Files that are not empty, so that they can be damaged."""
        return sorted(str(p.relative_to(self.base)) for p in self.base.rglob("*") if p.is_file() and p.stat().st_size)

    def go(self, way: str, run_dir: Path, plant: Plant | None = None) -> End:
        """Use a run folder in one of the ways; results are in `out_of(way, run_dir)`."""
        log, argv = run_dir.with_suffix(".log"), COMMON.split()
        if way in ("resume", "again"):
            return run(
                [*argv, "--steps", MORE if way == "resume" else STEPS, "--run-dir", str(run_dir)], self.ranks, log, LIMIT, plant
            )
        out = str(out_of(way, run_dir))
        if way == "init":
            return run([*argv, "--steps", "5", "--init-from", str(run_dir), "--run-dir", out], 1, log, LIMIT, plant)
        log.unlink(missing_ok=True)
        if way == "load":
            process = fork(load, (run_dir, Path(out), plant), log)
        else:
            process = fork(tool, ("distae.checkpoint", [str(run_dir), "--export", "best", out]), log)
        took = wait([process], LIMIT)
        return End([None if took == [None] else process.exitcode], text_of(log), took[0] or LIMIT)

    def judge(self, way: str, run_dir: Path, end: End, name: str) -> str:
        """The effect of the damage to file `name`."""
        there, unharmed = self.ways[way]
        if end.hung:
            return HANG
        if "Traceback" in end.text or any(c is not None and c < 0 for c in end.codes):
            return TRACEBACK
        if any(end.codes):
            return REFUSED if end.text.strip() and set(end.codes) <= {0, 1, 2} else SILENT
        if not [d for d in self.differences(way, there, run_dir) if d != f"bytes of {name}" or kind_of(name) != "images"]:
            return SAME
        words = (Path(name).name, *(p for p in Path(name).parts if p.startswith("step_")))
        new = [line for line in end.text.splitlines() if any(w in line for w in words)]
        known = [line for line in unharmed.text.splitlines() if any(w in line for w in words)]
        return REPORTED if len(new) > len(known) else SILENT

    def differences(self, way: str, there: Path, here: Path) -> list[str]:
        a, b = out_of(way, there), out_of(way, here)
        if way in ("load", "export"):
            names = [sorted(str(p.relative_to(r)) for p in r.rglob("*") if p.is_file()) for r in (a, b)]
            return (
                ["other files"] if names[0] != names[1] else [n for n in names[0] if (a / n).read_bytes() != (b / n).read_bytes()]
            )
        return differences(a, b, steady_saves=False)  # a damaged older checkpoint stays, and harms nothing


def out_of(way: str, run_dir: Path) -> Path:
    return run_dir if way in ("resume", "again") else run_dir.with_name(f"{run_dir.name}.out")


def load(run_dir: Path, out: Path, plant: Plant | None = None) -> int:
    """`distae.load`, as a program would use it: the weights, and what they make of an input, in a file."""
    import torch

    import distae
    from distae.errors import UserError

    if plant:
        plant(0)
    try:
        model = distae.load(run_dir).module
    except UserError as error:
        print(f"distae: {error}")
        return 2
    x = torch.linspace(0, 1, 2 * 64).view(2, 1, 8, 8)
    parts = {**model.state_dict(), "reconstructed": model.reconstruct(x).detach()}
    out.mkdir()
    for name, t in parts.items():
        (out / name).write_bytes(repr((t.dtype, t.shape)).encode() + t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return 0


def way_for(name: str, number: int) -> str:
    """How a run with a damaged file `name` is used: in a way that reads the file, alternating if there are several."""
    kind = kind_of(name)
    if kind.startswith("model/"):
        return ("load", "load", "init")[number % 3]
    if name.startswith("checkpoints/") or kind == "config.toml":
        return ("resume", "resume", "export")[number % 3]
    return "resume" if kind == "metrics.jsonl" else ("resume", "again")[number % 2]


def batch(ranks: int, count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """`count` faults in a run of `ranks` ranks, in one file after the other; model/ and metrics.jsonl come more often."""
    folder.mkdir(parents=True)
    unharmed, report = Unharmed(ranks, folder), []
    names = [n for n in unharmed.files() if kind_of(n) != "images" or n.endswith("20.png")]  # nothing reads them
    names += [n for n in names if n.startswith("model/") or n in ("metrics.jsonl", "config.toml")] * 3
    rng = random.Random(f"{seed} {ranks}")
    rng.shuffle(names)
    for number in range(count):
        name, copy = names[number % len(names)], folder / f"flip-{number}"
        shutil.copytree(unharmed.base, copy)
        done = ""
        while not done:
            done = damage(copy / name, rng)
        way = way_for(name, number // len(names))
        end = unharmed.go(way, copy)
        verdict = unharmed.judge(way, copy, end, name)
        report.append({"kind": kind_of(name), "way": way, "verdict": verdict, "what": f"{name}, {done}, {way}: {end.text[-160:]}"})
        if verdict not in BAD:
            shutil.rmtree(copy)
            shutil.rmtree(out_of(way, copy), ignore_errors=True)
    return report


def tasks(count: int, seed: int, folder: Path) -> list[tuple[Any, ...]]:
    """One part in five with checkpoints that two ranks have written, and read."""
    shares = [count // 10] * 10
    shares[0] += count - sum(shares)
    return [(batch, 2 if i < 2 else 1, n, seed + i, folder / f"{i}") for i, n in enumerate(shares) if n]


def summary(results: list[list[dict[str, Any]]]) -> dict[str, Any]:
    flips = [f for part in results for f in part]
    return {
        "count": len(flips),
        "faults": sum(f["verdict"] in BAD for f in flips),
        "verdicts": dict(Counter(f["verdict"] for f in flips)),
        "by_file": {k: dict(Counter(f["verdict"] for f in flips if f["kind"] == k)) for k in sorted({f["kind"] for f in flips})},
        "bad": [f"{f['verdict']}: {f['what']}" for f in flips if f["verdict"] in BAD][:40],
    }


def rows(s: dict[str, Any]) -> list[tuple[str, str, str]]:
    by = "; ".join(f"{k}: {', '.join(f'{n} {v}' for v, n in c.items())}" for k, c in s["by_file"].items())
    return [
        (
            "a flipped bit, a zeroed sector or a cut in one file of a run",
            str(s["count"]),
            f"{s['verdicts'].get(SILENT, 0)} silent, {s['verdicts'].get(TRACEBACK, 0)} tracebacks, "
            f"{s['verdicts'].get(HANG, 0)} hangs. {by}",
        )
    ]
