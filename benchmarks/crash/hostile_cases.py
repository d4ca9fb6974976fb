"""The hostile inputs: what a damaged disk, a wrong command or an attacker could put in place of valid input."""

import io
import json
import os
import shutil
import socket
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.crash.hostile import JOB, Case
from benchmarks.crash.hostile_models import CONFIG, HUGE, WEIGHTS, checksums, models, sparse, write


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for group in (models(), _strange_files(), _arrays(), _forged(), _texts(), _commands()):
        found |= group
    return found


def _resume(place: Path) -> list[str]:
    return [*JOB[:-1], "25", "--run-dir", str(place / "run")]


def _nothing(place: Path) -> None:
    pass


# things that are not regular files


def _replaced(name: str, by: Callable[[Path], Any]) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        path = place / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        by(path)

    return make


def _unix_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)  # by a short name: a socket's may have 100 bytes
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


STRANGE: dict[str, Callable[[Path], Any]] = {
    "a FIFO": os.mkfifo, "a link to /dev/zero": lambda p: p.symlink_to("/dev/zero"), "a folder": Path.mkdir,
    "a link to itself": lambda p: p.symlink_to(p), "a socket": _unix_socket,
}  # fmt: skip
STEP = "run/checkpoints/step_00000020"


def _strange_files() -> dict[str, Case]:
    found = {}
    for what, by in STRANGE.items():
        for name in (WEIGHTS, CONFIG):
            found[f"load: {what} for {Path(name).name}"] = Case("no regular file", _replaced(name, by))
        for name in (
            "run/config.toml",
            "run/metrics.jsonl",
            "run/outcome.json",
            f"{STEP}/COMMIT",
            f"{STEP}/state.json",
            "run/lock",
        ):
            harmless = name in ("run/outcome.json", f"{STEP}/COMMIT", f"{STEP}/state.json")  # the checkpoint before is used
            if name == "run/lock" and what != "a FIFO":
                continue
            codes = (0, 1, 2) if harmless else (1, 2)
            found[f"resume: {what} for {name[4:]}"] = Case("no regular file", _replaced(name, by), _resume, codes=codes)
    for size, name in ((200 << 30, WEIGHTS), (200 << 30, CONFIG)):
        found[f"load: a sparse 200 GB {Path(name).name}"] = Case("no regular file", sparse(name, size))
    for name in ("run/config.toml", "run/outcome.json", f"{STEP}/COMMIT", f"{STEP}/state.json"):
        codes = (1, 2) if name == "run/config.toml" else (0, 1, 2)
        found[f"resume: a sparse 200 GB {name[4:]}"] = Case("no regular file", sparse(name, 200 << 30), _resume, codes=codes)
    for name in ("metrics.jsonl", "log.txt"):
        case = Case("links", partial(_linked, name=name), _resume, codes=(1, 2), intact="outside")
        found[f"resume: {name} links to another file"] = case
    step = Case("links", _linked_step, _resume, codes=(0, 1, 2), intact="other/checkpoints/step_00000020/COMMIT")
    found["resume: an old step links to another run's"] = step
    found["resume: checkpoints/ is a dangling link"] = Case(
        "links", _replaced("run/checkpoints", lambda p: p.symlink_to("/no/such")), _resume
    )
    found["resume: checkpoints/ is a file"] = Case("no regular file", _replaced("run/checkpoints", Path.touch), _resume)
    found["load: model/ is a file"] = Case("no regular file", _replaced("run/model", Path.touch))
    found["load: model/ is absent"] = Case("no regular file", _replaced("run/model", lambda p: None))
    tool = Case("no regular file", _replaced(f"{STEP}/COMMIT", os.mkfifo), lambda p: [str(p / "run")], "distae.checkpoint")
    return found | {"checkpoint: a FIFO for COMMIT": tool}


def _linked(place: Path, name: str) -> None:
    shutil.copy(place / "run" / name, place / "outside")
    (place / "run" / name).unlink()
    (place / "run" / name).symlink_to(place / "outside")


def _linked_step(place: Path) -> None:
    """Retention would delete through the link."""
    shutil.copytree(place / "run", place / "other")
    (place / "run/checkpoints/step_00000001").symlink_to(place / "other/checkpoints/step_00000020")


# arrays


def _npy(shape: str, descr: str = "'<f4'", data: bytes = b"", magic: bytes = b"\x93NUMPY\x01\x00") -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return magic + struct.pack("<H", len(head)) + head + data


