"""Every kind of data source: the same run on 1 to 3 ranks, after a stop, and after a stop on another number of ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gate
import made_up
import numpy as np
import pytest
from gate import Case
from helpers import settings
from PIL import Image

ROWS = 131
"""Divides by no batch and no number of ranks."""


def pictures(n: int = ROWS, shape: tuple[int, ...] = (8, 8)) -> np.ndarray:
    """`n` made-up images of bytes."""
    return np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)


def array(folder: Path) -> dict[str, Any]:
    np.savez(folder / "x.npz", x=pictures(), y=np.arange(ROWS) % 10)
    return {"name": "array", "path": str(folder / "x.npz"), "label_key": "y"}


def in_units(folder: Path) -> dict[str, Any]:
    """Under the windowed shuffle, on 6 lanes, with two threads that read ahead."""
    made_up.write_units(folder / "units", pictures(), [3, 7, 5] * 8 + [11])
    return {"name": "in_units", "path": str(folder / "units"), "shuffle": "windowed", "window": 1, "workers": 2}


def images(folder: Path) -> dict[str, Any]:
    """Random crops and mirror images, by two threads, of files of which some are cut off and one is empty."""
    for i, x in enumerate(pictures(shape=(12, 10, 3))):
        (folder / "images" / f"class{i % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(folder / "images" / f"class{i % 3}" / f"{i:03}.png")
    for i in (4, 5, 6, 7):
        cut = folder / "images" / f"class{i % 3}" / f"{i:03}.png"
        cut.write_bytes(cut.read_bytes()[:-60])
    (folder / "images" / "class0" / "empty.png").touch()
    augmented = {"size": 8, "crop": "random", "flip": True, "workers": 2, "mode": "L"}
    return {"name": "image_folder", "path": str(folder / "images"), "on_error": "skip", **augmented}


SOURCES: dict[str, Callable[[Path], dict[str, Any]]] = {"array": array, "in_units": in_units, "images": images}
"""By name: makes files in a folder, and gives the settings `data` that read them."""


def cases_of(name: str, folder: Path) -> dict[str, Case]:
    """A run on 1, 2 and 3 ranks; one stopped and resumed on 3; one stopped on 2 and resumed on 3."""
    folder.mkdir()
    cfg = settings(data=SOURCES[name](folder), steps=10, eval_every=5, log_every=5, precision="fp64")
    return {
        name: Case(cfg, world_sizes=(1, 2, 3), of_settings=True),
        f"{name} resumed": Case(cfg, world_sizes=(3,), ends_at=7, of_settings=True),
        f"{name} elastic": Case(cfg, world_sizes=(3,), ends_at=7, begins_on=2, of_settings=True),
    }


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    chosen = {item.callspec.params["name"] for item in request.session.items if item.path == request.path}
    return gate.run({k: v for name in sorted(chosen) for k, v in cases_of(name, folder / f"{name} files").items()}, folder)


@pytest.mark.spawn
@pytest.mark.parametrize("name", SOURCES)
def test_every_source_passes_the_gates(results, name):
    gate.assert_parity(results[name], gate.EXACT)
    straight, resumed = results[name][3], results[f"{name} resumed"][3]
    for key, value in straight.tensors.items():
        assert value.equal(resumed.tensors[key]), f"resumed on 3 ranks: {key} differs"
    elastic = results[f"{name} elastic"][3]._replace(metrics=straight.metrics)  # its first part ends with rows of its own
    assert max(gate.differences(elastic, straight).values()) <= gate.EXACT
