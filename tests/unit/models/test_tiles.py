"""Images of another size than a model was trained on: whole, and in tiles, next to diffusers where it is installed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import settings
from PIL import Image
from torch import Tensor
from variants import make

from distae.commands import encode, reconstruct
from distae.data import Transform
from distae.errors import UserError
from distae.models import build
from distae.models.inference import Model
from distae.models.serialization import About, SavedModel, write_diffusers
from distae.models.tiles import Tiles, resized

SPATIAL: dict[str, Any] = {"name": "conv", "channels": [4], "spatial": True}


def tokenizer(attends: bool = False) -> Any:
    """Of images of 16 pixels, f2, its weights random."""
    net = {"name": "image", "channels": 16, "multipliers": [1, 2], "blocks": 1, "groups": 8, "middle_attention": attends}
    cfg = settings(model={"name": "tokenizer", "latent_dim": 3, "discriminator_channels": 4}, net=net)
    model: Any = build(cfg.model, cfg.net, (3, 16, 16), seed=1).eval()
    with torch.no_grad():
        for p in model.codec.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model


def written(model: Any, folder: Path) -> Path:
    """A folder of diffusers."""
    folder.mkdir()
    write_diffusers(SavedModel(model, Transform(255.0), About({}, {}, [3, 16, 16]), ""), folder, 0.5, None)
    return folder


def image(height: int, width: int) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def plain(bottleneck: str = "kl") -> Any:
    """Without norm and attention, a convolutional network sees only what is near: it has no group norm over the image."""
    cfg = settings(model={"name": "tokenizer", "bottleneck": bottleneck, "latent_dim": 3, "levels": [4, 4, 4]}, net=SPATIAL)
    return build(cfg.model, cfg.net, (3, 16, 16), seed=1).eval()


def test_a_model_of_another_size_is_that_which_is_built_of_that_size():
    model = tokenizer(attends=True)
    larger: Any = build(model.cfg, model.net, (3, 24, 32)).eval()
    larger.codec.load_state_dict(model.codec.state_dict())
    x = image(24, 32)
    for found in (resized(model, 24, 32), resized(resized(model, 16, 16, 8), 24, 32), resized(model, 24, 32, tile=32)):
        assert found.code_shape == larger.code_shape
        assert torch.equal(found.encode(x).z, larger.encode(x).z)
        assert torch.equal(found.reconstruct(x), larger.reconstruct(x))
    assert model.code_shape == (8, 8, 3)


@pytest.mark.parametrize("bottleneck", ["kl", "vq", "fsq"])
def test_a_local_network_gives_the_same_but_where_tiles_fade_into_each_other(bottleneck):
    """Without norms and attention a code sees the pixels around it alone. Two tiles of 16 codes overlap in codes 8 to 15."""
    model, x = plain(bottleneck), image(16, 48)
    whole, tiled = (resized(model, 16, 48, tile, 0.5) for tile in (None, 32))
    codes = [m.encode(x).z.view(2, 8, 24, 3) for m in (whole, tiled)]
    assert torch.equal(codes[0][:, :, :8], codes[1][:, :, :8])
    assert torch.equal(codes[0][:, :, 16:], codes[1][:, :, 16:])
    first, second = (m.decode(codes[0].flatten(1)) for m in (whole, tiled))
    torch.testing.assert_close(first, second, atol=1e-2, rtol=0)
    same = torch.isclose(first, second, atol=1e-6).all(1).all(1).all(0)
    assert same[:16].all()
    assert same[33:].all()
    assert not same.all()


def test_a_tile_fades_into_the_next_and_none_lies_within_an_overlap():
    """Tiles of 8 pixels that overlap by 4, each of another constant: of 12 pixels there are two, though 8 is a multiple of 4."""
    seen = []

    def number(x: Tensor) -> Tensor:
        seen.append(x[0, 0, 0, :].tolist())
        return torch.full_like(x, float(len(seen)))

    x = torch.arange(12.0).expand(1, 1, 4, 12)
    found = Tiles(size=8, overlap=4, factor=1).encode(number, x)
    assert seen == [[*range(8)], [*range(4, 12)]]
    assert found[0, 0, 3].tolist() == [1, 1, 1, 1, 1, 1.25, 1.5, 1.75, 2, 2, 2, 2]
    seen.clear()
    assert Tiles(size=8, overlap=4, factor=1).decode(number, x.mT)[0, 0, :, 0].tolist() == found[0, 0, 0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("sides", [(30, 44), (12, 44), (44, 12)])
def test_tiles_are_those_of_diffusers(sides, tmp_path):
    """Tiles of 16 pixels that overlap by 4; sides that leave no tile within the overlap, which diffusers would compute too."""
    peer = pytest.importorskip("diffusers")
    model = tokenizer(attends=True)
    theirs = peer.AutoencoderKL.from_pretrained(written(model, tmp_path / "a"), low_cpu_mem_usage=False)
    theirs.enable_tiling()
    x, found = image(*sides), resized(model, sides[0], sides[1], tile=16)
    with torch.no_grad():
        codes, posterior = found.encode(x), theirs.encode(2 * x - 1).latent_dist
        rows, columns, channels = found.code_shape
        for mine, expected in ((codes.mu, posterior.mean), (codes.logvar, posterior.logvar)):
            assert mine is not None
            torch.testing.assert_close(mine.view(2, rows, columns, channels).permute(0, 3, 1, 2), expected, atol=1e-4, rtol=1e-4)
        images = theirs.decode(posterior.mean).sample
        torch.testing.assert_close(2 * found.decode(codes.z) - 1, images, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(found.encode(x).z, resized(model, sides[0], sides[1]).encode(x).z, atol=1e-4)


def test_models_take_larger_arrays_in_tiles():
    model = Model(tokenizer())
    x = image(32, 48).numpy()
    big = model.resized(32, 48, tile=16, overlap=0.5)
    z = big.encode(x)
    assert (big.shape, big.code_shape, z.shape) == ((3, 32, 48), (16, 24, 3), (2, 16 * 24 * 3))
    assert big.decode(z).shape == x.shape
    with pytest.raises(UserError, match=r"expected \[N, 3, 16, 16\]"):
        model.encode(x)


@pytest.mark.slow
def test_commands_take_larger_images_in_tiles(tmp_path, capsys):
    """Files of any size, which the factor need not divide, and data of another size than the model's."""
    model, folder = tokenizer(), written(tokenizer(), tmp_path / "run")
    pixels = np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    words = [str(folder), str(tmp_path / "photo.png"), "--tile", "16", "--out", str(tmp_path / "out")]
    assert reconstruct.main(words, "distae reconstruct") == 0, capsys.readouterr().err
    found = np.asarray(Image.open(tmp_path / "out" / "photo.png"))
    padded = torch.tensor(np.pad(pixels, ((0, 1), (0, 1), (0, 0)), "edge")).permute(2, 0, 1)[None] / 255
    expected = resized(model, 38, 52, 16).reconstruct(padded)[0, :, :37, :51].clamp(0, 1).mul(255).round().permute(1, 2, 0)
    assert np.abs(found - expected.detach().numpy()).max() <= 1

    x = np.random.default_rng(1).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    words = [str(folder), "--data", str(tmp_path / "x.npy"), "--tile", "16", "--out", str(tmp_path / "z.npy")]
    assert encode.main(words, "distae encode") == 0, capsys.readouterr().err
    z = resized(model, 32, 32, 16).encode(torch.tensor(x) / 255).z
    torch.testing.assert_close(torch.tensor(np.load(tmp_path / "z.npy")), z.detach(), atol=1e-5, rtol=1e-5)
    assert reconstruct.main([str(folder), str(tmp_path / "photo.png"), "--tile", "0"], "distae reconstruct") == 2
    assert "--tile 0: expected a multiple of 2" in capsys.readouterr().err


