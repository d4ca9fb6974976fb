"""Hostile model folders: unbounded settings, invalid weights."""

import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from benchmarks.crash.hostile import Case

WEIGHTS, CONFIG = "run/model/model.safetensors", "run/model/config.json"
HUGE = 10**9
VAE = {"name": "vae", "latent_dim": 4}
MLP: dict[str, Any] = {"name": "mlp", "hidden": [16], "norm": "batch"}
SHAPES: dict[str, dict[str, Any]] = {
    "a net 10^9 blocks deep": {"model": VAE, "net": {"name": "resnet", "channels": [4, 8], "blocks": HUGE}},
    "10^9 flows": {"model": {"name": "lin_nf_vae", "latent_dim": 4, "flows": HUGE}, "net": MLP},
    "10^9 autoregressive flows": {"model": {"name": "iaf_vae", "latent_dim": 4, "flows": HUGE}, "net": MLP},
    "100,000 layers": {"net": {"name": "mlp", "hidden": [2] * 100_000}},
    "3,000 layers": {"net": {"name": "mlp", "hidden": [64] * 3000}},
    "layers of 20,000 x 20,000": {"net": {"name": "mlp", "hidden": [20_000, 20_000]}},
    "a layer of 10^12": {"net": {"name": "mlp", "hidden": [10**12]}},
    "a layer of 10^400": {"net": {"name": "mlp", "hidden": [10**400]}},
    "a code of 10^9": {"model": {"name": "vae", "latent_dim": HUGE}},
    "a code of 10^18": {"model": {"name": "vae", "latent_dim": 10**18}},
    "a code of 50,000 with iaf": {"model": {"name": "iaf_vae", "latent_dim": 50_000}},
    "a codebook of 10^9": {"model": {"name": "vq_vae", "latent_dim": 4, "codebook_size": HUGE}},
    "10^9 codebooks": {"model": {"name": "rq_vae", "latent_dim": 4, "depth": HUGE}},
    "fsq with 64 levels of 10^6": {"model": {"name": "fsq_vae", "levels": [10**6] * 64, "latent_dim": 64}},
    "lfq with codes of 60 bits": {"model": {"name": "lfq_vae", "latent_dim": 60}},
    "10^9 pseudo-inputs": {"model": {"name": "vamp_vae", "latent_dim": 4, "components": HUGE}},
    "10^9 categories": {"model": {"name": "categorical_vae", "latent_dim": 4, "categories": HUGE}},
    "channels of 10^6 x 10^6": {"net": {"name": "conv", "channels": [10**6, 10**6]}},
    "samples of 2^70 values": {"shape": [2**40, 2**30]},
    "samples of 10^9 values": {"shape": [HUGE]},
    "samples of 100,000 dimensions": {"shape": [1] * 100_000},
    "samples of no value": {"shape": [0]},
    "samples of -1 values": {"shape": [-1]},
    "another code": {"model": {"name": "vae", "latent_dim": 5}},
    "no such variant": {"model": {"name": "__import__"}},
    "a plugin": {"model": {"name": "vae", "plugin": "os"}},
    "a scale of NaN": {"model": VAE | {"likelihood": "gaussian", "scale": float("nan")}},
    "a scale of infinity": {"model": VAE | {"likelihood": "gaussian", "scale": float("inf")}},
    "a code of true": {"model": {"name": "vae", "latent_dim": True}},
    "an activation of 10 MB": {"net": MLP | {"activation": "x" * 10_000_000}},
    "a list for the model": {"model": [1]},
    "no model": {"model": None},
}
"""Changes to model/config.json."""


def write(name: str, data: bytes) -> Callable[[Path], Any]:
    return lambda place: (place / name).write_bytes(data)


def _configured(place: Path, changes: dict[str, Any]) -> None:
    about = json.loads((place / CONFIG).read_bytes())
    (place / CONFIG).write_text(json.dumps(about | changes))
    certify_model(place / "run/model")


