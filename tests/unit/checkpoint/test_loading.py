"""`distae.load`: a damaged, forged or hostile folder gives a message, in bounded time and memory."""

import json
import os
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import finished_run, settings
from safetensors.torch import load_file, save_file

import distae
from distae.errors import UserError
from distae.models.serialization import export

CFG = settings(data={"name": "digits", "limit": 96}, steps=2, save_every=2, eval_every=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(CFG, tmp_path_factory.mktemp("loading"))


def refusal(path: Path | str) -> str:
    """Why it does not load, found within a second and 1 GB."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UserError) as error:
        distae.load(path)
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20
    assert len(str(error.value).splitlines()) <= 2
    return str(error.value)


def rewrite(run_dir: Path, **changes: Any) -> None:
    """Change tables of config.json; one that has another name is replaced."""
    path = run_dir / "model" / "config.json"
    about = json.loads(path.read_text())
    del about["xxh3"]
    for key, value in changes.items():
        about[key] = about[key] | value if isinstance(value, dict) and "name" not in value else value
    path.write_text(json.dumps(about))


def test_a_changed_description_is_rejected(run_dir: Path) -> None:
    path = run_dir / "model" / "config.json"
    path.write_text(path.read_text().replace('"likelihood": "bernoulli"', '"likelihood": "gaussian"'))
    assert "config.json was changed (checksum mismatch)" in refusal(run_dir)
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "xxh3"}))
    distae.load(run_dir)
    path.write_bytes(path.read_bytes().replace(b"digits", b"digi\xb3s"))  # in a part that the model does not need
    assert "missing or damaged" in refusal(run_dir)


def test_both_folders_and_the_home_load(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run_dir.parent))
    first = distae.load(run_dir).module.state_dict()
    for path in (run_dir / "model", "~/run", "~/run/model"):
        assert all(torch.equal(first[k], v) for k, v in distae.load(path).module.state_dict().items())


def test_a_folder_of_before_has_no_checksum_and_loads(run_dir: Path) -> None:
    rewrite(run_dir, weights=None)
    distae.load(run_dir)
    about = json.loads((run_dir / "model" / "config.json").read_text())
    (run_dir / "model" / "config.json").write_text(json.dumps({k: v for k, v in about.items() if k not in ("weights", "xxh3")}))
    distae.load(run_dir)


@pytest.mark.slow
def test_every_flipped_byte_of_the_weights_is_noticed(run_dir: Path) -> None:
    path = run_dir / "model" / "model.safetensors"
    data = path.read_bytes()
    for at in [*range(0, 200, 7), *range(200, len(data), len(data) // 60), len(data) - 1]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(UserError):
            distae.load(run_dir)
    path.write_bytes(data[:-4])
    with pytest.raises(UserError):
        distae.load(run_dir)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_rejected(run_dir: Path, value: float) -> None:
    path = run_dir / "model" / "model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[1]
    tensors[name].view(-1)[0] = value
    save_file(tensors, path)
    rewrite(run_dir, weights=None)
    assert f"{name} contains NaN or infinite values" in refusal(run_dir)


@pytest.mark.parametrize(
    "changes",
    [
        {"net": {"name": "resnet", "channels": [4, 8], "blocks": 10**9}},
        {"model": {"name": "lin_nf_vae", "flows": 10**9}},
        {"model": {"name": "iaf_vae", "flows": 10**9}},
        {"model": {"name": "iaf_vae", "flow_hidden": 10**9}},
        {"model": {"name": "hvae", "upper": [2] * 100_000}},
        {"model": {"name": "masked_ae", "depth": 10**9}},
        {"model": {"name": "vq_vae", "codebook_size": 10**12}},
        {"model": {"name": "rq_vae", "depth": 10**9}},
        {"model": {"name": "fsq_vae", "levels": [2] * 100_000}},
        {"model": {"latent_dim": 10**9}},
        {"model": {"latent_dim": 10**18}},
        {"model": {"latent_dim": 10**30}},
        {"net": {"hidden": [2] * 100_000}},
        {"net": {"hidden": [20_000, 20_000]}},
        {"net": {"hidden": [10**9, 10**9]}},
        {"net": {"norm": "group", "groups": 10**9}},
        {"shape": [1] * 100_000},
        {"shape": [10**6, 10**6, 10**6]},
        {"weights": {"size": 3}},
        {"weights": {"xxh3": "0"}},
        {"weights": []},
        {"weights": {"size": "x"}},
    ],
)
def test_hostile_settings_end_in_a_second(run_dir: Path, changes: dict[str, Any]) -> None:
    rewrite(run_dir, **changes)
    refusal(run_dir)


def sparse_file(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["fifo", "zero", "link out", "folder", "sparse", "missing", "empty"])
def test_files_that_are_none_or_too_large(run_dir: Path, name: str, kind: str) -> None:
    path = run_dir / "model" / name
    path.rename(run_dir / "aside")
    {
        "fifo": lambda: os.mkfifo(path),
        "zero": lambda: path.symlink_to("/dev/zero"),
        "link out": lambda: path.symlink_to(run_dir / "aside"),
        "folder": path.mkdir,
        "sparse": lambda: sparse_file(path, 200 << 30),
        "missing": lambda: None,
        "empty": path.touch,
    }[kind]()
    assert name in refusal(run_dir)


def test_weights_larger_than_the_memory(run_dir: Path) -> None:
    """A sparse file whose header and settings agree."""
    side = 10**6
    rewrite(run_dir, net={"hidden": [side, side]}, weights=None)
    names = {"encoder.layers.1.layer": (side, 64), "encoder.layers.2.layer": (side, side), "encoder.layers.3": (4, side)}
    names |= {"decoder.layers.0.layer": (side, 4), "decoder.layers.1.layer": (side, side), "decoder.layers.2": (64, side)}
    shapes = {f"{k}.weight": v for k, v in names.items()} | {f"{k}.bias": v[:1] for k, v in names.items()}
    header, end = {}, 0
    for key, dims in shapes.items():
        size = 4 * torch.Size(dims).numel()
        header[key] = {"dtype": "F32", "shape": dims, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path = run_dir / "model" / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    assert "more than this machine's memory" in refusal(run_dir)


def test_a_run_that_is_not_finished_says_how_to_export(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "model")
    assert f"python -m distae.checkpoint {run_dir} --export best DIR" in refusal(run_dir)
    assert "no such folder" in refusal(run_dir / "nothing")


def test_a_net_of_a_plugin_is_to_be_imported(run_dir: Path) -> None:
    rewrite(run_dir, net={"name": "a_net_of_mine"})
    assert "if 'a_net_of_mine' is from a plugin, import that file before distae.load" in refusal(run_dir)


def test_a_model_is_for_the_group_and_replaced_whole(run_dir: Path) -> None:
    folder, before = run_dir / "model", os.umask(0o027)
    try:
        export(distae.load(run_dir).module, replace(CFG, run_dir=str(run_dir)), folder, 2, None, None)
    finally:
        os.umask(before)
    assert {oct(p.stat().st_mode & 0o777) for p in folder.iterdir()} == {"0o640"}
    assert sorted(p.name for p in run_dir.glob(".*")) == []
    distae.load(run_dir)
