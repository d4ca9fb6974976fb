"""What a trained model's codes are: what each dimension does, ways between samples, a map, the use of a codebook."""

from math import isfinite, prod
from typing import NamedTuple

import torch
from torch import Tensor

from distae.config.evaluation import EvaluationConfig
from distae.evaluation.codebooks import frequencies_of
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.metrics import Skip
from distae.evaluation.pictures import is_image, png
from distae.evaluation.samplers import posterior_samples
from distae.evaluation.sparse_codes import densities
from distae.evaluation.walks import REACH, Dimensions, between, decoded, dimensions, is_spherical
from distae.noise import Noise, Rows
from distae.report.charts import Curve, chart, scatter
from distae.report.html import Html, note, section, table, tag
from distae.report.pictures import figure, picture

SAMPLES = 1000
"""Most samples whose codes are looked at, and most values of them."""
VALUES = 1 << 22
TRAVERSED, BETWEEN = 11, 11
"""Pictures of a row."""
PAIRS = 4
LABELS = 24
"""Most labels that colours and shapes distinguish."""
COLUMNS = 12
"""Most columns of a table."""


def settings(code_shape: tuple[int, ...]) -> EvaluationConfig:
    """How many samples are looked at."""
    return EvaluationConfig(limit=max(2, min(SAMPLES, VALUES // prod(code_shape))))


@torch.no_grad()
def sections(e: Evaluation, budget: int) -> list[Html]:
    """Of the split of `e`, in the current world of one rank. `budget`: bytes of pictures. Leaves out what does not apply."""
    each = budget // (16 + PAIRS)
    parts = [_traversals(e, each), _between(e, each), _map(e), _codebook(e), _latents(e)]
    return [part for part in parts if part]


def _traversals(e: Evaluation, limit: int) -> Html:
    """A row for each dimension."""
    codes = e.codes()
    if e.model.num_codes is not None:
        return Html()
    found = dimensions(e.model, codes, posterior_samples(codes, e.seed))
    sigma = torch.linspace(-REACH, REACH, TRAVERSED, dtype=torch.float64)
    values = torch.split(decoded(e.model, found.walk(sigma).flatten(0, 1)), TRAVERSED)
    measure = "KL in nats" if found.is_kl else "variance"
    about = (
        f"Each row varies one dimension from -{REACH:g} to {REACH:g} standard deviations about the mean code of {len(codes.z)} "
        f"{e.split} samples; the dimension with the largest {measure} comes first."
    )
    rows = [_dimension(e, found, i, row, measure, limit) for i, row in enumerate(values)]
    what = table(rows, "Traversals of the code's dimensions")
    return section("Traversals", note(about), what)


def _dimension(e: Evaluation, found: Dimensions, i: int, values: Tensor, measure: str, limit: int) -> dict[str, object]:
    number, importance = int(found.order[i]), float(found.importance[i])
    row: dict[str, object] = {"dimension": number, measure: importance}
    if is_image(e.model.shape):
        text = f"Images decoded as dimension {number} of the code rises, {measure} {importance:.3g}"
        return row | {"decoded": tag("div", picture(png(values), text, limit), class_="wide")}
    low, high = as_text(e, values[[0, -1]])
    return row | {name: f"{low[name]} → {high[name]}" for name in low}


def as_text(e: Evaluation, values: Tensor, most: int = COLUMNS) -> list[dict[str, str]]:
    """The first values of samples `[n, *shape]` by name, in the units of the data: categories by their names."""
    stored, columns = e.transform.invert(values).flatten(1)[:, :most], e.transform.columns[:most]
    names = [column.name for column in columns] or [f"value {i}" for i in range(stored.shape[1])]
    texts = [column.categories for column in columns] or [()] * len(names)
    return [
        {name: of[int(v)] if of and isfinite(v) else _shown(v) for name, of, v in zip(names, texts, row, strict=True)}
        for row in stored.tolist()
    ]


def _shown(value: float) -> str:
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"


def _between(e: Evaluation, limit: int) -> Html:
    """Interpolations between samples 0 and 1, 2 and 3, and so on."""
    loader, n = e.loaders[e.split], min(2 * PAIRS, len(e.splits[e.split]) // 2 * 2)
    if not is_image(e.model.shape) or n < 2:
        return Html()
    x, label = loader.batch(torch.arange(n, device=loader.storage_device), Noise(e.seed, ("interpolate",), Rows(n), loader.device))
    z, spherical = e.model.encode(x, label).z, is_spherical(e.model)
    share = torch.linspace(0, 1, BETWEEN, dtype=torch.float64, device=z.device)
    figures = []
    for i in range(0, n, 2):
        path = decoded(e.model, between(z[i], z[i + 1], share, spherical), None if label is None else int(label[i]))
        row = torch.cat([x[i : i + 1].cpu(), path.to(x.dtype), x[i + 1 : i + 2].cpu()])
        text = f"Images decoded on the way from {e.split} sample {i} to {e.split} sample {i + 1}, which are the first and the last"
        figures.append(figure(png(row), f"{e.split} sample {i} to {i + 1}", text, limit))
    way = "on a great circle" if spherical else "on a straight line"
    about = f"Decoded codes {way} between those of two samples; the first and the last picture of a row are the samples."
    return section("Interpolations", note(about), tag("div", figures, class_="pictures"))


def _map(e: Evaluation) -> Html:
    """Codes in the plane: as they are, or on their two principal axes."""
    z = e.codes().z
    if len(z) < 3 or not bool(z.isfinite().all()):
        return Html()
    try:
        label = e.labels()
    except Skip:
        label = torch.zeros(len(z), dtype=torch.int64)
    text, drawn = map_of(plane(z), label, torch.arange(len(z)), e.split)
    return section("Map of codes", note(text), drawn)


class Plane(NamedTuple):
    """Codes in two dimensions."""

    points: Tensor
    """`[n, 2]`."""
    axes: tuple[str, str]
    how: str
    """How the axes were found."""
    origin: Tensor
    """`[D]`: the code at (0, 0)."""
    basis: Tensor
    """`[2, D]`, orthonormal rows (with D = 1, the second is 0): points are (z - origin) @ basis.T."""


def plane(z: Tensor) -> Plane:
    """Codes `[n, D]` of float64: themselves with D of 1 or 2; else on their two largest principal components, each with a positive
    sum of cubes."""
    if z.shape[1] <= 2:
        basis = torch.eye(2, z.shape[1], dtype=z.dtype)
        return Plane(z @ basis.T, ("dimension 0", "dimension 1"), "as they are", torch.zeros_like(z[0]), basis)
    mean = z.mean(0)
    centred = z - mean
    wide = z.shape[1] > len(z)
    values, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    values, vectors = values.flip(0).clamp_min(0)[:2], vectors.flip(1)[:, :2]
    basis = torch.nn.functional.normalize(centred.T @ vectors, dim=0).T if wide else vectors.T
    points = centred @ basis.T
    sign = torch.where(points.pow(3).sum(0) < 0, -1.0, 1.0).to(z)
    shares = (values / centred.square().sum().clamp_min(torch.finfo(z.dtype).tiny)).tolist()
    first, second = (f"component {i} ({share:.0%})" for i, share in enumerate(shares, 1))
    how = f"on the two principal components of their {z.shape[1]} dimensions, with their shares of the variance"
    return Plane(points * sign, (first, second), how, mean, basis * sign[:, None])


def map_of(at: Plane, label: Tensor, numbers: Tensor, split: str) -> tuple[str, Html]:
    """What a map of samples of a split shows, and the map, coloured by `label` `[n]`; a sample is called by its number of `[n]`."""
    names = [*map(str, range(int(label.max()) + 1))] if 0 < int(label.max()) < LABELS and int(label.min()) >= 0 else ["samples"]
    if len(names) == 1:
        label = torch.zeros_like(label)
    text = f"Codes of {len(label)} {split} samples, {at.how}" + (", coloured by label." if len(names) > 1 else ".")
    rows = [(x, y, *rest) for (x, y), *rest in zip(at.points.tolist(), label.tolist(), numbers.tolist(), strict=True)]
    return text, scatter("Map of codes", at.axes, rows, names, text)


def _codebook(e: Evaluation) -> Html:
    """How often each code is used."""
    try:
        share = frequencies_of(e)
    except Skip:
        return Html()
    used, perplexity = int((share > 0).sum()), float(torch.special.entr(share).sum().exp())
    about = f"{used} of {len(share)} codes are used by {len(e.codes().z)} {e.split} samples; perplexity {perplexity:.4g}."
    ordered = share.sort(descending=True).values.tolist()
    curve = Curve(e.split, "share", [(i, value) for i, value in enumerate(ordered, 1)])
    drawn = chart("Share of each code, the most used first", [curve], ("rank",))
    return section("Use of the codebook", note(about), tag("div", drawn, class_="grid"))


def _latents(e: Evaluation) -> Html:
    """How often each latent of sparse codes is active, and how many never are."""
    try:
        share = densities(e)
    except Skip:
        return Html()
    about = (
        f"{int((share == 0).sum())} of {len(share)} latents are dead, 0 in all of {len(e.codes().z)} {e.split} samples; more "
        f"samples would leave fewer. A sample has {float(share.sum()):.3g} active latents on average."
    )
    curve = Curve(e.split, "share", [(i, value) for i, value in enumerate(share.sort(descending=True).values.tolist(), 1)])
    drawn = chart("Share of samples in which a latent is active, the most active first", [curve], ("rank",))
    return section("Latents", note(about), tag("div", drawn, class_="grid"))
