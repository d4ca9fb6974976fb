"""What a masked autoencoder's features are worth: kNN and a linear probe, beside raw pixels and the encoder before training.

    python benchmarks/masked.py --train train.npz --test test.npz      # each: x [N, 3, 32, 32] bytes, y [N] classes
    python benchmarks/masked.py --train train.npz --test test.npz --device cuda --width 192 --depth 12 --patch 2 --epochs 200

All three get the same probes (`distae evaluate --tasks features`), and both encoders the same pooling. Runs that exist are
resumed, or only read.
"""

import argparse
import contextlib
import io
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

import distae
from distae import data
from distae.commands import train
from distae.config import TrainConfig, build, check
from distae.data import Reading
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.features import Features, nearest, probed
from distae.evaluation.shared import flat
from distae.models import build as build_model
from distae.runtime.environment import Environment

PROBES = {"kNN": nearest, "linear probe": probed}


def settings(seed: int, args: argparse.Namespace) -> TrainConfig:
    steps = round(args.epochs * len(np.load(args.train)["y"]) / args.batch)
    table = {
        "model": {
            "name": "masked_ae", "latent_dim": args.width, "depth": args.depth, "heads": args.heads, "patch": args.patch,
            "decoder_dim": args.decoder_width, "decoder_depth": 1, "decoder_heads": 2, "likelihood": "gaussian", "norm_pix": True,
            "class_token": args.pool == "token", "pool": args.pool,
        },
        "data": {
            "name": "array", "path": str(args.train), "test": str(args.test), "key": "x", "label_key": "y", "val_fraction": 0.0,
        },
        "optim": {"name": "adamw", "lr": args.lr, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "schedule": {"name": "cosine", "warmup_steps": steps // 10},
        "steps": steps, "global_batch_size": args.batch, "threads": 1, "log_every": 100, "tracking": "none", "device": args.device,
        "precision": "bf16" if args.device == "cuda" else "fp32", "seed": seed, "export": "last", "report": False,
        "run_dir": str(args.runs / str(seed)),
    }  # fmt: skip
    return check(build(TrainConfig, table), 1)


def accuracies(features: Features, labels: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Share of test samples that each probe, fitted on the training samples, gives the right class."""
    return {name: float(np.mean(probe(features, labels[0]) == labels[1])) for name, probe in PROBES.items()}


def of_model(e: Evaluation) -> Features:
    return e.features("train").numpy(), e.features().numpy()


def trained(cfg: TrainConfig) -> float:
    """Seconds that the run took here."""
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        assert train.run(cfg, Environment()).outcome == "done"
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/masked"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--decoder-width", type=int, default=64)
    parser.add_argument("--pool", default="mean", choices=("mean", "token"))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    raw: dict[str, float] = {}
    for seed in args.seeds:
        cfg = settings(seed, args)
        seconds, splits = trained(cfg), data.load(cfg.data)
        if args.device != "cpu":
            torch.set_num_threads(os.cpu_count() or 1)  # the probes are of the CPU
        untrained = build_model(cfg.model, cfg.net, cfg.data.shape(), seed)
        model = distae.load(str(cfg.run_dir)).module
        e = Evaluation(model, cfg, splits, reading=Reading())
        labels = e.labels("train").numpy(), e.labels().numpy()
        raw = raw or accuracies((flat(e.values("train")).numpy(), flat(e.values()).numpy()), labels)
        encoders = {"masked_ae": e, "before training": e.other(model=untrained)}
        found = {name: accuracies(of_model(each), labels) for name, each in encoders.items()}
        e.close()
        print(json.dumps({"seed": seed, "seconds": round(seconds), **found, "raw pixels": raw}), flush=True)


if __name__ == "__main__":
    main()
