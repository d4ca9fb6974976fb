"""One self-contained file: style and script are in it, pictures are data, and nothing is loaded from elsewhere."""

import re
import time
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from importlib.resources import files

from distae.report.html import Html, tag

MARK = "<!doctype html><!-- distae report -->"
"""What a report begins with."""
MOST_BYTES = 5_000_000
"""Of a page."""


def page(title: str, about: str, sections: Iterable[Html], refresh: float | None = None) -> bytes:
    """The file. With `refresh`, it is loaded again after that number of seconds."""
    again = str(round(refresh)) if refresh else None
    noscript = tag("noscript", tag("meta", http_equiv="refresh", content=again)) if again else None
    foot = f"Written by distae, {time.strftime('%Y-%m-%d %H:%M:%S %Z')}."
    text = document(title, about, sections, resource("page.css"), resource("page.js"), foot, head=noscript, data_refresh=again)
    return f"{MARK}\n{text}\n".encode()


def document(
    title: str, about: str, sections: Iterable[Html], style: Html, script: Html, foot: str, *, head: Html | None = None,
    requests: str = "'none'", **body: str | None,
) -> Html:  # fmt: skip
    """A page with its style and script in it. `requests`: where to the script may send them; `body`: attributes of the body."""
    parts = [part for part in sections if part]
    top = tag(
        "head",
        tag("meta", charset="utf-8"),
        _policy(style, script, requests),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        head,
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", style),
    )
    skip = tag("a", "Skip to the content", href="#content", class_="skip")
    heading = tag("header", tag("h1", title), tag("p", about), _contents(parts))
    inside = (skip, heading, tag("main", parts, id="content"), tag("footer", tag("p", foot)), tag("script", script))
    return tag("html", top, tag("body", inside, **body), lang="en")


def resource(name: str, package: str = "distae.report") -> Html:
    """A style or a script that lies beside the modules of a package."""
    return Html(files(package).joinpath(name).read_text("utf-8"))


def _policy(style: str, script: str, requests: str) -> Html:
    """Nothing else is requested, and no script runs but the page's own, whatever else would get into it."""
    only = "; ".join(
        f"{kind}-src 'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
        for kind, text in (("style", style), ("script", script))
    )
    content = f"default-src 'none'; img-src data:; connect-src {requests}; base-uri 'none'; form-action 'none'; {only}"
    return tag("meta", http_equiv="Content-Security-Policy", content=content)


def _contents(body: Iterable[Html]) -> Html:
    """Links to the sections."""
    found = [m for part in body for m in re.findall(r'<h2 id="([^"]*)">(.*?)</h2>', part)]
    return tag("nav", tag("ul", (tag("li", tag("a", Html(text), href=f"#{name}")) for name, text in found)), aria_label="Contents")


def is_report(start: bytes) -> bool:
    """Whether a file that begins like this is a report, which another may replace."""
    return start.startswith(MARK.encode())
