"""Initial weights, each tensor's drawn from a generator of its own name."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from distae.noise.keyed import initialising, seed_of


def reset_parameters(model: nn.Module, seed: int, prefix: str = "") -> None:
    """Initialise the tensors of `model`, on the CPU, by each module's own `reset_parameters()`.

    A tensor's values depend on `seed`, its module's way of initialising and its name `prefix + name` alone: not on the modules
    around it, nor on the order in which they were made. Tensors on `meta` are left out, so that a model too large for one
    process is initialised part by part. Modules without `reset_parameters()` keep what their constructor gave them.
    """
    names = {t: prefix + name for name, t in [*model.named_parameters(), *model.named_buffers()]}
    for path, module in model.named_modules():
        reset: Callable[[], None] | None = getattr(module, "reset_parameters", None)
        if reset is not None:
            with initialising(seed_of((seed, "weights", prefix + path))), _FilledByName(names, seed), torch.no_grad():
                reset()


class _FilledByName(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Random fills of the named tensors use a generator seeded by the tensor's name; other draws use that of the module."""

    FILLS = (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default)

    def __init__(self, names: dict[Tensor, str], seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names, self.seed = names, seed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.FILLS and args[0].is_meta:
            return args[0]
        if func in self.FILLS and args[0] in self.names:
            key = (self.seed, "weights", self.names[args[0]])
            kwargs = kwargs | {"generator": torch.Generator().manual_seed(seed_of(key))}
        return func(*args, **kwargs)
