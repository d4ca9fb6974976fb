"""Animations: what another reader makes of the files."""

import io
import shutil
import subprocess

import pytest
from PIL import Image, ImageSequence

from distae.errors import UserError
from distae.runtime.animations import animation, check_format

REDS, PAUSES = (250, 130, 20), (120, 120, 360)
PICTURES = [Image.new("RGB", (33, 21), (red, 0, 0)) for red in REDS]


def test_a_gif_shows_each_picture_for_its_time():
    with Image.open(io.BytesIO(animation(PICTURES, PAUSES, "gif"))) as made:
        shown = [(frame.convert("RGB").tobytes()[0], frame.info["duration"]) for frame in ImageSequence.Iterator(made)]
    assert shown == [*zip(REDS, PAUSES, strict=True)]


def test_an_mp4_shows_each_picture_for_its_time():
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    video = animation(PICTURES, PAUSES, "mp4")
    read = ["ffmpeg", "-v", "error", "-i", "-", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    frames = subprocess.run(read, input=video, capture_output=True, check=True).stdout
    size = 34 * 22 * 3  # even sides
    reds = [frames[at + 3 * (5 * 34 + 5)] for at in range(0, len(frames), size)]
    assert reds == pytest.approx([250, 130, 20, 20, 20], abs=6)


def test_without_ffmpeg_it_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    check_format("gif", "--out")
    with pytest.raises(UserError, match=r"--out: \.mp4 is written by the program ffmpeg, which is not installed"):
        check_format("mp4", "--out")


def test_why_ffmpeg_failed_is_reported(monkeypatch, tmp_path):
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\ncat > /dev/null; echo no such encoder >&2; exit 1\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UserError, match=r"ffmpeg cannot write the \.mp4: no such encoder"):
        animation(PICTURES, PAUSES, "mp4")
