"""Tables without torch: files to columns, columns to numbers. Imported where a table is read, for numpy takes its time."""

from distae.config.tables.kinds import Feature, Kinds, Table, table_of
from distae.config.tables.read import Cells, Column, from_pandas, read

__all__ = ["Cells", "Column", "Feature", "Kinds", "Table", "from_pandas", "read", "table_of"]
