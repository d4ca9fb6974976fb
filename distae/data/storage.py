"""Where the values of a data set are during a run: in memory, mapped from a file, or streamed from their source."""

import os
from pathlib import Path

from distae.data.source import Source
from distae.data.splits import Split


def streams(source: Source) -> bool:
    """Whether samples are read and decoded as they are needed, rather than copied from memory or a mapped file."""
    return source.decodes or source.units is not None


def available_memory() -> int:
    """Bytes of main memory that programs on this node, or in this container, could still take; Linux, elsewhere all there is."""
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
    """The size of all splits, for people."""
    size = sum(split.nbytes for split in splits.values())
    return f"{sum(map(len, splits.values()))} samples, {size / 1e9:.3g} GB"
