"""A real Slurm for the tests, started for the session and gone afterwards: see cluster.sh.

Debian's packages: slurmctld slurmd slurm-client munge slurmdbd slurm-wlm-mysql-plugin mariadb-server-core
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import RUN, TOGETHER, Cluster

NEEDED = ("munged", "munge", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "sbatch", "srun", "sacct", "scontrol")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if missing := [b for b in NEEDED if not shutil.which(b)]:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            f"no Slurm here, {missing} missing: install the packages named in {__file__}"
        )
    lab = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    lab.chmod(0o755)
    started = Cluster(lab)
    try:
        started.script("start")
        yield started
    finally:
        started.script("stop")
        shutil.rmtree(lab, ignore_errors=True)


@pytest.fixture(scope="session")
def reference(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of RUN on this machine, two processes, never interrupted."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    cluster.call("-m", "launch.local", "--nproc", "2", "--", *RUN.split(), "--run-dir", str(run_dir))
    return run_dir


@pytest.fixture(scope="session")
def ahead(
    request: pytest.FixtureRequest, cluster: Cluster, reference: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[None]]]:
    """The tests marked `together` that this session is to run, under way, in a run folder of their own."""
    chosen = [name for name in TOGETHER if name in {item.name for item in request.session.items}]
    pool = ThreadPoolExecutor(5)
    try:
        yield {name: pool.submit(TOGETHER[name], cluster, tmp_path_factory.mktemp("job") / "run", reference) for name in chosen}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
