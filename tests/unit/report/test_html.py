"""Markup, charts and pictures of pages: escaping, the points that stay, sizes."""

import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from distae.report.charts import Curve, chart, scatter, thinned
from distae.report.codes import plane
from distae.report.html import data, section, table, tag
from distae.report.page import MOST_BYTES, is_report, page
from distae.report.pictures import picture

HOSTILE = """</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> "' &amp; ${x} \u2028"""


class Parsed(HTMLParser):
    """Tags with their attributes, and the text of scripts and of the rest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts.append(data)
        self.text += data


def test_text_and_attributes_come_back_as_they_were():
    found = Parsed(tag("p", HOSTILE, title=HOSTILE))
    assert found.tags == [("p", {"title": HOSTILE})]
    assert found.text == HOSTILE


def test_data_cannot_end_its_script_and_have_no_numbers_that_json_lacks():
    found = Parsed(data({HOSTILE: [HOSTILE, math.nan, math.inf, 1.5]}))
    assert [name for name, _ in found.tags] == ["script"]
    assert json.loads(found.scripts[0]) == {HOSTILE: [HOSTILE, None, None, 1.5]}


def test_charts_sections_and_tables_escape_names():
    points = [(1, 2.0), (2, 3.0)]
    parts = [
        chart(HOSTILE, [Curve(HOSTILE, HOSTILE, points), Curve("b", "val", points)]), section(HOSTILE, "x"),
        table([{HOSTILE: HOSTILE}], HOSTILE), scatter(HOSTILE, ("a", "b"), [(0.0, 1.0, 0, 0)], [HOSTILE], HOSTILE),
    ]  # fmt: skip
    found = Parsed(page(HOSTILE, HOSTILE, parts).decode())
    names = [name for name, _ in found.tags]
    assert "img" not in names
    assert names.count("script") == 3  # two charts, and the page's own
    assert not [k for _, attributes in found.tags for k in attributes if k.startswith("on")]


def test_a_thinned_curve_keeps_its_ends_its_lowest_and_its_highest_point():
    values = np.sin(np.arange(5000) / 40) + np.random.default_rng(0).normal(size=5000) / 10
    values[[1234, 4321]] = 9, -9
    points = [(i, float(v)) for i, v in enumerate(values)]
    kept = thinned(points, 100)
    assert len(kept) <= 100
    assert kept[0][0] == 0
    assert kept[-1][0] == 4999
    assert {1234, 4321} <= {x for x, _ in kept}
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})
    assert all(y == pytest.approx(values[int(x)], rel=1e-5) for x, y in kept)
    assert thinned(points[:100], 100) == [[i, pytest.approx(v, rel=1e-5)] for i, v in points[:100]]


def test_steps_keep_all_their_digits():
    assert thinned([(123_456_789, 0.123456789)], 10) == [[123_456_789, 0.123457]]


def png_of(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def test_a_picture_is_as_it_was_if_it_is_small_and_shrinks_to_its_limit():
    noise = np.random.default_rng(0).integers(0, 256, (256, 300, 3), np.uint8)
    small = png_of(noise[:8, :8])
    found = dict(Parsed(picture(small, "what", 10_000)).tags)["img"]
    assert found["alt"] == "what"
    assert str(found["src"]).startswith("data:image/png;base64,")
    large = picture(png_of(noise), "what", 9_000)
    assert len(large) < 9_200
    assert dict(Parsed(large).tags)["img"]["width"] in ("150", "75")


@pytest.mark.parametrize("data", [b"<svg onload=alert(1)>", b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 8 + b"\xff" * 8])
def test_what_is_not_a_picture_is_a_sentence(data):
    assert [name for name, _ in Parsed(picture(data, "what", 1000)).tags] == ["p"]


def test_a_page_allows_its_own_script_alone_and_no_request():
    text = page("t", "a", []).decode()
    assert is_report(text.encode())
    assert not is_report(b"<!doctype html><p>mine</p>")
    assert len(text) < MOST_BYTES / 50
    policy = next(a["content"] for _, a in Parsed(text).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_the_map_is_the_codes_themselves_or_their_two_largest_components():
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert plane(z)[0].equal(z)
    assert plane(z[:, :1])[0].equal(torch.cat([z[:, :1], torch.zeros(50, 1, dtype=z.dtype)], 1))
    for size in (5, 80):  # fewer dimensions than samples, and more
        codes = torch.randn(50, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * torch.arange(1, size + 1)
        u, s, _ = torch.linalg.svd(codes - codes.mean(0), full_matrices=False)
        expected = u[:, :2] * s[:2]
        points, (first, _), _, origin, basis = plane(codes)
        torch.testing.assert_close(points.abs(), expected.abs())
        torch.testing.assert_close((codes - origin) @ basis.T, points)
        torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=z.dtype))
        share = float(s[0].square() / s.square().sum())
        assert first == f"component 1 ({share:.0%})"
        assert bool((points.pow(3).sum(0) >= 0).all())
