"""The size of a model, found by building it without memory for its tensors."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from distae.config import TrainConfig
from distae.config.models import ModelConfig
from distae.config.nets import NetConfig
from distae.errors import UserError
from distae.models import base

MOST_PARAMETERS = 100_000
"""Maximum number of parameter tensors; a model with more would take minutes to build."""


def build_on_meta(
    model: ModelConfig, net: NetConfig, shape: tuple[int, ...], dtype: torch.dtype | None, most: int
) -> base.Autoencoder:
    """A model whose tensors have shapes but no values. Raises ValueError if it cannot be built of at most `most` parameters."""
    try:
        with torch.device("meta"), _at_most(most):
            return base.build(model, net, shape, dtype=dtype)
    except (ArithmeticError, RuntimeError, TypeError, ValueError, LookupError, MemoryError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error


def check_size(cfg: TrainConfig, shape: tuple[int, ...], memory: int, ranks: int = 1) -> None:
    """Raises UserError if weights and gradients alone need more than `memory` bytes, or the model is too deep to be built.

    Where they are in parts, a rank also needs the whole weights, for evaluation.
    """
    who, advice = f"--model {cfg.model.name} with --net {cfg.net.name}", "lower --model.latent-dim, or give a smaller --net"
    parts = cfg.parallel.parts(ranks)
    try:
        model = build_on_meta(cfg.model, cfg.net, shape, torch.float64 if cfg.precision == "fp64" else None, MOST_PARAMETERS)
    except ValueError as error:
        if "meta" in str(error):  # a plugin whose constructor looks at values: its size is not known before
            return
        raise UserError(f"{who} cannot be built ({error}): {advice}") from error
    size = sum(p.nbytes for p in model.parameters())
    needed = size + 2 * size / parts if parts > 1 else 2 * size
    if needed > memory:
        raise UserError(
            f"{who}: weights and gradients take {needed / 2**30:.4g} GiB; the device has {memory / 2**30:.4g} GiB: {advice}"
        )


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Building a module with more parameters than this raises ValueError: a depth of 10^9 is only noticed while building."""
    seen = 0

    def counted(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal seen
        seen += 1
        if seen > count:
            raise ValueError(f"the model has more than {count} parameter tensors")

    hook = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()
