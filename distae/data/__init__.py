"""Data sets by name, the order of samples, and batches of them."""

from distae import deprecation
from distae.data.datasets import load, register_dataset
from distae.data.loader import Loader, Reading, steps
from distae.data.sampler import GlobalBatchSampler, order_of
from distae.data.source import BadRowsError, Source, Tensors
from distae.data.splits import Identity, Split, hold_out, identity
from distae.data.storage import place
from distae.data.transform import Transform
from distae.data.units import UnitSource

__all__ = [
    "BadRowsError",
    "GlobalBatchSampler",
    "Identity",
    "Loader",
    "Reading",
    "Source",
    "Split",
    "Tensors",
    "Transform",
    "UnitSource",
    "hold_out",
    "identity",
    "load",
    "order_of",
    "place",
    "register_dataset",
    "steps",
]

__getattr__ = deprecation.renamed(__name__, {"Arrays": ("Split.of", Split.of)})
