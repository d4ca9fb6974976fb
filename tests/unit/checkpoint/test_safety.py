"""No code runs from a checkpoint: exploits in place of every file that is read."""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, finished_run, settings
from safetensors.torch import load_file, save_file

import distae
from distae.checkpoint.retention import COMMIT, STATE, name_of
from distae.checkpoint.shards import checksum
from distae.commands import checkpoint as tool
from distae.commands import train
from distae.errors import UserError
from distae.runtime import lock as runlock
from distae.runtime.environment import Environment
from distae.tracking import Console
from distae.tracking.wandb import kept_id

SHARD = "shard-00001-model-00001-of-00001.safetensors"
CFG = settings(
    data={"name": "digits", "limit": 96}, steps=2, save_every=2, eval_every=2, ema=0.9, precision="fp16",
    checkpoint={"keep_latest_k": 1},
)  # fmt: skip


class Exploit:
    """Makes a folder when it is unpickled."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.mkdir, (str(self.sentinel),)


def as_pickle(sentinel):
    return pickle.dumps(Exploit(sentinel))


def as_torch_save(sentinel):
    file = io.BytesIO()
    torch.save({"model": Exploit(sentinel)}, file)
    return file.getvalue()


def as_npy(sentinel):
    file = io.BytesIO()
    np.save(file, np.array([Exploit(sentinel)], dtype=object))
    return file.getvalue()


def safetensors(header, length=None):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * 64


def as_header_of_pickles(sentinel):
    text = as_pickle(sentinel).decode("latin-1")
    return safetensors({"__metadata__": {"DCP_SHARDING_INFO": text, text: text}, text: {"dtype": text, "shape": text}})


def as_absurd_offsets(sentinel):
    return safetensors({"model.x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})


def as_huge_header(sentinel):
    return safetensors({}, 2**63 - 1)


def as_deep_json(sentinel):
    return b'{"files":' * 100_000


EXPLOITS = [as_pickle, as_torch_save, as_npy, as_header_of_pickles, as_absurd_offsets, as_huge_header, as_deep_json]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 2 steps and its one checkpoint."""
    return finished_run(CFG, tmp_path_factory.mktemp("safety"))


@pytest.fixture
def sentinel(tmp_path):
    """The folder that an exploit makes; it is not there at the end."""
    yield tmp_path / "sentinel"
    assert not (tmp_path / "sentinel").exists(), "code from a file was executed"


def checkpoint(run_dir):
    return run_dir / "checkpoints" / name_of(2)


def certify(run_dir, *more):
    """Rewrite the manifest to match the files as they are now."""
    path = checkpoint(run_dir)
    manifest = json.loads((path / COMMIT).read_bytes())
    for name in [*manifest["files"], *more]:
        manifest["files"][name] = {"size": (path / name).stat().st_size, "xxh3": checksum(path / name)}
    (path / COMMIT).write_text(json.dumps(manifest))


def resume(run_dir, **changes):
    """How a longer run of the same settings ends: "done", or why it did not."""
    try:
        end = train.run(replace(CFG, run_dir=str(run_dir), steps=3, **changes), Environment())
    except UserError as error:
        return str(error)
    return end.reason or end.outcome


def assert_refused(text, named):
    assert named in text
    assert "Traceback" not in text
    assert len(text.splitlines()) <= 2


def run_tool(capsys, *args):
    """Exit code and all output of `python -m distae.checkpoint`."""
    capsys.readouterr()
    code = tool.main([str(a) for a in args])
    return code, "".join(capsys.readouterr())


def test_the_exploits_are_real(tmp_path):
    loads = {
        as_pickle: pickle.load,
        as_torch_save: lambda f: torch.load(f, weights_only=False),
        as_npy: lambda f: np.load(f, allow_pickle=True),
        as_header_of_pickles: lambda f: pickle.loads([*json.loads(f.read()[8:].rstrip(b"\0"))][1].encode("latin-1")),
    }
    for make, load in loads.items():
        load(io.BytesIO(make(tmp_path / "made")))
        (tmp_path / "made").rmdir()


