"""Networks: shapes, norms and activations."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import pytest
import torch
from helpers import WIDTHS, settings
from torch import nn

from distae import distributed as dist
from distae import noise
from distae.config.models import AEConfig
from distae.config.nets import Activation, ConvConfig, ImageConfig, MLPConfig, NetConfig, ResNetConfig
from distae.nn import build_decoder, build_encoder
from distae.nn.layers import ACTIVATIONS
from distae.nn.norms import BatchNorm

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "mlp": [(7,), (1, 8, 8), (3, 5, 9)],
    "conv": [(1, 8, 8), (3, 4, 12)],
    "resnet": [(1, 8, 8), (3, 12, 4)],
}
MAPS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"name": "conv", "spatial": True}, (2, 3)),
    ({"name": "resnet", "spatial": True, "norm": "batch"}, (2, 3)),
    ({"name": "image"}, (4, 6)),
    ({"name": "image", "norm": "batch", "attention": [1], "middle_attention": False}, (4, 6)),
    ({"name": "image", "multipliers": [1, 1, 2], "inner_channels": 7}, (2, 3)),
    ({"name": "vit"}, (2, 3)),
    ({"name": "vit", "tokens": 4}, (4,)),
]
"""Networks whose codes keep their place, or are at tokens, and the positions of the code of an image of 8x12."""
PUBLISHED = [
    (ImageConfig(multipliers=(1, 2, 4, 4)), 4, 2, 83_653_863),
    (ImageConfig(multipliers=(1, 1, 2, 2, 4), attention=(5,), inner_channels=256), 8, 1, 71_883_403 - 16384 * 8),
]
"""KL-f8 (the VAE of Stable Diffusion in diffusers), and LlamaGen's VQ-16, whose count has the codebook."""
CASES = [(net, shape, norm) for net in SHAPES for shape in SHAPES[net] for norm in ("none", "batch", "group", "layer")]


def grad(x: torch.Tensor) -> torch.Tensor:
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize(("net", "shape", "norm"), CASES)
def test_shapes(net, shape, norm):
    cfg = settings(net={"name": net, "norm": norm}).net
    encoder, decoder = build_encoder(cfg, shape, 6), build_decoder(cfg, shape, 5)
    assert encoder(torch.ones(4, *shape), None).shape == (4, 6)
    assert decoder(torch.ones(4, 5), None).shape == (4, *shape)


@pytest.mark.parametrize(("net", "places"), MAPS)
def test_codes_with_a_place_are_positions_and_then_channels(net, places):
    """Two values per code value are two blocks, each laid out as a code; rows and columns are those of the map."""
    cfg, shape = settings(net=net).net, (3, 8, 12)
    assert cfg.code_shape(shape, 5) == (*places, 5)
    encoder, decoder, x = build_encoder(cfg, shape, 10, 2).double(), build_decoder(cfg, shape, 5).double(), torch.rand(2, *shape)
    network: Any = encoder
    mapped = network.layers[0](x.double(), None)
    assert mapped.shape == (2, 10, *places)
    codes = encoder(x.double(), None)
    assert torch.equal(codes.view(2, 2, *places, 5), mapped.view(2, 2, 5, *places).movedim(2, -1))
    network = decoder
    torch.testing.assert_close(decoder(codes.chunk(2, 1)[0], None), network.layers[1](mapped[:, :5], None))
    assert decoder(codes.chunk(2, 1)[0], None).shape == (2, *shape)


@pytest.mark.parametrize(("net", "latent_dim", "values", "published"), PUBLISHED)
def test_the_networks_of_latent_diffusion_have_the_published_number_of_parameters(net, latent_dim, values, published):
    with torch.device("meta"):
        both = build_encoder(net, (3, 256, 256), values * latent_dim, values), build_decoder(net, (3, 256, 256), latent_dim)
    assert sum(p.numel() for module in both for p in module.parameters()) == published


def test_a_transformer_sees_where_its_patches_are():
    """Exchanged patches do not give exchanged codes; exchanged codes do not give exchanged patches."""
    cfg = settings(net={"name": "vit"}).net
    encoder, decoder, x = build_encoder(cfg, (1, 8, 8), 3), build_decoder(cfg, (1, 8, 8), 3), torch.rand(1, 1, 8, 8)
    z = encoder(x, None).view(1, 2, 2, 3)
    assert not torch.allclose(encoder(x.roll(4, 3), None).view(1, 2, 2, 3), z.roll(1, 2))
    y = decoder(z.flatten(1), None)
    assert not torch.allclose(decoder(z.roll(1, 2).flatten(1), None), y.roll(4, 3))


def test_groups_of_an_image_network_divide_its_widths_and_have_two_channels():
    assert [ImageConfig().groups_of(width) for width in (128, 64, 32, 48, 20, 9, 1)] == [32, 32, 16, 16, 4, 1, 1]


def test_the_tutorials_stack_mirrors_itself():
    encoder, decoder = (build(MLPConfig(hidden=(128, 64, 12)), (1, 28, 28), 3) for build in (build_encoder, build_decoder))
    sizes = [[tuple(p.shape) for p in net.parameters() if p.ndim == 2] for net in (encoder, decoder)]
    assert sizes[0] == [(128, 784), (64, 128), (12, 64), (3, 12)]
    assert sizes[1] == [shape[::-1] for shape in reversed(sizes[0])]


