"""TensorBoard: event files in RUN/tensorboard."""

import json
import shutil
import struct
import time
from pathlib import Path
from typing import Any

from distae.config import to_dict
from distae.tracking.recorded import metrics_of, repeat
from distae.tracking.sink import Row, Start, register_sink

FOLDER = "tensorboard"


@register_sink("tensorboard")
class TensorBoard:
    """One event file, written anew at each start from what is recorded, so that no row is there twice."""

    def __init__(self, start: Start) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = start.run_dir / FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        self.writer: Any = EventFileWriter(str(folder), flush_secs=10)
        self._begin(to_dict(start.cfg) | {"environment": start.environment})
        repeat(start.run_dir, self)
        start.say(f"TensorBoard: tensorboard --logdir {folder}")

    def _begin(self, settings: dict[str, Any]) -> None:
        """Readers that are open forget the file before; the settings are shown as text."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.plugins.text.summary_v2 import text_pb

        self.writer.add_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))
        text = json.dumps(settings, indent=1, default=str).replace("\n", "\n    ")  # indented, Markdown shows it as it is
        self._add(0, time.time(), text_pb("settings", f"    {text}"))

    def _add(self, step: int, at: float, summary: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self.writer.add_event(Event(wall_time=at, step=step, summary=summary))

    def row(self, row: Row) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics_of(row).items()]
        self._add(int(row["step"]), row.get("time", time.time()), Summary(value=values))

    def image(self, name: str, path: Path, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        png = path.read_bytes()
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
        self._add(step, path.stat().st_mtime, Summary(value=[Summary.Value(tag=name, image=image)]))

    def close(self) -> None:
        self.writer.close()
