"""The cost of a batch of a sparse matrix: compressed rows against the same matrix stored dense, in one run.

    python benchmarks/data_sparse.py [--rows 20000] [--width 20000] [--density 0.01] [--batch 128] [--device cpu|cuda]

The dense paths: a memory-mapped .npy in the page cache, and once outside it, as if the array were larger than the memory; an array
in memory; and scipy's own `m[rows].toarray()`. Each is timed until the batch is on the device, alternating; figures are medians.
"""

import argparse
import mmap
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from distae.config.data import SparseConfig
from distae.data import Loader, Split, Tensors, load
from distae.noise import Noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 20000), ("width", 20000), ("batch", 128), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--device", default="cpu")
    cfg = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(cfg.device)
    matrix = counts(cfg.rows, cfg.width, cfg.density)
    with tempfile.TemporaryDirectory() as folder:
        sparse.save_npz(Path(folder) / "x.npz", matrix, compressed=False)
        np.save(Path(folder) / "x.npy", matrix.toarray())
        os.sync()
        ours = load(SparseConfig(path=f"{folder}/x.npz", val_fraction=0, test_fraction=0))["train"]
        pages = np.load(f"{folder}/x.npy", mmap_mode="r+")
        mapped = torch.from_numpy(pages)
        splits = {"CSR": ours, "dense, mapped": Split(Tensors(mapped)), "dense, in memory": Split(Tensors(mapped.clone()))}
        paths = {name: reader(split, device) for name, split in splits.items()}
        paths["scipy toarray"] = lambda rows: torch.from_numpy(matrix[rows.numpy()].toarray()).to(device)
        report(paths, cfg, ours.nbytes, mapped.nbytes)
        rows, start = torch.randint(cfg.rows, (cfg.batch,)), time.perf_counter()
        dropped(pages, f"{folder}/x.npy")
        paths["dense, mapped"](rows)
        print(f"dense, mapped, not cached: {(time.perf_counter() - start) * 1e3:.0f} ms for one batch, by this disk")


def counts(rows: int, width: int, density: float) -> sparse.csr_matrix:
    """Counts of which `density` are not 0."""
    rng = np.random.default_rng(0)
    per_row = rng.binomial(width, density, rows)
    indices = np.concatenate([rng.choice(width, n, replace=False) for n in per_row])
    data = rng.poisson(2, len(indices)).astype(np.float32) + 1
    return sparse.csr_matrix((data, indices, np.concatenate([[0], per_row.cumsum()])), (rows, width))


def dropped(pages: np.memmap, path: str) -> None:
    """Forget the pages of a mapped file, so that the next read goes to the disk."""
    pages._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def reader(split: Split, device: torch.device):
    loader = Loader(split, "none", device, torch.float32)
    return lambda rows: loader.batch(rows.to(loader.storage_device), Noise.seeded(0, len(rows)))[0]


def report(paths, cfg, compressed: int, dense: int) -> None:
    rng = torch.Generator().manual_seed(0)
    batches = [torch.randint(cfg.rows, (cfg.batch,), generator=rng) for _ in range(20)]
    expected = paths["scipy toarray"](batches[0])
    times: dict[str, list[float]] = {name: [] for name in paths}
    for repeat in range(cfg.repeats + 1):
        for name, path in paths.items():
            assert torch.equal(path(batches[0]), expected), name
            start = time.perf_counter()
            for rows in batches:
                path(rows)
            if cfg.device == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first warms up
                times[name].append((time.perf_counter() - start) / len(batches))
    print(f"{cfg.rows} x {cfg.width}, {cfg.density:.1%} not 0, batches of {cfg.batch} on {cfg.device}, torch {torch.__version__}")
    print(f"memory: CSR {compressed / 1e6:.0f} MB, dense {dense / 1e6:.0f} MB, {dense / compressed:.0f} times")
    ours = statistics.median(times["CSR"])
    for name, found in times.items():
        median = statistics.median(found)
        spread = f"{min(found) * 1e3:.2f} to {max(found) * 1e3:.2f}"
        print(f"{name:18}{median * 1e3:8.2f} ms a batch ({spread}); CSR is {median / ours:.1f} times as fast")


if __name__ == "__main__":
    main()
