"""Settings of the data sets, one file for each kind of source, and what is known without reading the data. No torch."""

from distae.registry import import_all

# In the order of --help.
# isort: off
from distae.config.data.base import DataConfig
from distae.config.data.digits import DigitsConfig
from distae.config.data.torchvision import CIFAR10Config, FashionMNISTConfig, MNISTConfig, TorchvisionConfig
from distae.config.data.array import FILE_ERRORS, ArrayConfig, StoredLayout
from distae.config.data.image_folder import ImageFolderConfig
from distae.config.data.table import TableConfig
from distae.config.data.sparse import SparseConfig
from distae.config.data.memory import MemoryConfig
# isort: on

__all__ = [
    "FILE_ERRORS",
    "ArrayConfig",
    "CIFAR10Config",
    "DataConfig",
    "DigitsConfig",
    "FashionMNISTConfig",
    "ImageFolderConfig",
    "MNISTConfig",
    "MemoryConfig",
    "SparseConfig",
    "StoredLayout",
    "TableConfig",
    "TorchvisionConfig",
]

import_all(__name__)
