"""The file of codes: what it holds, and every way in which it can be another."""

import struct
import zlib

import pytest

from distae.compression.archive import OVERHEAD, Archive, Kind, read_archive, write_archive
from distae.errors import UserError

WHOLE = Archive(2**63 + 5, 7, 3, Kind.IMAGES, b"12345678abcd", ("a.png", "é b.jpg", "c"))


@pytest.mark.parametrize("archive", [WHOLE, Archive(1, 2, 0, Kind.BYTES, b""), Archive(1, 2, 10, Kind.FLOATS, b"x" * 900)])
def test_a_file_is_what_was_written(archive, tmp_path):
    size = write_archive(archive, tmp_path / "x.dae")
    assert read_archive(tmp_path / "x.dae") == archive
    assert size == (tmp_path / "x.dae").stat().st_size


def test_the_header_is_small():
    assert len(Archive(1, 2, 10, Kind.BYTES, b"x" * 900).to_bytes()) == 900 + OVERHEAD == 900 + 33


def test_every_truncation_and_every_flipped_byte_is_found(tmp_path):
    data, path = WHOLE.to_bytes(), tmp_path / "x.dae"
    damaged = [data[:n] for n in range(len(data))]
    damaged += [data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :] for i in range(len(data))]
    for made in [*damaged, data + b"0"]:
        path.write_bytes(made)
        with pytest.raises(UserError, match=r"x\.dae: it (is|has version)"):
            read_archive(path)


@pytest.mark.parametrize("names", [b"../../etc/passwd\na\nb", b"a\nb", b"/a\nb\nc", b"\xff\na\nb", b"..\na\nb", b"\na\nb"])
def test_forged_names_are_an_error(names, tmp_path):
    packed = zlib.compress(names)
    head = struct.pack("<3sBQQIBI", b"DAE", 1, 1, 2, 3, 2, len(packed)) + packed
    (tmp_path / "x.dae").write_bytes(head + struct.pack("<I", zlib.crc32(head)))
    with pytest.raises(UserError, match=r"names|utf-8"):
        read_archive(tmp_path / "x.dae")


def test_an_unknown_kind_or_version_is_an_error(tmp_path):
    for head, match in ((struct.pack("<3sBQQIBI", b"DAE", 1, 1, 2, 3, 9, 0), "Kind"), (b"DAE\x02" + b"0" * 40, "version 2")):
        (tmp_path / "x.dae").write_bytes(head + struct.pack("<I", zlib.crc32(head)))
        with pytest.raises(UserError, match=match):
            read_archive(tmp_path / "x.dae")
    with pytest.raises(UserError, match="No such file"):
        read_archive(tmp_path / "none.dae")
