"""Checkpoints of a run: how they are written, committed, found and kept."""

from distae.checkpoint.store import Checkpoints, read_tensors, share_out

__all__ = ["Checkpoints", "read_tensors", "share_out"]
