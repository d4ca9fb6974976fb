"""Writes splits of any source as shards that `--data array` maps: in parallel, resumable, complete or not at all."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
import xxhash
from torch import Tensor

from distae.config.data.manifest import Manifest, Shard, Unread, X, Y, manifest_in
from distae.config.data.paths import MANIFEST
from distae.config.data.stored import FILE_ERRORS, SAFETENSORS, metadata_of
from distae.data.source import Source
from distae.data.splits import Split, identity
from distae.errors import UserError
from distae.runtime.files import write_atomically

BLOCK = 8 << 20
"""Bytes that a thread reads at once."""
POLL_SECONDS = 0.1
"""Between looks for the shards of other processes."""
ALIGNED = 64
"""The values of a shard begin at a multiple of this number of bytes."""
CODES = {name: code for code, (name, _) in SAFETENSORS.items()}
Described = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Types and shapes by name."""
Read = tuple[Tensor, list[int], list[Unread]]
"""Stored samples, their rows in the source, and the samples that could not be read."""


class Share(NamedTuple):
    """Which of the processes that write together this is: each has every `processes`-th shard."""

    rank: int = 0
    processes: int = 1


class Preparation:
    """Writes splits to a folder. A shard gets its name once it is complete; the manifest lists the shards once all are."""

    def __init__(self, splits: dict[str, Split], folder: Path, shard_bytes: int, workers: int, share: Share = Share()) -> None:  # noqa: B008
        self.splits, self.folder, self.workers, self.share = splits, folder, workers, share
        row_bytes = max(1, splits["train"].source.row_bytes)
        self.rows_per_shard = max(1, shard_bytes // row_bytes)
        self.rows_per_block = max(1, min(BLOCK // row_bytes, self.rows_per_shard))
        about = json.dumps([identity(splits), self.rows_per_shard], sort_keys=True)
        self.key = xxhash.xxh3_128_hexdigest(about.encode())
        """Identifies the data and how they are cut; shards with a different key are not of this preparation."""

    def done_before(self) -> Manifest | None:
        """The manifest, if the folder already has all of it. Raises UserError if it holds something else."""
        if not self.folder.exists():
            return None
        manifest = manifest_in(self.folder)
        mine = manifest is not None and manifest.key == self.key
        if manifest and mine and manifest.splits:
            return manifest
        names = sorted(p.name for p in self.folder.iterdir() if not p.name.startswith(".") and not (mine and p.name == MANIFEST))
        other = next((n for n in names if not n.endswith(".safetensors") or self._kept(self.folder / n) is None), None)
        if other:
            raise UserError(f"{self.folder} contains {other}, which is of other data or settings: give another folder, or --force")
        return None

    @property
    def samples(self) -> int:
        """In this process's shards."""
        return sum(len(rows) for _, _, rows in self._mine())

    def write(self, done: Callable[[int], object], about: Manifest) -> None:
        """Write what is missing of this process's shards; `done` is called with numbers of samples."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.share.rank == 0:
            self._save(Manifest(**vars(about) | {"splits": {}, "key": self.key}))  # without splits it counts as unfinished
        with ThreadPoolExecutor(self.workers, "distae-prepare", torch.set_num_threads, (1,)) as pool:
            for name, number, rows in self._mine():
                path = self._path(name, number)
                for left in self.folder.glob(f".{path.name}*.writing"):
                    left.unlink()
                if self._kept(path) is None:
                    self._write(path, self.splits[name], rows, pool, done)
                else:
                    done(len(rows))

    def finish(self, about: Manifest) -> Manifest:
        """Write the manifest `about` with all shards, once other processes have written theirs."""
        shards: dict[str, list[Shard]] = {name: [] for name in self.splits}
        unread = [Unread(name, reason) for name, reason in self.splits["train"].source.left_out.items()]
        for name, number, _ in self._plan():
            path = self._path(name, number)
            while (found := self._kept(path)) is None:  # a process that fails ends all of torchrun
                time.sleep(POLL_SECONDS)
            shards[name].append(Shard(path.name, found[0], path.stat().st_size))
            unread += found[1]
        manifest = Manifest(**vars(about) | {"splits": shards, "unread": unread, "key": self.key})
        self._save(manifest)
        return manifest

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}-{number:05}.safetensors"

    def _mine(self) -> Iterator[tuple[str, int, range]]:
        """This process's part of the plan."""
        return islice(self._plan(), self.share.rank, None, self.share.processes)

    def _save(self, manifest: Manifest) -> None:
        write_atomically(self.folder / MANIFEST, msgspec.json.format(msgspec.json.encode(asdict(manifest)), indent=1))

    def _plan(self) -> Iterator[tuple[str, int, range]]:
        """Split, number and positions of each shard; an empty split has one shard."""
        for name, split in self.splits.items():
            for number, start in enumerate(range(0, max(1, len(split)), self.rows_per_shard)):
                yield name, number, range(start, min(start + self.rows_per_shard, len(split)))

    def _kept(self, path: Path) -> tuple[int, list[Unread]] | None:
        """Number of rows of a shard, and what it leaves out; None if it is not a complete shard of this preparation."""
        try:
            about = metadata_of(path)
            if about.get("key") != self.key:
                return None
            return int(about["rows"]), [Unread(*pair) for pair in json.loads(about["unread"])]
        except FILE_ERRORS:
            return None

    def _write(self, path: Path, split: Split, rows: range, pool: ThreadPoolExecutor, done: Callable[[int], object]) -> None:
        """Write the shard of these positions, the values first: their number is only known at the end."""
        values = path.with_name(f".{path.name}.values.writing")
        kept: list[int] = []
        unread: list[Unread] = []
        with values.open("wb") as file:
            for samples, good, bad in self._blocks(split, rows, pool):
                file.write(_bytes(samples))
                kept, unread = kept + good, unread + bad
                done(len(good) + len(bad))
        label = split.source.label
        tensors: Described = {} if label is None else {Y: (torch.int64, (len(kept),))}  # first, so that the samples stay aligned
        tensors[X] = (split.source.dtype, (len(kept), *split.source.shape))
        about = {"key": self.key, "rows": str(len(kept)), "unread": json.dumps([[u.file, u.reason] for u in unread])}
        labels = [] if label is None else [_bytes(label[torch.tensor(kept, dtype=torch.int64)])]
        with values.open("rb") as file:
            write_atomically(path, chain([_header(tensors, about), *labels], iter(lambda: file.read(BLOCK), b"")))
        values.unlink()

    def _blocks(self, split: Split, rows: range, pool: ThreadPoolExecutor) -> Iterator[Read]:
        """Blocks of these positions, in order, while the next are read: at most two per thread are in memory."""
        coming: deque[Future[Read]] = deque()
        for start in range(rows.start, rows.stop, self.rows_per_block):
            at = torch.arange(start, min(start + self.rows_per_block, rows.stop))
            coming.append(pool.submit(_read, split.source, at if split.rows is None else split.rows[at]))
            if len(coming) >= 2 * self.workers:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _read(source: Source, rows: Tensor) -> Read:
    samples, good, bad = source.read_good(rows)
    return samples, good.tolist(), [Unread(source.name_of(row), reason) for row, reason in sorted(bad.items())]


def _header(tensors: Described, about: dict[str, str]) -> bytes:
    """The header of a .safetensors file with these tensors in order."""
    table: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        table[name] = {"dtype": CODES[str(dtype).removeprefix("torch.")], "shape": [*shape], "data_offsets": [start, end]}
    text = json.dumps(table).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED)
    return len(text).to_bytes(8, "little") + text


def _bytes(x: Tensor) -> bytes:
    return x.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
