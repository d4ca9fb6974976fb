"""The data sets by name, one file for each kind of source."""

from distae.config.registry import import_all
from distae.data.datasets import array, celeba, digits, image_folder, shapes, sparse, synthetic_features, table, torchvision
from distae.data.datasets.base import load, register_dataset

__all__ = [
    "array",
    "celeba",
    "digits",
    "image_folder",
    "load",
    "register_dataset",
    "shapes",
    "sparse",
    "synthetic_features",
    "table",
    "torchvision",
]

import_all(__name__)