def certify_model(folder: Path) -> None:
    """Rewrite the checksums of a model folder, as an attacker would."""
    path = folder / "config.json"
    if path.is_file() and (report := checksums(path, folder)):
        path.write_text(json.dumps(report))


def checksums(path: Path, folder: Path) -> dict[str, Any] | None:
    """The JSON of `path` with new entries {size, xxh3} of the folder's files; None if that is impossible."""
    try:
        report = json.loads(path.read_bytes())
        for name, entry in (report["files"] if "files" in report else {Path(WEIGHTS).name: report["weights"]}).items():
            data = (folder / name).read_bytes()
            entry |= {"size": len(data), "xxh3": xxhash.xxh3_128(data).hexdigest()}
        report.pop("xxh3", None)
    except (ValueError, LookupError, TypeError, AttributeError, OSError):
        return None
    return dict(report)


def _tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(place / WEIGHTS)
        change(tensors)
        save_file(tensors, place / WEIGHTS)
        certify_model(place / "run/model")

    return make


def _first(tensors: dict[str, np.ndarray]) -> str:
    return min(k for k, t in tensors.items() if t.ndim == 2)


def _set(value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[_first(tensors)][0, 0] = value

    return change


def _safetensors(header: Any, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(64)


def sparse(name: str, size: int) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        (place / name).parent.mkdir(exist_ok=True)
        with (place / name).open("wb") as file:
            file.truncate(size)

    return make


def models() -> dict[str, Case]:
    def drop(t: dict[str, np.ndarray]) -> None:
        del t[_first(t)]

    def as_half(t: dict[str, np.ndarray]) -> None:
        t[_first(t)] = t[_first(t)].astype(np.float16)

    def as_ints(t: dict[str, np.ndarray]) -> None:
        t.update({k: v.astype(np.int32) for k, v in t.items()})

    def other_shape(t: dict[str, np.ndarray]) -> None:
        t[_first(t)] = t[_first(t)][:-1]

    def more(t: dict[str, np.ndarray]) -> None:
        t.update({f"more.{i}": np.zeros(1, np.float32) for i in range(1000)})

    changes: dict[str, Callable[[Path], Any]] = {
        "a NaN weight": _tensors(_set(float("nan"))),
        "an infinite weight": _tensors(_set(float("inf"))),
        "a weight is missing": _tensors(drop),
        "one weight in half precision": _tensors(as_half),
        "integer weights": _tensors(as_ints),
        "a weight of another shape": _tensors(other_shape),
        "1,000 weights too many": _tensors(more),
        "no weights": _tensors(dict.clear),
        "a header of 2^63 bytes": write(WEIGHTS, _safetensors({}, 2**63 - 1)),
        "a header of 90 MB": write(WEIGHTS, _safetensors({"x" * 90_000_000: 1})),
        "a tensor of 4 TB": write(WEIGHTS, _safetensors({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})),
        "overlapping tensors": write(
            WEIGHTS, _safetensors({k: {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} for k in "ab"})
        ),
        "a header of nested lists": write(WEIGHTS, struct.pack("<Q", 200_000) + b"[" * 200_000),
        "a pickle": write(WEIGHTS, b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R."),
        "empty weights": write(WEIGHTS, b""),
        "empty settings": write(CONFIG, b""),
        "nested settings": write(CONFIG, b'{"model":' * 100_000),
        "settings of 100 MB of blanks": write(CONFIG, b" " * 100_000_000),
        "settings in UTF-16": write(CONFIG, json.dumps({"model": VAE}).encode("utf-16")),
        "settings with surrogates": write(CONFIG, b'{"model": {"name": "\\ud800"}, "net": {}, "shape": [1]}'),
        "settings with a million keys": write(
            CONFIG, json.dumps({"model": {f"k{i}": 1 for i in range(10**6)}, "net": {}, "shape": [1]}).encode()
        ),
    }
    found = {name: partial(_configured, changes=change) for name, change in SHAPES.items()}
    return {f"model: {name}": Case("model folders", make) for name, make in (found | changes).items()}
