"""Checkpoints of a run: how they are written, committed, found and kept."""

from distae.checkpoint.reader import CheckpointReader, read_tensors
from distae.checkpoint.store import CheckpointStore, share_out

__all__ = ["CheckpointReader", "CheckpointStore", "read_tensors", "share_out"]
