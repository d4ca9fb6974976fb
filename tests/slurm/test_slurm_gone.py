"""Nothing of the cluster is left, however the tests end."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster import Cluster, together

HERE = Path(__file__).parent
ENDS = """
import time
from pathlib import Path

def test_it(cluster):
    job = cluster.call("sbatch", "--output=/dev/null", "--wrap=exec sleep 1000").split()[-1]
    cluster.wait(job, "RUNNING")
    Path("lab").write_text(str(cluster.lab))
    if Path("fail").exists():
        raise AssertionError
    time.sleep(60)
"""
DAEMONS = {"munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd"}


def belonging(prefix: str, lab: str) -> dict[int, str]:
    """Processes whose command line or environment names the cluster, its job's included: ids and names."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            report = (folder / "cmdline").read_bytes() + b"\0" + (folder / "environ").read_bytes()
            if lab.encode() in report or f"slurmstepd-{prefix}".encode() in report:
                found[int(folder.name)] = (folder / "comm").read_text().strip()
        except OSError:
            continue
    return found


def end_a_session(how: str, folder: Path) -> tuple[dict[int, str], dict[int, str], list[Path]]:
    """Processes of a session's cluster while it is up and after the session's end; and what is left of its folders."""
    prefix = f"g{how.lower()}{os.getpid()}x"
    folder.mkdir()
    (folder / "test_ends.py").write_text(ENDS)
    if how == "fail":
        (folder / "fail").touch()
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}:{os.environ.get('PYTHONPATH', '')}", "PREFIX": prefix}
    # A background job of a shell, as a gate may be, has SIGINT ignored, and so would all that it starts.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider"]
    command.append("test_ends.py")
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as session:
        while not (folder / "lab").is_file() or not (lab := (folder / "lab").read_text()):
            assert session.poll() is None, session.communicate()[0]
            time.sleep(0.05)
        up, database = belonging(prefix, lab), (Path(lab) / "db").resolve()
        if how != "fail":
            session.send_signal(getattr(signal, how))
        shown, _ = session.communicate(timeout=60)
        assert how == "SIGKILL" or ("1 failed" in shown or "KeyboardInterrupt" in shown), shown
    end = time.monotonic() + (20 if how == "SIGKILL" else 0)  # then a watchdog notices
    while (left := belonging(prefix, lab)) and time.monotonic() < end:
        time.sleep(0.1)
    if how == "SIGKILL":
        shutil.rmtree(lab)
    folders = [database, *Path("/sys/fs/cgroup").glob(f"*/slurm_{prefix}*"), Path(lab)]
    return up, left, [f for f in folders if f.exists()]


@together
def test_the_cluster_is_gone_whatever_happened(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    for how in ("fail", "SIGINT", "SIGKILL"):
        up, left, folders = end_a_session(how, run_dir.with_name(how))
        assert set(up.values()) >= {*DAEMONS, "sleep"}, (how, up)
        assert not left, (how, left)
        assert not folders, how
    assert belonging("", str(cluster.lab))  # and the others' clusters are left alone
