"""A real Slurm for the tests, started for the session and gone afterwards: see cluster.sh.

Debian's packages: slurmctld slurmd slurm-client munge slurmdbd slurm-wlm-mysql-plugin mariadb-server-core
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import RUN, Cluster

NEEDED = ("munged", "munge", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "sbatch", "srun", "sacct", "scontrol")


@pytest.fixture(scope="session")
def _session_cluster() -> Iterator[Cluster]:
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if missing := [b for b in NEEDED if not shutil.which(b)]:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            f"no Slurm here, {missing} missing: install the packages named in {__file__}"
        )
    lab = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    lab.chmod(0o755)
    cluster = Cluster(lab)
    try:
        cluster.script("start")
        yield cluster
    finally:
        cluster.script("stop")
        shutil.rmtree(lab, ignore_errors=True)


@pytest.fixture
def cluster(_session_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, free of jobs afterwards."""
    yield _session_cluster
    _session_cluster.call("scancel", "-u", str(os.getuid()))
    end = time.monotonic() + 30
    while _session_cluster.call("squeue", "-h") and time.monotonic() < end:
        time.sleep(0.1)


@pytest.fixture(scope="session")
def reference(_session_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of RUN on this machine, two processes, never interrupted."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    _session_cluster.call("-m", "launch.local", "--nproc", "2", "--", *RUN.split(), "--run-dir", str(run_dir))
    return run_dir
