"""log.txt, and a progress bar on a terminal."""

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from distae.runtime.files import open_append
from distae.tracking.sink import Row


class Console:
    """log.txt with timed lines; a progress bar on a terminal, the same lines elsewhere."""

    def __init__(self, path: Path, first: int, total: int) -> None:
        self.file = os.fdopen(open_append(path), "a", buffering=1)
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
