"""Settings of the data sets, one file for each kind of source, and what is known without reading the data. No torch."""

from distae.config.registry import import_all

# In the order of --help.
# isort: off
from distae.config.data.base import DataConfig
from distae.config.data.digits import DigitsConfig
from distae.config.data.torchvision import (
    CIFAR10Config, CIFAR100Config, EMNISTConfig, FashionMNISTConfig, KMNISTConfig, MNISTConfig, STL10Config,
    SVHNConfig, TorchvisionConfig,
)  # fmt: skip
from distae.config.data.array import ArrayConfig, StoredLayout
from distae.config.data.image_folder import ImageFolderConfig
from distae.config.data.celeba import CelebAConfig
from distae.config.data.shapes import ShapesConfig
from distae.config.data.synthetic_features import SyntheticFeaturesConfig
from distae.config.data.table import TableConfig
from distae.config.data.sparse import SparseConfig
from distae.config.data.memory import MemoryConfig
from distae.config.data.parquet import ParquetConfig
from distae.config.data.hf import HFConfig
from distae.config.data.stored import FILE_ERRORS
# isort: on

__all__ = [
    "FILE_ERRORS",
    "ArrayConfig",
    "CIFAR10Config",
    "CIFAR100Config",
    "CelebAConfig",
    "DataConfig",
    "DigitsConfig",
    "EMNISTConfig",
    "FashionMNISTConfig",
    "HFConfig",
    "ImageFolderConfig",
    "KMNISTConfig",
    "MNISTConfig",
    "MemoryConfig",
    "ParquetConfig",
    "STL10Config",
    "SVHNConfig",
    "ShapesConfig",
    "SparseConfig",
    "StoredLayout",
    "SyntheticFeaturesConfig",
    "TableConfig",
    "TorchvisionConfig",
]

import_all(__name__)
