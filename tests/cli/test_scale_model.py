"""The prediction for clusters agrees with its own simulation."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT

MODEL = ROOT / "benchmarks" / "scale_model.py"


@pytest.mark.parametrize(("compute", "parameters"), [("120", "100e6"), ("5", "100e6"), ("1", "1e6")])
def test_closed_forms_and_simulation_agree(compute, parameters):
    command = [sys.executable, str(MODEL), "--compute-ms", compute, "--parameters", parameters]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])["rows"]
    assert [row["gpus"] for row in rows] == [8 * 2**n for n in range(8)]
    for row in rows:
        assert row["step_ms"] == pytest.approx(row["simulated_step_ms"], rel=0.05)
        assert row["goodput"] == pytest.approx(row["simulated_goodput"], abs=0.002)
    assert rows[0]["efficiency"] > rows[-1]["efficiency"]
