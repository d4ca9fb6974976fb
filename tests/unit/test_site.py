"""The documents as a site: it builds without a warning, pages load nothing from elsewhere, and fit a screen and a phone."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import browser
from helpers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.spawn]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = re.findall(r'<(?:script|img|iframe|link rel="(?!canonical)[^"]*")[^>]* (?:src|href)="([^"]*)"', page.read_text())
        assert loaded
        assert not [address for address in loaded if "//" in address], page.name


def test_the_api_page_has_what_it_names(site: Path) -> None:
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    page = (site / "api.html").read_text()
    assert [name for name in names if f'id="{name}"' not in page] == []


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site, served as a web server does: from disk a browser does not load the index of the search."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.mark.parametrize(("width", "dark"), [(1300, True), (390, False)])
def test_pages_fit(address: str, width: int, dark: bool) -> None:
    with browser() as page:
        for name in ("index", "choose", "performance", "troubleshooting", "CONTRIBUTING"):
            page.open(f"{address}/{name}.html", width, dark=dark)
            assert page.js("document.documentElement.scrollWidth") <= width, name
            assert page.js("document.body.getAttribute('data-md-color-scheme')") == ("slate" if dark else "default")
            assert page.js("document.querySelectorAll('img:not([alt])').length") == 0, name
            assert not [url for url in page.requested if not url.startswith(address)], name
            assert not page.complaints, name