@pytest.mark.parametrize("exploit", EXPLOITS)
@pytest.mark.parametrize(
    ("name", "certified"),
    [
        (COMMIT, False),
        pytest.param(STATE, False, marks=pytest.mark.slow),  # its checksum is enough to reject it
        (STATE, True),
        pytest.param(SHARD, False, marks=pytest.mark.slow),
        (SHARD, True),
    ],
)
def test_no_file_of_a_checkpoint_is_executed(run_dir, sentinel, capsys, exploit, name, certified):
    (checkpoint(run_dir) / name).write_bytes(exploit(sentinel))
    if certified:
        certify(run_dir)
    listed, text = run_tool(capsys, run_dir)
    believed = name == SHARD and certified  # only tensors are wrong, and a listing opens none
    assert (listed, "not valid" in text) == ((0, False) if believed else (1, True))
    assert run_tool(capsys, run_dir, "--verify")[0] == listed
    exported, text = run_tool(capsys, run_dir, "--export", "2", run_dir / "out")
    if (name, certified) != (STATE, True):  # an export of a step needs no state.json
        assert exported == 2
        assert_refused(text, "distae: ")
    assert_refused(resume(run_dir), name_of(2) if name != STATE or not certified else STATE)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("exploit", EXPLOITS)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_no_file_of_a_model_is_executed(run_dir, sentinel, exploit, name):
    (run_dir / "model" / name).write_bytes(exploit(sentinel))
    with pytest.raises(UserError) as refusal:
        distae.load(run_dir)
    assert_refused(str(refusal.value), name)
    if name == "model.safetensors":
        fresh = replace(CFG, run_dir=str(run_dir.with_name("other")), init_from=str(run_dir))
        with pytest.raises(UserError, match="no finished run"):
            train.run(fresh, Environment())


@pytest.mark.parametrize("exploit", EXPLOITS)
def test_no_other_file_of_a_run_is_executed(run_dir, sentinel, capsys, monkeypatch, exploit):
    monkeypatch.setattr(runlock, "STALE_SECONDS", 0)
    for name in ("outcome.json", "lock", "metrics.jsonl", "log.txt"):
        (run_dir / name).write_bytes(exploit(sentinel))
    assert resume(run_dir) == "done"
    (run_dir / "config.toml").write_bytes(exploit(sentinel))
    assert_refused(resume(run_dir), "--run-dir")
    code, text = run_tool(capsys, run_dir, "--export", "best", run_dir / "out")
    assert code == 2
    assert_refused(text, "config.toml")


@pytest.mark.parametrize("exploit", EXPLOITS)
def test_a_forgedkept_id_is_replaced(tmp_path, sentinel, capsys, exploit):
    (tmp_path / "wandb_id").write_bytes(exploit(sentinel))
    console = Console(tmp_path / "log.txt", 0, 1)
    made = kept_id(tmp_path / "wandb_id", console.line)
    console.close()
    assert len(made) == 8
    assert "wandb_id is damaged" in capsys.readouterr().err
    assert kept_id(tmp_path / "wandb_id", console.line) == made


def test_pickles_in_the_metadata_of_a_good_shard_stay_text(run_dir, sentinel):
    text = as_pickle(sentinel).decode("latin-1")
    path = checkpoint(run_dir) / SHARD
    save_file(load_file(path), path, metadata={"pickle": text, "format": text})
    certify(run_dir)
    assert resume(run_dir) == "done"


