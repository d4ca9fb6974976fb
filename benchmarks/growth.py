"""How costs grow: of a step with batch, width, depth and data set; of a save and an evaluation with the model.

    python benchmarks/growth.py                            # a table, and docs/images/growth.png (needs matplotlib)

Our trainer from its command line, fp32 on one thread, an MLP VAE on random images 28x28 (uint8). A step is CPU time of the process
between the rows of metrics, with data and logging; a save is the time for which it blocks the loop; an evaluation is of 10,000
images. Rounds over the points of a line are interleaved; figures are medians with the smallest and the largest. The order of an
epoch is drawn once, for large data sets before the window that is timed. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from workloads import Workload, cpu_marks, run_ours, spread, training_argv, training_rows

from distae import load
from distae.data import Loader, Split, Transform
from distae.evaluation.exact import evaluate

IMAGES = 10_000
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)


@dataclass(frozen=True)
class Point:
    """One setting that is measured."""

    line: str
    x: int
    """What grows along the line."""
    hidden: tuple[int, ...] = (512, 256)
    batch: int = 128
    images: int = IMAGES
    steps: int = 60

    @property
    def workload(self) -> Workload:
        widths = " ".join(map(str, self.hidden))
        return Workload(self.batch, self.steps, 10, torch.nn.Module, f"--model vae --model.latent-dim 16 --net.hidden {widths}")  # type: ignore[arg-type]


LINES = {
    "batch": [Point("batch", b, batch=b) for b in (32, 64, 128, 256, 512, 1024, 2048)],
    "width": [Point("width", w, (w, w)) for w in (64, 128, 256, 512, 1024, 2048)],
    "depth": [Point("depth", d, (512,) * d) for d in (1, 2, 4, 8, 16)],
    "images": [Point("images", n, images=n) for n in SIZES],
}
MODELS = LINES["width"]
"""Whose saves and evaluations are measured."""


def write_images(folder: Path, n: int) -> Path:
    """Random bytes, `[n, 28, 28]` uint8, made once."""
    path = folder / f"{n}.npy"
    if not path.exists():
        np.save(path, np.frombuffer(np.random.default_rng(0).bytes(n * 784), np.uint8).reshape(n, 28, 28))
    return path


def step(point: Point, folder: Path) -> dict[str, float]:
    """Milliseconds per step, and parameters."""
    argv = training_argv(point.workload, point.steps, write_images(folder, point.images))
    with cpu_marks() as marks:
        run_ours(argv, folder / "run")
    (first, began), (last, ended) = marks[0], marks[-1]
    return {"step_ms": 1e3 * (ended - began) / (last - first), "parameters": parameters(folder / "run")}


def parameters(run_dir: Path) -> int:
    return sum(p.numel() for p in load(run_dir).module.parameters())


def save_and_evaluate(point: Point, folder: Path) -> dict[str, float]:
    """Milliseconds for which a save blocks the loop, without the first save, and seconds of an evaluation."""
    path = write_images(folder, IMAGES)
    argv = f"{training_argv(point.workload, 41, path)} --save-every 10"
    rows = training_rows(run_ours(argv, folder / "run"))
    model = load(folder / "run").module
    x = torch.from_numpy(np.load(path)).unsqueeze(1)
    loader = Loader(Split.of(x, None, Transform(255.0)), "none", torch.device("cpu"), torch.float32)
    started = time.process_time()
    evaluate(model, loader, 512, 0)
    seconds = time.process_time() - started
    blocked = statistics.median(row["train/checkpoint_blocked_seconds"] for row in rows[2:])
    return {"save_ms": 1e3 * blocked, "evaluation_s": seconds, "parameters": sum(p.numel() for p in model.parameters())}


def rounds_of(points: list[Point], measure: Any, rounds: int) -> list[dict[str, Any]]:
    """Spread of every figure at each point; the first round is not counted, unless it is the only one."""
    found: list[list[dict[str, float]]] = [[] for _ in points]
    for _ in range(rounds + 1):
        for point, report in zip(points, found, strict=True):
            report.append(measure(point))
    return [
        {"x": point.x, "parameters": report[0]["parameters"]}
        | {k: spread([one[k] for one in report[1:] or report]) for k in report[0] if k != "parameters"}
        for point, report in zip(points, found, strict=True)
    ]  # fmt: skip


def rows_of(found: dict[str, list[dict[str, Any]]]) -> Iterable[str]:
    """A markdown table."""
    yield "| what grows | | parameters | step, ms | save blocks, ms | evaluation of 10,000, s |\n|---|---|---|---|---|---|"
    for line, points in found.items():
        for p in points:
            cells = ["{:g} ({:g} to {:g})".format(*p[k]) if k in p else "" for k in ("step_ms", "save_ms", "evaluation_s")]
            yield f"| {line} | {p['x']:,} | {p['parameters']:,} | {' | '.join(cells)} |"


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Four panels with logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure((10, 7), layout="constrained")
    panels = {
        "samples per step": [("batch", "x", "step_ms")],
        "parameters": [("width", "parameters", "step_ms"), ("depth", "parameters", "step_ms")],
        "images in the data set": [("images", "x", "step_ms")],
        "parameters of the model": [("saves", "parameters", "save_ms"), ("saves", "parameters", "evaluation_s")],
    }
    names = {"step_ms": "step, ms", "save_ms": "a save blocks, ms", "evaluation_s": "evaluation of 10,000, s"}
    for axes, (label, lines) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for line, along, what in lines:
            points = found[line]
            x, (y, low, high) = [p[along] for p in points], zip(*(p[what] for p in points), strict=True)
            name = names[what] if line == "saves" else f"{names[what]}: by {line}"
            axes.errorbar(x, y, [np.subtract(y, low), np.subtract(high, y)], marker="o", capsize=3, label=name)
        axes.set(xscale="log", yscale="log", xlabel=label)
        axes.set_ylim(min(0.5 * axes.get_ylim()[0], 1), max(2 * axes.get_ylim()[1], 1))
        axes.grid(True, which="major", alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--points", type=int, help="only so many, the smallest, of each line: does it run?")
    parser.add_argument("--plot", type=Path, default=Path("docs/images/growth.png"))
    parser.add_argument("--no-plot", action="store_true")
    args = parser.parse_args()
    if not args.no_plot:
        try:
            import matplotlib as _  # noqa: F401
        except ImportError as error:
            raise SystemExit("the plot needs matplotlib: pip install matplotlib, or give --no-plot") from error
    result: dict[str, Any] = {"torch": str(torch.__version__), "rounds": args.rounds, "load_average_before": os.getloadavg()}
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="distae-growth-") as name:
        folder = Path(name)
        found = {k: rounds_of(v[: args.points], partial(step, folder=folder), args.rounds) for k, v in LINES.items()}
        found["saves"] = rounds_of(MODELS[: args.points], partial(save_and_evaluate, folder=folder), args.rounds)
    print("\n".join(rows_of(found)))
    if not args.no_plot:
        draw(found, args.plot)
    print(json.dumps(result | found | {"load_average_after": os.getloadavg()}))


if __name__ == "__main__":
    main()
