"""Jobs on Slurm, as far as that can be known without one: settings, partitions, snapshot and script."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, STEP

from distae import distributed as dist
from distae.config import TrainConfig, check, plugin, write_toml
from distae.errors import UserError
from distae.runtime.environment import environment
from distae.runtime.outcome import Outcome
from launch import job, jobs, local, partitions, settings, slurm, snapshot, status, submit, sweep

SINFO = "debug*|infinite|3|4|gpu:2\nlong|2-00:00:00|10|64+|gpu:a100:4(S:0-1)\nlong|2-00:00:00|5|128|(null)\n"


@pytest.mark.parametrize(
    ("text", "expected"), [("30", 1800), ("1:30", 90), ("4:00:00", 14400), ("2-0", 172800), ("1-2:30", 95400), ("1-0:0:5", 86405)]
)
def test_times_as_slurm_writes_them(text, expected):
    assert settings.seconds(text, "time") == expected
    assert settings.seconds(settings.clock(expected), "time") == expected


@pytest.mark.parametrize("text", ["", "x", "1:2:3:4", "-5", "1-"])
def test_no_time(text):
    with pytest.raises(UserError, match=r"--time.*valid: MINUTES"):
        settings.seconds(text, "time")


def test_what_is_left_open_comes_from_the_partition():
    known = partitions.parse(SINFO)
    assert known[1] == partitions.Partition("long", False, 172800, 15, 128, 4)
    default = partitions.resolve(settings.SlurmConfig(), known)
    assert (default.gpus_per_node, default.tasks_per_node, default.cpus_per_task, default.time) == (2, 2, 2, "1-00:00:00")
    cpus = partitions.resolve(settings.SlurmConfig(gpus_per_node=0, nodes=2), known)
    assert (cpus.gpus_per_node, cpus.tasks_per_node, cpus.world_size) == (0, 1, 2)
    share = partitions.resolve(settings.SlurmConfig(partition="long", cpus_per_gpu=8), known)
    assert (share.cpus_per_task, share.world_size, share.time) == (8, 4, "2-00:00:00")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"nodes": 4}, "--nodes 4: partition debug has 3"),
        ({"gpus_per_node": 3}, "--gpus-per-node 3: partition debug has 2 on a node"),
        ({"cpus_per_task": 3}, "2 tasks with --cpus-per-task 3: partition debug has 4 CPUs on a node"),
        ({"partition": "long", "time": "3-0"}, "--time 3-0: partition long has a limit of 2-00:00:00"),
        ({"partition": "lang"}, "--partition: unknown 'lang'; valid: debug, long"),
        ({"time": "2", "signal_before": "2"}, "--signal-before 2: not shorter than --time 2"),
        ({"sbatch": ("exclusive",)}, "--sbatch: 'exclusive' is not an option"),
        ({"partition": "debug\ntouch PWNED"}, "--partition: unknown 'debug\\ntouch PWNED'"),
        ({"account": "a\ntouch PWNED"}, "--account: 'a\\ntouch PWNED' contains a line break or another control character"),
        ({"mem": "1G\r"}, "--mem: '1G\\r' contains a line break"),
        ({"sbatch": ("--comment=x\ntouch PWNED",)}, "--sbatch: '--comment=x\\ntouch PWNED' contains a line break"),
        ({"env": ("NCCL_DEBUG",)}, "--env: 'NCCL_DEBUG' is not NAME=VALUE"),
    ],
)
def test_rejected_before_submission(asked, message):
    with pytest.raises(UserError) as error:
        partitions.resolve(settings.SlurmConfig(**asked), partitions.parse(SINFO))
    assert message in str(error.value)


@pytest.fixture
def no_slurm(monkeypatch):
    monkeypatch.setattr(partitions, "partitions", list)


def test_a_dry_run_shows_script_and_settings(no_slurm, tmp_path, capsys):
    cluster = ROOT / "slurm" / "clusters" / "example.toml"
    run_dir = tmp_path / "run"
    options = ["--cluster", str(cluster), "--nodes", "2", "--qos", "low", "--constraint", "a100", "--dry-run"]
    options += ["--", "--run-dir", str(run_dir), "--model.beta", "4"]
    assert slurm.main(options) == 0
    shown = capsys.readouterr().out
    for line in (
        "#SBATCH --partition=gpu", "#SBATCH --account=my_project", "#SBATCH --qos=low", "#SBATCH --constraint=a100",
        "#SBATCH --mem=120G", "#SBATCH --nodes=2", "#SBATCH --gpus-per-node=4", "#SBATCH --ntasks-per-node=4",
        "#SBATCH --time=1440", "#SBATCH --exclusive", "#SBATCH --requeue", "#SBATCH --signal=USR2@300", "module load cuda",
        "export WANDB_MODE=offline", "beta = 4.0", "signal_before", "export TORCH_FR_BUFFER_SIZE=2000 TORCH_NCCL_DUMP_ON_TIMEOUT=1",
        'export TORCH_FR_DUMP_TEMP_FILE="$logs/flight_"',
    ):  # fmt: skip
        assert line in shown
    assert "--kill-on-bad-exit=1 --wait=0 --cpus-per-task=8 --cpu-bind=cores" in shown
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nodse", "2"], "did you mean '--nodes'"),
        (["--gpus-per-node", "0", "--", "--device", "cuda"], "--device cuda: the job has no GPUs"),
        (["--gpus-per-node", "3", "--"], "world sizes that work"),
        (["--gpus-per-node", "0", "--", "--smoke"], "--smoke is for python -m distae.train itself"),
        (["--", "--epochs", "1"], "--gpus-per-node: required without Slurm"),
    ],
)
def test_mistakes_are_reported_in_a_line(no_slurm, options, message, capsys):
    assert slurm.main(options) == 2
    report = capsys.readouterr().err
    assert message in report
    assert report.count("\n") <= 2


@pytest.mark.parametrize(
    ("run_dir", "message"),
    [
        ("r/x\ntouch PWNED", "--run-dir: '{here}/r/x\\ntouch PWNED' contains a line break or another control character"),
        ("r\x1bx", "contains a line break or another control character"),
        ("a%jb", "--run-dir: {here}/a%jb contains %j, which Slurm replaces in file names"),
        ("a\\b", "contains \\, which Slurm replaces"),
        ("a:b", "--run-dir: {here}/a:b contains a colon"),
    ],
)
def test_a_run_folder_whose_name_a_script_cannot_take(no_slurm, tmp_path, monkeypatch, capsys, run_dir, message):
    monkeypatch.chdir(tmp_path)
    assert slurm.main(["--gpus-per-node", "0", "--dry-run", "--", "--run-dir", run_dir]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message.format(here=tmp_path) in err


def test_a_line_break_in_the_environment_of_a_job_stays_in_its_quotes(no_slurm, capsys):
    assert slurm.main(["--gpus-per-node", "0", "--dry-run", "--env", "A=x\n#SBATCH --nodes=9", "--"]) == 0
    script = capsys.readouterr().out.partition("# settings of the job")[0]
    assert "export A='x\n#SBATCH --nodes=9'" in script
    assert script.index("mkdir -p") < script.index("#SBATCH --nodes=9")  # behind the first command: sbatch reads no further


def test_a_percent_sign_in_the_name_of_a_run_folder(no_slurm, tmp_path, capsys):
    assert slurm.main(["--gpus-per-node", "0", "--dry-run", "--", "--run-dir", str(tmp_path / "50%x")]) == 0
    script = capsys.readouterr().out.partition("# settings of the job")[0]
    logs = f"{tmp_path}/50%%x/slurm"
    assert f"#SBATCH --output='{logs}/batch_%j.out'" in script or f"#SBATCH --output={logs}/batch_%j.out" in script
    assert f"--error={logs}/%j/rank_%t.err" in script
    assert f"logs={tmp_path}/50%x/slurm/" in script.replace("'", "")


def test_rank_0_may_export_for_longer_than_slurm_waits_for_the_last_task(no_slurm, capsys):
    assert slurm.main(["--gpus-per-node", "0", "--dry-run", "--"]) == 0
    assert " --wait=0 " in capsys.readouterr().out
    for script in Path(snapshot.ROOT, "slurm").glob("*.sbatch"):
        assert "--kill-on-bad-exit=1 --wait=0" in script.read_text()


def test_unknown_keys_of_a_cluster_file_are_rejected_with_the_valid_ones(tmp_path, capsys):
    (tmp_path / "c.toml").write_text('partiton = "gpu"\n')
    assert slurm.main(["--cluster", str(tmp_path / "c.toml"), "--"]) == 2
    report = capsys.readouterr().err
    assert "unknown key 'partiton' (did you mean 'partition'?)" in report
    assert "gpus_per_node" in report


def test_every_combination_of_a_grid_has_its_own_folder(tmp_path):
    one = settings.SlurmConfig(gpus_per_node=0)
    base, runs, _ = sweep.expand(["model.beta=1,4", "net.hidden=8 4,16"], ["--run-dir", str(tmp_path)], one)
    assert base == tmp_path
    tables: list[Any] = [*runs]
    assert [(cfg.model.beta, cfg.net.hidden) for cfg in tables] == [(1, (8, 4)), (1, (16,)), (4, (8, 4)), (4, (16,))]
    assert runs[0].run_dir == str(tmp_path / "model.beta=1,net.hidden=8 4")
    base, runs, _ = sweep.expand(["optim.lr=1e-3,1e-4"], [], one)
    assert base.name.startswith("sweep_vae_digits_")
    assert {Path(str(cfg.run_dir)).parent for cfg in runs} == {base}
    for bad in ("", "model.beta", "model.beta=1,,2"):
        with pytest.raises(UserError, match="--grid"):
            sweep.expand([bad], [], one)


def test_a_snapshot_is_the_tracked_code_as_it_is_now(tmp_path, capsys):
    root, into = tmp_path / "repo", tmp_path / "code"
    (root / "pkg").mkdir(parents=True)
    for name, text in {"pkg/a.py": "old", "b.py": "b", "new.py": "n", "data.bin": "d", ".gitignore": "data.bin"}.items():
        (root / name).write_text(text)
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "pkg", "b.py", ".gitignore"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    (root / "pkg" / "a.py").write_text("now")
    (root / "b.py").unlink()
    copy = snapshot.take(into, ["data.bin"], root=root)
    files = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
    assert files == {"pkg/a.py", ".gitignore", "data.bin", "COMMIT", "DIFF"}
    assert (copy / "pkg" / "a.py").read_text() == "now"
    assert "+now" in (copy / "DIFF").read_text()
    assert "new.py" in capsys.readouterr().err
    assert snapshot.take(into, ["data.bin"], root=root) == copy
    (root / "pkg" / "a.py").write_text("later")
    assert snapshot.take(into, ["data.bin"], root=root) != copy
    with pytest.raises(UserError, match="--snapshot-include: no nothing"):
        snapshot.take(into, ["nothing"], root=root)
    with pytest.raises(UserError, match="not a git checkout"):
        snapshot.take(into, [], root=tmp_path)


PLUGIN = """
import pathlib, sys
from plugin_helper.words import WORD
sys.stderr.write(f"plugin {WORD} of {pathlib.Path(__file__).parents[1].name}\\n")
"""


@pytest.fixture
def plugin_file(tmp_path, monkeypatch):
    """A plugin outside the checkout, with a module beside it that it needs."""
    (tmp_path / "mine" / "plugin_helper").mkdir(parents=True)
    for name, text in {
        "plugin_of_launch.py": PLUGIN,
        "plugin_helper/__init__.py": "",
        "plugin_helper/words.py": "WORD = 'then'\n",
    }.items():
        (tmp_path / "mine" / name).write_text(text)
    (tmp_path / "mine" / "another.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path / "mine" / "plugin_of_launch.py"
    for name in ("plugin_of_launch", "plugin_helper", "plugin_helper.words"):
        sys.modules.pop(name, None)


@pytest.mark.spawn
def test_the_job_loads_the_snapshots_copy_of_a_plugin(plugin_file, tmp_path, monkeypatch, capfd):
    """Run here what the job runs, after the plugin was changed, and with its own folder on the path, as sbatch exports it."""
    plugin.load(str(plugin_file))
    plan = submit.Submission(settings.SlurmConfig(gpus_per_node=0, time="5"), tmp_path / "run" / "slurm", "run", str(plugin_file))
    plan = plan.running(snapshot.take(tmp_path / "run" / "code", [], plan.plugin))
    assert plan.code
    assert plan.plugin == str(plan.code / "plugin" / "plugin_of_launch.py")
    assert {p.name for p in (plan.code / "plugin").iterdir()} == {"plugin_of_launch.py", "plugin_helper"}
    (plugin_file.parent / "plugin_helper" / "words.py").write_text("WORD = 'now'\n")
    capfd.readouterr()
    task = job.TrainJob(write_toml(check(TrainConfig(steps=1, run_dir=str(tmp_path / "run"), tracking="none"), 1)), 0, plan.plugin)
    (tmp_path / "task.pkl").write_bytes(pickle.dumps(task))
    python = f'{sys.executable} -P -c \'import pickle; pickle.load(open("{tmp_path}/task.pkl", "rb"))()\''
    monkeypatch.setenv("PYTHONPATH", f"{plugin_file.parent}:{snapshot.ROOT}")
    setup = [line for line in plan.script().splitlines() if "PYTHONPATH" in line]
    subprocess.run(["bash", "-c", "\n".join([*setup, python])], check=True, cwd=tmp_path)
    assert f"plugin then of {plan.code.name}" in capfd.readouterr().err


def test_a_plugin_of_the_checkout_keeps_its_place():
    assert snapshot.home(str(snapshot.ROOT / "examples" / "my_variant.py")) == Path("examples")
    assert snapshot.home("/elsewhere/my_variant.py") == Path("plugin")


def test_without_a_snapshot_the_code_and_the_plugin_of_the_day_run(no_slurm, plugin_file, capsys):
    for more, expected in ([], True), (["--no-snapshot"], False):
        assert slurm.main(["--gpus-per-node", "0", "--dry-run", *more, "--", "--plugin", str(plugin_file)]) == 0
        assert ("export PYTHONPATH=" in capsys.readouterr().out) == expected


def test_follow_copies_what_is_added_until_the_end_over_a_requeue(tmp_path):
    log, seen = tmp_path / "rank_0.err", io.StringIO()
    states = iter(["PENDING", "RUNNING", "NODE_FAIL", "PENDING", "RUNNING", "FAILED", "FAILED"])

    def ask(job_id):
        with log.open("a") as file:
            file.write(f"{job_id} ")
        return jobs.JobInfo(next(states), "", 0, 75)

    assert jobs.follow("9", [(log, seen)], ask=ask, sleep=lambda _: None) == 75
    assert seen.getvalue() == "9 " * 7


def test_the_accounting_has_a_line_per_start():
    info = jobs._from_accounting("9", "NODE_FAIL|n[1-2]|0:0\nCANCELLED by 0|n1|0:15\n")
    assert info == jobs.JobInfo("CANCELLED", "n1", 1, 143)


def test_status_shows_how_a_run_without_network_is_synced(tmp_path, capsys):
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "epoch": 0.5, "train/loss": 2.5, "train/kl_dim/000": 1}\n{"step": 4, "epo')
    Outcome("stopped", 3, str(tmp_path), signal="SIGTERM").write()
    assert status.main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert f"distae sync {tmp_path}" in shown
    assert "step 3 epoch 0.50 train/loss=2.5\n" in shown  # and not each dimension's
    assert "stopped at step 3 by SIGTERM" in shown
    assert status.main([str(tmp_path / "nothing")]) == 2


def test_one_gpu_or_all_of_the_node_may_be_visible(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    task = environment(STEP | {"SLURM_LOCALID": "3"})
    for visible, index in ((1, 0), (4, 3)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=visible: n)
        assert dist.pick_device("auto", task) == torch.device("cuda", index)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for place in "0123":  # the first, too: it would wait for the others
        with pytest.raises(UserError, match="4 processes on this node see 2 GPUs"):
            dist.pick_device("auto", environment(STEP | {"SLURM_LOCALID": place}))


@pytest.mark.parametrize(
    ("visible", "device", "processes"), [("0,2", "auto", 2), ("-1", "auto", 6), ("", "cuda", 6), ("0,2", "cpu", 6)]
)
def test_launch_local_starts_one_process_for_each_gpu(monkeypatch, visible, device, processes):
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local.processes(device) == processes


@pytest.mark.spawn
def test_a_reader_that_has_seen_enough_is_no_traceback(tmp_path):
    """`| head`: what is printed to a closed pipe is dropped."""
    command = [sys.executable, "-m", "launch.slurm", "--gpus-per-node", "0", "--dry-run", "--"]
    read, write = os.pipe()
    os.close(read)
    env = os.environ | {"PYTHONPATH": str(snapshot.ROOT), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=env, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
