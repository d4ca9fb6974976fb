"""The masked autoencoder: what it sees, what its loss covers, and its patches and attention against torch's own."""

from typing import Any

import pytest
import torch
from variants import data, make, run

from distae.config.nets import MLPConfig
from distae.errors import UserError
from distae.models.inference import Model
from distae.nn.networks.vit import EPS, Block, patchify, positions, unpatchify

SETTINGS: dict[str, Any] = {"shape": (1, 8, 8), "latent_dim": 8, "decoder_dim": 8, "patch": 2, "heads": 2, "depth": 1}


def test_patches_are_squares_of_the_image_and_go_back():
    x = data(3, 2, 8, 12)
    patches = patchify(x, 4)
    assert patches.shape == (3, 6, 32)
    assert torch.equal(patches[1, 4].view(2, 4, 4), x[1, :, 4:8, 4:8])
    torch.testing.assert_close(unpatchify(patches, 4, (2, 8, 12)), x)


def test_a_block_is_torchs_pre_norm_transformer_layer():
    block, x = Block(8, 2).double(), data(3, 5, 8)
    torchs = torch.nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, layer_norm_eps=EPS
    ).double()
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


REAL = SETTINGS | {"shape": (2, 8, 12), "heads": 2, "decoder_heads": 4, "depth": 2, "decoder_depth": 2, "norm_pix": True}


def attended(x: torch.Tensor, block: Any, heads: int) -> torch.Tensor:
    """A block of Vaswani 2017 with the norms before (Dosovitskiy 2021), head by head."""
    seen = block.norm1(x)
    query, key, value = (t.chunk(heads, -1) for t in (seen @ block.qkv.weight.T + block.qkv.bias).chunk(3, -1))
    found = [(q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v for q, k, v in zip(query, key, value, strict=True)]
    x = x + block.proj(torch.cat(found, -1))
    return x + block.fc2(torch.nn.functional.gelu(block.fc1(block.norm2(x))))


@pytest.mark.parametrize("token", [True, False])
def test_the_loss_is_that_of_the_published_equations(token):
    """He 2022, sec. 3, sample by sample: an unshuffled list with mask tokens, the class token before both transformers."""
    model, x = make("masked_ae", class_token=token, **REAL), data(3, 2, 8, 12)
    seen = []
    model.encoder.register_forward_hook(lambda module, args, out: seen.append(args[1]))
    out, encoder, decoder = run(model, x), model.encoder, model.decoder
    for image, visible, loss in zip(x, seen[0], out.per_sample["loss"], strict=True):
        patches = torch.stack([image[:, i : i + 2, j : j + 2].flatten() for i in range(0, 8, 2) for j in range(0, 12, 2)])
        tokens = encoder.embed(patches)[visible] + positions(4, 6, 8)[visible]
        tokens = torch.cat([encoder.token.weight, tokens]) if token else tokens
        for block in encoder.blocks[:-1]:
            tokens = attended(tokens, block, 2)
        tokens = decoder.embed(torch.nn.functional.layer_norm(tokens, (8,), eps=1e-6))  # weight 1, bias 0 at the start
        listed = decoder.hidden[0].repeat(24, 1)
        listed[visible] = tokens[int(token) :]
        tokens = torch.cat([tokens[: int(token)], listed + positions(4, 6, 8)])
        for block in decoder.blocks[:-1]:
            tokens = attended(tokens, block, 4)
        predicted = decoder.last(torch.nn.functional.layer_norm(tokens, (8,), eps=1e-6))[int(token) :]
        centred = patches - patches.mean(1, keepdim=True)
        target = centred / (centred.square().sum(1, keepdim=True) / 7 + 1e-6).sqrt()
        hidden = [i for i in range(24) if i not in visible.tolist()]
        squares = (predicted - target)[hidden].square()
        torch.testing.assert_close(loss, 0.5 * squares.sum() + 0.5 * squares.numel() * torch.tensor(2 * torch.pi).log())


def test_positions_are_those_of_the_published_code_with_the_columns_first():
    """Its table begins with the columns' half; ours with the rows'."""
    rates = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    angles = [[torch.tensor([float(k)]) * rates for k in (column, row)] for row in range(3) for column in range(5)]
    published = torch.stack([torch.cat([part for a in pair for part in (a.sin(), a.cos())]) for pair in angles])
    torch.testing.assert_close(positions(3, 5, 16).double().roll(8, 1), published, atol=1e-6, rtol=0)


def test_normalised_patches_are_shown_with_the_mean_and_variance_of_their_own():
    x, model = data(2, 1, 8, 8), make("masked_ae", **SETTINGS | {"norm_pix": True})
    with torch.no_grad():
        model.decoder.last.weight.zero_()
        model.decoder.last.bias.copy_(torch.tensor([-1.0, 0.0, 0.0, 2.0]))
    patches = patchify(x, 2)
    expected = patches.mean(2, keepdim=True) + (patches.var(2, keepdim=True) + 1e-6).sqrt() * model.decoder.last.bias
    for shown in (model.reconstruct(x), run(model, x).recon):
        torch.testing.assert_close(patchify(shown, 2), expected)
    with pytest.raises(UserError, match=r"--model\.norm-pix: valid with --model\.likelihood gaussian or laplace"):
        model.cfg.__class__(latent_dim=8, decoder_dim=8, norm_pix=True).check((1, 8, 8), MLPConfig())


def test_what_is_seen_of_a_code_is_its_mean_or_its_class_token():
    x, cases = data(3, 1, 8, 8), {(False, "mean"): (4, 4, 8), (True, "mean"): (17, 8), (True, "token"): (17, 8)}
    for (token, pool), shape in cases.items():
        model = make("masked_ae", **SETTINGS | {"class_token": token, "pool": pool})
        z = model.encode(x).z
        codes = z.view(3, -1, 8)
        assert model.code_shape == shape
        assert model.decode(z).shape == model.reconstruct(x).shape == x.shape
        expected = codes[:, 0] if pool == "token" else codes[:, -16:].mean(1)
        torch.testing.assert_close(model.features(z), expected)
        torch.testing.assert_close(Model(model).features(x, batch_size=2), expected.detach())
    with pytest.raises(UserError, match=r"--model\.pool token: there is none; add --model\.class-token"):
        model.cfg.__class__(latent_dim=8, decoder_dim=8, pool="token").check((1, 8, 8), MLPConfig())


def test_each_transformer_has_its_own_heads():
    cfg = make("masked_ae", **SETTINGS).cfg.__class__(latent_dim=12, heads=3, decoder_dim=8, decoder_heads=2)
    cfg.check((1, 8, 8), MLPConfig())
    with pytest.raises(UserError, match=r"--model\.decoder-dim 8 is not valid; expected a multiple of --model\.heads 3 and of 4"):
        cfg.__class__(latent_dim=12, heads=3, decoder_dim=8).check((1, 8, 8), MLPConfig())
