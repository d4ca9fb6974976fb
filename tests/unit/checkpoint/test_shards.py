"""The bytes of a checkpoint's files on their way to the disk."""

import errno
import fcntl
import os

import numpy as np
import pytest
import xxhash

from distae.checkpoint import shards


@pytest.mark.parametrize("sizes", [[1], [4096], [5000, 3, 0, 8192], [8192, 8192], [20_000]])
@pytest.mark.parametrize("direct", [True, False])
def test_blocks_of_any_size_are_written_whole(tmp_path, monkeypatch, sizes, direct):
    write = os.write

    def refuse_direct(fd, data):
        if not direct and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct writes here")
        return write(fd, data[:4096])  # a write may do less than it was asked for

    monkeypatch.setattr(os, "write", refuse_direct)
    monkeypatch.setattr(shards, "_CHUNK", 8192)
    rng = np.random.default_rng(0)
    blocks = [b"head", *(rng.integers(0, 256, n, dtype=np.uint8) for n in sizes)]
    entry = shards.write_file(tmp_path / "file", blocks)
    content = b"".join(bytes(b) for b in blocks)
    assert (tmp_path / "file").read_bytes() == content
    assert entry == {"size": len(content), "xxh3": xxhash.xxh3_128_hexdigest(content)}


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    def full(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        shards.write_file(tmp_path / "file", [b"x"])
