"""The cost of Parquet beyond decoding: the same encoded images decoded from memory, and read from row groups."""

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE, SIZE, BATCH = 256, 64, 32
"""Pixels of the images as encoded and as read, and rows of a read."""


def encoded(n: int) -> list[bytes]:
    """Smooth made-up photographs as JPEG."""
    rng, files = np.random.default_rng(0), []
    for _ in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
        files.append(file.getvalue())
    return files


def rate(read: Callable[[Tensor], object], n: int, threads: int) -> float:
    """Samples per second of this process's CPU time when all rows are read once."""
    parts = torch.arange(n).split(BATCH)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        start = time.process_time()
        for _ in pool.map(read, parts):
            pass
        return n / (time.process_time() - start)


def parquet(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rates over those of the decoder alone, on one thread and on all cores: at least 0.9."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from distae.config.data import ParquetConfig
    from distae.data import load
    from distae.data.decode import decode

    files = encoded(max(64, round(2000 * args.scale)))
    pq.write_table(pa.table({"image": [{"bytes": f, "path": ""} for f in files]}), folder / "x.parquet", row_group_size=100)

    def decoder(rows: Tensor) -> np.ndarray:
        return np.stack([decode(io.BytesIO(files[row]), "RGB", SIZE) for row in rows.tolist()])

    ratios: dict[str, list[float]] = {"1 thread": [], f"{os.cpu_count()} threads": []}
    for _ in range(args.rounds + 1):
        for name, found in ratios.items():
            source = load(ParquetConfig(path=str(folder / "x.parquet"), size=SIZE))["train"].source  # nothing is kept from before
            threads = int(name.split()[0])
            alone = rate(decoder, len(files), threads)
            found.append(rate(source.read, len(files), threads) / alone)
    rounds = {name: found[1:] or found for name, found in ratios.items()}
    return {f"over decoder, {k}": [round(f(v), 4) for f in (statistics.median, min, max)] for k, v in rounds.items()}
