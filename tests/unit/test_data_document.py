"""docs/data.md: one command for each kind of data, and each of them works on made-up files."""

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from distae.__main__ import main
from distae.config.data import DataConfig

TEXT = (ROOT / "docs/data.md").read_text()
COMMANDS = re.findall(r"^    distae (.*)$", TEXT, re.MULTILINE)
SMALL = "--steps 2 --global-batch-size 20 --eval-batch-size 50 --tracking none --device cpu --threads 1 --run-dir run"
NARROW = {"conv": "--net.channels 4 4", "mlp": "--net.hidden 8"}
N = 60


def photos() -> None:
    for i in range(N):
        path = Path("photos") / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))


def png(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def patients_csv() -> None:
    rows = (f"{30 + i},{'' if i % 7 == 0 else i / 3:},{'xyz'[i % 3]},{['no', 'yes'][i % 2]}" for i in range(N))
    Path("patients.csv").write_text("\n".join(["age,dose,ward,outcome", *rows]))


def images_npz() -> None:
    x = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    np.savez("images.npz", x=x, y=np.arange(N) % 3)


def activations() -> None:
    Path("activations").mkdir()
    for i in range(3):
        np.save(f"activations/{i}.npy", np.random.default_rng(i).normal(size=(N // 3, 5)).astype(np.float16))


def counts_npz() -> None:
    import scipy.sparse

    scipy.sparse.save_npz("counts.npz", scipy.sparse.csr_matrix(np.random.default_rng(0).poisson(0.3, (N, 30))))


def images_table():
    pa = pytest.importorskip("pyarrow")
    return pa, pa.table({"image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(N)], "label": np.arange(N) % 3})


def pictures() -> None:
    Path("pictures").mkdir()
    pytest.importorskip("pyarrow.parquet").write_table(images_table()[1], "pictures/train-0.parquet")


def saved() -> None:
    pa, table = images_table()
    Path("saved").mkdir()
    with pa.OSFile("saved/data.arrow", "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=20)
    Path("saved/state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))


def shards() -> None:
    photos()
    assert main(["prepare", "photos", "shards", "--data.size", "32"]) == 0


MADE = {
    "photos": photos, "patients.csv": patients_csv, "images.npz": images_npz, "activations": activations, "counts.npz": counts_npz,
    "pictures": pictures, "saved": saved, "shards": shards,
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_works(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTAE_CACHE", str(tmp_path / "cache"))
    words = shlex.split(command)
    source = words[words.index("--data.path") + 1] if "--data.path" in words else words[1]
    MADE[source.partition("/")[0]]()
    net = words[words.index("--net") + 1] if "--net" in words else "mlp"
    more = f"{SMALL} {NARROW[net]}".split() if words[0] == "train" else []
    assert main([*words, *more]) == 0, capsys.readouterr().err
    shown = {"train": "run/model/model.safetensors", "data": "contact_sheet.png", "prepare": "shards/manifest.json"}
    assert Path(shown[words[0]]).is_file()


def test_every_kind_that_reads_a_path_has_its_command():
    kinds = {name for name, cls in DataConfig.choices().items() if hasattr(cls, "path") and cls.__module__.startswith("distae.")}
    assert kinds == {shlex.split(c)[shlex.split(c).index("--data") + 1] for c in COMMANDS if "--data " in c}
