"""`launch.status`: what a run folder says about its run."""

import json
import os
from pathlib import Path

from launch import status


def test_status_reads_the_end_of_the_rows_and_no_pipe(tmp_path: Path) -> None:
    """Where a row is damaged, or a value is null, the others are still shown."""
    row = {"step": 7, "epoch": 0.5, "train/loss": 2.0, "train/kl": None}
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write("\n" + json.dumps(row) + '\n{"val/loss": 1}\n{"step": [], "x/y": {}}\n{"step": 8, "epo')
    assert ("train", "step 7 epoch 0.50 train/loss=2 train/kl=nan") in [*status.report(tmp_path)]
    (tmp_path / "metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert [*status.report(tmp_path)] == [("run", str(tmp_path))]
