"""Sparse matrices without torch: files to compressed rows. Imported where a file is read, for numpy and scipy take their time."""

from distae.config.sparse.h5ad import from_h5ad
from distae.config.sparse.matrix import Matrix, checked
from distae.config.sparse.npz import from_npz
from distae.config.sparse.triples import Triples, from_triples

__all__ = ["Matrix", "Triples", "checked", "from_h5ad", "from_npz", "from_triples"]
