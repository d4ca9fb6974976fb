"""Small settings, small data, and real processes: what several test modules need."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from distae.commands import train
from distae.commands.session import train_run
from distae.config import TrainConfig, build, check
from distae.config.models import ModelConfig
from distae.data import Loader, Split, Transform
from distae.noise import Noise
from distae.runtime.environment import Environment
from distae.runtime.outcome import Outcome
from distae.runtime.run_dir import check_run_dir
from distae.runtime.signals import StopRequest
from distae.training.trainer import Trainer

Result = TypeVar("Result")
ROOT = Path(__file__).parent.parent
WIDTHS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [16, 8]}, "conv": {"channels": [4, 8]}, "resnet": {"channels": [4, 8]},
    "image": {"channels": 4, "multipliers": [1, 2], "blocks": 1}, "vit": {"patch": 4, "width": 8, "heads": 2, "depth": 1},
}  # fmt: skip
SHIPPED = sorted(k for k, v in ModelConfig.choices().items() if v.__module__.startswith("distae."))
"""Names of the variants that come with distae; a test may load others."""
OF_EACH_KIND = {"ae", "cvae", "factor_vae", "hvae", "lin_nf_vae", "masked_ae", "topk_sae", "vae", "vq_vae"}
EVERY = [name if name in OF_EACH_KIND else pytest.param(name, marks=pytest.mark.slow) for name in SHIPPED]
"""Every variant, of which the fast part has one of each kind."""
IS_OLDEST = torch.__version__.startswith("2.11.")
"""Whether this is the oldest supported torch, whose compiler and exporter can do less."""
SMALL: dict[str, Any] = {
    "model": {"name": "ae", "latent_dim": 4}, "net": {"name": "mlp", "groups": 2}, "optim": {"lr": 0.01},
    "steps": 20, "global_batch_size": 24, "eval_batch_size": 20, "log_every": 7, "eval_every": 8, "save_every": 1000,
    "tracking": "none", "device": "cpu", "threads": 1, "seed": 3, "export": "last", "run_dir": "unused", "report": False,
}  # fmt: skip

RICH: dict[str, Any] = {
    "model": {"name": "vae"}, "net": {"dropout": 0.1}, "ema": 0.9, "precision": "fp16", "grad_accum_steps": 2,
    "schedule": {"name": "plateau", "patience": 0}, "save_every": 5, "eval_batch_size": 10,
}  # fmt: skip
"""Settings whose run has state of every kind."""

STEP = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu-a[07-08,11],gpu-b3", "SLURM_CPUS_PER_TASK": "6",
}  # fmt: skip
"""Variables of a task of a Slurm step."""


def settings(**changes: Any) -> TrainConfig:
    """A small run on 8x8 images, with changes: `settings(model={"name": "vae"}, steps=3)`. Tables are merged."""
    table = {key: {**value} if isinstance(value, dict) else value for key, value in SMALL.items()}
    for key, value in changes.items():
        table[key] = table.get(key, {}) | value if isinstance(value, dict) else value
    table["net"] = WIDTHS.get(table["net"]["name"], {}) | table["net"]
    return check(build(TrainConfig, table), 1)


def images(n: int, seed: int) -> Split:
    """`n` smooth 8x8 images of bytes, and labels."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (n, 1, 4, 4), generator=rng, dtype=torch.uint8)
    return Split.of(coarse.repeat_interleave(2, 2).repeat_interleave(2, 3), torch.arange(n) % 10, Transform(255.0))


def splits(train: int = 197, val: int = 50, test: int = 37) -> dict[str, Split]:
    """Sizes that divide by no batch and no number of ranks."""
    return {"train": images(train, 1), "val": images(val, 2), "test": images(test, 3)}


def as_the_model_sees(split: Split, dtype: torch.dtype = torch.float64) -> Tensor:
    """All samples of a split as a loader gives them."""
    n = len(split)
    return Loader(split, "none", torch.device("cpu"), dtype).batch(torch.arange(n), Noise.seeded(0, n))[0]


def rows_of(split: Split) -> Tensor:
    """The rows of its source that a split is, `[n]`."""
    assert isinstance(split.rows, Tensor)
    return split.rows


def labels_of(split: Split) -> Tensor:
    """The labels of a split, `[n]`."""
    assert split.label is not None
    return split.label


def source_of(split: Split) -> Any:
    """The source of a split, of whatever class."""
    return split.source


def shared_data(name: str) -> Path:
    """A folder of ../shared/data; the test is skipped where it is absent."""
    places = [os.environ.get("DISTAE_SHARED", ""), str(ROOT / "../shared"), str(ROOT / "../../shared")]
    for place in filter(None, places):
        if (Path(place) / "data" / name).is_dir():
            return (Path(place) / "data" / name).resolve()
    pytest.skip(f"../shared/data/{name} is not there")


def start(*args: str, nproc: int = 0, cwd: Path, timeout: float = 240, **env: str | None) -> subprocess.CompletedProcess[str]:
    """`python -m distae.train ARGS`, or under torchrun with `nproc` processes, in the folder `cwd`; env None removes a variable."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"] if nproc else []
    command = [sys.executable, *torchrun, "-m", "distae.train", *args]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    variables = {k: v for k, v in (os.environ | {"PYTHONPATH": paths} | env).items() if v is not None}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=timeout, check=False)


def fresh_trainer(cfg: TrainConfig, run_dir: Path, data: dict[str, Split] | None = None) -> Trainer:
    """A trainer at the start of its run, on `splits()` unless data is given."""
    run_dir.mkdir(exist_ok=True)
    trainer = Trainer(replace(cfg, run_dir=str(run_dir)), data or splits(), StopRequest(), 1)
    trainer.resume()
    return trainer


def fitted(cfg: TrainConfig, run_dir: Path, data: dict[str, Split] | None = None) -> Trainer:
    """The trainer at the end of its run."""
    trainer = fresh_trainer(cfg, run_dir, data)
    try:
        assert trainer.fit()
        trainer.close()
    finally:
        trainer.tracker.close()
    return trainer


def spy(function: Callable[..., Result], seen: Callable[..., object]) -> Callable[..., Result]:
    """The function, whose arguments are given to `seen` first."""

    def spied(*args: Any, **kwargs: Any) -> Result:
        seen(*args, **kwargs)
        return function(*args, **kwargs)

    return spied


class StopAt(StopRequest):
    """Asks to stop when it is looked at for the n-th time: between two steps, or between two chunks of an evaluation."""

    def __init__(self, look: int) -> None:
        super().__init__()
        self.left = look

    def __getattribute__(self, name: str) -> Any:
        if name == "signum":
            self.left -= 1
            return signal.SIGTERM if self.left < 0 else 0
        return super().__getattribute__(name)


def run(cfg: TrainConfig, run_dir: Path, stop: StopRequest | None = None) -> Outcome:
    """A start of a run on `splits()` in this process, which resumes what the folder holds."""
    run_dir.mkdir(exist_ok=True)
    check_run_dir(replace(cfg, run_dir=str(run_dir)))
    return train_run(replace(cfg, run_dir=str(run_dir)), splits(), stop or StopRequest(), 1)


def finished_run(cfg: TrainConfig, parent: Path) -> Path:
    """The folder `parent/run` of a run by the command, of all settings as they are, data included."""
    assert train.run(replace(cfg, run_dir=str(parent / "run")), Environment()).outcome == "done"
    return parent / "run"


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
