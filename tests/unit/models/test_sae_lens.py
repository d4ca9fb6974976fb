"""Folders of SAELens: what is written and read encodes as their formulas, and as SAELens where it is installed."""

import json

import pytest
import torch
from helpers import fitted, settings
from safetensors.torch import load_file, save_file
from variants import make

import distae
from distae.commands import export
from distae.data import Transform
from distae.errors import UserError
from distae.models import sae_lens
from distae.models.inference import Model
from distae.models.serialization import About, SavedModel, load_saved, write_sae_lens

NAMES = ("topk_sae", "batch_topk_sae", "matryoshka_sae", "jumprelu_sae", "l1_sae", "gated_sae")
GENERATOR = torch.Generator().manual_seed(0)


def rand(*shape):
    return torch.randn(shape, generator=GENERATOR)


def dictionary(name, **more):
    """In float32, its weights and biases random."""
    more |= {"prefixes": [0.25, 0.5]} if name == "matryoshka_sae" else {}
    more |= {} if name in ("l1_sae", "gated_sae") else {"k": 3}
    model = make(name, latent_dim=16, **more).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * rand(*parameter.shape))
        if hasattr(model, "threshold"):
            model.threshold.fill_(0.4)
    return model


def theirs(folder, x):
    """Codes and reconstructions as the documentation of SAELens has them."""
    cfg, w = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    w = {k: v.float() for k, v in w.items()}
    pre = (x - w["b_dec"] * cfg["apply_b_dec_to_input"]) @ w["W_enc"]
    norms = w["W_dec"].norm(dim=1) if cfg.get("rescale_acts_by_decoder_norm") else torch.ones(len(w["W_dec"]))
    if cfg["architecture"] == "gated":
        z = (pre + w["b_gate"] > 0) * (pre * w["r_mag"].exp() + w["b_mag"]).relu()
    else:
        z = (pre + w["b_enc"]) * norms
        if cfg["architecture"] == "jumprelu":
            z = z.relu() * (z > w["threshold"])
        elif cfg["architecture"] == "topk":
            z = torch.where(z >= z.topk(cfg["k"]).values[:, -1:], z, 0.0)
    z = z.relu()
    return z, (z / norms) @ w["W_dec"] + w["b_dec"]


@pytest.mark.filterwarnings("ignore")
def by_sae_lens(folder, x):
    sae = pytest.importorskip("sae_lens").SAE.load_from_disk(folder)
    with torch.no_grad():
        return sae.encode(x), sae(x)


def write(folder, name="jumprelu", latents=12, values=6, dtype=torch.float32, **changes):
    """A folder as SAELens writes it, with random tensors."""
    own = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}.get(name, ("b_enc",))
    tensors = {"W_enc": rand(values, latents), "W_dec": rand(latents, values), "b_dec": rand(values)}
    tensors |= {key: rand(latents).abs() if key == "threshold" else rand(latents) for key in own}
    folder.mkdir(exist_ok=True)
    save_file({k: v.to(dtype) for k, v in tensors.items()}, folder / "sae_weights.safetensors")
    cfg = {
        "architecture": name, "d_in": values, "d_sae": latents, "dtype": str(dtype)[6:], "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0"},
    }  # fmt: skip
    cfg |= ({"k": 3} if name == "topk" else {}) | changes
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


def save(model, folder, scale=1.0):
    folder.mkdir()
    write_sae_lens(SavedModel(model, Transform(scale), About({}, {}, [6], step=7), ""), folder)


