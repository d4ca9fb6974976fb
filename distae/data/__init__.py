"""Data sets by name, the order of samples, and batches of them."""

from distae.data.datasets import load, register_dataset
from distae.data.resident import Loader, steps
from distae.data.sampler import GlobalBatchSampler
from distae.data.splits import Arrays, hold_out
from distae.data.transform import Transform

__all__ = ["Arrays", "GlobalBatchSampler", "Loader", "Transform", "hold_out", "load", "register_dataset", "steps"]
