"""What Slurm knows of a job, while it runs and after."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from distae.errors import UserError

from .partitions import call

JOB = r"\d+(_\d+)?"
"""Pattern of a Slurm job id, also of one of an array."""
ENDED = {
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL", "PREEMPTED",
}  # fmt: skip


@dataclass(frozen=True)
class JobInfo:
    """One job as Slurm sees it."""

    state: str
    nodes: str
    restarts: int
    exit_code: int
    """128 + the signal, if one ended it."""
    reason: str = ""
    stdout: str = ""
    """The batch script's log, if Slurm still knows it."""

    @property
    def ended(self) -> bool:
        return self.state in ENDED


def info(job_id: str) -> JobInfo:
    """From the controller, or from the accounting once it has forgotten the job. Raises UserError for an unknown job."""
    try:
        return _from_controller(call("scontrol", "-o", "show", "job", job_id))
    except UserError:
        return _from_accounting(job_id, call("sacct", "-X", "-D", "-n", "-P", "-j", job_id, "-o", "State,NodeList,ExitCode"))


def _from_controller(text: str) -> JobInfo:
    found = dict(item.partition("=")[::2] for item in text.splitlines()[0].split())
    reason = "" if found["Reason"] == "None" else found["Reason"]
    nodes = found.get("NodeList", "").removeprefix("(null)")
    return JobInfo(found["JobState"], nodes, int(found["Restarts"]), _exit_code(found["ExitCode"]), reason, found.get("StdOut", ""))


def _from_accounting(job_id: str, text: str) -> JobInfo:
    """sacct -D has a line for every start of a requeued job, the last one last."""
    if not text.strip():
        raise UserError(f"Slurm knows no job {job_id}")
    starts = text.strip().splitlines()
    state, nodes, code = starts[-1].split("|")
    return JobInfo(state.split()[0], nodes, len(starts) - 1, _exit_code(code))


def _exit_code(text: str) -> int:
    code, _, signum = text.partition(":")
    return int(code) or (128 + int(signum) if int(signum or 0) else 0)


def follow(
    job_id: str, logs: list[tuple[Path, TextIO]], poll: float = 1.0,
    ask: Callable[[str], JobInfo] = info, sleep: Callable[[float], None] = time.sleep,
) -> int:  # fmt: skip
    """Print what is added to `logs` until the job has ended, across requeues; returns its exit code."""
    read = dict.fromkeys((path for path, _ in logs), 0)
    ended = 0
    while ended < 2:  # once more after the end: logs come late, and a requeue passes through states of an end
        now = ask(job_id)
        ended = ended + 1 if now.ended else 0
        for path, stream in logs:
            with suppress(OSError), path.open(errors="replace") as file:
                file.seek(read[path])
                stream.write(file.read())
                read[path] = file.tell()
            stream.flush()
        sleep(poll)
    return now.exit_code or (now.state != "COMPLETED")


def last_words(folder: Path, job_id: str, lines: int = 6) -> list[str]:
    """The last errors in the logs of the batch script and the ranks, each line once."""
    words = ("srun: error", "slurmstepd: error", "distae:", "Error:", "Killed", "oom")
    found: dict[str, None] = {}
    for path in [folder / f"batch_{job_id}.err", *sorted((folder / job_id).glob("rank_*.err"))]:
        with suppress(OSError):
            found |= dict.fromkeys(line for line in path.read_text(errors="replace").splitlines() if any(w in line for w in words))
    return list(found)[-lines:]
