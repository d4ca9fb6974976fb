"""Parquet files in a bucket: a cache of the node, retries while it is busy, and what is named when it stays so."""

import threading
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from helpers import source_of

from benchmarks.crash.sources import ROWS, encoded_images, pictures
from distae.config.data import ParquetConfig, remote
from distae.data import BadRowsError, load
from distae.errors import UserError

pq = pytest.importorskip("pyarrow.parquet")
fsspec = pytest.importorskip("fsspec")
from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402


class Flaky(MemoryFileSystem):  # type: ignore[misc] # fsspec has no types
    """A bucket that answers some requests with 503."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    failing = 0
    gets = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("flaky://").strip("/")

    def cat_file(self, *args: Any, **kwargs: Any) -> Any:
        Flaky.fail()
        return super().cat_file(*args, **kwargs)

    def _open(self, *args: Any, **kwargs: Any) -> Any:
        Flaky.fail()
        return super()._open(*args, **kwargs)

    def get_file(self, *args: Any, **kwargs: Any) -> Any:
        super().get_file(*args, **kwargs)
        Flaky.gets += 1

    @staticmethod
    def fail() -> None:
        if Flaky.failing:
            Flaky.failing -= 1
            raise OSError("An error occurred (503) when calling GetObject: SlowDown")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """`flaky://set`, a cache of its own, and no waits between tries."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setenv("DISTAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAITS", (0, 0, 0))
    Flaky.store.clear()
    Flaky.failing, Flaky.gets = 0, 0
    (tmp_path / "set").mkdir()
    for i, part in enumerate((encoded_images().slice(0, 25), encoded_images().slice(25))):
        path = tmp_path / "set" / f"part-{i}.parquet"
        pq.write_table(part, path, row_group_size=10)
        Flaky().pipe_file(f"/set/{path.name}", path.read_bytes())
    return "flaky://set"


def test_urls_are_read_through_a_cache_of_the_node(bucket, tmp_path):
    """Retried where the bucket is busy; the same identity as on disk; each file is downloaded once."""
    Flaky.failing = 2
    split = load(ParquetConfig(path=bucket, size=8, mode="L", val_fraction=0, test_fraction=0))["train"]
    on_disk = load(ParquetConfig(path=str(tmp_path / "set"), size=8, mode="L", val_fraction=0, test_fraction=0))["train"]
    assert split.identity == on_disk.identity
    Flaky.failing = 2
    assert torch.equal(split.x, torch.from_numpy(pictures()).unsqueeze(1))
    again = load(ParquetConfig(path=f"{bucket}/part-*.parquet", size=8, mode="L", val_fraction=0, test_fraction=0))["train"]
    assert torch.equal(again.x, split.x)
    for thread in (source_of(split).prefetch.thread, source_of(again).prefetch.thread):
        thread.join()
    assert Flaky.gets == 2
    assert sorted(p.suffix for p in (tmp_path / "cache/files").iterdir() if p.suffix != ".lock") == [".parquet"] * 2


def test_the_cache_is_filled_ahead_of_need_and_bounded(bucket, tmp_path):
    files = {p.name: p.stat().st_size for p in (tmp_path / "set").iterdir()}
    split = load(ParquetConfig(path=bucket, size=8))["train"]
    split.source.read(torch.tensor([0]))
    source_of(split).prefetch.thread.join()
    assert Flaky.gets == 2
    small = max(files.values()) * 1.1 / 1e9
    split = load(ParquetConfig(path=bucket, size=8, mode="L", cache_gb=small, val_fraction=0, test_fraction=0))["train"]
    for path in (tmp_path / "cache/files").iterdir():
        path.unlink()
    assert torch.equal(split.x, torch.from_numpy(pictures()).unsqueeze(1))
    assert source_of(split).prefetch.thread is None
    assert sum(p.stat().st_size for p in (tmp_path / "cache/files").iterdir()) <= small * 1e9


def test_a_bucket_that_stays_busy_is_named(bucket):
    split = load(ParquetConfig(path=bucket, size=8, mode="L", cache_gb=1e-5))["train"]
    Flaky.failing = 1000
    with pytest.raises(UserError, match=r"--data.path: flaky://.*part-0.parquet cannot be read \(An error occurred \(503\)"):
        load(ParquetConfig(path="flaky://set/part-0.parquet", column="image"))
    with pytest.raises(BadRowsError, match=r"flaky://.*part-0.parquet row 3: An error occurred \(503\)"):
        split.source.read(torch.tensor([3]))
    Flaky.failing = 0
    with pytest.raises(UserError, match=r"--data.path: flaky://nope: there are no .parquet files$"):
        load(ParquetConfig(path="flaky://nope"))
    with pytest.raises(UserError, match=r"--data.path: nope://a/b cannot be opened"):
        load(ParquetConfig(path="nope://a/b"))


def test_one_download_for_many_readers(bucket):
    split = load(ParquetConfig(path=bucket, size=8, mode="L", cache_gb=1.0))["train"]
    threads = [threading.Thread(target=partial(split.source.read, torch.arange(ROWS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    source_of(split).prefetch.thread.join()
    assert Flaky.gets == 2
