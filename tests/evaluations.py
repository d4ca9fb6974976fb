"""An `Evaluation` of an untrained model on small data, for tests of metrics."""

from typing import Any

import torch
from helpers import settings, splits

from distae.config.evaluation import EvaluationConfig
from distae.data import Split
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.metrics import load_all
from distae.models import Autoencoder, build

load_all()


def evaluation(
    model: str = "vae", data: dict[str, Split] | None = None, made: Autoencoder | None = None, dtype: torch.dtype = torch.float64,
    net: dict[str, Any] | None = None, run: dict[str, Any] | None = None, how: dict[str, Any] | None = None, **changes: Any,
) -> Evaluation:  # fmt: skip
    """Of the variant `model` with `changes` of its settings, in float64, on the splits of `helpers` unless `data` is given."""
    cfg = settings(model={"name": model, **changes}, net=net or {}, **(run or {}))
    data = data or splits()
    sample = data["test"].transform.shape(tuple(data["test"].shape))
    made = made or build(cfg.model, cfg.net, sample, seed=1, dtype=dtype)
    return Evaluation(made, cfg, data, "test", EvaluationConfig(**(how or {})))
