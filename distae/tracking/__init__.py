"""Where metrics and pictures go, from rank 0: metrics.jsonl, a log and a progress bar, Weights & Biases."""

import contextlib
import json
import netrc
import os
import platform
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from distae.config import to_dict
from distae.config.train import TrainConfig

Row = Mapping[str, float | int]


class Sink(Protocol):
    """Takes rows of metrics and pictures."""

    def row(self, row: Row) -> None: ...
    def image(self, name: str, path: Path, step: int) -> None: ...
    def close(self) -> None: ...


class Jsonl:
    """metrics.jsonl: one object per line, handed to the operating system line by line. Rows that cannot be written are kept."""

    def __init__(self, path: Path, size: int | None) -> None:
        """Continue the file after its first `size` bytes: what a checkpoint does not know of is cut. None keeps all."""
        self.file = path.open("ab", buffering=0)
        self.size = path.stat().st_size if size is None else min(size, path.stat().st_size)
        self.file.truncate(self.size)
        self.late: list[bytes] = []

    def row(self, row: Row) -> None:
        self.late.append(json.dumps(dict(row)).encode() + b"\n")
        with contextlib.suppress(OSError):
            self._flush()

    def sync(self) -> int:
        """Make all rows durable; the size of the file in bytes. Raises OSError where they cannot be written."""
        self._flush()
        os.fsync(self.file.fileno())
        return self.size

    def _flush(self) -> None:
        """Write all rows or none, so that no torn line stays on a full disk."""
        lines = memoryview(b"".join(self.late))
        try:
            while lines:
                lines = lines[self.file.write(lines) :]
        except OSError:
            self.file.truncate(self.size)
            raise
        self.size += sum(map(len, self.late))
        self.late.clear()

    def image(self, name: str, path: Path, step: int) -> None:
        pass

    def close(self) -> None:
        self.file.close()


class Console:
    """log.txt with timed lines; a progress bar on a terminal, the same lines elsewhere."""

    def __init__(self, path: Path, first: int, total: int) -> None:
        self.file = path.open("a", buffering=1)
        self.bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=first, unit="step", dynamic_ncols=True)

    def line(self, text: str) -> None:
        """Print and log one timed line."""
        timed = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
        self._log(timed)
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            sys.stderr.write(timed + "\n")

    def _log(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self.file.write(line + "\n")

    def row(self, row: Row) -> None:
        shown = " ".join(f"{k}={v:.5g}" for k, v in row.items() if k.count("/") == 1 and not k.endswith("_seconds"))
        text = f"step {row['step']} epoch {row['epoch']:.2f} {shown}"
        if self.bar is None or any(k.startswith(("val/", "test/")) for k in row):
            self.line(text)
        else:
            self._log(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")
            self.bar.set_postfix_str(f"loss={row['train/loss']:.5g}", refresh=False)
        if self.bar is not None:
            self.bar.update(row["step"] - self.bar.n)

    def image(self, name: str, path: Path, step: int) -> None:
        pass

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        with contextlib.suppress(OSError):
            self.file.close()


class Wandb:
    """One W&B run per run folder: its id is made once and kept there; the step is a metric, so a resumed run goes on."""

    def __init__(self, run_dir: Path, cfg: TrainConfig, environment: dict[str, Any], console: Console) -> None:
        import wandb

        mode: Any = _wandb_mode(wandb)
        settings = wandb.Settings(console="off", silent=True, init_timeout=15)
        config = to_dict(cfg) | {"environment": environment}
        identity = wandb_identity(run_dir, console.line)
        # An absolute folder: the service that writes there may be a sweep agent's, in another folder.
        how: dict[str, Any] = identity | {"dir": str(run_dir.resolve()), "config": config, "settings": settings}
        try:
            self.run = wandb.init(mode=mode, resume="allow" if mode == "online" else None, **how)
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            console.line(f"W&B: {error}")
            mode = "offline"
            self.run = wandb.init(mode=mode, **how)
        if mode == "offline":
            console.line(f"W&B is offline (no key or no network): sync later with `python -m distae.tracking sync {run_dir}`")
        self.run.define_metric("*", step_metric="step")

    def row(self, row: Row) -> None:
        self.run.log(dict(row))

    def image(self, name: str, path: Path, step: int) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(path)), "step": step})

    def close(self) -> None:
        self.run.finish()


