"""Settings of counts and interactions, most of which are 0."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from distae.config.data.base import DataConfig
from distae.config.data.reading import Newest, the_file
from distae.config.fields import Count, Fraction
from distae.errors import UserError

if TYPE_CHECKING:
    from distae.config.sparse import Matrix


@dataclass(frozen=True, kw_only=True)
class SparseConfig(DataConfig):
    """Counts or interactions that are mostly 0, kept sparse in memory and converted to dense batch by batch: a matrix of
    scipy.sparse.save_npz, an .h5ad of cells by genes (pip install 'distae[data]'), or a table of users, items and ratings (.inter,
    .csv, .tsv, .parquet), where a row is a user. For --model.likelihood poisson, nb, zinb or multinomial."""

    name: ClassVar[str] = "sparse"

    path: str = ""
    """The .npz, .h5ad, .inter, .csv, .tsv or .parquet file."""
    label: str | None = None
    """Classes of the rows, for conditional models and metrics: a column of obs in an .h5ad, another array `[N]` in an .npz."""
    batch_key: str | None = None
    """Batches of the rows, kept aside: a column or an array as for label. To condition on it, give it as --data.label."""
    layer: str | None = None
    """Layer of an .h5ad that holds the counts, often `counts`; X by default."""
    user: str | None = None
    """Column of users; by default the one whose name begins with `user`."""
    item: str | None = None
    """Column of items; by default the one whose name begins with `item`."""
    rating: str | None = None
    """Column of ratings or counts; by default the one whose name begins with `rating`, and without one each row counts 1."""
    min_rating: float | None = None
    """Leave out lower ratings."""
    min_items: Count = 1
    """Leave out users with fewer items."""
    binary: bool = False
    """Replace every value other than 0 by 1."""
    test_fraction: Fraction = 0.1
    """Share of the rows held out for the test split. Where rows are users, no user is in two splits (strong generalisation)."""

    def shape(self) -> tuple[int, ...]:
        return (self.matrix().width,)

    def matrix(self) -> "Matrix":
        """The rows, read once in this process unless the file changes. Raises UserError."""
        return _NEWEST.get(dataclasses.replace(self, val_fraction=0, limit=None, test_fraction=0), self.path, self._read)

    def _read(self) -> "Matrix":
        from distae.config import sparse

        path = the_file(
            self.path, "an .npz of scipy.sparse.save_npz, an .h5ad, or .inter, .csv, .tsv or .parquet of users and items"
        )
        if self.binarize != "none":
            raise UserError(
                "--data.binarize is for images; valid with --data sparse: none (1 for whatever is not 0: --data.binary)"
            )
        self._check(path.suffix.lower())
        match path.suffix.lower():
            case ".npz":
                found = sparse.from_npz(path, self.label, self.batch_key)
            case ".h5ad":
                found = sparse.from_h5ad(path, self.layer, self.label, self.batch_key)
            case _:
                found = sparse.from_triples(
                    path, sparse.Triples(self.user, self.item, self.rating, self.min_rating, self.min_items)
                )
        return sparse.checked(found, self.binary)

    def _check(self, suffix: str) -> None:
        """Raises UserError on settings that are of another kind of file."""
        of_triples = ("user", "item", "rating", "min_rating")
        foreign = {".npz": (*of_triples, "layer"), ".h5ad": of_triples}.get(suffix, ("label", "batch_key", "layer"))
        if odd := [k for k in foreign if getattr(self, k) is not None]:
            raise UserError(f"--data.{odd[0].replace('_', '-')} is not valid for {suffix} files; leave it out")


_NEWEST: "Newest[Matrix]" = Newest()
