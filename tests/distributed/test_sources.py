"""Every kind of data source: the same run on 1 to 3 ranks, after a stop, and after a stop on another number of ranks."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gate
import made_up
import numpy as np
import pytest
import scipy.sparse
from gate import Case
from helpers import settings
from PIL import Image

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:  # the extra `data`
    pa = None
ROWS = 131
"""Divides by no batch and no number of ranks."""


def pictures(n: int = ROWS, shape: tuple[int, ...] = (8, 8)) -> np.ndarray:
    """`n` made-up images of bytes."""
    return np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)


def array(folder: Path) -> dict[str, Any]:
    np.savez(folder / "x.npz", x=pictures(), y=np.arange(ROWS) % 10)
    return {"name": "array", "path": str(folder / "x.npz"), "label_key": "y"}


def shards(folder: Path) -> dict[str, Any]:
    for i, part in enumerate(np.split(pictures(), [40, 41])):
        np.save(folder / f"{i}.npy", part)
    return {"name": "array", "path": str(folder)}


def parquet(folder: Path) -> dict[str, Any]:
    """Encoded images in row groups of 10, under the windowed shuffle."""
    pq.write_table(encoded_images(), folder / "x.parquet", row_group_size=10)
    return {"name": "parquet", "path": str(folder), "size": 8, "mode": "L", "label": "y", "shuffle": "windowed", "window": 1}


def hf(folder: Path) -> dict[str, Any]:
    with pa.OSFile(str(folder / "x.arrow"), "wb") as file, pa.ipc.new_stream(file, encoded_images().schema) as stream:
        stream.write_table(encoded_images(), max_chunksize=10)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    return {"name": "hf", "path": str(folder), "size": 8, "mode": "L", "label": "y", "shuffle": "windowed", "window": 1}


def encoded_images() -> Any:
    files = [io.BytesIO() for _ in range(ROWS)]
    for file, pixels in zip(files, pictures(), strict=True):
        Image.fromarray(pixels).save(file, "png")
    return pa.table({"image": [{"bytes": file.getvalue(), "path": ""} for file in files], "y": np.arange(ROWS) % 10})


def in_units(folder: Path) -> dict[str, Any]:
    """Under the windowed shuffle, on 6 lanes, with two threads that read ahead."""
    made_up.write_units(folder / "units", pictures(), [3, 7, 5] * 8 + [11])
    return {"name": "in_units", "path": str(folder / "units"), "shuffle": "windowed", "window": 1, "workers": 2}


def sparse(folder: Path) -> dict[str, Any]:
    counts = np.random.default_rng(0).poisson(0.2, (ROWS, 40))
    scipy.sparse.save_npz(folder / "x.npz", scipy.sparse.csr_matrix(counts))
    return {"name": "sparse", "path": str(folder / "x.npz")}


def table(folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    cells = [[f"{a:.3f}", "ab"[i % 2], ("", "x", "y", "z")[i % 4], f"g{i % 17}"] for i, a in enumerate(rng.normal(5, 3, ROWS))]
    (folder / "x.csv").write_text("\n".join(map(",".join, [["size", "kind", "colour", "who"], *cells])))
    return {"name": "table", "path": str(folder / "x.csv"), "missing": "mask", "label": "kind", "group": "who"}


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


LIKELIHOODS = {"table": "mixed", "sparse": "zinb"}
"""Of sources that are not images."""
SOURCES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "array": array, "images": images, "shards": shards, "in_units": in_units, "sparse": sparse, "table": table,
}  # fmt: skip
if pa:
    SOURCES |= {"parquet": parquet, "hf": hf}
"""By name: makes files in a folder, and gives the settings `data` that read them."""


def cases_of(name: str, folder: Path) -> dict[str, Case]:
    """A run on 1, 2 and 3 ranks; one stopped and resumed on 3; one stopped on 2 and resumed on 3."""
    folder.mkdir()
    model = {"likelihood": LIKELIHOODS.get(name, "bernoulli")}
    cfg = settings(data=SOURCES[name](folder), model=model, steps=10, eval_every=5, log_every=5, precision="fp64")
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
