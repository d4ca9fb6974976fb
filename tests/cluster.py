"""A real Slurm on this machine for tests, and helpers that read a run folder."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CLUSTER_SH = Path(__file__).parent / "slurm" / "cluster.sh"
LAUNCHERS = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_", "SUBMITIT_", "MASTER_", "TORCHELASTIC_")
RUN = "--steps 400 --precision fp64 --threads 1 --log-every 10 --eval-every 200 --save-every 100 --tracking none"
"""The default job with a set number of steps; fp64, so that other world sizes agree to 1e-9."""
SMALL = "--cpus-per-task 1 --mem 2G --time 20"
ON_CPUS = f"--gpus-per-node 0 {SMALL}"
TOGETHER: dict[str, Callable[..., None]] = {}


def together(test: Callable[..., None]) -> Callable[[Mapping[str, Future[None]]], None]:
    """A test that runs in a thread, beside the others of its kind: most of it is waiting for Slurm."""

    def result(ahead: Mapping[str, Future[None]]) -> None:
        ahead[test.__name__].result()

    TOGETHER[test.__name__], result.__doc__ = test, test.__doc__
    return result


class Cluster:
    """Nodes with four CPUs and two pretended GPUs each: three in `debug`; three in `lossy`; one in `low`, which `high` preempts."""

    def __init__(self, lab: Path) -> None:
        self.lab = lab
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
        self.env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "SLURM_CONF": f"{lab}/slurm.conf"}
        self.env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the sbatch scripts call `python`

    def script(self, *args: str) -> None:
        # The cgroups of nodes are named after them: those of another session on this machine must have other names.
        env = {"PREFIX": f"n{os.getpid()}x"} | self.env | {"LAB": str(self.lab), "OWNER": str(os.getpid())}
        done = subprocess.run(["bash", CLUSTER_SH, *args], env=env, capture_output=True, text=True, timeout=180, check=False)
        if done.returncode:
            raise RuntimeError(f"cluster.sh {args}: {done.stdout}{done.stderr}\n{self.logs()}")

    def call(self, *command: str, code: int = 0, **env: str) -> str:
        """Output of a command (`-m` runs Python's), which must exit with `code`."""
        command = (sys.executable, *command) if command[0] == "-m" else command
        done = subprocess.run(command, env=self.env | env, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def submit(self, slurm: str, train: str) -> str:
        """Job id of a run that `launch.slurm` submits on CPUs."""
        return self.call("-m", "launch.slurm", *ON_CPUS.split(), *slurm.split(), "--", *train.split()).split()[1].rstrip(",")

    def sbatch(self, slurm: str, script: str, train: str, log: Path, **env: str) -> str:
        """Job id of a run by one of the plain scripts."""
        command = ["sbatch", "--mem=2G", f"--output={log}", *slurm.split(), f"slurm/{script}.sbatch", *train.split()]
        return self.call(*command, code=0, **env).split()[-1]

    def job(self, job_id: str) -> dict[str, str]:
        """The controller's own view: at once, unlike sacct's."""
        shown = self.call("scontrol", "-o", "show", "job", job_id)
        return dict(item.partition("=")[::2] for item in shown.split())

    def wait(self, job_id: str, *states: str, until: Callable[[], bool] = lambda: True, seconds: float = 180) -> dict[str, str]:
        """The job once `until` holds, which is asked often, and it is in one of `states`, which costs more to ask."""
        end = time.monotonic() + seconds
        while not until() or (job := self.job(job_id))["JobState"] not in states:
            assert time.monotonic() < end, f"{self.describe(job_id)}, wanted {states}"
            time.sleep(0.5 if until() else 0.05)
        return job

    def hold(self, job_id: str, run_dir: Path) -> dict[str, str]:
        """The job after some steps, standing still so that it cannot end, until Slurm signals it (with CONT first)."""
        job = self.wait(job_id, "RUNNING", until=lambda: steps(run_dir) > 0)
        self.call(
            "kill", "-STOP", *self.pids(job_id)
        )  # not scancel --signal=STOP: it freezes them, and Slurm shows STOPPED for ever
        return job

    def limit(self, job_id: str, seconds: int) -> None:
        """Give a job at least so many seconds more; limits are whole minutes from its start."""
        started = datetime.fromisoformat(self.job(job_id)["StartTime"])
        minutes = -(-int((datetime.now() - started).total_seconds() + seconds) // 60)
        self.call("scontrol", "update", f"JobId={job_id}", f"TimeLimit={minutes}")

    def pids(self, job_id: str, *task: str) -> list[str]:
        """The processes of a job's tasks, or of one (`SLURM_PROCID=1`), found by their environment: nodes have pid namespaces."""
        wanted = {text.encode() for text in (f"SLURM_JOB_ID={job_id}", "SLURM_STEP_ID=0", *task)}
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                argv = path.with_name("cmdline").read_bytes().split(b"\0")
                if wanted <= set(path.read_bytes().split(b"\0")) and Path(argv[0].decode()).name.startswith("python"):
                    found.append(path.parent.name)
        return found

    def fail_node(self, node: str) -> None:
        """Power loss, noticed at once."""
        self.script("kill-node", node)
        self.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")

    def describe(self, job_id: str) -> str:
        """The controller's view of a job, the end of each of its logs, and of the controller's own."""
        job = self.job(job_id)
        output = Path(job["StdOut"])
        logs = [output, *output.parent.glob(f"{job_id}/rank_*.err")]
        return "\n".join([f"job {job_id} is {job}", *(f"{p}: {p.read_text()[-1500:]}" for p in logs if p.is_file()), self.logs()])

    def logs(self) -> str:
        return (self.lab / "log" / "slurmctld.log").read_text(errors="replace")[-4000:]


def weights(run_dir: Path) -> dict[str, Any]:
    from safetensors.torch import load_file  # torch takes long to import, and a session that only starts a cluster needs none

    return load_file(run_dir / "model" / "model.safetensors")


def steps(run_dir: Path) -> int:
    """The last step in metrics.jsonl."""
    try:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, IndexError, ValueError):
        return 0
