"""Codes as few bytes: integer tables of how frequent each is, an entropy coder, and the file that holds them. No torch."""

from distae.compression.archive import Archive, read_archive, write_archive
from distae.compression.tables import Tables, fit_discrete, fit_grid, load_tables, save_tables

__all__ = ["Archive", "Tables", "fit_discrete", "fit_grid", "load_tables", "read_archive", "save_tables", "write_archive"]
