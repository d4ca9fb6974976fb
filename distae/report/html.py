"""Markup that is escaped by construction: what is not `Html` is text."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import chain
from typing import Any

VOID = frozenset({"img", "meta", "br", "input", "link"})
Child = str | None | Iterable["Child"]


class Html(str):
    """Markup. Any other string is text, and `tag` escapes it."""

    __slots__ = ()


def tag(name: str, /, *children: Child, **attributes: str | int | float | None) -> Html:
    """An element; attributes that are None are left out, `class_` is `class`, `aria_label` is `aria-label`."""
    given = {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items() if v is not None}
    opening = name + "".join(f' {k}="{escape(str(v))}"' for k, v in given.items())
    return Html(f"<{opening}>" if name in VOID else f"<{opening}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Html:
    """Elements and text, one after the other."""
    return Html("".join(_one(child) for child in children))


def _one(child: Child) -> str:
    if child is None or isinstance(child, Html):
        return child or ""
    return escape(child) if isinstance(child, str) else join(child)


def data(value: Any) -> Html:
    """JSON for the page's script, which nothing in it can end; numbers that JSON lacks are null."""
    text = json.dumps(_finite(value), separators=(",", ":"), ensure_ascii=False)
    return Html(f'<script type="application/json">{_unclosed(text)}</script>')


def _unclosed(text: str) -> str:
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def section(title: str, *children: Child) -> Html:
    """A section with a heading, which the page's contents link to; empty where there is nothing in it."""
    name = "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())
    inside = join(children)
    return tag("section", tag("h2", title, id=name), inside, aria_labelledby=name) if inside else Html()


def note(*text: Child) -> Html:
    return tag("p", *text, class_="note")


def folded(summary: str, *children: Child) -> Html:
    """What is shown on request."""
    return tag("details", tag("summary", summary), *children)


def table(rows: Sequence[Mapping[str, Any]], caption: str, best: Iterable[tuple[int, str]] = ()) -> Html:
    """Rows of equal keys under their names; `best` are cells, by row number and name, to emphasise. Empty without rows.

    The first column names the row. Numbers are to the right, with 5 digits.
    """
    if not rows:
        return Html()
    names, best = [*dict.fromkeys(chain.from_iterable(rows))], {*best}
    head = tag("tr", (tag("th", name, scope="col", class_=_side(rows, name)) for name in names))
    body = (
        tag("tr", (_cell(row.get(name), i == 0, _side(rows, name), (number, name) in best) for i, name in enumerate(names)))
        for number, row in enumerate(rows)
    )
    inside = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", body))
    return tag("div", inside, class_="table", tabindex=0, role="region", aria_label=caption)


def _side(rows: Sequence[Mapping[str, Any]], name: str) -> str | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return "number" if values and all(isinstance(v, int | float) for v in values) else None


def _cell(value: Any, is_name: bool, side: str | None, is_best: bool) -> Html:
    text = value if isinstance(value, Html) else shown(value)
    inside = tag("strong", text) if is_best else text
    return tag("th", inside, scope="row", class_=side) if is_name else tag("td", inside, class_=side)


def shown(value: Any) -> str:
    """A value of a table as text: 5 digits of a number, `-` of what is not there."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}"
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def meter(value: float, most: float, text: str) -> Html:
    """A bar of `value` as a part of `most`."""
    share = value / most if most > 0 and math.isfinite(value) else 0.0
    return tag("meter", text, min=0, max=1, value=f"{max(0.0, min(1.0, share)):.4f}", aria_label=text)
