"""The launchers that come with distae, imported on use."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from distae.errors import UserError
from distae.runtime.backends import register_backend

from . import jobs


@register_backend("local")
class Local:
    """processes of this machine, under torchrun"""

    def submit(self, argv: Sequence[str], prog: str) -> int:
        from . import local

        return local.main(argv, prog)

    def status(self, run_dir: Path) -> Iterator[tuple[str, str]]:
        yield from ()


@register_backend("slurm")
class Slurm:
    """a job on a Slurm cluster"""

    def submit(self, argv: Sequence[str], prog: str) -> int:
        from . import slurm

        return slurm.main(argv, prog)

    def status(self, run_dir: Path) -> Iterator[tuple[str, str]]:
        job_id = newest_job(run_dir)
        if job_id is None:
            return
        folder = (run_dir / "slurm" / job_id).resolve().parent
        yield "job", _job_line(job_id)
        yield "logs", f"{folder / job_id}/rank_*.err, {folder}/batch_{job_id}.err"
        yield from (("error", line) for line in jobs.last_words(folder, job_id))


def newest_job(run_dir: Path) -> str | None:
    """Id of the job submitted last for this run; None without one."""
    found = [p for p in (run_dir / "slurm").glob("*") if re.fullmatch(jobs.JOB, p.name)]
    return max(found, key=lambda p: p.lstat().st_mtime).name if found else None


def _job_line(job_id: str) -> str:
    try:
        now = jobs.info(job_id)
    except UserError as error:
        return f"{job_id}: {error}"
    ended = f", exit code {now.exit_code}" if now.ended else ""
    reason = f" ({now.reason})" if now.reason else ""
    return f"{job_id} {now.state}{reason} on {now.nodes or 'no nodes yet'}, restarts {now.restarts}{ended}"
