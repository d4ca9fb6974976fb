"""SIGKILL at moments of every kind, over every kind of data source: made-up files, and the settings that read them."""

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from PIL import Image

from benchmarks.crash import kills

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
    """Encoded images in row groups of 10, under the windowed shuffle, read as they are needed."""
    pq.write_table(encoded_images(), folder / "x.parquet", row_group_size=10)
    windowed = {"shuffle": "windowed", "window": 1, "storage": "streamed"}
    return {"name": "parquet", "path": str(folder), "size": 8, "mode": "L", "label": "y", **windowed}


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
    from benchmarks.crash.in_units import write_units

    write_units(folder / "units", pictures(), [3, 7, 5] * 8 + [11])
    return {
        "name": "in_units",
        "path": str(folder / "units"),
        "shuffle": "windowed",
        "window": 1,
        "workers": 2,
        "storage": "streamed",
    }


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


def settings_of(name: str, folder: Path) -> dict[str, Any]:
    """Tables of settings for a run over made-up files in `folder`, which is made."""
    folder.mkdir(parents=True)
    return {"data": SOURCES[name](folder), "model": {"likelihood": LIKELIHOODS.get(name, "bernoulli")}}


def options(name: str, folder: Path) -> list[str]:
    """The same for the command line."""
    import tomli_w

    table = settings_of(name, folder)
    (folder / "settings.toml").write_text(tomli_w.dumps(table))
    plugin = ["--plugin", str(Path(__file__).with_name("in_units.py"))] * (name == "in_units")
    return ["--config", str(folder / "settings.toml"), *plugin, "--net.dropout", "0.1", "--ema", "0.9"]


def batch(name: str, ranks: int, count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Runs over one kind of source that are killed, until there are `count` kills."""
    return kills.batch(name, ranks, count, seed, folder, options(name, folder / "files"))


def tasks(count: int, seed: int, folder: Path) -> list[tuple[Any, ...]]:
    """Kills shared out evenly over kinds and numbers of ranks."""
    shares = kills.shared_out(count, [(name, ranks) for ranks in (3, 2, 1) for name in SOURCES])
    return [(batch, v, r, n, seed + i, folder / f"{i}-{v}-{r}") for i, (v, r, n) in enumerate(shares) if n]


def summary(results: list[list[dict[str, Any]]]) -> dict[str, Any]:
    chains = [c for part in results for c in part]
    by_kind = {}
    for name in sorted({c["variant"] for c in chains}):
        mine = [c for c in chains if c["variant"] == name]
        lives = [life for c in mine for life in c["lives"]]
        by_kind[name] = {
            "ranks": dict(sorted(Counter(c["ranks"] for c in mine for _ in c["lives"]).items())), "count": len(lives),
            "hit_a_save": sum(life["saving"] for life in lives), "resumes": sum(c["resumes"] for c in mine), "runs": len(mine),
            "differ": sum(bool(c["differences"] or c["left"] or c["human"]) for c in mine),
        }  # fmt: skip
    return kills.summary(results) | {"by_kind": by_kind}


def rows(s: dict[str, Any]) -> list[tuple[str, str, str]]:
    each = [
        (
            f"SIGKILL over {name}: {', '.join(f'{n} on {r}' for r, n in kind['ranks'].items())} ranks",
            str(kind["count"]),
            f"{kind['differ']} of {kind['runs']} runs differ; {kind['hit_a_save']} hit a save, {kind['resumes']} resumes",
        )
        for name, kind in s["by_kind"].items()
    ]
    return each + kills.rows(s)
