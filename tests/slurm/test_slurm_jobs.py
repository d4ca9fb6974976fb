"""Jobs on a real Slurm: whatever happens to them, they end with the parameters of a run that nothing happened to."""

import contextlib
import re
import sys
from pathlib import Path

import pytest
import torch
from cluster import ON_CPUS, RUN, SMALL, Cluster, steps, together, weights

from distae.runtime import outcome

pytestmark = pytest.mark.timeout(240)


def train(run_dir: Path, changes: str = "") -> str:
    return f"{RUN} {changes} --run-dir {run_dir}"


def assert_same(run_dir: Path, reference: Path, tolerance: float = 0.0) -> None:
    ours, theirs = weights(run_dir), weights(reference)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=tolerance * float(value.abs().max()))


@together
def test_usr2_before_the_time_limit_saves_and_requeues(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    job = cluster.submit("--tasks-per-node 2 --signal-before 0:30", train(run_dir))
    cluster.hold(job, run_dir)
    cluster.limit(job, 35)
    cluster.wait(job, "RUNNING", "COMPLETING", "PENDING", until=lambda: outcome.read(run_dir) is not None)
    cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=20")
    assert cluster.wait(job, "COMPLETED", "FAILED", "TIMEOUT")["Restarts"] == "1"
    assert "Requeued job" in (run_dir / "slurm" / job / "rank_0.out").read_text()
    assert_same(run_dir, reference)


@together
def test_two_nodes_with_two_tasks_each_match_a_local_run(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    job = cluster.submit("--nodes 2 --tasks-per-node 2", train(run_dir))
    nodes = cluster.wait(job, "COMPLETED", "FAILED")["NodeList"]
    assert_same(run_dir, reference, tolerance=1e-9)
    status = cluster.call("-m", "launch.status", str(run_dir))
    logs = run_dir / "slurm" / job
    for report in (f"{job} COMPLETED on {nodes}, restarts 0", "val       step 400 epoch", "val/loss=", f"{logs}/rank_*.err"):
        assert report in status
    assert sorted(p.name for p in logs.glob("rank_*.err")) == [f"rank_{n}.err" for n in range(4)]
    assert "#SBATCH --nodes=2" in (logs / f"{job}_submission.sh").read_text()
    assert "steps = 400" in (run_dir / "config.toml").read_text()


@together
def test_the_code_of_the_submission_runs(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    """A plugin's, too. One task for each GPU that sinfo tells of; the log is streamed, and the exit code is the job's."""
    plugin = run_dir.with_name("plugin_of_a_job.py")
    plugin.write_text("import sys, distae\nsys.stderr.write(f'{__file__} of {distae.__file__}\\n')")
    command = ["-m", "launch.slurm", *SMALL.split(), "--follow", "--"]
    shown = cluster.call(*command, *f"{RUN} --steps 20 --run-dir {run_dir} --plugin {plugin}".split())
    [code] = (run_dir / "code").iterdir()
    assert f"{code}/plugin/plugin_of_a_job.py of {code}/distae/__init__.py" in shown
    assert "step 20 epoch" in shown
    assert sorted(p.name for p in run_dir.glob("slurm/*/rank_*.err")) == ["rank_0.err", "rank_1.err"]
    assert re.fullmatch(r"[0-9a-f]{40}\n", (code / "COMMIT").read_text())
    assert (code / "DIFF").is_file()
    options = f"{RUN} --run-dir {run_dir.with_name('refused')} --data array --data.path /nonexistent.npy"
    assert "nonexistent" in cluster.call(*command, *options.split(), code=2)


@together
def test_preemption_saves_and_requeues(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    job = cluster.submit("--partition low --tasks-per-node 2", train(run_dir))
    cluster.hold(job, run_dir)
    cluster.call("sbatch", "--partition=high", "--nodes=1", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    assert int(cluster.wait(job, "COMPLETED", "FAILED")["Restarts"]) == 1
    logs = run_dir / "slurm" / job
    assert "Requeued job" in (logs / "rank_0.out").read_text()  # by us, at a step, and not by Slurm at the end of the grace time
    assert "resumed at step" in (logs / "rank_0.err").read_text()
    assert_same(run_dir, reference)


@together
def test_scontrol_requeue_saves_and_leaves_the_restart_to_slurm(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    job = cluster.submit("--tasks-per-node 2", train(run_dir))
    cluster.hold(job, run_dir)
    cluster.call("scontrol", "requeue", job)
    assert cluster.wait(job, "COMPLETED", "FAILED")["Restarts"] == "1"
    logs = run_dir / "slurm" / job
    assert "Requeued job" not in (logs / "rank_0.out").read_text()
    assert "resumed at step" in (logs / "rank_0.err").read_text()
    assert_same(run_dir, reference)


@together
def test_power_loss_of_a_node_resumes_from_the_newest_checkpoint(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    job = cluster.submit("--partition lossy --nodes 2 --tasks-per-node 1", train(run_dir, "--save-every 20"))
    nodes = cluster.wait(job, "RUNNING", until=lambda: any((run_dir / "checkpoints").glob("step_*")))["NodeList"]
    cluster.call("kill", "-STOP", *cluster.pids(job, "SLURM_PROCID=1"))  # or the run is done first
    node = cluster.call("scontrol", "show", "hostnames", nodes).split()[1]
    cluster.fail_node(node)
    try:
        assert cluster.wait(job, "COMPLETED", "FAILED")["Restarts"] == "1"
        assert "resumed at step" in (run_dir / "slurm" / job / "rank_0.err").read_text()
        assert_same(run_dir, reference)
    finally:
        cluster.script("start-node", node)
        with contextlib.suppress(AssertionError):  # refused where the node has come back by itself
            cluster.call("scontrol", "update", f"NodeName={node}", "State=RESUME")


@together
def test_scancel_saves_and_is_never_requeued(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    job = cluster.submit("--tasks-per-node 2", train(run_dir))
    cluster.hold(job, run_dir)
    cluster.call("scancel", job)
    assert cluster.wait(job, "CANCELLED", until=lambda: outcome.read(run_dir) is not None)["Restarts"] == "0"
    end = outcome.read(run_dir)
    assert end
    assert end.signal == "SIGTERM"
    assert "CANCELLED" in cluster.call("-m", "launch.status", job)


@together
def test_requeues_have_a_cap(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    job = cluster.submit("--tasks-per-node 2 --max-requeues 0 --no-snapshot", train(run_dir))
    cluster.hold(job, run_dir)
    cluster.call("scancel", "--signal=USR2", job)
    cluster.call("scancel", "--signal=CONT", job)
    ended = cluster.wait(job, "FAILED", "COMPLETED")
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "0")
    assert "not requeued after 0 restarts (--max-requeues)" in cluster.call("-m", "launch.status", str(run_dir))
    assert not (run_dir / "code").exists()


@together
def test_a_killed_rank_ends_the_job_with_the_reason(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    job = cluster.submit("--tasks-per-node 2", train(run_dir))
    cluster.wait(job, "RUNNING", until=lambda: steps(run_dir) > 0)
    cluster.call("kill", "-KILL", *cluster.pids(job, "SLURM_PROCID=1"))  # as the OOM killer does
    assert cluster.wait(job, "FAILED", seconds=30)["Restarts"] == "0"
    status = cluster.call("-m", "launch.status", str(run_dir))
    assert re.search(r"error +srun: error: \w+: task 1: Killed", status), status


@together
def test_an_array_sweep_of_three(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    options = f"{ON_CPUS} --wait --max-parallel 2 --grid model.beta=1,2,4"
    base = run_dir.with_name("sweep")
    cluster.call("-m", "launch.sweep", *options.split(), "--", *f"{RUN} --steps 20 --run-dir {base}".split())
    betas = {beta: weights(base / f"model.beta={beta}") for beta in (1, 2, 4)}
    assert len({float(sum(t.sum() for t in w.values())) for w in betas.values()}) == 3
    status = cluster.call("-m", "launch.status", str(base))
    assert status.count(" COMPLETED ") == 3
    assert status.count("outcome   done at step 20") == 3


@together
def test_a_percent_sign_in_the_name_of_a_run_folder(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    """Slurm takes %% in a log's name for one."""
    odd = run_dir.with_name("50%x")
    job = cluster.call("-m", "launch.slurm", *ON_CPUS.split(), "--wait", "--", *train(odd, "--steps 20").split()).split()[1]
    assert "step 20 epoch" in (odd / "slurm" / job.rstrip(",") / "rank_0.err").read_text()
    assert [p.name for p in run_dir.parent.iterdir()] == ["50%x"]


@together
def test_a_job_out_of_memory_says_so(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    if "TaskPlugin=task/cgroup" not in (cluster.lab / "slurm.conf").read_text():
        pytest.skip("no memory limits here: /sys/fs/cgroup/memory cannot be written")
    options = f"{ON_CPUS} --tasks-per-node 2 --mem 200M --wait --"
    job = cluster.call("-m", "launch.slurm", *options.split(), *train(run_dir).split(), code=1).split()[1].rstrip(",")
    assert cluster.job(job)["Restarts"] == "0"
    status = cluster.call("-m", "launch.status", job)
    assert re.search(r"error +srun: error: \w+: task \d: Out Of Memory", status), status
    assert "oom" in "".join(p.read_text() for p in (run_dir / "slurm").rglob("*.err"))


@together
def test_plain_python_in_a_batch_script_is_a_single_process(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    ask = f"{sys.executable} -c 'from distae.runtime.environment import environment as e; print(e().launcher, e().world_size)'"
    log = run_dir.with_name("log")
    job = cluster.call("sbatch", "-n2", "--mem=100M", f"--output={log}", f"--wrap={ask}; srun --label {ask}").split()[-1]
    cluster.wait(job, "COMPLETED")
    assert sorted(log.read_text().splitlines()) == ["0: slurm 2", "1: slurm 2", "python 1"]


@together
def test_train_sbatch_requeues_on_exit_75(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    job = cluster.sbatch("--ntasks-per-node=2", "train", train(run_dir), run_dir.with_name("log"))
    cluster.hold(job, run_dir)
    cluster.call("scancel", "--signal=USR2", job)
    cluster.call("scancel", "--signal=CONT", job)
    assert cluster.wait(job, "COMPLETED", "FAILED")["Restarts"] == "1"
    assert_same(run_dir, reference)


@together
def test_train_sbatch_has_a_cap(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    job = cluster.sbatch("", "train", train(run_dir), run_dir.with_name("log"), MAX_REQUEUES="0")
    cluster.hold(job, run_dir)
    cluster.call("scancel", "--signal=USR2", job)
    cluster.call("scancel", "--signal=CONT", job)
    ended = cluster.wait(job, "FAILED", "COMPLETED")
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "0")


@together
def test_train_sbatch_is_not_requeued_after_scancel(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    job = cluster.sbatch("", "train", train(run_dir), run_dir.with_name("log"))
    cluster.hold(job, run_dir)
    cluster.call("scancel", job)
    assert cluster.wait(job, "CANCELLED", until=lambda: outcome.read(run_dir) is not None)["Restarts"] == "0"


@together
def test_torchrun_sbatch_restarts_a_crashed_rank_inside_the_allocation(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    log = run_dir.with_name("log")
    job = cluster.sbatch("--nodes=2", "torchrun", train(run_dir, "--save-every 20"), log, NPROC="1")
    cluster.wait(job, "RUNNING", until=lambda: any((run_dir / "checkpoints").glob("step_*")))
    cluster.call("kill", "-KILL", *cluster.pids(job, "RANK=1"))
    ended = cluster.wait(job, "COMPLETED", "FAILED")
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "0"), log.read_text()
    assert "resumed at step" in log.read_text()
    assert_same(run_dir, reference)


def test_a_rejection_by_slurm_is_reported_before_anything_is_written(cluster: Cluster, tmp_path: Path) -> None:
    options = train(tmp_path / "run").split()
    report = cluster.call("-m", "launch.slurm", "--constraint", "nope", "--gpus-per-node", "0", "--", *options, code=2)
    assert "Slurm rejects this (sbatch): allocation failure: Invalid feature specification" in report
    report = cluster.call("-m", "launch.slurm", "--nodes", "9", "--", *options, code=2)
    assert "--nodes 9: partition debug has 3" in report
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("entry", [["launch.slurm"], ["launch.sweep", "--grid", "model.beta=1,2"]])
def test_a_dry_run_submits_nothing(cluster: Cluster, tmp_path: Path, entry: list[str]) -> None:
    """Jobs are named after their run folder."""
    shown = cluster.call("-m", *entry, "--dry-run", "--", *train(tmp_path / "dry").split())
    assert "#SBATCH --gpus-per-node=2" in shown  # as sinfo says
    assert "#SBATCH --job-name=dry" in shown
    assert "dry" not in cluster.call("squeue", "-h", "-a", "-t", "all", "-o", "%j").split()
    assert "dry" not in cluster.call("sacct", "-n", "-X", "-a", "-S", "00:00", "-o", "JobName%40").split()
    assert not list(tmp_path.iterdir())
