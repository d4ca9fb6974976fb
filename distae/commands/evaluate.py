"""distae evaluate RUN: metrics of a trained model and of baselines, to RUN/evaluation/metrics.json.

distae evaluate runs/a --tasks reconstruction,features
torchrun --nproc_per_node=4 -m distae evaluate runs/a
"""

import dataclasses
import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_origin

from distae.commands.trained import Trained, serve
from distae.commands.trained import arguments as shared
from distae.config.cli import build
from distae.config.evaluation import EvaluationConfig
from distae.config.fields import fields_of
from distae.errors import UserError
from distae.runtime.files import write_atomically

if TYPE_CHECKING:
    from distae.evaluation.metrics import Metric

FILE = "metrics.json"


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae evaluate") -> int:
    return serve(argv, arguments(prog), evaluate)


def arguments(prog: str, words: Sequence[str] = ()) -> ArgumentParser:
    """The parser of the command's own options."""
    parser = shared(prog, "Metrics of a trained model and of baselines.", output=FILE)
    for field in fields_of(EvaluationConfig).values():
        kind = _several if get_origin(field.type) is tuple else str
        parser.add_argument(f"--{field.name.replace('_', '-')}", dest=field.name, type=kind, help=field.doc)
    return parser


def _several(text: str) -> list[str]:
    return text.split(",")


def evaluate(run: Trained) -> None:
    """Compute, write and print the figures. Raises UserError on unknown tasks, before anything is computed."""
    settings = evaluation_settings(run)
    target = run.target(FILE)
    from distae.evaluation.metrics import Skip, load_all, metrics_by_task
    from distae.evaluation.samplers import check_sampler

    if settings.sampler is not None:
        check_sampler(run.saved.model.cfg, settings.sampler)
    load_all()
    tasks = _chosen(settings.tasks, metrics_by_task())
    evaluation = run.evaluation(settings)
    protocol = _protocol(run, settings)
    report: dict[str, Any] = {"run": str(run.run), "step": run.step, "tasks": [], "figures": [], "skipped": {}}
    for task, metrics in tasks.items():
        figures, skipped = [], {}
        for name, metric in metrics.items():
            try:
                figures += _rows(task, name, metric, metric.compute(evaluation), protocol)
            except Skip as why:
                skipped[name] = str(why)
        report["tasks"].append(task)
        report["figures"] += figures
        report["skipped"] |= skipped
        if run.is_main:  # after each task: what is done stays if a later one is interrupted
            write_atomically(target, json.dumps(report, indent=1).encode() + b"\n")
        for line in _table(task, figures, skipped):
            run.say(line)
    evaluation.close()
    run.say(f"wrote {target}")


def evaluation_settings(run: Trained) -> EvaluationConfig:
    """The options of the command line. Raises UserError."""
    given = {k: v for k in fields_of(EvaluationConfig) if (v := getattr(run.options, k)) is not None}
    return build(EvaluationConfig, given)


def _chosen(asked: Sequence[str], known: "Mapping[str, Mapping[str, Metric]]") -> "Mapping[str, Mapping[str, Metric]]":
    if odd := [task for task in asked if task not in ("all", *known)]:
        raise UserError(f"--tasks: unknown {odd[0]!r}; valid: all, {', '.join(sorted(known))}")
    return known if "all" in asked else {task: known[task] for task in asked}


def _protocol(run: Trained, settings: EvaluationConfig) -> dict[str, Any]:
    """What defines every figure."""
    data = {k: v for k, v in dataclasses.asdict(run.settings.data).items() if k in ("binarize", "limit")}
    return {
        "split": run.split_name, "samples": len(run.split), "step": run.step, "weights": run.saved.checksum,
        "seed": run.settings.seed, "chunk": run.settings.eval_batch_size, "limit": settings.limit,
        "transform": run.saved.transform.identity(), **data,
    }  # fmt: skip


def _rows(task: str, name: str, metric: "Metric", found: Any, protocol: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures of a metric as they are written."""
    import xxhash

    rows = []
    for suffix, figure in (found if isinstance(found, dict) else {"": found}).items():
        whole = protocol | dict(figure.protocol)
        digest = xxhash.xxh3_64_hexdigest(json.dumps(whole, sort_keys=True).encode())
        rows.append({
            "task": task, "metric": f"{name}/{suffix}" if suffix else name, "value": figure.value, "interval": figure.interval,
            "baselines": dict(figure.baselines), "unit": metric.unit, "better": metric.better, "protocol": whole,
            "protocol_hash": digest,
        })  # fmt: skip
    return rows


def _table(task: str, figures: Sequence[Mapping[str, Any]], skipped: Mapping[str, str]) -> list[str]:
    """The figures of a task for people."""
    width = max((len(f["metric"]) for f in figures), default=0)
    lines = [task] if figures else []
    for f in figures:
        interval = " [{:.5g}, {:.5g}]".format(*f["interval"]) if f["interval"] else ""
        beside = ", ".join(f"{k} {v:.5g}" for k, v in f["baselines"].items())
        unit = f" {f['unit']}" if f["unit"] else ""
        better = f" ({f['better']} is better)" if f["better"] else ""
        lines.append(f"  {f['metric']:<{width}}  {f['value']:.5g}{interval}{unit}{better}" + (f"; {beside}" if beside else ""))
    return [*lines, *(f"skipped {name}: {why}" for name, why in skipped.items())]
