"""Initial weights are functions of the seed and of a tensor's own name, not of the modules around it."""

import pytest
import torch
from helpers import SHIPPED, settings
from torch import nn
from variants import make

from distae.models import build
from distae.nn.flows import Planar
from distae.nn.quantizers import Codebook
from distae.noise import reset_parameters


def made(seed: int = 0, model: str = "vae", **net: object) -> dict[str, torch.Tensor]:
    cfg = settings(model={"name": model}, net=net)
    return build(cfg.model, cfg.net, (1, 8, 8), seed).state_dict()


def test_models_that_share_names_share_weights():
    """An autoencoder and a denoising one differ in nothing; a critic beside a VAE moves none of its weights."""
    for one, other in (("ae", "denoising_ae"), ("vae", "factor_vae")):
        first, second = made(model=one), made(model=other)
        assert first.keys() <= second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_layer_more_changes_no_other():
    few, many = (made(hidden=hidden) for hidden in ([16, 8], [16, 8, 8]))
    assert torch.equal(few["encoder.layers.1.layer.weight"], many["encoder.layers.1.layer.weight"])


def test_the_seed_and_the_name_count():
    assert not torch.equal(made(0)["encoder.layers.1.layer.weight"], made(1)["encoder.layers.1.layer.weight"])
    first, second = nn.Linear(9, 9), nn.Linear(9, 9)
    reset_parameters(nn.Sequential(first, second), 0)
    assert not torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight[0], first.bias)


def test_torchs_own_distributions_are_kept():
    layer = nn.Conv2d(40, 50, 3)
    reset_parameters(layer, 0)
    bound = (40 * 9) ** -0.5
    for tensor in layer.parameters():
        assert tensor.abs().max() <= bound
    assert float(layer.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.02)


def test_one_tensor_alone_is_what_it_is_in_the_whole():
    """The rest of the model stays on meta: no memory is taken for it."""
    whole = nn.Sequential(nn.Linear(5, 7), nn.GRU(7, 3), nn.LayerNorm(3))
    reset_parameters(whole, 4)
    for name, expected in whole[1].named_parameters():
        with torch.device("meta"):
            part = nn.GRU(7, 3)
        setattr(part, name, nn.Parameter(torch.empty(expected.shape)))
        reset_parameters(part, 4, "1.")
        assert torch.equal(getattr(part, name), expected)
        assert sum(p.is_meta for p in part.parameters()) == 3


def test_tensors_that_follow_from_others_do():
    codebook, planar = Codebook(6, 3, False, 0.9, 0.1), Planar(4)
    reset_parameters(codebook, 1)
    reset_parameters(planar, 1)
    assert torch.equal(codebook.total, codebook.codes * codebook.start)
    assert float((planar.w * planar.u).sum().detach()) == pytest.approx(0.54, abs=0.1)  # log(e - 1), near the identity


@pytest.mark.parametrize("name", SHIPPED)
def test_every_random_tensor_of_every_variant_is_keyed_by_its_name(name):
    """Whatever was there before, the same values come back."""
    model = make(name, **_LARGE.get(name, {"shape": (1, 8, 8)}))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for p in model.parameters():
        if p.ndim and p.unique().numel() > 1:
            p.data.fill_(0.5)
    reset_parameters(model.float(), 0)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value.float(), before[key].float(), msg=key)


_LARGE: dict = {
    "masked_ae": {"shape": (1, 8, 8), "latent_dim": 8, "decoder_dim": 8, "patch": 2, "heads": 2, "depth": 1},
    "lfq_vae": {"shape": (1, 8, 8), "latent_dim": 8, "bits": 4},
    "bsq_vae": {"shape": (1, 8, 8), "latent_dim": 8, "bits": 4},
    "categorical_vae": {"shape": (1, 8, 8), "latent_dim": 12, "categories": 3},
    "msssim_vae": {"shape": (1, 8, 8), "window": 3},
}
