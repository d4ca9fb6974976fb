"""Rank and world size from the launchers' variables."""

import pytest
from helpers import STEP

from distae.errors import UserError
from distae.runtime.environment import environment

TORCHRUN = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500",
}  # fmt: skip


def test_a_task_of_a_slurm_step_knows_its_place():
    env = environment(STEP)
    assert (env.rank, env.world_size, env.local_rank, env.local_world_size, env.cpus) == (5, 8, 1, 4, 6)
    assert env.rendezvous.startswith("tcp://gpu-a07:")


def test_torchruns_variables_come_first():
    env = environment(STEP | TORCHRUN)
    assert (env.launcher, env.rank, env.world_size, env.rendezvous) == ("torchrun", 1, 2, "env://")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (TORCHRUN | {"RANK": "abc"}, "RANK='abc' in the environment: a whole number from 0 to 1 is expected"),
        (TORCHRUN | {"RANK": "2"}, "RANK='2' in the environment: a whole number from 0 to 1"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "WORLD_SIZE='0' in the environment: a whole number >= 1"),
        (TORCHRUN | {"LOCAL_RANK": "-1"}, "LOCAL_RANK='-1'"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT='http'"),
        ({k: v for k, v in TORCHRUN.items() if k != "MASTER_ADDR"}, "MASTER_ADDR is missing"),
        (STEP | {"SLURM_LOCALID": ""}, "SLURM_LOCALID=''"),
        ({k: v for k, v in STEP.items() if k != "SLURM_STEP_NUM_NODES"}, "SLURM_STEP_NUM_NODES is missing"),
        ({k: v for k, v in STEP.items() if k != "SLURM_STEP_NODELIST"}, "SLURM_STEP_NODELIST is missing"),
    ],
)
def test_a_launchers_variable_without_sense_is_named(variables, message):
    with pytest.raises(UserError) as error:
        environment(variables)
    assert message in str(error.value)


def test_a_requeue_is_no_first_start():
    assert environment({}).first_start
    assert environment(TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "0"}).first_start
    assert not environment(TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "1"}).first_start
    for launched in ({}, TORCHRUN, STEP):
        assert not environment(launched | {"SLURM_RESTART_COUNT": "2"}).first_start


def test_python_in_a_batch_script_is_alone():
    assert environment({"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}).world_size == 1


def test_the_rendezvous_is_fresh_after_a_requeue_and_the_same_for_all_ranks():
    again = STEP | {"SLURM_RESTART_COUNT": "1"}
    assert environment(again).rendezvous != environment(STEP).rendezvous
    assert environment(STEP | {"SLURM_PROCID": "0"}).rendezvous == environment(STEP).rendezvous


def test_jobs_that_may_share_a_node_meet_at_different_ports():
    starts = [{"SLURM_JOB_ID": str(467184 + job), "SLURM_RESTART_COUNT": str(n % 4), "SLURM_STEP_ID": str(n // 4 * 4)}
              for job in range(2500) for n in range(8)]  # fmt: skip
    ports = {int(environment(STEP | start).rendezvous.rpartition(":")[2]) for start in starts}
    assert len(ports) == 20000
    assert 12000 <= min(ports) < max(ports) < 32768  # Linux gives clients the ports from 32768 on


@pytest.mark.parametrize(
    ("nodes", "first"), [("n1", "n1"), ("n[1-2]", "n1"), ("a-b[003,5]c,d", "a-b003c"), ("r[1-2]n[4-9]", "r1n4"), ("x,y[1-2]", "x")]
)
def test_the_first_node_of_a_list(nodes, first):
    assert environment(STEP | {"SLURM_STEP_NODELIST": nodes}).rendezvous.startswith(f"tcp://{first}:")