def _npz(content: bytes, name: str = "x.npy") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def _bomb(place: Path) -> None:
    """4 GB of zeros in 4 MB."""
    with (
        zipfile.ZipFile(place / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        file.write(_npy("(16777216, 64)"))
        for _ in range(64):
            file.write(bytes(64 << 20))


def _bad_crc() -> bytes:
    data = bytearray(_npz(_npy("(100, 64)", data=np.random.default_rng(0).random((100, 64), np.float32).tobytes())))
    data[len(data) // 2] ^= 1
    return bytes(data)


def _on_array(place: Path, suffix: str) -> list[str]:
    return [*JOB, "--data", "array", "--data.path", f"{place / 'x'}.{suffix}", "--run-dir", str(place / "new")]


def _arrays() -> dict[str, Case]:
    good = np.random.default_rng(0).random((100, 64), np.float32)
    nan = good.copy()
    nan[3, 3] = np.nan
    npy = {
        "truncated": _npy("(100, 64)", data=good.tobytes()[:-100]),
        "no values": _npy("(100, 64)"),
        "negative": _npy("(-100, 64)"),
        "64 TB": _npy("(262144, 67108864)"),
        "10^30 samples": _npy(f"({10**30}, 64)"),
        "no dimension": _npy("()", data=bytes(4)),
        "no samples": _npy("(0, 64)"),
        "32 dimensions": _npy(f"({'1, ' * 32})", data=bytes(4)),
        "objects": _npy("(2, 2)", "'|O'", bytes(32)),
        "texts": _npy("(2, 2)", "'<U4'", bytes(64)),
        "records": _npy("(2, 2)", "[('a', '<f4')]", bytes(16)),
        "complex": _npy("(2, 2)", "'<c8'", bytes(32)),
        "code for a shape": _npy("__import__('os')"),
        "NaN": _npy("(100, 64)", data=nan.tobytes()),
        "version 9": _npy("(2, 2)", data=bytes(16), magic=b"\x93NUMPY\x09\x00"),
        "no magic": b"hello",
        "empty": b"",
        "a header of 4 GB": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1),
        "a nested header": _npy("(" * 5000),
    }
    npz = {
        "truncated": _npz(_npy("(100, 64)", data=good.tobytes()))[:-200],
        "a bad CRC": _bad_crc(),
        "no archive": b"PK\x03\x04 hello",
        "no array": _npz(b"hello", "x.txt"),
        "negative": _npz(_npy("(-100, 64)")),
        "64 TB": _npz(_npy("(262144, 67108864)")),
        "outside": _npz(_npy("(1, 1)"), "../../x.npy"),
    }
    found = {f".npy: {k}": Case("arrays", write("x.npy", v), partial(_on_array, suffix="npy")) for k, v in npy.items()}
    found |= {f".npz: {k}": Case("arrays", write("x.npz", v), partial(_on_array, suffix="npz")) for k, v in npz.items()}
    found[".npz: a bomb of 4 GB"] = Case("arrays", _bomb, partial(_on_array, suffix="npz"))
    for what in ("a FIFO", "a link to /dev/zero"):
        found[f".npy: {what}"] = Case("arrays", _replaced("x.npy", STRANGE[what]), partial(_on_array, suffix="npy"))
    return found


# forged checkpoints


def _forge(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the newest checkpoint's state.json or COMMIT, with matching checksums; older checkpoints are deleted."""

    def make(place: Path) -> None:
        folder = place / STEP
        for other in folder.parent.glob("step_*"):
            if other != folder:
                shutil.rmtree(other)
        report = json.loads((folder / name).read_bytes())
        (folder / name).write_text(json.dumps(change(report) or report))
        if name != "COMMIT":
            (folder / "COMMIT").write_text(json.dumps(checksums(folder / "COMMIT", folder)))

    return make


def _forged() -> dict[str, Case]:
    state: dict[str, Callable[[dict[str, Any]], Any]] = {
        "a list": lambda s: [s],
        "step 10^18": lambda s: s["state"].update(step=10**18),
        "a step of text": lambda s: s["state"].update(step="20"),
        "metrics of -1 bytes": lambda s: s.update(metrics_bytes=-1),
        "no window": lambda s: s.pop("window") and s,
        "a window of a million names": lambda s: s["window"].update(names=["x"] * 10**6),
        "other settings": lambda s: s["settings"].update({"optim.lr": 1.0}),
        "settings of text": lambda s: s.update(settings="x"),
        "settings of a million names": lambda s: s["settings"].update({f"x{i}": 1 for i in range(10**6)}),
        "a setting of 100,000 parts": lambda s: s["settings"].update({"model.latent_dim" + ".a" * 10**5: 1}),
        "a variant of 100,000 parts": lambda s: s["settings"].update({"net.name" + ".a" * 10**5: 1}),
        "a table and a value": lambda s: s.update(settings={"model": 1} | s["settings"]),
        "a value and a table": lambda s: s["settings"].update({"seed.a": 1}),
        "data of a million names": lambda s: s.update(data={f"x{i}": 1 for i in range(10**6)}),
        "a window of a million sums": lambda s: s["window"].update(sums=[[0.0] * 10**6] * 2),
        "a scaler": lambda s: s.update(scaler={"scale": 1.0}),
    }
    commit: dict[str, Callable[[dict[str, Any]], Any]] = {
        "a file outside": lambda c: c["files"].update({"../../config.toml": {"size": 1, "xxh3": "0"}}),
        "a size of -1": lambda c: c["files"]["state.json"].update(size=-1),
        "a million files": lambda c: c["files"].update({f"x{i}": {"size": 0, "xxh3": "0"} for i in range(10**6)}),
        "no files": lambda c: c.update(files={}),
        "a step of text": lambda c: c.update(step="x"),
        "a list": lambda c: [c],
        "a name of a NUL": lambda c: c["files"].update({"a\0b": {"size": 0, "xxh3": "0"}}),
    }
    found = {f"state.json: {k}": Case("forged checkpoints", _forge("state.json", v), _resume) for k, v in state.items()}
    rows = _forge("state.json", lambda s: s.update(metrics_bytes=10**18))
    words = "metrics.jsonl is damaged: .* bytes at this checkpoint are missing"
    found["state.json: metrics of 10^18 bytes"] = Case("forged checkpoints", rows, _resume, codes=(0,), right=words)
    return found | {f"COMMIT: {k}": Case("forged checkpoints", _forge("COMMIT", v), _resume) for k, v in commit.items()}


# settings and texts


def _texts() -> dict[str, Case]:
    toml = {
        "nested": b"x = " + b"[" * 100_000,
        "100 MB": b"#" * 100_000_000,
        "no UTF-8": b'seed = "\xff"',
        "a NUL": b"seed = \0",
        "a number of 5,000 digits": b"seed = " + b"9" * 5000,
        "empty": b"",
        "a list for a table": b"model = [1]",
        "NaN": b"[optim]\nlr = nan",
        "a date": b"seed = 1979-05-27",
        "nested tables": b"[" + b".".join([b"a"] * 20_000) + b"]",
        "a key of 100,000 parts": b".".join([b"a"] * 100_000) + b" = 1",
        "a key of 100,000 quoted parts": b"x = {" + b".".join([b'"a\\""'] * 100_000) + b" = 1}",
        "a million keys": b"".join(b"a%d=1\n" % i for i in range(10**6)),
        "25,000 keys": b"".join(b"a%d=1\n" % i for i in range(25_000)),
        "25,000 tables": b"".join(b"[a%d]\n" % i for i in range(25_000)),
        "a million seeds": b"seed = [" + b"1," * 100_000 + b"]",
        "no such setting": b"sead = 1",
    }
    found = {}
    for name, data in toml.items():
        argv = lambda place: [*JOB, "--config", str(place / "x.toml"), "--run-dir", str(place / "new")]  # noqa: E731
        if name not in ("empty", "100 MB"):
            found[f"--config: {name}"] = Case("settings", write("x.toml", data), argv)
        found[f"run's config.toml: {name}"] = Case("settings", write("run/config.toml", data), _resume)
    sync = lambda place: ["sync", str(place / "run")]  # noqa: E731
    keys = json.dumps({f"x{i}": 1 for i in range(10**6)}).encode()
    for name, data in {"a million keys": keys, "nested": b"[" * 10**6, "100,000 lines": b"{}\n" * 10**5}.items():
        for file in ("outcome.json", "metrics.jsonl"):  # reported, or of no consequence
            case = Case("settings", write(f"run/{file}", data), _resume, codes=(0, 1, 2))
            found[f"resume: {name} in {file}"] = case
    for name, data in {
        "a million keys": keys + b"\n",
        "a torn row between": b'{"step": 1}\n{"st\n{"step": 2}\n',
        "no JSON": b"hello\n",
        "a list": b"[1]\n",
        "no UTF-8": b"\xff\n",
    }.items():
        found[f"tracking sync: {name}"] = Case("settings", write("run/metrics.jsonl", data), sync, "distae.tracking")
    found["export of a damaged config.toml"] = Case(
        "settings",
        write("run/config.toml", b"\xff"),
        lambda p: [str(p / "run"), "--export", "best", str(p / "out")],
        "distae.checkpoint",
    )
    return found


# commands and environments


def _commands() -> dict[str, Case]:
    fresh = lambda place, *more: [*JOB, "--run-dir", str(place / "new"), *more]  # noqa: E731
    options = {
        "a code of 10^12": ["--model.latent-dim", str(10**12)],
        "a layer of 10^12": ["--net.hidden", str(10**12)],
        "a batch of 10^12": ["--global-batch-size", str(10**12)],
        "rate NaN": ["--optim.lr", "nan"],
        "10^9 layers": ["--net", "resnet", "--net.blocks", str(HUGE)],
        "no such plugin": ["--plugin", "/no/such.py"],
        "10^9 accumulations": ["--grad-accum-steps", str(HUGE)],
        "init from nothing": ["--init-from", "/no/such"],
        "fork from nothing": ["--fork-from", "/no/such"],
        "config from nothing": ["--config", "/no/such"],
        "config /dev/zero": ["--config", "/dev/zero"],
        "config a folder": ["--config", "/tmp"],
        "a run folder's name of 300": ["--run-dir", "/tmp/" + "x" * 300],
        "a path of 5,000": ["--run-dir", "/tmp/" + "x/" * 2500],
        "a run folder in /dev/null": ["--run-dir", "/dev/null/x"],
        "a run folder in /proc": ["--run-dir", "/proc/x"],
        "an option of 100 KB": [f"--{'x' * 100_000}", "1"],
    }
    found = {f"train: {k}": Case("commands", _nothing, partial(_with, more=v)) for k, v in options.items()}
    rank = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    environments = {
        "RANK=abc": rank | {"RANK": "abc"},
        "WORLD_SIZE=0": rank | {"WORLD_SIZE": "0"},
        "RANK=5 of 2": rank | {"RANK": "5"},
        "RANK=-1": rank | {"RANK": "-1"},
        "LOCAL_RANK=abc": rank | {"LOCAL_RANK": "abc"},
        "LOCAL_WORLD_SIZE=0": rank | {"LOCAL_WORLD_SIZE": "0"},
        "no MASTER_ADDR": {k: v for k, v in rank.items() if k != "MASTER_ADDR"},
        "MASTER_PORT=abc": rank | {"MASTER_PORT": "abc"},
        "SLURM_PROCID=abc": {
            "SLURM_PROCID": "abc",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_LOCALID": "0",
            "SLURM_STEP_NODELIST": "n1",
            "SLURM_JOB_ID": "1",
        },
        "half of SLURM's": {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"},
    }
    found |= {f"train: {k}": Case("commands", _nothing, fresh, env=v) for k, v in environments.items()}
    found["train: no UTF-8 in a name"] = Case("commands", _nothing, lambda p: [*JOB, "--run-dir", f"{p}/\udcff"], codes=(0, 1, 2))
    found |= {f"launch.slurm: {k}": case for k, case in _scripts().items()}
    return found


def _with(place: Path, more: list[str]) -> list[str]:
    return [*JOB, "--run-dir", str(place / "new"), *more]


def _scripts() -> dict[str, Case]:
    """Names that get into an sbatch script: rejected, or quoted so that they cannot add a line."""
    names = {
        "a newline in --run-dir": ("r/x\ntouch PWNED", r"^touch PWNED"), "a carriage return": ("r/x\rtouch PWNED", r"^touch PWNED"),
        "%j in --run-dir": ("r/%j", r"^#SBATCH .*r/%j"),
    }  # fmt: skip
    return {
        k: Case("commands", _nothing, partial(_dry_run, name=name), "launch.slurm", codes=(0, 1, 2), wrong=wrong)
        for k, (name, wrong) in names.items()
    }


def _dry_run(place: Path, name: str) -> list[str]:
    return ["--dry-run", "--nodes", "1", "--gpus-per-node", "1", "--", "--model", "vae", "--run-dir", name]