def wandb_identity(run_dir: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Project, name and id of the one W&B run of a run folder."""
    return {"project": os.environ.get("WANDB_PROJECT", "distae"), "name": run_dir.name, "id": _wandb_id(run_dir / "wandb_id", say)}


def _wandb_id(file: Path, say: Callable[[str], None]) -> str:
    """Made once and kept."""
    if file.exists():
        kept = file.read_bytes().strip()
        if re.fullmatch(rb"[\w-]{1,64}", kept):
            return kept.decode()
        say(f"W&B: {file} is damaged; a new W&B run begins")
    file.write_text(uuid.uuid4().hex[:8])
    return file.read_text()


def _wandb_mode(wandb: Any) -> str:
    """online where there are a key and a server that answers, what WANDB_MODE says where it is set, else offline."""
    if mode := os.environ.get("WANDB_MODE"):
        return "offline" if mode == "dryrun" else mode
    url = urlparse(os.environ.get("WANDB_BASE_URL", wandb.Settings().base_url))
    if not _has_key({url.hostname or "", "api.wandb.ai"}):
        return "offline"
    try:
        socket.create_connection((url.hostname, url.port or (80 if url.scheme == "http" else 443)), timeout=3).close()
    except OSError:
        return "offline"
    return "online"


def _has_key(hosts: set[str]) -> bool:
    """Whether the environment or `wandb login` left a key. wandb's own look-ups warn (`api`) or hang without network (`login`)."""
    if os.environ.get("WANDB_API_KEY") or "WANDB_IDENTITY_TOKEN_FILE" in os.environ:
        return True
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return bool(hosts & set(netrc.netrc(os.environ.get("NETRC")).hosts))
    return False


class Tracker:
    """All sinks of a run; none on ranks other than 0."""

    def __init__(self, sinks: list[Sink]) -> None:
        self.sinks = sinks

    @classmethod
    def open(cls, cfg: TrainConfig, size: int, steps: tuple[int, int], environment: dict[str, Any]) -> "Tracker":
        """The sinks that `cfg` asks for, from the first of `steps` to the last; metrics.jsonl goes on after `size` bytes."""
        run_dir = Path(cfg.run_dir or ".")
        console = Console(run_dir / "log.txt", *steps)
        sinks: list[Sink] = [Jsonl(run_dir / "metrics.jsonl", size), console]
        if cfg.tracking == "wandb":
            sinks.append(Wandb(run_dir, cfg, environment, console))
        return cls(sinks)

    def line(self, text: str) -> None:
        for sink in self.sinks:
            if isinstance(sink, Console):
                sink.line(text)

    def row(self, row: Row) -> None:
        for sink in self.sinks:
            sink.row(row)

    def sync(self) -> int | None:
        """Size in bytes of metrics.jsonl, now durable; None where it cannot be written to."""
        try:
            return next((s.sync() for s in self.sinks if isinstance(s, Jsonl)), 0)
        except OSError:
            return None

    def image(self, name: str, path: Path, step: int) -> None:
        for sink in self.sinks:
            sink.image(name, path, step)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


def describe_environment(world_size: int, threads: int, device: str) -> dict[str, Any]:
    """Commit, versions, devices: what a run was made with."""
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {
        "commit": _commit(), "python": platform.python_version(), "torch": torch.__version__,
        "device": name, "world_size": world_size, "threads": threads, "host": platform.node(),
    }  # fmt: skip


def _commit() -> str | None:
    """The commit of this code, where that can be known; a snapshot for a Slurm job holds it in a file, and lies in no checkout."""
    root = Path(__file__).parents[2]
    with contextlib.suppress(OSError):
        return (root / "COMMIT").read_text().strip()
    with contextlib.suppress(OSError):
        found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        return found.stdout.strip() or None
    return None
