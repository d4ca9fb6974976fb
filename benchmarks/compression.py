"""Pictures of .dae files against JPEG, WebP and PCA of equal bytes, on sheets of 100 test images (10x10), a header each.

    python benchmarks/compression.py runs/a runs/b --root data --sheets 100

RUN: trained on images in [0, 1]. PCA: all components of the training images, on one grid, by the same tables; its step is chosen
so that it takes as many bits, headers left out. The model's bytes are not counted, but printed.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distae import data as data_
from distae.compression import Tables, fit_grid
from distae.config import TrainConfig
from distae.config.cli import build
from distae.data.trained import as_trained
from distae.evaluation import compression as c
from distae.evaluation.evaluation import Evaluation
from distae.models.serialization import load_saved


def evaluation(run: Path, root: str | None) -> Evaluation:
    saved = load_saved(run)
    cfg = build(TrainConfig, {"model": saved.about.model, "net": saved.about.net, "data": saved.about.data or {}})
    if root:
        cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, root=root))  # type: ignore[call-arg]
    splits = as_trained(data_.load(cfg.data), saved.transform, saved.model.shape)
    return Evaluation(saved.model, cfg, splits)


def files_of(tables: Tables, symbols: Any, sheets: int) -> list[int]:
    """Bytes of the file of each sheet."""
    return [len(c._file(tables, part)) for part in c._parts(symbols)[:sheets]]


def of_step(e: Evaluation, step: float, sheets: list[c.Pixels]) -> dict[str, Any]:
    """Our files of a step size, and those of others that are not larger."""
    tables = c.fit(e.model, e.codes("train"), step)
    symbols = tables.symbols(c.numbers_of(e.codes()))[0][: 100 * len(sheets)]
    sizes = files_of(tables, symbols, len(sheets))
    row: dict[str, Any] = {"step_size": step, "bytes": statistics.mean(sizes)}
    row["bits_per_pixel"] = 8 * row["bytes"] / sheets[0][..., 0].size if sheets[0].ndim == 3 else 8 * row["bytes"] / sheets[0].size
    row["ours"] = c.psnr(c._sheets(c._decoded(e.model, tables, symbols)), sheets)
    return row | dict(c._beside(sheets, kind, sizes) for kind in ("JPEG", "WEBP")) | {"pca": pca(e, sizes, sheets)}


def pca(e: Evaluation, sizes: list[int], sheets: list[c.Pixels]) -> float:
    """PSNR of PCA's coefficients on one grid, of the finest step at which they have as many bits, by the entropy, as our files."""
    axes = e.pca(10**6)
    train, test = axes.encode(e.values("train")).numpy(), axes.encode(e.values()[: 100 * len(sheets)]).numpy()
    low, high = 0.1, 10.0
    for _ in range(8):
        step = (low * high) ** 0.5
        tables = fit_grid(train, np.full(train.shape[1], step))
        symbols = tables.symbols(test)[0]
        low, high = (step, high) if tables.bits(symbols) > 8 * sum(sizes) else (low, step)
    tables = fit_grid(train, np.full(train.shape[1], high))
    z = torch.from_numpy(tables.values(tables.symbols(test)[0]))
    made: Tensor = (z @ axes.components + axes.mean).view(-1, *e.model.shape)
    return c.psnr(c._sheets(made), sheets)


def seconds(e: Evaluation) -> dict[str, float]:
    """Of the coder alone, on the codes of all test samples in one file."""
    tables = c.fit(e.model, e.codes("train"), c.STEP)
    symbols = tables.symbols(c.numbers_of(e.codes()))[0]
    start = time.perf_counter()
    data = tables.encode(symbols)
    between = time.perf_counter()
    tables.decode(data, *symbols.shape)
    return {
        "samples": len(symbols), "bytes": len(data), "of_entropy": 8 * len(data) / tables.bits(symbols),
        "encode_seconds": between - start, "decode_seconds": time.perf_counter() - between,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--root", help="of the data, where it is another than at training")
    parser.add_argument("--sheets", type=int, default=100)
    parser.add_argument("--steps", type=float, nargs="+", default=[0.1, 0.25, 0.5, 1.0])
    args = parser.parse_args()
    report: dict[str, Any] = {}
    for run in args.runs:
        e = evaluation(run, args.root)
        sheets = c._sheets(e.values())[: args.sheets]
        rows = [of_step(e, step, sheets) for step in (args.steps if e.model.num_codes is None else [c.STEP])]
        model = (run / "model" / "model.safetensors").stat().st_size
        report[str(run)] = {"steps": rows, "model_bytes": model, "coder": seconds(e)}
        for row in rows:
            print(run.name, *(f"{k} {v:.5g}" for k, v in row.items()), sep="  ")
        print(run.name, f"model {model} bytes", report[str(run)]["coder"], sep="  ")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
