"""Data sets by name, the order of samples, and batches of them."""

from distae.data.loader import Loader, steps
from distae.data.sampler import GlobalBatchSampler
from distae.data.sets import Arrays, load

__all__ = ["Arrays", "GlobalBatchSampler", "Loader", "load", "steps"]
