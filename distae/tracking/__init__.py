"""Where metrics and pictures go, from rank 0: metrics.jsonl, a log and a progress bar, Weights & Biases."""

from distae.tracking.console import Console
from distae.tracking.jsonl import Extent, Jsonl
from distae.tracking.sink import Row, Sink
from distae.tracking.tracker import Tracker, describe_environment
from distae.tracking.wandb import Wandb, wandb_identity

__all__ = ["Console", "Extent", "Jsonl", "Row", "Sink", "Tracker", "Wandb", "describe_environment", "wandb_identity"]
