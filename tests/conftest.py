"""What all tests share: one thread per process, no W&B server, none of the launcher's variables, and the mark `unit`."""

import gc
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

UNIT = Path(__file__).parent / "unit"

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own process is no rank of a job, whatever started it."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is left in the user's cache, nor found there."""
    os.environ["DISTAE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged, of the run folder that the module's fixture `finished` makes once."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """For `-m unit`, modules of the other folders are not even imported."""
    is_other = collection_path.parent == UNIT.parent and collection_path.is_dir() and collection_path != UNIT
    return True if is_other and config.option.markexpr == "unit" else None


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(UNIT) and not any(item.iter_markers("slow")) and not any(item.iter_markers("spawn")):
            item.add_marker("unit")


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look at it again during each test."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With -n, the tests of a file run on one worker, which shares their fixtures, and all that need Slurm on one."""
    from xdist.scheduler import LoadScopeScheduling

    def scope_of(nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "tests/slurm" if file.startswith("tests/slurm/") else file

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = scope_of
    return scheduler


_running: list[pytest.Item] = []


@pytest.fixture(autouse=True)
def _in_this_process(request: pytest.FixtureRequest) -> Iterator[None]:
    _running[:] = [request.node]
    yield
    _running.clear()


def _no_python_starts(event: str, args: tuple[Any, ...]) -> None:
    """The marks stay true: a unit test that starts a Python fails. Another program, such as git, costs little."""
    if event == "subprocess.Popen" and sys.executable in str(args[1]) and _running and _running[0].get_closest_marker("unit"):
        raise AssertionError(f"{_running[0].name} starts a process: mark it `spawn`")


sys.addaudithook(_no_python_starts)

_seconds: defaultdict[str, float] = defaultdict(float)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.nodeid.partition("::")[0]] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("seconds per test module")
    for module, seconds in sorted(_seconds.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{seconds:8.1f}  {module}")