@pytest.mark.parametrize("how", [theirs, by_sae_lens])
@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("name", NAMES)
def test_written_dictionaries_encode_alike(name, scale, how, tmp_path):
    """Values as they are stored, and read back too."""
    module, x = dictionary(name, scale_input=scale != 1), scale * rand(50, 6)
    if scale != 1:
        module.input_scale.fill_(0.7)
    model = Model(module, Transform(scale))
    save(model.module, tmp_path / "sae", scale)
    z, recon = how(tmp_path / "sae", x)
    assert 0 < (z > 0).float().mean() < 1
    torch.testing.assert_close(z, model.encode(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(recon, model.reconstruct(x), atol=1e-5 * scale, rtol=1e-5)
    again = distae.load(tmp_path / "sae")
    torch.testing.assert_close(again.encode(x), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.reconstruct(x), recon, atol=1e-5 * scale, rtol=1e-5)


def test_a_sample_at_the_threshold_is_active(tmp_path):
    model = dictionary("batch_topk_sae")
    x = rand(1, 6)
    with torch.no_grad():
        model.threshold.copy_(model.pre_activations(x)[0, model.pre_activations(x)[0].argmax()])
    save(model, tmp_path / "sae")
    tensors = load_file(tmp_path / "sae/sae_weights.safetensors")
    assert (model.encode(x).z > 0).sum() == 1
    assert tensors["threshold"][0] < model.threshold
    assert tensors["threshold"].nextafter(torch.tensor(torch.inf))[0] == model.threshold


@pytest.mark.parametrize("how", [theirs, by_sae_lens])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("standard", {}), ("topk", {}), ("jumprelu", {}), ("gated", {}),
        ("topk", {"rescale_acts_by_decoder_norm": True}),
        ("jumprelu", {"apply_b_dec_to_input": False}),
        ("gated", {"apply_b_dec_to_input": False}),
        ("jumprelu", {"dtype": torch.bfloat16}),
        ("jumprelu", {"normalize_activations": "expected_average_only_in"}),
    ],
)  # fmt: skip
def test_their_dictionaries_encode_alike(name, changes, how, tmp_path):
    """Decoder vectors have other lengths than 1."""
    write(tmp_path / "sae", name, **changes)
    x = rand(50, 6)
    z, recon = how(tmp_path / "sae", x) if how is theirs or "dtype" not in changes else theirs(tmp_path / "sae", x)
    model = distae.load(tmp_path / "sae")
    torch.testing.assert_close(model.encode(x), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.reconstruct(x), recon, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": "temporal"}, "architecture 'temporal' of SAELens cannot be read; valid: standard, topk, jumprelu, gated"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations 'layer_norm' .* valid: none, expected_average_only_in"),
        ({"reshape_activations": "hook_z"}, "reshape_activations 'hook_z'"),
        ({"architecture": "gated"}, "sae_weights.safetensors of SAELens: b_enc is unknown"),
        ({"name": "topk", "k": 13}, "k is 13; expected a whole number from 1 to 12"),
    ],
)
def test_what_cannot_be_read_is_named(changes, named, tmp_path):
    with pytest.raises(UserError, match=named):
        load_saved(write(tmp_path / "sae", **changes))


def test_damaged_folders_are_named(tmp_path):
    folder = write(tmp_path / "sae")
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file(tensors | {"W_enc": tensors["W_enc"][:, 1:].contiguous()}, folder / "sae_weights.safetensors")
    with pytest.raises(UserError, match="shapes of tensors do not match"):
        load_saved(folder)
    save_file(tensors | {"b_enc": torch.full((12,), torch.nan)}, folder / "sae_weights.safetensors")
    with pytest.raises(UserError, match="b_enc contains NaN"):
        load_saved(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(UserError, match=r"cfg\.json is missing or damaged"):
        load_saved(folder)


def test_only_dictionaries_are_written():
    with pytest.raises(UserError, match="--format sae_lens is for sparse autoencoders of a dictionary, not vae"):
        sae_lens.exported(make("vae"), Transform(), None)
    with pytest.raises(UserError, match="not tables or other layouts"):
        sae_lens.exported(dictionary("l1_sae"), Transform(layout="channels_last"), None)


def test_a_run_is_exported_used_and_trained_further(tmp_path, capsys):
    model = {"name": "jumprelu_sae", "latent_dim": 12, "k": 3}
    fitted(settings(model=model, steps=2), tmp_path / "first")
    words = [str(tmp_path / "first"), "--format", "sae_lens", "--out", str(tmp_path / "sae")]
    assert export.main(words, "distae export") == 0, capsys.readouterr().err
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["d_in"], cfg["metadata"]["training_architecture"]) == ("jumprelu", 64, "jumprelu_sae")
    more = settings(model=model, steps=1, optim={"lr": 1e-30}, init_from=str(tmp_path / "sae"))
    second, written = fitted(more, tmp_path / "second"), distae.load(tmp_path / "first").module.state_dict()
    for key in ("encoder", "bias", "threshold"):
        torch.testing.assert_close(second.train_step.model.state_dict()[key], written[key], atol=1e-6, rtol=1e-5)
