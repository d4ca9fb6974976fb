"""Memory that loading takes: an epoch on a mapped file 20 times larger than what the process may still take, and a resident one.

Each is a process of its own, for memory that was once taken is not given back. Anonymous memory counts: pages of a mapped file are
the page cache's, shared by all processes and dropped at need.
"""

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (3, 64, 64)
SMALLER = 20
"""Times that the limit of the process goes into the file."""


def memory(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Most anonymous memory above that before the data were loaded, over the size of the data: [median, smallest, largest]."""
    n = max(1000, int(1_280_000_000 * args.scale) // 12288)
    pictures = np.lib.format.open_memmap(folder / "mapped.npy", "w+", np.uint8, (n, *SHAPE))
    rng = np.random.default_rng(0)
    for start in range(0, n, 1000):
        pictures[start : start + 1000] = rng.integers(0, 256, pictures[start : start + 1000].shape, dtype=np.uint8)
    np.savez_compressed(folder / "resident.npz", x=pictures[: n // 5])
    found = {}
    for file, size in (("mapped.npy", pictures.nbytes), ("resident.npz", pictures[: n // 5].nbytes)):
        command = [sys.executable, __file__, str(folder / file), str(size)]
        growth = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        found[f"{Path(file).stem}, over its size"] = [growth] * 3
    return found


class Watch(threading.Thread):
    """Looks at the anonymous memory of this process, every 2 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before, self.most = anonymous(), 0
        self.start()

    def run(self) -> None:
        while True:
            self.most = max(self.most, anonymous())
            time.sleep(0.002)

    @property
    def growth(self) -> int:
        return max(self.most, anonymous()) - self.before


def anonymous(field: str = "RssAnon") -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def main() -> None:
    """In a process of its own: load a file, train an epoch on it if it is mapped, and print the growth of memory over its size."""
    import torch
    from data import run, settings  # type: ignore[attr-defined]

    from distae.config.data import ArrayConfig
    from distae.data import Split, Tensors, Transform, load

    torch.set_num_threads(1)
    file = Path(sys.argv[1])

    def train(name: str, splits: dict[str, Split]) -> None:
        table, net = {"name": "array", "path": str(file)}, {"name": "mlp", "hidden": [8]}
        sizes = {"epochs": 1, "global_batch_size": 32, "eval_batch_size": 32, "log_every": 1000}
        run(settings(file.with_name(name), net=net, data=table, **sizes), splits)

    few = Split(Tensors(torch.zeros((2000, *SHAPE), dtype=torch.uint8)), Transform(255.0))
    mapped, size = file.suffix == ".npy", int(sys.argv[2])
    if mapped:
        train("warm up", {"train": few, "val": few, "test": few.take(slice(0))})
    watch = Watch()
    if mapped:
        limit = anonymous("VmData") + size // SMALLER
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    splits = load(ArrayConfig(path=str(file)))
    if mapped:
        train("epoch", splits)
    print(round(watch.growth / size, 4))


if __name__ == "__main__":
    main()
