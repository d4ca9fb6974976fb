"""A folder of `distae prepare` as one set."""

from collections.abc import Sequence
from pathlib import Path

import torch

from distae.config.data import FILE_ERRORS, ArrayConfig
from distae.config.data.manifest import Manifest, Shard, X, Y
from distae.config.data.paths import expanded
from distae.config.data.stored import Stored, arrays_in
from distae.data.mapped import Mapped, dtype_of, mapped
from distae.data.splits import Split
from distae.data.transform import Transform
from distae.errors import UserError


def load_prepared(cfg: ArrayConfig, manifest: Manifest) -> dict[str, Split]:
    """The splits of a prepared folder. Raises UserError if a shard is missing, truncated or was replaced."""
    folder, transform = expanded(cfg.path, "--data.path"), Transform.from_json(manifest.transform)
    unread = f", {len(manifest.unread)} samples of the source could not be read" if manifest.unread else ""
    rows = {name: sum(s.rows for s in shards) for name, shards in manifest.splits.items()}
    counts = ", ".join(f"{n} {name}" for name, n in rows.items())
    notes = (f"--data array: {cfg.path} was made by distae prepare: {counts} samples, memory-mapped{unread}",)
    sources = {name: _source(folder, manifest, shards) for name, shards in manifest.splits.items()}
    return {name: Split(source, transform, notes=notes if name == "train" else ()) for name, source in sources.items()}


def _source(folder: Path, manifest: Manifest, shards: Sequence[Shard]) -> Mapped:
    arrays = [_arrays(folder, shard) for shard in shards]
    samples = [a[X] for a in arrays]
    if odd := next((s for s in samples[1:] if (s.shape[1:], s.dtype) != (samples[0].shape[1:], samples[0].dtype)), None):
        one, other = (f"{s} contains {s.dtype} {list(s.shape)}" for s in (samples[0], odd))
        raise UserError(f"--data.path: {one}, and {other}: all shards must have the same type and shape per sample")
    label = torch.cat([mapped(a[Y]).rows.clone() for a in arrays]) if manifest.labelled else None
    source = Mapped([mapped(s) for s in samples], samples[0].shape[1:], dtype_of(samples[0]), label)
    source.classes = tuple(manifest.classes)
    return source


def _arrays(folder: Path, shard: Shard) -> dict[str, Stored]:
    """Where samples and labels are in a shard. Raises UserError if it is missing, truncated or was replaced."""
    path = folder / shard.file
    try:
        if path.stat().st_size != shard.bytes:
            raise ValueError(f"it has {path.stat().st_size} bytes, expected {shard.bytes}")
        arrays = {name: read() for name, read in arrays_in(path).items()}
        if arrays[X].shape[0] != shard.rows or (Y in arrays and arrays[Y].shape != (shard.rows,)):
            raise ValueError(f"it contains {arrays[X].shape[0]} samples, expected {shard.rows}")
        return arrays
    except FILE_ERRORS as error:
        raise UserError(f"--data.path: {path} is missing or damaged ({error}): make it again with distae prepare") from error
