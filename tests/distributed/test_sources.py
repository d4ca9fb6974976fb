"""Every kind of data source: the same run on 1 to 3 ranks, after a stop, after one on another number of ranks, and killed."""

from pathlib import Path

import gate
import pytest
from gate import Case
from helpers import settings

from benchmarks.crash import kills
from benchmarks.crash.sources import SOURCES, options, settings_of


def cases_of(name: str, folder: Path) -> dict[str, Case]:
    """A run on 1, 2 and 3 ranks; one stopped and resumed on 3; one stopped on 2 and resumed on 3."""
    cfg = settings(**settings_of(name, folder), steps=10, eval_every=5, log_every=5, precision="fp64")
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


@pytest.mark.slow
@pytest.mark.spawn
@pytest.mark.parametrize("name", SOURCES)
def test_kills_change_nothing(tmp_path, name):
    """SIGKILL at moments of all kinds, on 2 ranks; `python -m benchmarks.crash sources` does many."""
    reference = kills.Reference(name, 2, tmp_path, options(name, tmp_path / "files"))
    report = kills.resumed_chain(reference, 2, tmp_path)
    assert (report["differences"], report["left"], report["human"]) == ([], [], "")
    assert report["resumes"] > 0
