"""Data sets by name, the order of samples, and batches of them."""

from distae.data.datasets import load
from distae.data.resident import Loader, steps
from distae.data.sampler import GlobalBatchSampler
from distae.data.splits import Arrays
from distae.data.transform import Transform

__all__ = ["Arrays", "GlobalBatchSampler", "Loader", "Transform", "load", "steps"]
