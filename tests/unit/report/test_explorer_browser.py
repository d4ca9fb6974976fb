"""The page in headless Chromium: what sliders, the map, samples, images, morphs and tokens change, on a phone, dark."""

from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CONTRAST, Browser, browser
from PIL import Image
from unit.report.test_explorer import explorer_of, served

from distae.report.explorer.answers import MOST_IMAGE_BYTES

pytestmark = [pytest.mark.slow, pytest.mark.spawn]
MODELS: dict[str, dict[str, Any]] = {
    "vae": {"latent_dim": 20},
    "vq_vae": {"latent_dim": 8, "dim": 2, "codebook_size": 16},
    "topk_sae": {"latent_dim": 40, "k": 3, "likelihood": "gaussian"},
}
SHOWN = "document.querySelector('#decoded img').src"
STATUS = "document.getElementById('status').textContent"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages() -> Iterator[dict[str, str]]:
    """The address of the page of each model."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(served(explorer_of(name=name, **of))).url for name, of in MODELS.items()}


def opened(chromium: Browser, url: str, **how: Any) -> None:
    chromium.open(url, **how)
    chromium.until("document.querySelector('#decoded img') && document.querySelector('#near button')")


def changed(chromium: Browser, act: str, expression: str = SHOWN) -> None:
    """Do something, and wait until something else is shown."""
    before = chromium.js(expression)
    chromium.js(act)
    chromium.until(f"({expression}) !== {before!r}")


def click(name: str) -> str:
    return f"document.getElementById('{name}').click()"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (380, True)])
def test_the_page_is_readable_and_asks_this_server_alone(
    chromium: Browser, pages: dict[str, str], model: str, width: int, dark: bool
) -> None:
    opened(chromium, pages[model], width=width, dark=dark)
    assert chromium.complaints == []
    assert {*chromium.requested} <= {pages[model] + name for name in ("", "decode", "sample", "near")}
    assert chromium.js("document.documentElement.scrollWidth") <= width
    assert chromium.js(CONTRAST) == []
    named = "e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim()"
    assert chromium.js(f"[...document.querySelectorAll('input, select, button')].every(e => {named})")
    assert chromium.js("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt)")
    assert chromium.js(
        "new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size === document.querySelectorAll('[id]').length"
    )
    chromium.js("document.getElementById('morph').scrollIntoView({behavior: 'instant'})")
    assert chromium.js("(b => b.top >= 0 && b.bottom <= innerHeight)(document.getElementById('decoded').getBoundingClientRect())")


@pytest.mark.parametrize("model", MODELS)
def test_axe_finds_nothing(chromium: Browser, pages: dict[str, str], model: str) -> None:
    for width, dark in ((1200, False), (380, True)):
        opened(chromium, pages[model], width=width, dark=dark)
        assert chromium.violations() == []


def test_a_slider_changes_the_picture_by_mouse_and_by_keys(chromium: Browser, pages: dict[str, str]) -> None:
    opened(chromium, pages["vae"])
    slider = "document.querySelector('[data-dimension]')"
    assert chromium.js("document.querySelectorAll('[data-dimension]').length") == 20
    changed(chromium, f"{slider}.value = {slider}.max; {slider}.dispatchEvent(new Event('input'))")
    assert chromium.js(STATUS).startswith("dimension ")
    before = chromium.js(SHOWN)
    chromium.js(f"{slider}.focus()")
    for _ in range(8):
        chromium.press("ArrowLeft")
    chromium.until(f"{SHOWN} !== {before!r}")
    assert float(chromium.js(f"{slider}.nextElementSibling.textContent")) < float(chromium.js(f"{slider}.max"))
    changed(chromium, click("start"))
    assert chromium.complaints == []


def test_a_click_on_the_map_and_a_sample_of_it(chromium: Browser, pages: dict[str, str]) -> None:
    opened(chromium, pages["vae"])
    chromium.js("document.querySelector('#map .plot').scrollIntoView({block: 'center', behavior: 'instant'})")
    rectangle = "document.querySelector('#map .plot svg').getBoundingClientRect()"
    box = [chromium.js(f"{rectangle}.{name}") for name in ("x", "y", "width", "height")]
    cross = "document.querySelector('.spot').getAttribute('transform')"
    for kind in ("mousePressed", "mouseReleased"):
        chromium.mouse(kind, box[0] + 0.75 * box[2], box[1] + 0.3 * box[3])
    chromium.until(f"{STATUS} === 'the code at this place of the map'")
    at = [float(v) for v in chromium.js(cross).removeprefix("translate(").removesuffix(")").split(",")]
    assert at == pytest.approx([0.75 * 460, 0.3 * 230], abs=1.5)
    assert chromium.js("document.getElementById('from').hidden")
    chromium.js(click("nearest"))
    chromium.js("document.querySelector('#map .plot').focus()")
    chromium.press("ArrowRight")
    chromium.press("Enter")
    chromium.until("!document.getElementById('from').hidden")
    number = chromium.js("document.getElementById('number').value")
    assert chromium.js(STATUS) == f"test sample {number}"
    assert chromium.js("document.querySelector('#map output').textContent").startswith(f"sample {number}:")
    assert chromium.complaints == []


def test_samples_and_morphs(chromium: Browser, pages: dict[str, str]) -> None:
    opened(chromium, pages["vae"])
    share = "document.getElementById('share')"
    assert chromium.js(f"{share}.disabled")
    for number, name in ((1, "a"), (2, "b")):
        changed(chromium, f"document.getElementById('number').value = {number}; {click('show')}")
        chromium.js(click(f"keep-{name}"))
    at_b = chromium.js(SHOWN)
    changed(chromium, f"{share}.value = 0.5; {share}.dispatchEvent(new Event('input'))")
    changed(chromium, f"{share}.value = 1; {share}.dispatchEvent(new Event('input'))")
    assert chromium.js(SHOWN) == at_b
    changed(chromium, "document.querySelector('#near button').click()")
    chromium.until(f"{STATUS}.startsWith('train sample')")
    assert chromium.complaints == []


def test_an_image_of_ones_own_and_files_that_are_none(chromium: Browser, pages: dict[str, str], tmp_path: Path) -> None:
    opened(chromium, pages["vae"])
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "photo.png")
    (tmp_path / "not.png").write_bytes(b"text")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(MOST_IMAGE_BYTES + 1)
    root = chromium("DOM.getDocument")["root"]["nodeId"]
    chosen = chromium("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]

    def choose(name: str) -> None:
        chromium("DOM.setFileInputFiles", files=[str(tmp_path / name)], nodeId=chosen)

    choose("photo.png")
    chromium.until(f"{STATUS} === 'photo.png'")
    changed(chromium, click("invert"), "document.querySelector('#input img').src")
    assert chromium.complaints == []
    for name, why in (("not.png", "this file is not an image; valid: "), ("large.png", "large.png is too large: at most 16 MiB")):
        choose(name)
        chromium.until(f"{STATUS}.startsWith({why!r})")
        assert chromium.js("document.getElementById('status').className") == "problem"
    text = b64encode((tmp_path / "photo.png").read_bytes()).decode()
    chromium.js(f"""(() => {{ const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(atob('{text}'), (c) => c.charCodeAt(0))], 'dropped.png', {{type: 'image/png'}}));
      document.dispatchEvent(new DragEvent('drop', {{dataTransfer: data, cancelable: true}})) }})()""")
    chromium.until(f"{STATUS} === 'dropped.png' && !document.getElementById('status').className")


def test_tokens_are_set_and_swapped(chromium: Browser, pages: dict[str, str]) -> None:
    opened(chromium, pages["vq_vae"])
    texts = "[...document.querySelectorAll('#token-map button')].map(b => b.textContent).join()"
    chromium.js(click("keep-b"))
    of_b = chromium.js(texts)
    changed(chromium, f"document.getElementById('number').value = 5; {click('show')}", STATUS)
    chromium.until(f"{STATUS} === 'test sample 5'")
    chromium.js("document.querySelectorAll('#token-map button')[1].click()")
    changed(chromium, f"document.getElementById('token').value = 15; {click('set-tokens')}", STATUS)
    chromium.until(f"{STATUS} === '1 positions with code 15'")
    assert chromium.js(texts).split(",")[1] == "15"
    chromium.js("document.querySelectorAll('#token-map button[aria-pressed=false]').forEach(b => b.click())")
    chromium.js(click("swap-tokens"))
    chromium.until(f"{texts} === {of_b!r}")
    assert chromium.complaints == []


def test_a_latent_shows_its_samples(chromium: Browser, pages: dict[str, str]) -> None:
    opened(chromium, pages["topk_sae"])
    assert chromium.js("document.querySelectorAll('#active button').length") == 3
    changed(chromium, "document.querySelector('#active button').click()", "document.querySelectorAll('#top img').length")
    assert chromium.complaints == []


def test_a_page_whose_server_has_ended_says_so(chromium: Browser, pages: dict[str, str]) -> None:
    opened(chromium, pages["vae"])
    network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    chromium("Network.emulateNetworkConditions", offline=True, **network)
    try:
        chromium.js(click("show"))
        chromium.until(f"{STATUS}.startsWith('No answer')")
    finally:
        chromium("Network.emulateNetworkConditions", offline=False, **network)