@pytest.mark.slow
def test_codes_of_other_tiles_are_not_joined(tmp_path, capsys, monkeypatch):
    """Parts that an interrupted command left are of its tiles."""
    monkeypatch.setattr(encode, "PART", 1)
    folder = written(tokenizer(), tmp_path / "run")
    np.save(tmp_path / "x.npy", np.random.default_rng(1).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8))
    words = [str(folder), "--data", str(tmp_path / "x.npy"), "--eval-batch-size", "1", "--out", str(tmp_path / "z.npy"), "--tile"]
    real, tiles = encode._encoded, list[int]()

    def interrupted_once(run, samples):
        tiles.append(run.options.tile)
        if len(tiles) == 2:
            raise KeyboardInterrupt
        return real(run, samples)

    monkeypatch.setattr(encode, "_encoded", interrupted_once)
    assert encode.main([*words, "16"], "distae encode") == 130
    assert encode.main([*words, "8"], "distae encode") == 0, capsys.readouterr().err
    assert tiles == [16, 16, 8, 8]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"height": 33, "width": 32}, "33x32 images: expected sides that are multiples of 2"),
        ({"height": 32, "width": 32, "tile": 15}, "--tile 15: expected a multiple of 2"),
        ({"height": 32, "width": 32, "tile": 16, "overlap": 0.6}, "--tile-overlap 0.6: expected a share from 0 to 0.5"),
    ],
)
def test_what_does_not_fit_is_an_error(given, words):
    with pytest.raises(UserError, match=words):
        resized(tokenizer(), **given)
    with pytest.raises(UserError, match="whose codes keep their place"):
        resized(make("vae"), 8, 8)
