"""Where metrics and pictures go, from rank 0: metrics.jsonl, a log and a progress bar, and one of the sinks of --tracking."""

from distae.tracking.console import Console
from distae.tracking.jsonl import Extent, Jsonl
from distae.tracking.sink import Row, Sink, Start, register_sink
from distae.tracking.tensorboard import TensorBoard
from distae.tracking.tracker import Tracker, describe_environment
from distae.tracking.trackio import Trackio
from distae.tracking.wandb import Wandb, wandb_identity

__all__ = [
    "Console", "Extent", "Jsonl", "Row", "Sink", "Start", "TensorBoard", "Tracker", "Trackio", "Wandb", "describe_environment",
    "register_sink", "wandb_identity",
]  # fmt: skip
