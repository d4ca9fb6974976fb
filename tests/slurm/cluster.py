"""A real Slurm on this machine, for tests, and what they look at in a run folder."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parents[2]
CLUSTER_SH = Path(__file__).parent / "cluster.sh"
LAUNCHERS = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_", "SUBMITIT_", "MASTER_", "TORCHELASTIC_")
RUN = "--steps 400 --precision fp64 --threads 1 --log-every 10 --eval-every 200 --save-every 100 --tracking none"
"""The default job with a set number of steps; fp64, so that other world sizes agree to 1e-9."""


class Cluster:
    """Three nodes with four CPUs and two pretended GPUs each; partitions `debug`, and `high` that preempts it."""

    def __init__(self, lab: Path) -> None:
        self.lab = lab
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
        self.env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "SLURM_CONF": f"{lab}/slurm.conf"}
        self.env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the sbatch scripts call `python`

    def script(self, *args: str) -> None:
        env = self.env | {"LAB": str(self.lab), "NODES": "3", "OWNER": str(os.getpid())}
        done = subprocess.run(["bash", CLUSTER_SH, *args], env=env, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise RuntimeError(f"cluster.sh {args}: {done.stdout}{done.stderr}\n{self.logs()}")

    def call(self, *command: str, code: int = 0) -> str:
        """Output of a command (`-m` runs Python's), which must exit with `code`."""
        command = (sys.executable, *command) if command[0] == "-m" else command
        done = subprocess.run(command, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def submit(self, slurm: str, train: str) -> str:
        """Job id of a run that `launch.slurm` submits on CPUs."""
        shared = "--gpus-per-node 0 --cpus-per-task 1 --mem 500M --time 20"
        return self.call("-m", "launch.slurm", *shared.split(), *slurm.split(), "--", *train.split()).split()[1].rstrip(",")

    def job(self, job_id: str) -> dict[str, str]:
        """The controller's own view: at once, unlike sacct's."""
        shown = self.call("scontrol", "-o", "show", "job", job_id)
        return dict(item.partition("=")[::2] for item in shown.split())

    def wait(self, job_id: str, *states: str, until: Callable[[], bool] = lambda: True, seconds: float = 120) -> dict[str, str]:
        """The job once it is in one of `states` and `until` holds."""
        end = time.monotonic() + seconds
        while (job := self.job(job_id))["JobState"] not in states or not until():
            assert time.monotonic() < end, f"job {job_id} is {job}, wanted {states}\n{self.logs()}"
            time.sleep(0.1)
        return job

    def hold(self, job_id: str, run_dir: Path) -> dict[str, str]:
        """The job after some steps, standing still so that it cannot end, until Slurm signals it (with CONT first)."""
        job = self.wait(job_id, "RUNNING", until=lambda: steps(run_dir) > 0)
        self.call(
            "kill", "-STOP", *self.pids(job_id)
        )  # not scancel --signal=STOP: it freezes them, and Slurm shows STOPPED for ever
        return job

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

    def logs(self) -> str:
        return (self.lab / "log" / "slurmctld.log").read_text(errors="replace")[-4000:]


def weights(run_dir: Path) -> dict[str, Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


def steps(run_dir: Path) -> int:
    """The last step in metrics.jsonl."""
    try:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, IndexError, ValueError):
        return 0
