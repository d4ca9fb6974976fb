"""Invalid files of settings, and removed options."""

import os
from pathlib import Path

import pytest

from distae.config import TrainConfig, parse
from distae.config.cli import read_toml
from distae.errors import UserError


def test_settings_are_read_from_a_file_of_sane_size_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "number").write_text(f"seed = {'9' * 5000}\n")
    (tmp_path / "good").write_text("seed = 4\n")
    (tmp_path / "link").symlink_to(tmp_path / "good")
    bad = {"/dev/zero": "not a file", "fifo": "not a file", "sparse": "at most", "number": "not valid TOML", ".": "not a file"}
    for name, why in bad.items():
        with pytest.raises(UserError, match=why):
            read_toml(str(tmp_path / name))
    assert read_toml(str(tmp_path / "link")) == {"seed": 4}


def test_an_option_that_is_gone_is_not_suggested() -> None:
    with pytest.raises(UserError, match="unknown option '--nois'") as error:
        parse(TrainConfig, ["--nois", "global"], {}, "distae train")
    assert "did you mean '--noise'" not in str(error.value)
