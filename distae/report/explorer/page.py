"""The markup of the page, which explorer.js fills and makes work."""

from collections.abc import Iterator
from math import prod

from distae.evaluation.pictures import is_image
from distae.report.codes import map_of
from distae.report.explorer.answers import FORMATS, MOST_IMAGE_BYTES, Explorer
from distae.report.html import Child, Html, data, folded, note, section, tag
from distae.report.page import document, resource

SHOWN_SLIDERS = 16
"""Sliders that are seen at once."""
ON_MAP = 1500
"""Points of the map."""
MOST_TOKENS = 4096
NEEDS_SCRIPT = "This page works by its script, which this browser does not run."


def page(explorer: Explorer, title: str, about: str) -> bytes:
    """The file."""
    style = Html(resource("page.css") + resource("explorer.css", __package__))
    script = Html(resource("page.js") + resource("explorer.js", __package__))
    parts = [_stage(explorer), tag("div", _sections(explorer), class_="panels")]
    known = tag("div", data(_data(explorer)), id="data", hidden="")
    body = [tag("noscript", note(NEEDS_SCRIPT)), tag("div", parts, class_="explorer"), known]
    made = document(title, about, body, style, script, "Served by distae explore on this machine alone.", requests="'self'")
    return f"<!doctype html>\n{made}\n".encode()


def _data(explorer: Explorer) -> dict[str, object]:
    """What the script needs at the start."""
    start = explorer.start
    return {"code": start.tolist(), "samples": len(explorer.here.loader), "split": explorer.here.name,
            "largest": MOST_IMAGE_BYTES, "tokens": _shape_of_tokens(explorer)}  # fmt: skip


