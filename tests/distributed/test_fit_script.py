"""`distae.fit` in a script under torchrun: each rank has the run of one process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

SCRIPT = """
import os, sys
import numpy as np
import distae

x, rank = np.random.default_rng(0).random((120, 6)), int(os.environ.get("RANK", 0))
small = dict(latent_dim=3, hidden=[8], batch_size=32, threads=1, device="cpu", progress=False, precision="fp64")
run = distae.fit(x, **small, steps=6)
codes, why = run.resume(steps=9).model.encode(x), []
there = run.run_dir.is_dir()  # now, while rank 0, whose folder it is, cannot be at its end
for wrong in ({"seed": rank}, {"latent_dim": rank}):
    try:
        distae.fit(x, **small | wrong, steps=2)
    except distae.UserError as error:
        why.append(str(error))
other = distae.fit(x, **small, steps=4, seed=1)
np.savez(f"{sys.argv[1]}/{os.environ.get('WORLD_SIZE', 1)}_{rank}.npz", codes=codes, other=other.model.score(x), why=why,
    rows=len(run.history), there=there, folder=str(run.run_dir))
"""


def start(folder: Path, nproc: int) -> None:
    (folder / "script.py").write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"] if nproc > 1 else []
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, *torchrun, "script.py", str(folder)], cwd=folder, env=os.environ | {"PYTHONPATH": paths},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.spawn
def test_every_rank_has_the_run_of_one_process(tmp_path):
    start(tmp_path, 2)
    start(tmp_path, 1)
    one, *ranks = (dict(np.load(tmp_path / name)) for name in ("1_0.npz", "2_0.npz", "2_1.npz"))
    for rank in ranks:
        np.testing.assert_allclose(rank["codes"], one["codes"], rtol=1e-9)
        np.testing.assert_allclose(rank["other"], one["other"], rtol=1e-9)
        assert (rank["rows"], rank["there"], rank["folder"]) == (one["rows"], True, ranks[0]["folder"])
        differ, invalid = rank["why"]
        assert "settings and data must be the same on all ranks: seed is 0 on rank 0 and 1 here" in differ
        assert "model.latent_dim: 0 is not valid; expected an integer >= 1" in invalid
    assert not Path(str(ranks[0]["folder"])).exists()
