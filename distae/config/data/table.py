"""Settings of a table, and what follows from its columns."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from distae.config.data.base import DataConfig
from distae.config.data.reading import Newest, the_file
from distae.config.fields import Count, Fraction
from distae.errors import UserError

if TYPE_CHECKING:
    from distae.config.tables import Cells, Table


@dataclass(frozen=True, kw_only=True)
class TableConfig(DataConfig):
    """A table: .csv or .tsv with a header, .parquet or .arrow (pip install 'distae[data]'). Columns of numbers are numeric, two
    different values binary, strings categories, which the model sees one-hot; the run says what it found. For
    --model.likelihood mixed."""

    name: ClassVar[str] = "table"

    path: str = ""
    """The file."""
    label: str | None = None
    """Column of classes, texts or whole numbers, for conditional models and metrics; not a value that the model sees."""
    id: tuple[str, ...] = ()
    """Columns kept aside: they stay with their rows, and the model does not see them."""
    drop: tuple[str, ...] = ()
    """Columns that are not read."""
    categorical: tuple[str, ...] = ()
    """Columns of numbers that are categories."""
    numeric: tuple[str, ...] = ()
    """Columns that are numeric though they have two values, or hold times."""
    categories: Literal["onehot", "drop"] = "onehot"
    """Encode categorical columns one-hot, or drop them; the first layer's weights of a one-hot value are its embedding."""
    max_categories: Count = 100
    """Maximum number of categories of a column; more are an error: probably an id or free text."""
    missing: Literal["refuse", "impute", "mask"] = "refuse"
    """Cells without a value (empty, NA, NaN, null, ?): an error, the training rows' mean or most frequent category, or left out
    of the likelihood, 0 to the encoder."""
    normalize: Literal["standard", "quantile", "minmax", "none"] = "standard"
    """Normalisation of numeric columns, by the training rows: mean 0 and standard deviation 1, normal scores of ranks, range
    [0, 1], or none. Saved with the model."""
    test_fraction: Fraction = 0.1
    """Share of the rows held out for the test split."""
    split: str | None = None
    """Column that says train, val or test."""
    group: str | None = None
    """Column of groups, such as patients: rows of one group are all in one split."""
    time: str | None = None
    """Column to order by: the last rows are the test split, those before them for validation."""

    def shape(self) -> tuple[int, ...]:
        return self.table().shape

    def for_model(self) -> dict[str, Any]:
        missing = {"missing": True} if self.missing == "mask" else {}
        return {"columns": self.table().groups()} | missing

    @property
    def aside(self) -> dict[str, str]:
        """Columns that the model does not see, besides the label, and the setting that names each."""
        return dict.fromkeys(self.id, "id") | {name: k for k in ("split", "group", "time") if (name := getattr(self, k))}

    def table(self) -> "Table":
        """The table as numbers, read once in this process unless the file changes. Raises UserError."""
        return _NEWEST.get(self._content(), self.path, self._read)

    def keep(self, cells: "Cells") -> "Table":
        """Take these for the table of these settings, in this process. Raises UserError."""
        _NEWEST.put(self._content(), table := self._table_of(cells))
        return table

    def _read(self) -> "Table":
        from distae.config.tables import read

        return self._table_of(read(the_file(self.path, "a .csv, .tsv, .parquet or .arrow file"), self.drop))

    def _table_of(self, cells: "Cells") -> "Table":
        from distae.config.tables import Kinds, table_of

        self._check()
        onehot = self.categories == "onehot"
        kinds = Kinds(self.label, self.aside, self.categorical, self.numeric, self.missing, onehot, self.max_categories)
        return table_of(cells, kinds)

    def _content(self) -> "TableConfig":
        """These settings, the same where they give the same table."""
        return dataclasses.replace(self, val_fraction=0, limit=None, binarize="none", test_fraction=0, normalize="none")

    def _check(self) -> None:
        if len(given := [k for k in ("split", "group", "time") if getattr(self, k)]) > 1:
            raise UserError(f"--data.{given[0]} and --data.{given[1]} exclude each other: rows are split in one way")
        if self.binarize != "none":
            raise UserError("--data.binarize is for images; valid with --data table: none")


_NEWEST: "Newest[Table]" = Newest()
