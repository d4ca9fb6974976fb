"""Jobs on a real Slurm: whatever happens to them, they end with the parameters of a run that nothing happened to."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from cluster import RUN, Cluster, steps, weights

from distae import outcome

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def train(run_dir: Path, changes: str = "") -> str:
    return f"{RUN} {changes} --run-dir {run_dir}"


def assert_same(run_dir: Path, reference: Path, tolerance: float = 0.0) -> None:
    ours, theirs = weights(run_dir), weights(reference)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=tolerance * float(value.abs().max()))


def test_two_nodes_with_two_tasks_each_match_a_local_run(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    job = cluster.submit("--nodes 2 --tasks-per-node 2", train(run_dir))
    assert cluster.wait(job, "COMPLETED", "FAILED")["NumTasks"] == "4", cluster.call("-m", "launch.status", str(run_dir))
    assert_same(run_dir, reference, tolerance=1e-9)
    ranks = sorted(p.name for p in (run_dir / "slurm" / job).glob("rank_*.err"))
    assert ranks == [f"rank_{n}.err" for n in range(4)]
    [code] = (run_dir / "code").iterdir()
    assert (code / "distae" / "train.py").is_file()
    assert re.fullmatch(r"[0-9a-f]{40}\n", (code / "COMMIT").read_text())
    assert "DIFF" in {p.name for p in code.iterdir()}


def test_usr2_before_the_time_limit_saves_and_requeues(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    job = cluster.submit("--tasks-per-node 2 --time 1 --signal-before 0:15", train(run_dir))
    cluster.hold(job, run_dir)
    cluster.wait(job, "RUNNING", "COMPLETING", "PENDING", until=lambda: outcome.read(run_dir) is not None)
    cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=20")  # a busy machine may need more for the rest
    assert int(cluster.wait(job, "COMPLETED", "FAILED", "TIMEOUT", seconds=180)["Restarts"]) >= 1
    assert "Requeued job" in (run_dir / "slurm" / job / "rank_0.out").read_text()
    assert_same(run_dir, reference)


def test_preemption_saves_and_requeues(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    job = cluster.submit("--partition debug --tasks-per-node 2", train(run_dir))
    cluster.hold(job, run_dir)
    cluster.call("sbatch", "--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    assert int(cluster.wait(job, "COMPLETED", "FAILED")["Restarts"]) == 1
    logs = run_dir / "slurm" / job
    assert "Requeued job" in (logs / "rank_0.out").read_text()  # by us, at a step, and not by Slurm at the end of the grace time
    assert "resumed at step" in (logs / "rank_0.err").read_text()
    assert_same(run_dir, reference)


def test_scontrol_requeue_saves_and_leaves_the_restart_to_slurm(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    job = cluster.submit("--tasks-per-node 2", train(run_dir))
    cluster.hold(job, run_dir)
    cluster.call("scontrol", "requeue", job)
    assert cluster.wait(job, "COMPLETED", "FAILED")["Restarts"] == "1"
    logs = run_dir / "slurm" / job
    assert "Requeued job" not in (logs / "rank_0.out").read_text()
    assert "resumed at step" in (logs / "rank_0.err").read_text()
    assert_same(run_dir, reference)


def test_power_loss_of_a_node_goes_on_from_the_newest_checkpoint(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    job = cluster.submit("--nodes 2 --tasks-per-node 1", train(run_dir, "--save-every 20"))
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
        cluster.call("scontrol", "update", f"NodeName={node}", "State=RESUME")


def test_scancel_saves_and_is_never_requeued(cluster: Cluster, run_dir: Path) -> None:
    job = cluster.submit("--tasks-per-node 2", train(run_dir))
    cluster.hold(job, run_dir)
    cluster.call("scancel", job)
    assert cluster.wait(job, "CANCELLED", until=lambda: outcome.read(run_dir) is not None)["Restarts"] == "0"
    end = outcome.read(run_dir)
    assert end
    assert end.signal == "SIGTERM"
    assert "CANCELLED" in cluster.call("-m", "launch.status", job)


def test_requeues_have_a_cap(cluster: Cluster, run_dir: Path) -> None:
    job = cluster.submit("--tasks-per-node 2 --max-requeues 0", train(run_dir))
    cluster.hold(job, run_dir)
    cluster.call("scancel", "--signal=USR2", job)
    cluster.call("scancel", "--signal=CONT", job)
    ended = cluster.wait(job, "FAILED", "COMPLETED")
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "0")
    assert "not requeued after 0 restarts (--max-requeues)" in cluster.call("-m", "launch.status", str(run_dir))


def test_a_killed_rank_ends_the_job_with_the_reason(cluster: Cluster, run_dir: Path) -> None:
    job = cluster.submit("--tasks-per-node 2", train(run_dir))
    cluster.wait(job, "RUNNING", until=lambda: steps(run_dir) > 0)
    cluster.call("kill", "-KILL", *cluster.pids(job, "SLURM_PROCID=1"))  # as the OOM killer does
    assert cluster.wait(job, "FAILED", seconds=30)["Restarts"] == "0"
    status = cluster.call("-m", "launch.status", str(run_dir))
    assert re.search(r"error +srun: error: \w+: task 1: Killed", status), status


def test_an_array_sweep_of_three(cluster: Cluster, tmp_path: Path) -> None:
    options = "--gpus-per-node 0 --cpus-per-task 1 --mem 500M --time 20 --wait --max-parallel 2 --grid model.beta=1,2,4"
    base = tmp_path / "sweep"
    cluster.call("-m", "launch.sweep", *options.split(), "--", *shlex.split(f"{RUN} --steps 20 --run-dir {base}"))
    betas = {beta: weights(base / f"model.beta={beta}") for beta in (1, 2, 4)}
    assert len({float(sum(t.sum() for t in w.values())) for w in betas.values()}) == 3
    status = cluster.call("-m", "launch.status", str(base))
    assert status.count(" COMPLETED ") == 3
    assert status.count("outcome   done at step 20") == 3


def test_follow_streams_the_log_and_exits_like_the_job(cluster: Cluster, run_dir: Path) -> None:
    options = [
        "-m",
        "launch.slurm",
        "--gpus-per-node",
        "0",
        "--cpus-per-task",
        "1",
        "--mem",
        "500M",
        "--time",
        "20",
        "--follow",
        "--",
    ]
    shown = cluster.call(*options, *f"{RUN} --steps 20 --run-dir {run_dir}".split())
    assert "step 20 epoch" in shown
    shown = cluster.call(*options, *f"{RUN} --data array --data.path /nonexistent.npy".split(), code=2)
    assert "no such file" in shown.lower() or "nonexistent" in shown


def test_what_slurm_refuses_is_told_in_its_words_before_anything_is_written(cluster: Cluster, run_dir: Path) -> None:
    told = cluster.call("-m", "launch.slurm", "--constraint", "nope", "--gpus-per-node", "0", "--", *train(run_dir).split(), code=2)
    assert "Slurm refuses (sbatch): allocation failure: Invalid feature specification" in told
    told = cluster.call("-m", "launch.slurm", "--nodes", "9", "--", *train(run_dir).split(), code=2)
    assert "--nodes 9: partition debug has 3" in told
    assert not run_dir.exists()


def test_plain_python_in_a_batch_script_is_a_single_process(cluster: Cluster, tmp_path: Path) -> None:
    ask = f"{sys.executable} -c 'from distae.environment import environment as e; print(e().launcher, e().world_size)'"
    log = tmp_path / "log"
    job = cluster.call("sbatch", "-n2", "--mem=100M", f"--output={log}", f"--wrap={ask}; srun --label {ask}").split()[-1]
    cluster.wait(job, "COMPLETED")
    assert sorted(log.read_text().splitlines()) == ["0: slurm 2", "1: slurm 2", "python 1"]


def test_train_sbatch_requeues_on_exit_75(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    shown = cluster.call(
        "sbatch",
        "--ntasks-per-node=2",
        "--mem=500M",
        f"--output={run_dir.parent}/log",
        "slurm/train.sbatch",
        *train(run_dir).split(),
    )
    job = shown.split()[-1]
    cluster.hold(job, run_dir)
    cluster.call("scancel", "--signal=USR2", job)
    cluster.call("scancel", "--signal=CONT", job)
    assert cluster.wait(job, "COMPLETED", "FAILED")["Restarts"] == "1"
    assert_same(run_dir, reference)


def test_train_sbatch_is_not_requeued_after_scancel(cluster: Cluster, run_dir: Path) -> None:
    shown = cluster.call("sbatch", "--mem=500M", f"--output={run_dir.parent}/log", "slurm/train.sbatch", *train(run_dir).split())
    job = shown.split()[-1]
    cluster.hold(job, run_dir)
    cluster.call("scancel", job)
    assert cluster.wait(job, "CANCELLED", until=lambda: outcome.read(run_dir) is not None)["Restarts"] == "0"


def test_torchrun_sbatch_on_two_nodes(cluster: Cluster, run_dir: Path, reference: Path) -> None:
    cluster.env["NPROC"] = "1"
    log = f"--output={run_dir.parent}/log"
    job = cluster.call("sbatch", "--nodes=2", "--mem=500M", log, "slurm/torchrun.sbatch", *train(run_dir).split()).split()[-1]
    assert cluster.wait(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", (run_dir.parent / "log").read_text()
    assert_same(run_dir, reference)