def _shape_of_tokens(explorer: Explorer) -> list[int] | None:
    """How the indices of discrete codes are laid out: levels, rows, columns; None where codes are not discrete, or too many."""
    indices, shape = explorer.here.codes.indices, explorer.model.code_shape
    if indices is None or not 0 < indices.shape[1] <= MOST_TOKENS:
        return None
    positions, found = prod(shape[:-1]), indices.shape[1]
    if len(shape) != 3 or found % positions:
        return [1, 1, found]
    return [found // positions, shape[0], shape[1]]


def _stage(explorer: Explorer) -> Html:
    """What the code is decoded to, and what it came from."""
    decoded = tag("figure", tag("div", class_="shown", id="decoded"), tag("figcaption", "Decoded"))
    given = tag("figure", tag("div", class_="shown", id="input"), tag("figcaption", "Encoded from"), id="from", hidden="")
    status = tag("output", id="status", aria_live="polite")
    return tag("div", tag("div", decoded, given, class_="pair"), status, _choice(explorer), class_="stage")


def _choice(explorer: Explorer) -> Html:
    """Where a code comes from."""
    most, classes = len(explorer.here.loader) - 1, getattr(explorer.model.cfg, "classes", None)
    number = tag("input", type="number", id="number", min=0, max=most, value=0)
    return tag(
        "div",
        tag("label", f"Sample of {explorer.here.name}, 0 to {most} ", number, class_="field"),
        tag("div", _button("show", "Show it"), _button("random", "Another"), _button("start", "Start again"), class_="controls"),
        _labels(int(classes)) if explorer.model.cfg.conditional and classes else None,
        _drop(explorer),
        class_="choice",
    )


def _button(name: str, text: str, **more: str) -> Html:
    return tag("button", text, type="button", id=name, **more)


def _labels(classes: int) -> Html:
    choices = (tag("option", str(i), value=i) for i in range(classes))
    return tag("label", "Label ", tag("select", choices, id="label"), class_="field")


def _drop(explorer: Explorer) -> Html | None:
    """For an image of one's own."""
    shape = explorer.model.shape
    if not is_image(shape) or shape[1] != shape[2]:
        return None
    accepted = ",".join(f"image/{name.lower()}" for name in FORMATS)
    file = tag("input", type="file", id="file", accept=accepted)
    invert = tag("label", tag("input", type="checkbox", id="invert"), " Invert: dark becomes light")
    return tag("div", tag("label", "Drop an image here, or choose one ", file), invert, id="drop")


def _sections(explorer: Explorer) -> Iterator[Html]:
    if explorer.model.num_codes is None:
        yield section("Dimensions", *_dimensions(explorer))
    yield section("Map of codes", *_map(explorer))
    if _shape_of_tokens(explorer):
        yield section("Tokens", *_tokens(explorer))
    if explorer.is_sparse:
        yield section("Latents", *_latents(explorer))
    yield section("Morph", *_morph())
    known = explorer.training
    near = f"The samples of {known.name} whose codes are nearest, of the first {len(known.positions)}. Choose one to encode it."
    yield section("Nearest samples", note(near), tag("div", id="near"))


def _dimensions(explorer: Explorer) -> Iterator[Html]:
    """A slider for each."""
    measure, ranges = "KL" if explorer.dimensions.is_kl else "variance", explorer.ranges()
    how = "over the values that occur" if explorer.is_sparse else "over 3 standard deviations to either side of the mean"
    unit = " in nats" if explorer.dimensions.is_kl else ""
    yield note(f"The dimension with the largest {measure}{unit} comes first; it is in brackets. A slider goes {how}.")
    sliders = [_slider(**of) for of in ranges]
    yield tag("div", sliders[:SHOWN_SLIDERS], class_="sliders")
    if more := sliders[SHOWN_SLIDERS:]:
        yield folded(f"{len(more)} more of {len(explorer.start)} dimensions", tag("div", more, class_="sliders"))


def _slider(number: int, importance: float, low: float, high: float) -> Html:
    span = {"min": f"{low:.6g}", "max": f"{high:.6g}", "step": f"{(high - low) / 200:.3g}"}
    name = tag("span", f"{number} ", tag("small", f"({importance:.3g})"))
    return tag("label", name, tag("input", type="range", data_dimension=number, **span), tag("span", class_="value"))


def _map(explorer: Explorer) -> tuple[Child, ...]:
    """The codes of some samples, in which to choose one."""
    known, is_discrete = explorer.here, explorer.model.num_codes is not None
    n = min(ON_MAP, len(known.positions))
    if n < 3:
        return ()
    at = explorer.plane._replace(points=explorer.plane.points[:n])
    text, chart = map_of(at, known.labels()[:n], known.positions[:n], known.name)
    moves = "Click: the code there; its other components stay as they are. The cross is the code."
    click = "Click a point: that sample." if is_discrete else moves
    keys = " By keyboard: arrows go from point to point, Enter takes one."
    choice = tag("label", tag("input", type="checkbox", id="nearest"), " Take the sample at the point")
    return note(f"{text} {click}{keys}"), None if is_discrete else choice, tag("div", chart, id="map")


def _morph() -> tuple[Html, ...]:
    kept = (tag("figure", tag("div", class_="shown", id=name), tag("figcaption", name.upper())) for name in "ab")
    slider = tag("input", type="range", id="share", min=0, max=1, step=0.01, value=0, disabled="")
    return (
        note("Keep two codes, and go from one to the other."),
        tag("div", _button("keep-a", "Keep as A"), _button("keep-b", "Keep as B"), class_="controls"),
        tag("div", kept, class_="kept"),
        tag("label", "From A to B ", slider, class_="field wide-field"),
    )


def _tokens(explorer: Explorer) -> tuple[Html, ...]:
    most = (explorer.model.num_codes or 1) - 1
    new = tag("input", type="number", id="token", min=0, max=most, value=0)
    set_it, of_b = _button("set-tokens", "Set the selected"), _button("swap-tokens", "Take the selected from B", disabled="")
    return (
        note("The code of each position. Select some, and give them another code, or those of the code that is kept as B."),
        tag("label", f"New code, 0 to {most} ", new, class_="field"),
        tag("div", set_it, of_b, _button("no-tokens", "Select none"), class_="controls"),
        tag("div", id="token-map"),
    )


def _latents(explorer: Explorer) -> tuple[Html, ...]:
    most = len(explorer.start) - 1
    number = tag("input", type="number", id="latent", min=0, max=most, value=0)
    return (
        note(f"The most active latents of this code. Choose one: the samples of {explorer.training.name} in which it is largest."),
        tag("div", id="active", class_="controls", role="group", aria_label="Most active latents, with their values"),
        tag("label", f"Latent, 0 to {most} ", number, class_="field"),
        tag("div", _button("show-latent", "Show its samples"), class_="controls"),
        tag("div", id="top"),
    )
