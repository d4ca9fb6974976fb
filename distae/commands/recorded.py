"""Sections of a report from what a run folder holds: rows, events, pictures, settings and figures of `distae evaluate`."""

import math
import re
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from distae.commands.compare import tables
from distae.commands.runs import RecordedRun, only_seeds_differ, sign_of, terms_of
from distae.report.charts import MOST_POINTS, MOST_VALUES, Curve, Mark, chart
from distae.report.html import Html, folded, meter, note, section, table, tag
from distae.report.pictures import figure
from distae.runtime import events, files

SPEED = {
    "lr": "learning rate", "grad_norm": "norm of the gradient", "samples_per_second": "samples per second",
    "data_wait_fraction": "share of the time spent waiting for data", "checkpoint_blocked_seconds": "seconds blocked by saves",
    "peak_memory_bytes": "peak memory in bytes", "mfu_fraction": "share of the device's peak FLOPs",
}  # fmt: skip
"""Terms of training rows that are not of the objective, and what they are called."""
KL = "kl_dim/"
INACTIVE = 0.01
"""Nats below which a dimension says nothing."""
MOST_CHARTS, MOST_DIMENSIONS, MOST_MARKS, MOST_EVENTS = 40, 64, 60, 60
MOST_RUNS = 60
"""Runs whose curves are drawn."""
OVER_TIME = 6
"""Pictures of a kind."""
EVALUATED = "evaluation/metrics.json"
UNITS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}
NAMES = {"reconstructions": "rows of inputs over rows of their reconstructions", "samples": "samples from the prior"}


@dataclass(frozen=True)
class Evaluated:
    """RUN/evaluation/metrics.json, as far as it is shown."""

    figures: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    step: int | None = None


