"""Perceptual distances of images: LPIPS, from files of weights (nothing is downloaded), and by networks of the user's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor, nn

from distae.config.names import PERCEPTUAL
from distae.errors import UserError
from distae.losses import upcast

T = TypeVar("T")
SMALLEST_SIDE = 64
"""Smaller images are enlarged to it: AlexNet's layers need as much."""
SHIFT, SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the networks' input in [-1, 1], by channel."""
LAYERS = {"alexnet": (1, 4, 7, 9, 11), "vgg16": (3, 8, 15, 22, 29)}
"""Layers of torchvision's `features` whose outputs are compared."""


def register_perceptual_network(name: str) -> Callable[[T], T]:
    """Make a function known as `--model.perceptual NAME`: it returns a module from images `[B, C, H, W]`, in [0, 1] or about, to a
    list of maps `[B, c, h, w]`. It must make the same network on every rank and at every start."""
    return PERCEPTUAL.register(name)


class Features:
    """The distance of LPIPS (Zhang et al. 2018, eq. 1) with all weights 1, by a network of the user's, which is not trained."""

    def __init__(self, name: str, net: nn.Module) -> None:
        self.name, self.net = name, net.eval().requires_grad_(requires_grad=False)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """`[B]` of two `[B, C, H, W]`. Raises UserError if the network gives no maps."""
        of_x, of_y = (self._maps(image) for image in (x, y))
        return torch.stack([(_unit(a) - _unit(b)).square().mean((2, 3)).sum(1) for a, b in zip(of_x, of_y, strict=True)]).sum(0)

    def _maps(self, x: Tensor) -> list[Tensor]:
        x = upcast(x)
        maps = self.net.to(x.device, x.dtype)(x)
        if not isinstance(maps, list | tuple) or not maps or any(getattr(m, "ndim", 0) != 4 or len(m) != len(x) for m in maps):
            raise UserError(
                f"--model.perceptual {self.name}: the network gives {type(maps).__name__}; expected a list of [B, c, h, w]"
            )
        return [upcast(m) for m in maps]


def _unit(x: Tensor) -> Tensor:
    """`[B, c, h, w]` with vectors of length 1 at each place."""
    return x / (x.square().sum(1, keepdim=True) + 1e-20).sqrt()


class LPIPS:
    """Zhang et al. 2018, eq. 1: squared distances of unit-length features of 5 layers, weighed by channel, mean over places.

    No module: its weights are part of no model, no checkpoint and no optimizer. Its gradients go to the images alone.
    """

    def __init__(self, kind: str, net: nn.Module, scales: list[Tensor], checksum: str) -> None:
        self.kind, self.net, self.scales, self.checksum = kind, net, scales, checksum

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """`[B]` of two `[B, 1 or 3, H, W]`, in [0, 1] or about."""
        pairs = zip(self._activations(x), self._activations(y), self.scales, strict=True)
        return torch.stack([((a - b).square().mean((2, 3)) * scale.to(a)).sum(1) for a, b, scale in pairs]).sum(0)

    def _activations(self, x: Tensor) -> list[Tensor]:
        """Outputs of the layers, of length 1 at each place."""
        x = 2 * upcast(x).expand(-1, 3, -1, -1) - 1
        if (side := min(x.shape[2:])) < SMALLEST_SIDE:
            x = F.interpolate(x, scale_factor=SMALLEST_SIDE / side, mode="bilinear")
        x = (x - x.new_tensor(SHIFT).view(3, 1, 1)) / x.new_tensor(SPREAD).view(3, 1, 1)
        net: Any = self.net.to(x.device, x.dtype)
        found, layers = [], LAYERS[self.kind]
        for number, layer in enumerate(net[: layers[-1] + 1]):
            x = F.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
            if number in layers:
                found.append(_unit(x))
        return found


def read_lpips(path: str, backbone: str, options: str) -> LPIPS:
    """`path`: the linear layers; `backbone`: the weights of torchvision's AlexNet or VGG16 of ImageNet.

    Raises UserError if they do not belong together; `options` is what the names of the two options begin with.
    """
    import torchvision.models as tv

    (linear, of_linear), (weights, of_net) = (
        read_weights(file, f"{options}lpips-{what}") for file, what in ((path, "weights"), (backbone, "backbone"))
    )
    scales = [linear[k].flatten() for k in sorted(linear) if k.startswith("lin") and k.endswith("weight")]
    kind = {192: "alexnet", 128: "vgg16"}.get(len(scales[1]) if len(scales) == 5 else 0)
    if kind is None:
        raise UserError(f"{options}lpips-weights {path}: not the 5 linear layers of LPIPS for AlexNet or VGG16")
    with torch.device("meta"):
        net = getattr(tv, kind)(weights=None).features
    of_features = {k.removeprefix("features."): v for k, v in weights.items() if k.startswith("features.")}
    fill(net, of_features, f"{options}lpips-backbone", backbone)
    return LPIPS(kind, net, scales, f"{of_linear} {of_net}")


def read_weights(path: str, option: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file, by torch or safetensors, and its checksum. No code of it runs. Raises UserError."""
    if not Path(path).is_file():
        raise UserError(f"{option}: no file {path}")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{option} {path}: not a file of weights ({str(error).splitlines()[0][:100]})") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{option} {path}: not a file of weights (expected tensors by name)")
    return found, xxhash.xxh3_64_hexdigest(Path(path).read_bytes())


def fill(net: nn.Module, weights: dict[str, Tensor], option: str, path: str) -> None:
    """Raises UserError if the names or shapes are not the network's."""
    try:
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()}, assign=True)
    except RuntimeError as error:
        raise UserError(f"{option} {path}: weights of another network: {str(error).splitlines()[1].strip()[:120]}") from error
    net.eval().requires_grad_(requires_grad=False)
