"""All sinks of a run together, on rank 0."""

import contextlib
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distae.config.names import SINKS
from distae.config.train import TrainConfig
from distae.errors import DistaeError, TrainingError
from distae.runtime.files import in_words
from distae.tracking.console import Console
from distae.tracking.jsonl import Extent, Jsonl
from distae.tracking.sink import Row, Sink, Start


class Tracker:
    """All sinks of a run; none on ranks other than 0."""

    def __init__(self) -> None:
        self.sinks: list[Sink] = []
        self.chosen = "none"
        """The name of the sink of --tracking."""

    def open(
        self,
        cfg: TrainConfig,
        rows: Extent,
        steps: tuple[int, int],
        environment: dict[str, Any],
        may_write: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the sinks that `cfg` asks for, from the first of `steps` to the last; metrics.jsonl continues after `rows`.

        `may_write` raises TrainingError if the run folder is no longer ours; this raises it if a file cannot be written to.
        """
        run_dir = Path(cfg.run_dir or ".")
        try:
            jsonl = Jsonl(run_dir / "metrics.jsonl", rows.size, may_write)
            console = Console(run_dir / "log.txt", *steps, cfg.progress)
        except OSError as error:
            raise TrainingError(f"cannot write to {error.filename}: {in_words(error)}") from error
        if jsonl.lost:
            console.line(
                f"metrics.jsonl is damaged: {jsonl.lost} of its {rows.size} bytes at this checkpoint are missing, the last rows"
            )
        elif rows.xxh3 not in (None, jsonl.digest.hexdigest()):
            console.line("metrics.jsonl is damaged: rows from before this checkpoint were changed after it (checksum mismatch)")
        self.sinks += [jsonl, console]
        if cfg.tracking == "none":
            console.line("W&B is off; --tracking wandb turns it on")
        else:
            self.sinks.append(_begun(Start(run_dir, cfg, environment, console.line)))
            self.chosen = cfg.tracking

    def line(self, text: str) -> None:
        for sink in self.sinks:
            if isinstance(sink, Console):
                sink.line(text)

    def row(self, row: Row) -> None:
        self._each(lambda sink: sink.row(row))

    def sync(self) -> Extent | str:
        """The state of metrics.jsonl, now durable; or why it cannot be written to."""
        try:
            return next((s.sync() for s in self.sinks if isinstance(s, Jsonl)), Extent())
        except OSError as error:
            return f"metrics.jsonl cannot be written: {in_words(error)}"

    def image(self, name: str, path: Path, step: int) -> None:
        self._each(lambda sink: sink.image(name, path, step))

    def _each(self, call: Callable[[Sink], None]) -> None:
        for sink in [*self.sinks]:
            self._guarded(sink, call)

    def _guarded(self, sink: Sink, call: Callable[[Sink], None]) -> None:
        """Call it; the sink of --tracking, if it fails, is off from then on: no package or service ends a run."""
        try:
            call(sink)
        except Exception as error:
            if isinstance(sink, Jsonl | Console):
                raise
            self.sinks.remove(sink)
            self.line(f"--tracking {self.chosen} failed ({in_words(error)}): off until the next start; metrics.jsonl has all rows")

    def close(self) -> None:
        """Close every sink once, however often this is called; also called if a run fails."""
        for sink in self.sinks[::-1]:  # the log last: the others write to it
            try:
                self._guarded(sink, lambda sink: sink.close())
            finally:
                self.sinks = [other for other in self.sinks if other is not sink]


def _begun(start: Start) -> Sink:
    """The sink of --tracking. Raises TrainingError where its package or service does not begin."""
    name = start.cfg.tracking
    try:
        return SINKS[name](start)  # type: ignore[no-any-return]
    except DistaeError:
        raise
    except Exception as error:
        raise TrainingError(f"--tracking {name}: {in_words(error)}; --tracking none leaves it out") from error


def describe_environment(world_size: int, threads: int, device: str) -> dict[str, Any]:
    """Commit, versions and devices of a run."""
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {
        "commit": _commit(), "python": platform.python_version(), "torch": torch.__version__,
        "device": name, "world_size": world_size, "threads": threads, "host": platform.node(),
    }  # fmt: skip


def _commit() -> str | None:
    """The commit of this code, if known. A snapshot for a Slurm job is not a checkout: it has it in a file."""
    root = Path(__file__).parents[2]
    with contextlib.suppress(OSError):
        return (root / "COMMIT").read_text().strip()
    with contextlib.suppress(OSError):
        found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        return found.stdout.strip() or None
    return None
