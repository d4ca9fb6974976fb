"""Pictures one after another, as an animated GIF or as a video."""

import io
import shutil
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distae.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("gif", "mp4")
EVEN = "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white"
"""H.264 with half the resolution for colours, which every browser plays, takes even sides only."""


def check_format(kind: str, option: str) -> None:
    """Raises UserError if an animation cannot be written in this format: mp4 needs the program ffmpeg."""
    if kind == "mp4" and shutil.which("ffmpeg") is None:
        raise UserError(f"{option}: .mp4 is written by the program ffmpeg, which is not installed; .gif needs nothing else")


def animation(pictures: Sequence["Image"], pauses: Sequence[int], kind: str) -> bytes:
    """Each picture, all of one size, for so many milliseconds: an endless GIF, or an MP4. Raises UserError if ffmpeg fails."""
    file = io.BytesIO()
    if kind == "gif":
        pictures[0].save(file, "gif", save_all=True, append_images=[*pictures[1:]], duration=[*pauses], loop=0)
        return file.getvalue()
    shortest = min(pauses)
    for picture, pause in zip(pictures, pauses, strict=True):
        for _ in range(round(pause / shortest)):
            picture.save(file, "png")
    return _video(file.getvalue(), 1000 / shortest)


def _video(pngs: bytes, rate: float) -> bytes:
    command = ["ffmpeg", "-v", "error", "-f", "image2pipe", "-c:v", "png", "-r", f"{rate:.3f}", "-i", "-", "-vf", EVEN]
    command += ["-pix_fmt", "yuv420p", "-movflags", "frag_keyframe+empty_moov", "-f", "mp4", "-"]
    done = subprocess.run(command, input=pngs, capture_output=True, check=False)
    if done.returncode:
        raise UserError(f"ffmpeg cannot write the .mp4: {done.stderr.decode(errors='replace').strip()[-200:]}")
    return done.stdout