@pytest.mark.parametrize("name", ["../{}", "{root}/{}", "x/../../{}", ".{}", "a\0b", "x" * 5000, "..", ""])
def test_a_manifest_names_no_file_outside(run_dir, capsys, name):
    outside = "secret.safetensors"
    shutil.copy(checkpoint(run_dir) / SHARD, checkpoint(run_dir).parent / outside)
    path = checkpoint(run_dir) / COMMIT
    manifest = json.loads(path.read_bytes())
    manifest["files"][name.format(outside, root=checkpoint(run_dir).parent)] = manifest["files"].pop(SHARD)
    path.write_text(json.dumps(manifest))
    code, text = run_tool(capsys, run_dir, "--export", "2", run_dir / "out")
    assert code == 2
    assert_refused(text, "no valid checkpoint")
    assert_refused(resume(run_dir), f"{COMMIT} is damaged")


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: [state],
        lambda state: state | {"world_size": "two"},
        lambda state: {k: v for k, v in state.items() if k != "window"},
        lambda state: state | {"state": {"step": "2"}},
        lambda state: state | {"state": state["state"] | {"step": 1}},
        lambda state: state | {"metrics_bytes": -1},
        lambda state: state | {"scaler": {"scale": 1.0}},
        lambda state: state | {"window": {"names": ["loss"], "sums": [[1.0, 2.0]], "steps": 1}},
    ],
)
def test_a_state_of_other_types_is_rejected(run_dir, capsys, damage):
    path = checkpoint(run_dir) / STATE
    path.write_text(json.dumps(damage(json.loads(path.read_bytes()))))
    certify(run_dir)
    assert run_tool(capsys, run_dir, "--verify")[0] in (0, 1)
    assert run_tool(capsys, run_dir, "--export", "best", run_dir / "out")[0] in (0, 2)
    assert_refused(resume(run_dir), STATE)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"seed": 3, "seed.a": 1}, "damaged: 'seed.a' is nested in a value"),
        ({"model": 1, "model.name": "vae"}, "damaged: 'model.name' is nested in a value"),
        ({"threads" + ".a" * 10**5: 1}, "is nested in a value, or too deep"),
        pytest.param({f"x{i}": 1 for i in range(10**6)}, "at most 8388608 are expected", marks=pytest.mark.slow),
    ],
)
def test_forged_settings_are_rejected_within_a_second(run_dir, settings, why):
    path = checkpoint(run_dir) / STATE
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"settings": settings}))
    certify(run_dir)
    began = time.process_time()
    assert_refused(resume(run_dir), why)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("{}.exp_avg", torch.zeros(1)),  # a fused optimizer would write past its end
        ("{}.exp_avg", torch.zeros(16, 64, dtype=torch.float64)),
        ("{}.exp_avg_sq", None),
        ("{}.step", torch.zeros(3)),
        ("{}.bogus", torch.zeros(16, 64)),
        ("optim.autoencoder.bogus.exp_avg", torch.zeros(2)),
        ("model.bogus", torch.zeros(2)),
    ],
)
def test_tensors_of_another_run_are_rejected(run_dir, key, value):
    path = checkpoint(run_dir) / SHARD
    tensors = load_file(path)
    weight = next(k for k, t in tensors.items() if k.startswith("optim.") and t.shape == (16, 64)).rpartition(".")[0]
    if value is None:
        del tensors[key.format(weight)]
    else:
        tensors[key.format(weight)] = value
    save_file(tensors, path)
    certify(run_dir)
    assert_refused(resume(run_dir), "checkpoint")


@pytest.mark.parametrize(
    "about",
    [
        [],
        {"shape": [1, 8, 8]},
        {"model": {"name": "__import__"}, "net": {"name": "mlp"}, "shape": [1, 8, 8]},
        {"model": {"name": "ae"}, "net": {"name": "mlp"}, "shape": []},
        {"model": {"name": "ae"}, "net": {"name": "mlp"}, "shape": [0]},
        {"model": {"name": "ae"}, "net": {"name": "mlp"}, "shape": [2**40, 2**30]},
        {"model": {"name": "ae"}, "net": {"name": "conv"}, "shape": [3]},
        {"model": {"name": "ae", "plugin": "x"}, "net": {"name": "mlp"}, "shape": [1, 8, 8]},
    ],
)
def test_settings_that_fit_no_model_are_rejected(run_dir, about):
    (run_dir / "model" / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError) as refusal:
        distae.load(run_dir)
    assert len(str(refusal.value).splitlines()) <= 2


@pytest.mark.parametrize("tensors", [{}, {"x": torch.zeros(2, dtype=torch.int8)}, {"x": torch.zeros(2)}])
def test_weights_of_another_model_are_rejected(run_dir, tensors):
    save_file(tensors, run_dir / "model" / "model.safetensors")
    with pytest.raises(UserError, match="do not match"):
        distae.load(run_dir)


@pytest.mark.spawn
def test_the_command_ends_with_its_code_and_one_line(run_dir, sentinel):
    (checkpoint(run_dir) / SHARD).write_bytes(as_torch_save(sentinel))
    certify(run_dir)
    command = [sys.executable, "-m", "distae.checkpoint", str(run_dir), "--export", "2", str(run_dir / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert_refused(done.stderr, "distae: ")
    assert len(done.stderr.splitlines()) == 1
    assert not Path(run_dir / "out").exists()