def test_no_hidden_layer_is_a_single_layer():
    assert [tuple(p.shape) for p in build_encoder(MLPConfig(hidden=()), (9,), 2).parameters()] == [(2, 9), (2,)]


def test_every_activation_of_the_settings_exists():
    codes = AEConfig.__dataclass_fields__["code_activation"].type
    assert set(get_args(Activation)) | set(get_args(codes)) == set(ACTIVATIONS)


@pytest.mark.parametrize("cfg", [MLPConfig, ConvConfig, ResNetConfig, ImageConfig])
def test_dropout_is_drawn_in_training_only(cfg):
    cfg = settings(net={"name": cfg.name, "dropout": 0.5}).net
    net, x = build_encoder(cfg, (1, 8, 8), 4), torch.rand(3, 1, 8, 8)
    drawn = [net(x, noise.Noise(0, ("a",), noise.Rows(3), x.device)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], net(x, noise.Noise(0, ("b",), noise.Rows(3), x.device)))
    plain = net(x, None)
    assert not torch.equal(drawn[0], plain)
    assert torch.equal(plain, net.eval()(x, noise.Noise(0, ("a",), noise.Rows(3), x.device)))


@pytest.mark.parametrize(
    "net", [{"name": "image", "middle_attention": False}, *({"name": n} for n in WIDTHS if n not in ("image", "vit"))]
)
def test_no_bias_directly_before_a_batch_norm(net):
    """A bias that the norm takes away again has a gradient of 0 in exact arithmetic (as that of attention's keys has)."""
    cfg: NetConfig = settings(net=net | {"norm": "batch"}).net
    torch.manual_seed(0)
    encoder, decoder = (build(cfg, (1, 8, 8), 4).double() for build in (build_encoder, build_decoder))
    decoder(encoder(torch.rand(16, 1, 8, 8).double(), None) ** 2, None).pow(3).sum().backward()
    grads = [grad(p).abs().max() for p in (*encoder.parameters(), *decoder.parameters())]
    assert min(grads) > 1e-9 * max(grads)


class Together:
    """What threads that stand for ranks give one another."""

    def __init__(self, ranks: int) -> None:
        self.barrier, self.given, self.here = threading.Barrier(ranks), [torch.empty(0)] * ranks, threading.local()

    def __call__(self, work: Callable[[int], None]) -> None:
        def as_rank(rank: int) -> None:
            self.here.rank = rank
            work(rank)

        with ThreadPoolExecutor(len(self.given)) as pool:
            list(pool.map(as_rank, range(len(self.given))))

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        self.given[self.here.rank] = x
        self.barrier.wait(10)
        every = torch.cat(self.given)
        self.barrier.wait(10)
        return every

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return self.gather(x[None]).sum(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 3), (6, 3, 4, 5), "channels last"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_batch_norm_is_torchs_over_the_rows_of_all_ranks(shape, ranks, dtype, monkeypatch):
    """Outputs, running statistics and gradients, of ranks whose rows are far apart."""
    together = Together(ranks)
    monkeypatch.setattr(dist, "world", lambda: dist.World(0, ranks, torch.device("cpu")))
    monkeypatch.setattr(dist, "all_reduce", together.all_reduce)
    monkeypatch.setattr(dist, "gather_rows", together.gather)
    layout = torch.channels_last if shape == "channels last" else torch.contiguous_format
    shape = (6, 3, 4, 5) if shape == "channels last" else shape
    theirs, mine = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(3), [BatchNorm(3) for _ in range(ranks)]
    rounding: dict[str, Any] = {} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 1e-3}
    torch.manual_seed(0)
    for _ in range(3):
        xs = [(torch.randn(shape) * 3 + 5 * rank).to(dtype, memory_format=layout).requires_grad_() for rank in range(ranks)]
        slopes, outs = [torch.randn(shape).to(dtype) for _ in xs], [torch.empty(0)] * ranks

        def work(rank, xs=xs, slopes=slopes, outs=outs):
            mine[rank].zero_grad()
            outs[rank] = mine[rank](xs[rank])
            (outs[rank] * slopes[rank]).sum().backward()

        together(work)
        theirs.zero_grad()
        x = torch.cat([x.detach() for x in xs]).requires_grad_()
        expected = theirs(x)
        (expected * torch.cat(slopes)).sum().backward()
        torch.testing.assert_close(torch.cat(outs), expected)
        torch.testing.assert_close(torch.cat([grad(x) for x in xs]), grad(x), **rounding)
        for name, p in theirs.named_parameters():
            torch.testing.assert_close(sum(grad(m.get_parameter(name)) for m in mine), grad(p), **rounding)
        for each in mine:
            torch.testing.assert_close(each.running_mean, theirs.running_mean)
            torch.testing.assert_close(each.running_var, theirs.running_var)
    torch.testing.assert_close(mine[0].eval()(xs[0]), theirs.eval()(xs[0]))
