"""Checkpoints of a run: how they are written, committed, found and kept."""

from distae.checkpoint.store import CheckpointStore, read_tensors, share_out

__all__ = ["CheckpointStore", "read_tensors", "share_out"]
