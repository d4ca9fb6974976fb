"""Where the values of a data set are during a run: in memory, mapped from a file, or streamed from their source."""

import contextlib
import dataclasses
import os
from pathlib import Path

from distae.config.data import DataConfig
from distae.data.decoded import MOST_BYTES, decoded
from distae.data.source import BadRowsError, Source
from distae.data.splits import Split
from distae.errors import UserError

PAGE = 4096
SMALL_BYTES = 256 << 20
"""Sources that would be streamed are decoded once instead if they are not larger than this."""
VALID = {"streamed": ("auto", "resident", "streamed"), "mapped": ("auto", "resident", "mapped"), "resident": ("auto", "resident")}
"""Valid `--data.storage`, by where the values of the source are."""


def streams(source: Source) -> bool:
    """Whether samples are read and decoded as they are needed, rather than copied from memory or a mapped file."""
    return (source.decodes or source.units is not None) and not source.origin


def place(cfg: DataConfig, splits: dict[str, Split], workers: int) -> dict[str, Split]:
    """The same splits with their values where `--data.storage` asks for them, decoded by `workers` threads.

    `data.identity` does not change. Raises UserError if that is impossible. Resident is one copy for all processes of a node:
    mapped files are read into the page cache, streamed samples are decoded into a file of the node's cache. The loader copies them
    to the GPU if they fit.
    """
    source, size = splits["train"].source, sum(split.nbytes for split in splits.values())
    here = "streamed" if streams(source) else "mapped" if source.origin else "resident"
    if cfg.storage not in VALID[here]:
        what = {"streamed": "is read in parts", "mapped": "is a mapped file", "resident": "is in memory"}[here]
        raise UserError(f"--data.storage {cfg.storage}: --data {cfg.name} {what}; valid: {', '.join(VALID[here])}")
    if cfg.storage == "resident" and here != "resident":
        _check_memory(size, here)
        return _decoded(cfg, splits, workers, size) if here == "streamed" else _touched(splits)
    if decodes_once(cfg, splits):
        with contextlib.suppress(_NoCopyError):  # streamed then, as the run says
            return _decoded(cfg, splits, workers, size)
    return splits


def decodes_once(cfg: DataConfig, splits: dict[str, Split]) -> bool:
    """Whether `place` decodes into a copy that is then mapped, instead of streaming."""
    small = cfg.storage == "auto" and cfg.on_error == "raise" and sum(split.nbytes for split in splits.values()) <= SMALL_BYTES
    return streams(splits["train"].source) and (cfg.storage == "resident" or small)


class _NoCopyError(UserError):
    """The samples can be read, but a decoded copy cannot be kept."""


def _check_memory(size: int, here: str) -> None:
    if size > (free := available_memory()):
        raise UserError(
            f"--data.storage resident: the data take {size / 1e9:.3g} GB, and this node has {free / 1e9:.3g} GB free; valid: {here}"
        )


def _decoded(cfg: DataConfig, splits: dict[str, Split], workers: int, size: int) -> dict[str, Split]:
    if cfg.on_error == "skip":  # a copy would hold the substitutes, and not say so
        raise _NoCopyError("--data.storage resident: --data.on-error skip needs samples that are read in the run; valid: streamed")
    if size > MOST_BYTES:
        raise _NoCopyError(
            f"--data.storage resident: {size / 1e9:.3g} GB decoded, at most {MOST_BYTES / 1e9:.3g} are kept; valid: streamed"
        )
    settings = repr(dataclasses.replace(cfg, storage="auto", workers="auto", prefetch=1, shuffle="auto", window=1))
    try:
        return {name: decoded(split, settings, workers) if streams(split.source) else split for name, split in splits.items()}
    except BadRowsError as error:
        raise UserError(f"--data {cfg.name}: {error};\nfix or remove them, or skip them with --data.on-error skip") from error
    except OSError as error:
        raise _NoCopyError(
            f"--data.storage resident: the decoded copy cannot be written ({error}); set DISTAE_CACHE to another folder"
        ) from error


def _touched(splits: dict[str, Split]) -> dict[str, Split]:
    """The same splits, after each page of their sources was read once."""
    for source in {id(split.source): split.source for split in splits.values()}.values():
        for block in source.blocks(None):
            block.reshape(-1)[:: max(1, PAGE // block.element_size())].sum()
    return splits


def available_memory() -> int:
    """Bytes of main memory that are available on this node, or in this container; not on Linux: all memory."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no limit: "max"
        return free
    return min(free, max(0, limit - used))


def in_words(splits: dict[str, Split]) -> str:
    """The size of all splits, as shown in the log."""
    size = sum(split.nbytes for split in splits.values())
    return f"{sum(map(len, splits.values()))} samples, {size / 1e9:.3g} GB"
