"""Files of a run folder that are not regular files, too large, or half written."""

import os
import stat
from pathlib import Path

import pytest

from distae.runtime import files


@pytest.fixture(params=["fifo", "device", "dangling link", "link out", "folder"])
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Something else than a file, in the place of one."""
    path = tmp_path / "run" / "x"
    path.parent.mkdir()
    (tmp_path / "outside").write_text("theirs")
    {
        "fifo": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "dangling link": lambda: path.symlink_to(tmp_path / "nothing"),
        "link out": lambda: path.symlink_to(tmp_path / "outside"),
        "folder": path.mkdir,
    }[request.param]()
    return path


def test_what_is_no_file_is_neither_read_nor_written(odd: Path) -> None:
    for use in (files.size_of, files.read_bytes, files.read_toml, files.open_append, lambda p: files.write_atomically(p, b"mine")):
        with pytest.raises(OSError, match="it is a"):
            use(odd)
    assert (odd.parent.parent / "outside").read_text() == "theirs"
    assert not (odd.parent.parent / "nothing").exists()
    assert files.why_unsafe(odd.parent, ["x"], [])


def test_a_link_within_the_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("y")
    (tmp_path / "y").write_text("here")
    assert files.read_bytes(tmp_path / "x") == b"here"


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="it has 1099511627776 bytes"):
        files.read_bytes(tmp_path / "x")


def test_a_file_is_whole_and_has_the_umask_s_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o027)
    try:
        files.write_atomically(tmp_path / "x", b"one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640

    def fails(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(tmp_path / "x", b"two")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"one"


def test_a_link_left_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("theirs")
    (tmp_path / ".x.writing").symlink_to("outside")
    files.write_atomically(tmp_path / "x", b"mine")
    assert ((tmp_path / "outside").read_text(), (tmp_path / "x").read_text()) == ("theirs", "mine")


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path: Path) -> None:
    assert files.names_in(tmp_path / "none") == []
    (tmp_path / "dangling").symlink_to(tmp_path / "unmounted")
    with pytest.raises(OSError, match="which is not there"):
        files.names_in(tmp_path / "dangling")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        files.names_in(tmp_path / "file")
