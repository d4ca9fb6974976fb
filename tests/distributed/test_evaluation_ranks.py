"""Every metric of `distae evaluate` on one rank and on three: the same figures."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from evaluations import evaluation
from variants import SMALL

from distae import distributed as dist
from distae.config.data import DigitsConfig
from distae.data import load
from distae.evaluation.metrics import Skip, metrics_by_task

TOLERANCE = 1e-6
VARIANTS = ("vae", "cvae", "vq_vae", "iaf_vae")
Figures = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, Figures]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(_rank, (folder,), nprocs=3, start_method="spawn")
    return {name: {n: json.loads((folder / f"{name}.{n}").read_text()) for n in (1, 3)} for name in VARIANTS}


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=120)
    td.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3, timeout=limit)
    together: Any = dist.World(rank, 3, torch.device("cpu"), *[td.group.WORLD] * 2)
    for name in VARIANTS:
        if rank == 0:
            (folder / f"{name}.1").write_text(json.dumps(figures(name)))
        with dist.use(together):
            mine = figures(name)
            assert all(other == mine for other in dist.gather(mine))
        if rank == 0:
            (folder / f"{name}.3").write_text(json.dumps(mine))
    td.destroy_process_group()


def figures(name: str) -> Figures:
    """All figures and their baselines by name."""
    how = {"importance_samples": 20, "limit": 200, "sampler": "gmm" if name == "iaf_vae" else None}
    run = {"eval_batch_size": 50, "data": {"name": "digits"}}
    e = evaluation(name, load(DigitsConfig()), dtype=torch.float32, run=run, how=how, **SMALL.get(name, {}))
    found: Figures = {}
    for metrics in metrics_by_task().values():
        for metric_name, metric in metrics.items():
            try:
                made = metric.compute(e)
            except Skip:
                continue
            for suffix, figure in (made if isinstance(made, dict) else {"": made}).items():
                low, high = figure.interval or (0.0, 0.0)
                found[f"{metric_name}/{suffix}"] = {"": figure.value, "low": low, "high": high, **figure.baselines}
    return found


@pytest.mark.spawn
@pytest.mark.parametrize("name", VARIANTS)
def test_three_ranks_have_the_figures_of_one(name: str, found: dict[str, dict[int, Figures]]) -> None:
    one, three = found[name][1], found[name][3]
    assert len(one) > 10
    assert three == {metric: pytest.approx(values, rel=TOLERANCE, abs=TOLERANCE) for metric, values in one.items()}


@pytest.mark.spawn
def test_the_variants_have_most_metrics(found: dict[str, dict[int, Figures]]) -> None:
    shipped = {name for metrics in metrics_by_task().values() for name in metrics}
    measured = {name.partition("/")[0] for results in found.values() for name in results[1]}
    assert {"lpips", "rfid", "fid"} <= shipped - measured, "they need weights"
    assert {"psnr", "iwae_bound", "denoising_psnr", "code_use", "coverage", "completeness"} <= measured
