"""Reports in headless Chromium: what is drawn, read and zoomed by mouse and keys, at the width of a phone, dark, printed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CONTRAST, Browser, browser

from distae.commands import report, train

pytestmark = [pytest.mark.slow, pytest.mark.spawn]
SMALL = [
    *("--steps", "60", "--log-every", "10", "--eval-every", "20", "--data.limit", "300", "--model.latent-dim", "3"),
    *("--tracking", "none", "--progress", "none", "--device", "cpu", "--threads", "1"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def home(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one of a hostile name, and reports of each and of both."""
    folder = tmp_path_factory.mktemp("home")
    for seed, name in enumerate(("a", "<img src=x onerror=alert(1)>")):
        assert train.main([*SMALL, "--seed", str(seed), "--run-dir", str(folder / name)]) == 0
    assert report.main([str(folder)]) == 0
    return folder


PAGES = ("report.html", "a/report.html", "<img src=x onerror=alert(1)>/report.html")
DRAWN = "[...document.querySelectorAll('.chart')].map(f => f.querySelectorAll('.plot path:is(.curve, [class*=f])').length)"
"""Lines and points of each chart."""


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (380, False), (380, True)])
def test_charts_are_drawn_without_a_complaint_a_request_or_a_scroll_bar(chromium, home, page, width, dark):
    chromium.open(home / page, width, dark=dark)
    drawn = chromium.js(DRAWN)
    assert len(drawn) > 10
    assert all(drawn)
    assert chromium.complaints == []
    assert len(chromium.requested) == 1
    assert chromium.requested[0].startswith("file:///")
    assert chromium.js("document.documentElement.scrollWidth") <= width
    assert chromium.js(CONTRAST) == []


def test_everything_has_a_name_and_a_key_reaches_it(chromium, home):
    chromium.open(home / "a" / "report.html")
    assert chromium.js("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt.length > 20)")
    assert chromium.js("[...document.querySelectorAll('button, .plot, meter, .table')].every(e => e.getAttribute('aria-label'))")
    assert chromium.js("[...document.querySelectorAll('.plot, .table')].every(e => e.tabIndex === 0)")
    assert chromium.js(
        "new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size === document.querySelectorAll('[id]').length"
    )
    assert chromium.js("[...document.querySelectorAll('nav a')].every(a => document.getElementById(a.hash.slice(1)))")


@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_nothing(chromium, home, page):
    for width, dark in ((1200, False), (380, True)):
        chromium.open(home / page, width, dark=dark)
        assert chromium.violations() == []


def texts(chromium: Browser) -> list[str]:
    """The numbers below the first chart."""
    found = chromium.js("[...document.querySelector('.plot').querySelectorAll('text[text-anchor=middle]')].map(t => t.textContent)")
    return list(found)


def test_keys_read_zoom_and_show_all(chromium, home):
    chromium.open(home / "a" / "report.html")
    whole = texts(chromium)
    chromium.js("document.querySelector('.plot').focus()")
    chromium.press("ArrowRight")
    first = chromium.js("document.querySelector('output').textContent")
    assert first.startswith("step 10: train ")
    chromium.press("ArrowRight")
    assert chromium.js("document.querySelector('output').textContent").startswith("step 20: ")
    chromium.press("+")
    assert texts(chromium) != whole
    chromium.press("0")
    assert texts(chromium) == whole


def test_the_mouse_reads_and_zooms(chromium, home):
    chromium.open(home / "a" / "report.html")
    chromium.js("document.querySelector('.plot').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = chromium.js(
        "(() => { const b = document.querySelector('.plot svg').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
    )
    at = [(box[0] + box[2] * share, box[1] + box[3] / 2) for share in (0.4, 0.7)]
    chromium.mouse("mouseMoved", *at[0])
    assert chromium.js("document.querySelector('output').textContent").startswith("step ")
    whole = texts(chromium)
    for kind, where in (("mousePressed", at[0]), ("mouseMoved", at[1]), ("mouseReleased", at[1])):
        chromium.mouse(kind, *where)
    assert texts(chromium) != whole
    chromium.js("[...document.querySelector('.chart').querySelectorAll('button')].find(b => b.textContent === 'Show all').click()")
    assert texts(chromium) == whole


def test_buttons_change_the_scale_the_axis_and_what_is_shown(chromium, home):
    chromium.open(home / "report.html")
    click = "[...document.querySelector('.chart').querySelectorAll('button')].find(b => b.textContent.trim() === '{}').click()"
    curves = "[...document.querySelector('.plot').querySelectorAll('path.curve')].map(p => p.getAttribute('d'))"
    before = chromium.js(curves)
    assert len(before) == 6  # training and validation of two runs, and of their mean
    assert chromium.js("document.querySelector('.plot').querySelectorAll('path.band').length") == 2
    chromium.js(click.format("Log scale"))
    assert chromium.js(curves) != before
    chromium.js(click.format("Log scale"))
    assert chromium.js(curves) == before
    chromium.js(click.format("By seconds"))
    assert "seconds" in texts(chromium)
    chromium.js(click.format("train"))
    assert len(chromium.js(curves)) == 3
    chromium.js(click.format("a"))
    assert len(chromium.js(curves)) == 2


def test_a_printed_page_has_the_charts_with_their_keys_alone(chromium, home):
    chromium.open(home / "a" / "report.html")
    chromium("Emulation.setEmulatedMedia", media="print")
    assert chromium.js("[...document.querySelectorAll('button')].every(b => b.checkVisibility() === (b.className === 'key'))")
    assert chromium.js("[...document.querySelectorAll('.plot svg')].every(s => s.checkVisibility())")
    assert len(chromium("Page.printToPDF")["data"]) > 10_000
    chromium("Emulation.setEmulatedMedia", media="")


def test_without_scripts_there_are_tables(chromium, home):
    chromium("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.open(home / "a" / "report.html")
    finally:
        chromium("Emulation.setScriptExecutionDisabled", value=False)
    assert chromium.js("document.querySelectorAll('.plot').length") == 0
    assert chromium.js("[...document.querySelectorAll('.chart')].every(f => f.querySelector('details table'))")
