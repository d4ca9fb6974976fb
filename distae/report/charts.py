"""Charts: data that the page's script draws, over a table of the same for readers without it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from distae.report.html import Html, data, folded, table, tag

MOST_POINTS = 400
"""Of a curve: about one per pixel."""
MOST_VALUES = 240_000
"""Of all curves of a page: some 2 MB."""
MOST_ROWS = 36
"""Curves of a chart up to which it has a table of them."""


class Curve(NamedTuple):
    """A line of a chart."""

    run: str
    kind: str
    """The split, such as `val`, which decides the style."""
    points: Sequence[tuple[float, ...]]
    """(x, y), or (x, time, y), in rising order of x; of a mean over runs (x, time, low, high, y), ends of a band about it."""


class Mark(NamedTuple):
    """An event on the horizontal axes."""

    kind: str
    """`start`, `checkpoint` or `best`."""
    step: float
    time: float
    """In the unit of the page's charts."""
    text: str


def chart(
    title: str, curves: Sequence[Curve], axes: Sequence[str] = ("step",), marks: Iterable[Mark] = (), most: int = MOST_POINTS
) -> Html:
    """Curves that can be zoomed and read by mouse, touch and keys. `axes`: what x may be; all but the last value of a point."""
    drawn = [{"run": c.run, "kind": c.kind, "points": thinned(c.points, most)} for c in curves if c.points]
    if not drawn:
        return Html()
    inside = data({"title": title, "axes": axes, "curves": drawn, "marks": [mark._asdict() for mark in marks]})
    several = len({c.run for c in curves}) > 1
    rows = [({"run": c.run} if several else {}) | {"curve": c.kind, **_summary(c.points)} for c in curves if c.points]
    figures = folded("Figures", table(rows, title)) if len(rows) <= MOST_ROWS else None
    return tag("figure", tag("figcaption", title), inside, figures, class_="chart", data_kind="lines")


def _summary(points: Sequence[tuple[float, ...]]) -> Mapping[str, float]:
    """First, lowest, highest and last value of a curve."""
    values = [point[-1] for point in points if math.isfinite(point[-1])] or [math.nan]
    return {"first": float(values[0]), "lowest": float(min(values)), "highest": float(max(values)), "last": float(values[-1])}


def thinned(points: Sequence[tuple[float, ...]], most: int) -> list[list[float]]:
    """At most `most` of the points: the first, the last, and the lowest and the highest of each stretch between them."""
    last, stretches = len(points) - 1, max(1, most // 2 - 1)
    kept: Iterable[int] = range(len(points))
    if len(points) > most:
        bounds = [1 + round(i * (last - 1) / stretches) for i in range(stretches + 1)]
        ordered = [sorted(range(*pair), key=lambda i: points[i][-1]) for pair in pairwise(bounds)]
        kept = sorted({0, last} | {i for stretch in ordered for i in (*stretch[:1], *stretch[-1:])})
    return [[_rounded(value) for value in points[i]] for i in kept]


def _rounded(value: float) -> float:
    """6 digits, of steps all."""
    return value if isinstance(value, int) or not math.isfinite(value) else float(f"{value:.6g}")


def scatter(title: str, axes: tuple[str, str], points: Sequence[Sequence[float]], labels: Sequence[str], text: str) -> Html:
    """A map of points (x, y, number of the label, number of the sample), coloured by label; `text` says what it shows."""
    groups = [[p for p in points if p[2] == i] for i in range(len(labels))]
    rows = [
        {"label": label, "samples": len(group)}
        | {f"mean {axis}": math.fsum(p[i] for p in group) / len(group) for i, axis in enumerate(axes)}
        for label, group in zip(labels, groups, strict=True)
        if group
    ]
    drawn = [[_rounded(v) for v in p] for p in points]
    inside = data({"title": title, "text": text, "axes": axes, "labels": labels, "points": drawn})
    parts = tag("figcaption", title), inside, folded("Figures", table(rows, f"{title}: means by label"))
    return tag("figure", parts, class_="chart", data_kind="points")
