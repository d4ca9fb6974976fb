"""The benchmarks run; what they measure is not tested."""

import json
import os
import subprocess
import sys

from helpers import ROOT


def run(name: str, *args: str) -> dict:
    """The JSON object that `benchmarks/NAME` ends with."""
    command = [sys.executable, f"benchmarks/{name}", *args]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_cost_of_checkpoints(tmp_path):
    result = run("checkpoint.py", "--quick", "--dir", str(tmp_path))
    for ranks in (1, 2):
        told = result[f"ranks_{ranks}"]
        assert {"raw_write", "torch_save", "dcp_save", "ours_sync", "ours_async", "memory"} <= set(told)
        assert sum(m["staging_bytes"] for m in told["memory"]) == told["bytes"]
        assert all(s["durable"]["min"] > 0 for s in told.values() if isinstance(s, dict) and "durable" in s)
    assert not list(tmp_path.iterdir())
