"""What the settings of all data sets share."""

from dataclasses import dataclass
from typing import Any, Literal

from distae.config.fields import Count, Fraction, Index, Variant


@dataclass(frozen=True, kw_only=True)
class DataConfig(Variant):
    """What all data sets share. Validation is a fixed hold-out: the same samples at every seed and world size."""

    val_fraction: Fraction = 0.1
    """Share of the training samples held out for validation."""
    limit: Count | None = None
    """Use only the first N samples of each split (for debugging)."""
    train_classes: tuple[str, ...] = ()
    """Train and validate on samples of these classes alone, by name, or by number where they have no names; the test split keeps
    all. For anomaly detection: give the normal class, or all but one."""
    binarize: Literal["none", "threshold", "stochastic"] = "none"
    """none: values as they are, in [0, 1]; threshold: 1 above 0.5; stochastic: redrawn at every use with the value as
    probability (Burda 2016); evaluation uses fixed noise."""
    shuffle: Literal["auto", "full", "windowed"] = "auto"
    """full: one permutation of all samples; windowed: for samples that are read in units (row groups, shards), units are permuted,
    and rows within windows of some units, so that each unit is read once. auto: windowed for more than 256 MB in units."""
    window: Count = 4
    """Units whose rows a windowed shuffle mixes at once, in each of its lanes."""
    storage: Literal["auto", "resident", "mapped", "streamed"] = "auto"
    """Where the values are kept: resident in memory (on the GPU if they fit), mapped from their file, or streamed (read and
    decoded when needed). auto chooses by their kind and size, and the run says which."""
    workers: Literal["auto"] | Index = "auto"
    """Threads per process that read ahead; results do not depend on them. auto: as many as --threads where reading takes time."""
    prefetch: Count = 4
    """Number of steps that the workers read ahead into memory."""

    on_error: Literal["raise", "skip"] = "raise"
    """What to do with samples that cannot be read. raise: the run ends with their names; skip: training replaces them by other
    samples, evaluation leaves them out, and the run says how many."""

    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, `[C, H, W]` or `[D]`. Raises UserError if a file says otherwise."""
        raise NotImplementedError

    def for_model(self) -> dict[str, Any]:
        """Settings of the model that follow from the data, such as `columns` for a table. Raises UserError as `shape` does."""
        return {}
