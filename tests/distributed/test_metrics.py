"""Metrics of whole splits are the same on any number of ranks."""

import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from helpers import settings

from distae import distributed as dist
from distae.config.names import METRICS
from distae.data import load
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.metrics import load_all
from distae.models import build

KINDS = {
    "shapes": ("mig", "modularity", "factor_vae_score", "knn_accuracy", "linear_probe", "cluster_nmi", "pca_relative_error"),
    "one class": ("auroc", "average_precision"),
    "interactions": ("ndcg_100", "recall_20", "recall_50"),
    "features": ("l0", "explained_variance", "fvu", "dead_share", "shrinkage", "max_cosine", "uniqueness", "mcc", "f1"),
}
RANKS = {1: (0,), 2: (1, 2)}
"""Worlds of the 3 processes, side by side; then all of them are one."""


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    mp.start_processes(_rank, (folder,), nprocs=3, start_method="spawn")
    return {n: torch.load(folder / f"{n}.pt", weights_only=True) for n in (1, 2, 3)}


@pytest.mark.spawn
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_agree_with_one(figures, kind, world_size):
    assert figures[1][kind]
    assert figures[world_size][kind] == pytest.approx(figures[1][kind], rel=1e-9)


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=120)
    td.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3, timeout=limit)
    pair: list[Any] = [td.new_group([1, 2], timeout=limit) for _ in range(3)]
    every: list[Any] = [td.new_group([0, 1, 2], timeout=limit) for _ in range(3)]
    for n, ranks, groups in ((1, (0,), []), (2, (1, 2), pair), (3, (0, 1, 2), every)):
        if rank in ranks:
            with dist.use(dist.World(ranks.index(rank), n, torch.device("cpu"), *groups)):
                found = {kind: _figures(kind, names) for kind, names in KINDS.items()}
            if rank == ranks[0]:
                torch.save(found, folder / f"{n}.pt")
    td.destroy_process_group()


def _figures(kind: str, names: tuple[str, ...]) -> dict[str, float]:
    """Of a model with its initial weights, by name, those of the baselines too."""
    load_all()
    made = {"interactions": _interactions, "features": _features, "one class": lambda: _images(("1",))}
    cfg, splits = made.get(kind, lambda: _images(()))()
    model = build(cfg.model, cfg.net, splits["train"].shape, 0, dtype=torch.float64)
    e = Evaluation(model, cfg, splits)
    found: dict[str, float] = {}
    for name in names:
        figure = METRICS[name].compute(e)
        found |= {name: figure.value} | {f"{name} of {k}": v for k, v in figure.baselines.items()}
        found |= dict(zip((f"{name} from", f"{name} to"), figure.interval or (), strict=False))
    return found


def _images(classes: tuple[str, ...]):
    cfg = settings(data={"name": "shapes", "size": 16, "samples": 400, "train_classes": classes})
    return cfg, load(cfg.data)


def _features():
    data = {"name": "synthetic_features", "samples": 400, "features": 40, "dim": 16}
    cfg = settings(data=data, model={"name": "topk_sae", "latent_dim": 32, "k": 4})
    return cfg, load(cfg.data)


def _interactions():
    cfg = settings(model={"likelihood": "poisson"}, data={"name": "sparse", "path": _triples()})
    return cfg, load(cfg.data)


def _triples() -> str:
    """A file of 157 users who like about a third of 30 items, the same for every process."""
    import os
    import tempfile

    likes = torch.rand(157, 30, generator=torch.Generator().manual_seed(0)) < torch.linspace(0.1, 0.6, 30)
    lines = ["user,item", *(f"u{u},i{i}" for u, i in likes.nonzero().tolist())]
    handle, path = tempfile.mkstemp(suffix=".csv")
    with os.fdopen(handle, "w") as file:
        file.write("\n".join(lines))
    return path
