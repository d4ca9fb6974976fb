"""log.txt, and a progress bar on a terminal."""

import contextlib
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from distae.runtime.files import open_append
from distae.tracking.sink import Row

SECONDS_BETWEEN_ROWS = 10.0
"""Seconds between printed rows of training metrics without a terminal; the first, the last and evaluations are always printed."""


class Console:
    """log.txt with timestamps; on a terminal also a progress bar, else the same lines on stderr, with fewer rows of training."""

    bar: Any
    pending: str
    """The newest row of training, if it was not printed."""

    def __init__(self, path: Path, first: int, total: int, progress: str = "auto") -> None:
        self.file = os.fdopen(open_append(path), "a", buffering=1)
        self.total, self.bar = total, None
        self.mse: dict[str, float] = {}
        self.printed = -math.inf
        self.pending = ""
        self.quiet = progress != "auto"
        if progress == "bar" or (progress == "auto" and sys.stderr.isatty()):
            from tqdm.auto import tqdm

            self.bar = tqdm(total=total, initial=first, unit="step", dynamic_ncols=True)

    def line(self, text: str) -> None:
        """Print and log one line with its time, after the newest row of training if that was not printed."""
        if self.pending and not self.quiet:
            sys.stderr.write(self.pending + "\n")
        self._line(text)

    def _line(self, text: str) -> None:
        timed, self.pending = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", ""
        self._log(timed)
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            sys.stderr.write(timed + "\n")

    def _log(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self.file.write(line + "\n")

    def row(self, row: Row) -> None:
        evaluated = any(k.startswith(("val/", "test/")) for k in row)
        if evaluated:
            self.mse = {k: v for k, v in row.items() if k == "val/mse"} or self.mse
        text = f"step {row['step']} epoch {row['epoch']:.2f} {shown(row if evaluated else {**row, **self.mse})}"
        if evaluated:
            self._line(text)
        else:
            self._training(text, row)
        if self.bar is not None:
            self.bar.update(row["step"] - self.bar.n)

    def _training(self, text: str, row: Row) -> None:
        """Log a row of training metrics; show it in the bar, or print it if it is the last or none was printed for a while."""
        if self.bar is None and (row["step"] >= self.total or time.monotonic() - self.printed >= SECONDS_BETWEEN_ROWS):
            self.printed = time.monotonic()
            self._line(text)
            return
        timed = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
        self._log(timed)
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss={row['train/loss']:.5g}", refresh=False)
        else:
            self.pending = timed

    def image(self, name: str, path: Path, step: int) -> None:
        pass

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        with contextlib.suppress(OSError):
            self.file.close()


def shown(row: Row) -> str:
    """The metrics of a row as shown to users: bytes as MiB or GiB, no times, and no term that repeats the loss."""
    same = {k for k, v in row.items() if k.endswith("/recon") and v == row.get(k.replace("recon", "loss"))}
    kept = {k: v for k, v in row.items() if k.count("/") == 1 and not k.endswith("_seconds") and k not in same}
    return " ".join(f"{k.removesuffix('_bytes')}={size(v) if k.endswith('_bytes') else f'{v:.5g}'}" for k, v in kept.items())


def size(number: float) -> str:
    """Bytes as a string in GiB or MiB."""
    return f"{number / 2**30:.2f}GiB" if number >= 2**30 else f"{number / 2**20:.0f}MiB"
