"""Data sets by name, the order of samples, and batches of them."""

from distae.data.datasets import load, register_dataset
from distae.data.resident import Loader, steps
from distae.data.sampler import GlobalBatchSampler
from distae.data.splits import Arrays, Identity, hold_out, identity
from distae.data.transform import Transform

__all__ = [
    "Arrays",
    "GlobalBatchSampler",
    "Identity",
    "Loader",
    "Transform",
    "hold_out",
    "identity",
    "load",
    "register_dataset",
    "steps",
]
