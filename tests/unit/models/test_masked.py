"""The masked autoencoder: what it sees, what its loss covers, and its patches and attention against torch's own."""

from typing import Any

import pytest
import torch
from variants import data, make, run

from distae.nn.networks.vit import Block, patchify, positions, unpatchify

SETTINGS: dict[str, Any] = {"shape": (1, 8, 8), "latent_dim": 8, "decoder_dim": 8, "patch": 2, "heads": 2, "depth": 1}


def test_patches_are_squares_of_the_image_and_go_back():
    x = data(3, 2, 8, 12)
    patches = patchify(x, 4)
    assert patches.shape == (3, 6, 32)
    assert torch.equal(patches[1, 4].view(2, 4, 4), x[1, :, 4:8, 4:8])
    torch.testing.assert_close(unpatchify(patches, 4, (2, 8, 12)), x)


def test_a_block_is_torchs_pre_norm_transformer_layer():
    block, x = Block(8, 2).double(), data(3, 5, 8)
    torchs = torch.nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True).double()
    names = {
        "self_attn.in_proj_": "qkv.", "self_attn.out_proj.": "proj.", "linear1.": "fc1.", "linear2.": "fc2.",
        "norm1.": "norm1.", "norm2.": "norm2.",
    }  # fmt: skip
    torchs.load_state_dict({a + k: block.state_dict()[b + k] for a, b in names.items() for k in ("weight", "bias")})
    torch.testing.assert_close(block(x), torchs(x))


def test_weights_under_the_names_of_0_1_are_loaded():
    model, x = make("masked_ae", **SETTINGS), data(2, 1, 8, 8)
    old = {"norm1": "before", "norm2": "between", "qkv": "attend", "proj": "merge", "fc1": "widen", "fc2": "narrow"}
    weights = {".".join(old.get(part, part) for part in k.split(".")): v for k, v in model.state_dict().items()}
    assert {"encoder.blocks.0.attend.weight", "encoder.blocks.1.weight", "decoder.blocks.0.before.bias"} <= set(weights)
    other = make("masked_ae", seed=1, **SETTINGS)
    assert not torch.equal(other.encode(x).z, model.encode(x).z)
    other.load_state_dict(weights)
    assert torch.equal(other.encode(x).z, model.encode(x).z)
    with pytest.raises(RuntimeError, match=r"Missing key.*fc1\.weight"):
        other.load_state_dict({k: v for k, v in weights.items() if "widen.weight" not in k})


def test_positions_differ():
    table = positions(5, 7, 16)
    assert table.shape == (35, 16)
    assert (torch.cdist(table, table) + 10 * torch.eye(35)).min() > 0.1


def test_the_encoder_sees_a_quarter_and_the_loss_is_of_the_rest():
    x, model = data(4, 1, 8, 8), make("masked_ae", **SETTINGS)
    seen = []
    model.encoder.register_forward_hook(lambda module, args, out: seen.append((args[1], out.shape)))
    x.requires_grad_()
    out = run(model, x)
    visible, shape = seen[0]
    assert shape == (4, 4, 8)
    hidden = torch.ones(4, 16, dtype=torch.bool).scatter(1, visible, False)
    errors = 0.5 * (patchify(x - out.recon, 2) ** 2).sum(2) + 2 * torch.log(torch.tensor(2 * torch.pi))
    torch.testing.assert_close(out.per_sample["recon"], (errors * hidden).sum(1))
    again = model.decoder(model.encoder(patchify(x, 2), visible), visible)
    (slope,) = torch.autograd.grad(again.sum(), x)
    assert torch.equal(patchify(slope, 2).abs().sum(2) > 0, ~hidden)


def test_each_sample_hides_other_patches():
    x, model = data(50, 1, 8, 8), make("masked_ae", **SETTINGS)
    seen = []
    model.encoder.register_forward_hook(lambda module, args, out: seen.append(args[1]))
    run(model, x)
    assert len({tuple(sorted(row)) for row in seen[0].tolist()}) > 40
    assert seen[0].unique(return_counts=True)[1].min() > 0


def test_a_patch_is_reconstructed_from_others_only():
    x, model = data(2, 1, 8, 8), make("masked_ae", **SETTINGS)
    before, changed = model.reconstruct(x), x.clone()
    changed[:, :, 2:4, 4:6] += 1
    after = model.reconstruct(changed)
    same = (before == after).all(0)[0]
    assert same[2:4, 4:6].all()
    assert not same[2:4, 2:4].any()


def test_the_code_is_that_of_all_patches():
    x, model = data(2, 1, 8, 8), make("masked_ae", **SETTINGS)
    assert model.code_shape == (4, 4, 8)
    codes = model.encode(x).z
    assert codes.shape == (2, 4 * 4 * 8)
    only = model.encoder(patchify(x, 2), torch.tensor([[0, 1, 6]] * 2))  # row 1, column 2 is patch 6
    assert only.shape == (2, 3, model.code_shape[-1])
    assert model.decode(model.encode(x).z).shape == x.shape
