"""Evaluation against the whole split in one go, at sizes that divide by nothing."""

import math

import numpy as np
import pytest
import torch
from helpers import fitted, images, metrics, settings, spy
from PIL import Image

from distae import distributed as dist
from distae.data import Loader
from distae.evaluation.exact import evaluate
from distae.evaluation.pictures import draw
from distae.models import Batch, build
from distae.models.serialization import load_weights
from distae.noise import Noise, Rows

CPU = torch.device("cpu")


def pieces(model: str, **net: object):
    cfg = settings(model={"name": model}, net={"norm": "batch", "dropout": 0.5, **net})
    made = build(cfg.model, cfg.net, (1, 8, 8), seed=1, dtype=torch.float64)
    return made, Loader(images(50, 4), "none", CPU, torch.float64)


@pytest.mark.parametrize("chunk", [1, 7, 20, 50, 512])
@pytest.mark.parametrize("model", ["ae", "vae"])
def test_every_sample_counts_once(model, chunk):
    made, loader = pieces(model)
    made.train()
    found = evaluate(made, loader, chunk, seed=9)
    assert made.training
    made.eval()
    sums: dict[str, float] = {}
    for number, rows in enumerate(torch.arange(50).split(chunk)):
        x, _ = loader.batch(rows, None)
        out = made(Batch(x), "autoencoder", Noise(9, ("eval", number, "autoencoder"), Rows(len(rows)), CPU))
        mse = (x - torch.sigmoid(out.recon)).square().mean((1, 2, 3))
        for name, value in (out.per_sample | {"mse": mse}).items():
            sums[name] = sums.get(name, 0.0) + float(value.detach().sum())
    assert found == pytest.approx({name: value / 50 for name, value in sums.items()}, rel=1e-12)


def test_the_chunk_does_not_matter_without_noise():
    made, loader = pieces("ae")
    whole = evaluate(made, loader, 512, seed=0)
    assert evaluate(made, loader, 13, seed=0) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("world_size", [2, 3, 4, 7])
def test_ranks_add_up_to_the_whole(world_size, monkeypatch):
    """Each rank's own sums, added up here: all make the same number of forward calls, padded rows weigh nothing."""
    made, loader = pieces("vae")
    whole = evaluate(made, loader, 20, seed=0)
    assert whole
    calls: list[list[int]] = []
    forward = type(made).forward
    monkeypatch.setattr(type(made), "forward", spy(forward, lambda self, b, *rest: calls[-1].append(len(b.x))))
    parts: list[torch.Tensor] = []
    monkeypatch.setattr(dist, "all_reduce_", lambda sums: (parts.append(sums), sums)[1])
    for rank in range(world_size):
        calls.append([])
        with dist.use(dist.World(rank, world_size, CPU)):
            evaluate(made, loader, 20, seed=0)
    *total, count = torch.stack(parts).sum(0).tolist()
    assert count == 50
    assert {k: value / count for k, value in zip(whole, total, strict=True)} == pytest.approx(whole, rel=1e-12)
    assert calls == [[math.ceil(n / world_size) for n in (20, 20, 10)]] * world_size


def test_a_chunk_is_fetched_once_for_all_phases(monkeypatch):
    made, loader = pieces("aae")
    fetched: list[torch.Tensor] = []
    monkeypatch.setattr(loader, "batch", spy(loader.batch, lambda rows, noise: fetched.append(rows)))
    evaluate(made, loader, 20, seed=0)
    assert torch.equal(torch.cat(fetched), torch.arange(50))


def test_an_interrupted_evaluation_gives_nothing():
    made, loader = pieces("ae")
    answers = iter([False, True])
    assert evaluate(made, loader, 20, 0, lambda: next(answers)) is None
    assert made.training


def test_pictures_are_grids_of_inputs_over_reconstructions(tmp_path):
    made, loader = pieces("vae")
    paths = draw(made, loader, tmp_path / "images", 12, 0, "val")
    assert {k: p.name for k, p in paths.items()} == {
        "reconstructions": "val_reconstructions_00000012.png", "samples": "val_samples_00000012.png"
    }  # fmt: skip
    grid = torch.from_numpy(np.array(Image.open(paths["reconstructions"]).convert("RGB"))).movedim(2, 0)
    side = 32 + 2  # images enlarged to 32 pixels, 2 between them
    assert grid.shape[1:] == (4 * side + 2, 16 * side + 2)
    x, _ = loader.batch(torch.arange(32), None)
    for row, column, expected in [(0, 3, x[3]), (1, 3, made.eval().reconstruct(x)[3]), (2, 0, x[16])]:
        cell = grid[0, 2 + row * side :, 2 + column * side :][:32:4, :32:4]
        torch.testing.assert_close(cell / 255, expected[0].float(), atol=1 / 255, rtol=0)


def test_data_that_are_no_images_have_no_pictures(tmp_path):
    cfg = settings()
    made = build(cfg.model, cfg.net, (5,), seed=1)
    assert draw(made, Loader(images(5, 0), "none", CPU, torch.float32), tmp_path, 0, 0, "val") == {}


def test_the_average_is_what_is_evaluated_and_exported(tmp_path):
    trainer = fitted(settings(ema=0.9, steps=8), tmp_path)
    assert trainer.train_step.ema
    ema, model = trainer.train_step.ema.model, trainer.train_step.model
    assert not torch.equal(next(ema.parameters()), next(model.parameters()))
    found = {k.removeprefix("val/"): v for k, v in metrics(tmp_path)[-2].items() if k.startswith("val/")}
    assert found == pytest.approx(evaluate(ema, trainer.loaders["val"], 20, 3))
    assert found != pytest.approx(evaluate(model, trainer.loaders["val"], 20, 3))
    torch.testing.assert_close(load_weights(tmp_path), dict(ema.state_dict()))
