"""distae detect RUN: anomalies, by the reconstruction error of each sample.

distae detect runs/a --data new.csv --out scores.csv
distae detect runs/a --quantile 0.99 --out scores.npz
"""

import io
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from distae.commands.stored import lines_as_csv
from distae.commands.trained import Trained, serve
from distae.commands.trained import arguments as shared
from distae.errors import UserError
from distae.runtime.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from distae.data import Split

FILE = "scores.csv"
ABOUT = (
    "Anomaly scores: the mean squared error of each sample's reconstruction, in squared units of the model's values (images in "
    "[0, 1], normalised columns). --out .csv has one row per sample, with the error of each column of a table; .npz has the error "
    "of every value too."
)


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae detect") -> int:
    return serve(argv, arguments(prog), detect)


def arguments(prog: str, words: Sequence[str] = ()) -> ArgumentParser:
    """The parser of the command's own options."""
    parser = shared(prog, ABOUT, output=FILE)
    parser.add_argument("--quantile", default="0.99", help="quantile of the training samples' scores that is the threshold")
    parser.add_argument(
        "--threshold", help="the score above which a sample is an anomaly; the training samples are then not needed"
    )
    return parser


def detect(run: Trained) -> None:
    """Score the samples, and write the table. Raises UserError on invalid options, before anything is computed."""
    quantile = _number("quantile", run.options.quantile)
    if not 0 <= quantile <= 1:
        raise UserError(f"--quantile: {run.options.quantile!r} is not valid; expected a number from 0 to 1")
    threshold = None if run.options.threshold is None else _number("threshold", run.options.threshold)
    target = run.target(FILE)
    if target.suffix not in (".csv", ".npz"):
        raise UserError(f"--out {target}: unknown ending {target.suffix!r}; valid: .csv, .npz")
    about = "--threshold"
    if threshold is None:
        import numpy as np

        scores = _scored(run, run.own_splits["train"], [])["score"]
        threshold = float(np.quantile(scores, quantile))
        about = f"the {quantile:g} quantile of {len(scores)} training samples"
    wanted = ["column"] if run.saved.transform.columns else ["value"] if target.suffix == ".npz" else []
    found = _scored(run, run.split, wanted)
    found["anomaly"] = (found["score"] > threshold).astype("uint8")
    if run.is_main:
        write_atomically(target, _as_csv(run, found) if target.suffix == ".csv" else _as_npz(found, threshold))
    run.say(f"{int(found['anomaly'].sum())} of {len(found['score'])} samples are above the threshold {threshold:.6g}, {about}")
    for line in _agreement(found):
        run.say(line)
    run.say(f"wrote {target}")


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"--{option}: {text!r} is not valid; expected a number") from error


def _scored(run: Trained, split: "Split", wanted: Sequence[str]) -> dict[str, Any]:
    """Ids, labels, scores `[n]` and what is `wanted` of each sample, as arrays; the same on every rank."""
    from distae.evaluation.scores import per_column, per_sample, squared_errors

    def of(x: "Tensor", label: "Tensor | None") -> list["Tensor"]:
        errors = squared_errors(run.model.module, x, label)
        details = {"column": lambda: per_column(errors, run.saved.transform), "value": lambda: errors}
        return [per_sample(errors), *(details[name]() for name in wanted)]

    loader = run.loader_of(split)
    positions, columns = run.gathered(loader, of)
    loader.close()
    found = zip(("score", *wanted), columns, strict=True)
    return run.known(split, positions) | {name: column.numpy() for name, column in found if column is not None}


def _as_csv(run: Trained, found: dict[str, Any]) -> Iterator[bytes]:
    """One row per sample."""
    names = [k for k in ("id", "label", "score", "anomaly") if k in found]
    columns = [c.name for c in run.saved.transform.columns]
    details = found.get("column")
    yield from lines_as_csv([[*names, *columns]])
    for i in range(len(found["score"])):
        row = [f"{v:.6g}" if (v := found[k][i]).dtype.kind == "f" else v for k in names]
        yield from lines_as_csv([[*row, *(f"{v:.6g}" for v in (() if details is None else details[i]))]])


def _as_npz(found: dict[str, Any], threshold: float) -> bytes:
    import numpy as np

    file = io.BytesIO()
    np.savez(file, **found, threshold=np.float64(threshold))
    return file.getvalue()


def _agreement(found: dict[str, Any]) -> Iterator[str]:
    """How well the scores tell two classes apart."""
    import numpy as np

    label = found.get("label")
    if label is not None and len(classes := np.unique(label)) == 2:
        from sklearn.metrics import average_precision_score, roc_auc_score

        anomalous = label == classes[1]
        auroc, ap = roc_auc_score(anomalous, found["score"]), average_precision_score(anomalous, found["score"])
        yield f"with label {classes[1]} as the anomalies: AUROC {auroc:.4f}, average precision {ap:.4f}"
