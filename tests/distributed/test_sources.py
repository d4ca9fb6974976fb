"""Every kind of data source: the same run on 1 to 3 ranks, after a stop, and after a stop on another number of ranks."""

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


def sparse(folder: Path) -> dict[str, Any]:
    counts = np.random.default_rng(0).poisson(0.2, (ROWS, 40))
    scipy.sparse.save_npz(folder / "x.npz", scipy.sparse.csr_matrix(counts))
    return {"name": "sparse", "path": str(folder / "x.npz")}


def table(folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    cells = [[f"{a:.3f}", "ab"[i % 2], ("", "x", "y", "z")[i % 4], f"g{i % 17}"] for i, a in enumerate(rng.normal(5, 3, ROWS))]
    (folder / "x.csv").write_text("\n".join(map(",".join, [["size", "kind", "colour", "who"], *cells])))
    return {"name": "table", "path": str(folder / "x.csv"), "missing": "mask", "label": "kind", "group": "who"}


LIKELIHOODS = {"table": "mixed", "sparse": "zinb"}
"""Of sources that are not images."""
SOURCES: dict[str, Callable[[Path], dict[str, Any]]] = {"array": array, "in_units": in_units, "sparse": sparse, "table": table}
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
