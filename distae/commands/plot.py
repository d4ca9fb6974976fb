"""distae plot RUN ...: curves of losses and terms of one run or several.

distae plot runs/a
distae plot runs/sweep --metrics loss kl --out sweep.svg
distae plot runs/a --pictures samples
"""

import argparse
import io
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from distae.commands.runs import RecordedRun, check_metrics, serve, terms_of, whole_terms
from distae.config.extras import needs
from distae.errors import UserError
from distae.runtime import animations
from distae.runtime.files import check_absent, read_bytes, write_atomically
from distae.tracking.recorded import pictures

FORMATS = (".png", ".svg", ".pdf")
AXES = ("step", "epoch", "samples_seen", "time")
STYLES = {"train": ":", "val": "-", "test": "o"}
"""A line of each split; of the test split there is one point."""
WIDE = 3
"""Panels beside each other."""
AT_MOST = 12
"""Panels of a picture where --metrics does not name them."""
FRAMES, PAUSE, LAST = 100, 120, 1500
"""Most pictures of an animation; milliseconds of each, and of the last."""
STRIP = 16
"""Pixels below a picture, with its step."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae plot") -> int:
    options = arguments(prog).parse_args(argv)

    def plot(runs: Sequence[RecordedRun]) -> Path:
        path, name = _target(runs, options), options.pictures
        image = animated(runs, name, path.suffix[1:]) if name else drawn(runs, options.metrics, options.x, path.suffix, options.log)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, image, durable=False)
        return path

    return serve(options, plot)


def arguments(prog: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog, description="Draw the losses and terms of runs over their steps.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, or folders of runs, such as a sweep's")
    parser.add_argument("--metrics", nargs="+", default=[], metavar="NAME", help="as loss, or val/loss; default: what is validated")
    parser.add_argument("--x", choices=AXES, default="step", help="horizontal axis (default: step)")
    parser.add_argument("--log", action="store_true", help="logarithmic vertical axis")
    parser.add_argument("--pictures", metavar="NAME", help="instead: an animation of these pictures over training, as samples")
    out = "a .png, .svg or .pdf (default: RUN/evaluation/curves.png), of --pictures .gif or .mp4 (default: RUN/evaluation/NAME.gif)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=out)
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    return parser


def _target(runs: Sequence[RecordedRun], options: argparse.Namespace) -> Path:
    """Where to write: of one run in its folder, of several in the one folder that was given. Raises UserError."""
    if options.out is None and len(options.runs) > 1:
        raise UserError("--out: give the file of a picture of several runs, as in --out curves.png")
    one = options.runs[0].expanduser()
    name = f"{options.pictures.replace('/', '_')}.gif" if options.pictures else "curves.png"
    path: Path = options.out or one / (f"evaluation/{name}" if runs[0].path == one.absolute() else name)
    valid = tuple(f".{kind}" for kind in animations.FORMATS) if options.pictures else FORMATS
    if path.suffix not in valid:
        raise UserError(f"--out: {path} ends in {path.suffix or 'no format'}; valid: {', '.join(valid)}")
    animations.check_format(path.suffix[1:], "--out")
    check_absent(path, options.force)
    return path


def animated(runs: Sequence[RecordedRun], name: str, kind: str) -> bytes:
    """An animation of the pictures of the one run that are called `name`, or `val/name`, each over its step. Raises UserError."""
    if len(runs) > 1:
        raise UserError(f"--pictures: give one run, not {len(runs)}")
    there = [*pictures(runs[0].path)]
    known = sorted({picture.name for picture in there})
    found = sorted((p.step, p.path) for p in there if p.name == (f"val/{name}" if f"val/{name}" in known else name))
    if not found:
        raise UserError(f"--pictures: {runs[0].path / 'images'} has no {name!r}; valid: {', '.join(known) or 'none yet'}")
    kept = [found[round(i * (len(found) - 1) / max(1, FRAMES - 1))] for i in range(FRAMES)] if len(found) > FRAMES else found
    return animations.animation([_frame(step, path) for step, path in kept], [PAUSE] * (len(kept) - 1) + [LAST], kind)


def _frame(step: int, path: Path) -> Any:
    """A picture over its step. Raises UserError if it is not a picture."""
    from PIL import Image, ImageDraw

    try:
        picture = Image.open(io.BytesIO(read_bytes(path, 64 << 20)), formats=["PNG"]).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read as a picture ({error})") from error
    frame = Image.new("RGB", (picture.width, picture.height + STRIP), "white")
    frame.paste(picture)
    ImageDraw.Draw(frame).text((4, picture.height + 2), f"step {step}", "black")
    return frame


def panels(runs: Sequence[RecordedRun], metrics: Sequence[str]) -> dict[str, list[str]]:
    """Metrics of each panel by its title: a term of all splits, or the one metric that was named. Raises UserError."""
    terms, whole = terms_of(runs), whole_terms(runs)
    there = [name for names in terms.values() for name in names]
    check_metrics([name for name in metrics if name not in (*terms, *there)], [*whole, *(f"val/{name}" for name in whole)])
    if metrics:
        return {name: terms.get(name, [name]) for name in metrics}
    validated = {k: v for k, v in whole.items() if any(name.startswith("val/") for name in v)}
    return dict([*(validated or whole).items()][:AT_MOST])


def drawn(runs: Sequence[RecordedRun], metrics: Sequence[str], x: str, suffix: str, log: bool = False) -> bytes:
    """The picture: a panel for each term, a colour for each run, a style for each split. Raises UserError without matplotlib."""
    found = panels(runs, metrics)
    needs("matplotlib", "report", "distae plot")
    from matplotlib.figure import Figure

    columns = min(WIDE, len(found))
    rows = -(-len(found) // columns)
    height = 3 * rows + 0.22 * len(runs) + 0.4
    figure: Any = Figure(figsize=(4 * columns + 1, height), layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(len(found))]
    for ax, (title, names) in zip(axes, found.items(), strict=True):
        for i, run in enumerate(runs):
            _lines(ax, run, names, x, f"C{i % 10}")
        ax.set(title=title, xlabel=x.replace("_", " "), yscale="log" if log else "linear")
        ax.grid(alpha=0.3)
    _legend(figure, runs, {name.partition("/")[0] for names in found.values() for name in names})
    image = io.BytesIO()
    figure.savefig(image, format=suffix[1:], dpi=120, metadata={"Date": None} if suffix == ".svg" else None)
    return image.getvalue()


def _lines(ax: Any, run: RecordedRun, names: Sequence[str], x: str, colour: str) -> None:
    for name in names:
        points = run.series(name, x)
        if x == "time" and points:
            start = run.rows[0]["time"]
            points = [(t - start, y) for t, y in points]
        style = STYLES.get(name.partition("/")[0], "-")
        ax.plot(*zip(*points, strict=True) if points else ([], []), style, color=colour, linewidth=1.3, markersize=4)


def _legend(figure: Any, runs: Sequence[RecordedRun], splits: set[str]) -> None:
    """Below the panels, the runs by colour, then the splits by style."""
    lines: Any = import_module("matplotlib.lines")

    def handle(label: str, style: str, colour: str) -> Any:
        is_line = style != "o"
        return lines.Line2D([], [], label=label, color=colour, linestyle=style if is_line else "", marker="" if is_line else "o")

    handles = [handle(run.name, "-", f"C{i % 10}") for i, run in enumerate(runs)]
    handles += [handle(split, style, "0.4") for split, style in STYLES.items() if split in splits]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if len(runs) > 3 else len(handles), fontsize="small")
