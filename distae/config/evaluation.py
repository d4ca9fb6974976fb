"""Settings of `distae evaluate`."""

from dataclasses import dataclass

from distae.config.fields import Count


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What defines the figures besides the model and the data."""

    tasks: tuple[str, ...] = ("all",)
    """Questions to answer, separated by commas; all: those that apply to the model and the data."""
    limit: Count = 10_000
    """Samples of a split at most that are held in memory by metrics of codes; means cover all samples."""