@dataclass(frozen=True)
class History:
    """When the steps of a run were done, and what else happened."""

    run: RecordedRun
    unit: str = "hours"

    @cached_property
    def happened(self) -> list[events.Event]:
        return events.read(self.run.path)

    @cached_property
    def began(self) -> float:
        """Seconds since 1970."""
        times = [row["time"] for row in self.run.rows[:1] if "time" in row] + [event.time for event in self.happened[:1]]
        return min(times, default=0.0)

    @cached_property
    def times(self) -> dict[float, float]:
        """By step."""
        return {row["step"]: self.since(row["time"]) for row in self.run.rows if "time" in row and "step" in row}

    def since(self, seconds: float) -> float:
        """A time in seconds since 1970 as one since the start, in `unit`."""
        return (seconds - self.began) / UNITS[self.unit]

    def points(self, metric: str) -> list[tuple[float, ...]]:
        """(step, time, value), by rising step."""
        return sorted((int(step), self.times.get(step, 0.0), value) for step, value in self.run.series(metric))

    @property
    def environment(self) -> dict[str, Any]:
        """Of the last start; empty for runs of earlier versions."""
        return next((event.environment for event in reversed(self.happened) if event.event == "start"), {})

    def marks(self) -> list[Mark]:
        """Restarts, saves and the best step."""
        starts = [e for e in self.happened if e.event == "start"][1:]
        saves = [e for e in self.happened if e.event == "checkpoint"]
        saves = saves[:: -(-len(saves) // MOST_MARKS) or 1]
        found = [Mark("start", e.step, self.since(e.time), f"restart at step {e.step}") for e in starts[-MOST_MARKS:]]
        found += [Mark("checkpoint", e.step, self.since(e.time), f"checkpoint of step {e.step}") for e in saves]
        if "step" in (best := self.run.best):
            step, name = int(best["step"]), self.run.config.best_metric
            found.append(Mark("best", step, self.times.get(step, 0.0), f"best {name} at step {step}"))
        return found


@dataclass(frozen=True)
class _Mean:
    """The mean over runs that differ in their seed alone."""

    name: str
    of: Sequence[History]

    def points(self, metric: str) -> list[tuple[float, ...]]:
        """(step, time, mean - deviation, mean + deviation, mean) of the steps that all runs have."""
        series = [{step: (time, value) for step, time, value in history.points(metric)} for history in self.of]
        found: list[tuple[float, ...]] = []
        for step in sorted(set.intersection(*map(set, series))):
            times, values = zip(*(each[step] for each in series), strict=True)
            if not all(map(math.isfinite, values)):
                continue
            mean, deviation = statistics.fmean(values), statistics.stdev(values)
            found.append((step, statistics.fmean(times), mean - deviation, mean + deviation, mean))
        return found


def _over_seeds(histories: Sequence[History]) -> Iterator[list[History]]:
    """Groups of several runs that differ in their seed alone."""
    for group in only_seeds_differ([history.run for history in histories]):
        if len(group) > 1:
            yield [history for history in histories if history.run in group]


def histories(runs: Sequence[RecordedRun]) -> list[History]:
    """With the largest unit of time of which the longest run has two."""
    longest = max((run.rows[-1].get("time", 0.0) - run.rows[0].get("time", 0.0) for run in runs if run.rows), default=0.0)
    unit = max((name for name in UNITS if longest >= 2 * UNITS[name]), key=UNITS.__getitem__, default="seconds")
    return [History(run, unit) for run in runs]


def of_one(run: RecordedRun, budget: int) -> list[Html]:
    """The sections of one run; `budget`: bytes of pictures."""
    [history] = histories([run])
    return [
        _summary(history),
        section("Figures", _final(run)),
        section("Evaluation", *_evaluation(run)),
        *_curves([history], history.marks()),
        section("Time line", *_time_line(history)),
        _kl(run),
        section("Pictures over time", *_pictures(run, budget, OVER_TIME)),
    ]


def settings(run: RecordedRun) -> Html:
    rows = [{"setting": name, "value": value} for name, value in run.settings.items() if value is not None]
    return section("Settings", folded(f"All {len(rows)} settings", table(rows, f"Settings of {run.name}")))


def of_several(runs: Sequence[RecordedRun], budget: int) -> list[Html]:
    """The sections of several runs: what differs, spread over seeds, the best, overlaid curves, last pictures."""
    each, over_seeds = tables(runs)
    last = [tag("h3", run.name) + part for run in runs if (part := "".join(_pictures(run, budget // len(runs), 1)))]
    return [
        section("Runs", table(each, "Settings that differ, and metrics at the best and the last step")),
        section("Over seeds", table(over_seeds, "Mean ± standard deviation of runs that differ in their seed alone")),
        section("Best", table(_best(runs), "The best run by each metric")),
        *_curves(histories(runs[:MOST_RUNS]), []),
        section("Last pictures", *map(Html, last)),
    ]


def _summary(history: History) -> Html:
    run, about = history.run, history.environment
    cfg, best = run.config, run.best
    rows = {
        "state": run.state, "best": f"{cfg.best_metric} {best[cfg.best_metric]:.5g} at step {int(best['step'])}" if best else None,
        "model": f"{cfg.model.name}, latent dimension {cfg.model.latent_dim}, net {cfg.net.name}", "data": cfg.data.name,
        "batch": cfg.global_batch_size, "optimizer": f"{cfg.optim.name}, rate {cfg.peak_lr:g}, schedule {cfg.schedule.name}",
        "seed": cfg.seed, "commit": about.get("commit"), "torch": about.get("torch"), "python": about.get("python"),
        "device": about.get("device"), "processes": about.get("world_size"), "threads of each": about.get("threads"),
    }  # fmt: skip
    shown = [{"what": name, "value": value} for name, value in rows.items() if value is not None]
    return section("Run", table(shown, f"Summary of {run.name}"))


def _final(run: RecordedRun) -> Html:
    """Every term: at the best step, and at the last of each split."""
    rows = []
    for term in terms_of([run]):
        if "/" not in term and term not in SPEED:
            best: dict[str, Any] = {"best step, val": run.best.get(f"val/{term}")} if run.best else {}
            last = {f"last, {split}": run.final.get(f"{split}/{term}") for split in ("val", "test", "train")}
            rows.append({"term": term, **best, **last})
    return table(rows, "Terms of the objective, in nats where they are losses, and other metrics of each evaluation")


def _evaluation(run: RecordedRun) -> Iterator[Html]:
    """The table of `distae evaluate`, with a column for each baseline."""
    found = evaluated(run)
    if found is None:
        yield note("Not evaluated: ", tag("code", f"distae evaluate {run.path.name}"), " adds metrics and baselines.")
        return
    rows = []
    for f in found.figures:
        low, high = f["interval"] or (None, None)
        interval = None if low is None else f"{low:.5g} to {high:.5g}"
        row = {"metric": f["metric"], "task": f["task"], "value": f["value"], "95% interval": interval, "unit": f["unit"]}
        rows.append(row | {"better": f["better"]} | {f"baseline {k}": v for k, v in f["baselines"].items()})
    yield table(rows, f"Metrics of the model of step {found.step}, with baselines")
    skipped = [{"metric": name, "why": why} for name, why in found.skipped.items()]
    if skipped:
        yield folded(f"{len(skipped)} metrics that do not apply", table(skipped, "Skipped metrics"))


def evaluated(run: RecordedRun) -> Evaluated | None:
    """What `distae evaluate` wrote; None where it did not, or where that is damaged."""
    try:
        found = files.decode(files.read_bytes(run.path / EVALUATED), Evaluated)
    except (OSError, ValueError):
        return None
    return Evaluated([f for raw in found.figures if (f := _figure(raw))], found.skipped, found.step)


def _figure(raw: dict[str, Any]) -> dict[str, Any] | None:
    """A figure with all its fields; None without a name and a number."""
    is_number = isinstance(raw.get("value"), int | float) and isinstance(raw.get("metric"), str)
    baselines, interval = raw.get("baselines"), raw.get("interval")
    numbers = baselines.items() if isinstance(baselines, dict) else ()
    is_pair = isinstance(interval, list) and len(interval) == 2 and all(isinstance(v, int | float) for v in interval)
    return {
        "metric": raw["metric"], "value": float(raw["value"]), "interval": interval if is_pair else None,
        "baselines": {k: float(v) for k, v in numbers if isinstance(v, int | float)},
        **{key: str(raw.get(key) or "") for key in ("task", "unit", "better")},
    } if is_number else None  # fmt: skip


def _curves(histories: Sequence[History], marks: Sequence[Mark]) -> list[Html]:
    """A chart for each term of the objective, and for each of the speed."""
    runs = [history.run for history in histories]
    terms = {k: v for k, v in terms_of(runs).items() if not k.startswith(KL)}
    chosen = [*(k for k in terms if k not in SPEED)][:MOST_CHARTS]
    means = [_Mean(f"{of[0].run.name}: mean of {len(of)} seeds", of) for of in _over_seeds(histories)]
    chosen.sort(key=lambda term: not any(name.startswith("val/") for name in terms[term]))  # what is validated comes first
    speed = [k for k in SPEED if k in terms]
    curves = sum(len(terms[k]) for k in [*chosen, *speed]) * (len(runs) + 2 * len(means))
    most = max(4, min(MOST_POINTS, MOST_VALUES // (3 * max(1, curves))))

    def drawn(term: str) -> Html:
        of = {h.run.name: h.points for h in histories} | {mean.name: mean.points for mean in means}
        lines = [Curve(run, name.partition("/")[0], points(name)) for run, points in of.items() for name in terms[term]]
        return chart(SPEED.get(term, term), lines, ("step", histories[0].unit), marks, most)

    key = "Drag over a chart to zoom in, double-click to see all."
    if means:
        key += " Bands are one standard deviation about the mean of runs that differ in their seed alone, at steps that all have."
    if marks:
        key += " Dashed lines are restarts, triangles checkpoints, the diamond the best step."
    return [
        section("Curves", note(key), tag("div", map(drawn, chosen), class_="grid")) if chosen else Html(),
        section("Rate, speed and memory", tag("div", map(drawn, speed), class_="grid")) if speed else Html(),
    ]


def _time_line(history: History) -> Iterator[Html]:
    """Steps over hours, and a table of starts and saves."""
    points = sorted((at, int(step)) for step, at in history.times.items())
    if not points:
        return
    marks = history.marks()
    yield tag(
        "div", chart(f"Steps over {history.unit}", [Curve(history.run.name, "step", points)], (history.unit,), marks), class_="grid"
    )
    if rows := [*_happened(history)]:
        yield folded(f"{len(rows)} starts and checkpoints", table(rows[-MOST_EVENTS:], "Starts and checkpoints, the last ones"))


def _happened(history: History) -> Iterator[dict[str, Any]]:
    try:
        kept = {*files.names_in(history.run.path / "checkpoints")}
    except OSError:
        kept = set()
    for number, event in enumerate(history.happened):
        about = "kept" if f"step_{event.step:08}" in kept else "deleted since"
        if event.event == "start":
            about = ", ".join(f"{k} {event.environment[k]}" for k in ("commit", "device", "world_size") if event.environment.get(k))
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time))
        kind = "restart" if event.event == "start" and number else event.event
        yield {"time": at, "event": kind, "step": event.step, "about": about}


def _kl(run: RecordedRun) -> Html:
    """KL of each dimension from the prior at the last evaluation."""
    final = run.final
    split = next((s for s in ("test", "val") if any(k.startswith(f"{s}/{KL}") for k in final)), None)
    if split is None:
        return Html()
    kl = {k.removeprefix(f"{split}/{KL}"): v for k, v in final.items() if k.startswith(f"{split}/{KL}")}
    inactive = sum(v < INACTIVE for v in kl.values())
    ordered = sorted(kl.items(), key=lambda item: -item[1])
    most = ordered[0][1]
    rows = [
        {"dimension": name, "KL in nats": v, "of the largest": meter(v, most, f"{v:.3g} nats")}
        for name, v in ordered[:MOST_DIMENSIONS]
    ]
    more = f" The first {MOST_DIMENSIONS} are shown." if len(ordered) > MOST_DIMENSIONS else ""
    about = (
        f"{inactive} of {len(kl)} dimensions are inactive: their KL is below {INACTIVE} nats, at the last {split} evaluation.{more}"
    )
    return section("KL by dimension", note(about), table(rows, "Mean KL of each dimension from the prior"))


def _pictures(run: RecordedRun, budget: int, most: int) -> list[Html]:
    """The pictures of each kind, over time; of the test split the last."""
    kinds: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for name in _names_of_pictures(run):
        if found := re.fullmatch(r"(\w+?)_(\w+)_(\d{1,18})\.png", name):
            kinds.setdefault((found[1], found[2]), []).append((int(found[3]), name))
    if most == 1 and any(split == "test" for split, _ in kinds):
        kinds = {k: v for k, v in kinds.items() if k[0] == "test"}
    chosen = {
        k: _spread_out(sorted(v), most) for k, v in sorted(kinds.items(), key=lambda item: (item[0][1], item[0][0] == "test"))
    }
    limit = budget // max(1, sum(map(len, chosen.values())))
    shown = [_picture(run, *kind, *at, limit) for kind, names in chosen.items() for at in names]
    return [tag("div", shown, class_="pictures")] if shown else []


def _names_of_pictures(run: RecordedRun) -> list[str]:
    try:
        return files.names_in(run.path / "images")
    except OSError:
        return []


def _spread_out(found: Sequence[tuple[int, str]], most: int) -> list[tuple[int, str]]:
    """At most `most`, the last among them, at even distances."""
    if len(found) <= most:
        return [*found]
    return [found[round((i + 1) * len(found) / most) - 1] for i in range(most)]


def _picture(run: RecordedRun, split: str, name: str, step: int, file: str, limit: int) -> Html:
    caption = f"{name}, {split} split, step {step}"
    try:
        png = files.read_bytes(run.path / "images" / file, 64 << 20)
    except OSError as error:
        return note(f"{caption}: {files.in_words(error)}")
    return figure(png, caption, f"Grid of images: {NAMES.get(name, name)}, {split} split, at step {step}", limit)


def _best(runs: Sequence[RecordedRun]) -> list[dict[str, Any]]:
    """The best run by each metric of which it is known which direction is better, of rows and of `distae evaluate`."""
    values: dict[tuple[str, int], list[tuple[float, str]]] = {}
    usual = ("val/loss", "val/mse", "test/loss", "test/mse")
    names = dict.fromkeys([*(run.config.best_metric for run in runs), *usual])
    for run in runs:
        for name in names:
            if (value := (run.best if name.startswith("val/") else run.final).get(name)) is not None:
                values.setdefault((name, 1 if name in usual else sign_of(name)), []).append((value, run.name))
        for f in (evaluated(run) or Evaluated()).figures:
            if f["better"]:
                values.setdefault((f["metric"], -1 if f["better"] == "higher" else 1), []).append((f["value"], run.name))
    return [_best_row(name, sign, found) for (name, sign), found in values.items()]


def _best_row(name: str, sign: int, found: Iterable[tuple[float, str]]) -> dict[str, Any]:
    ordered = sorted(found, key=lambda item: sign * item[0])
    (value, run), (worst, _) = ordered[0], ordered[-1]
    better = "lower" if sign == 1 else "higher"
    return {"metric": name, "better": better, "best run": run, "value": value, "worst": worst, "runs": len(ordered)}
