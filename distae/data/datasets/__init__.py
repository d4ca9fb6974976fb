"""The data sets by name, one file for each kind of source: samples in memory, uint8 if the source has it."""

from distae.data.datasets import array, digits, table, torchvision
from distae.data.datasets.base import load, register_dataset
from distae.registry import import_all

__all__ = ["array", "digits", "load", "register_dataset", "table", "torchvision"]

import_all(__name__)
