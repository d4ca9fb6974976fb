"""List, verify or export a run's checkpoints.

python -m distae.checkpoint RUN                     # step, size, world size, age, valid or why not
python -m distae.checkpoint RUN --verify            # checksums too
python -m distae.checkpoint RUN --export best DIR   # model.safetensors and config.json of a step, or of the best
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from distae.errors import TrainingError, UserError
from distae.runtime.files import in_words


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae.checkpoint") -> int:
    args = arguments(prog).parse_args(argv)
    from distae.checkpoint.retention import checkpoints_in

    try:
        folder = args.run / "checkpoints"
        if not checkpoints_in(folder):
            raise UserError(f"no checkpoints in {folder}")
        if args.export:
            return _export(args.run, *args.export)
        return _list(folder, args.verify)
    except (UserError, TrainingError, OSError) as error:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        sys.stderr.write(f"distae: {where}{in_words(error)}\n")
        return 2


def arguments(prog: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog, description="List, verify or export a run's checkpoints.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--verify", action="store_true", help="read every file and compare its checksum")
    parser.add_argument("--export", nargs=2, metavar=("STEP", "DIR"), help="write the model of a step, or of `best`, to DIR/model")
    return parser


def _list(folder: Path, verify: bool) -> int:
    """One line per checkpoint, the newest first; exit code 1 if one is not valid."""
    from distae.checkpoint.retention import STATE, checkpoints_in, manifest_of, step_of, summary_of, why_invalid
    from distae.checkpoint.shards import why_damaged

    bad = 0
    best = _best_step([p for p in checkpoints_in(folder) if why_invalid(p) is None])
    sys.stdout.write(f"{'step':>10}  {'size':>10}  {'ranks':>5}  {'age':>8}  state\n")
    for path in checkpoints_in(folder):
        step, why = step_of(path), why_invalid(path)
        if why is None and verify:
            why = why_damaged(path, manifest_of(path).files)
        summary = summary_of(path)
        if why is None and summary is None:
            why = f"{STATE} is damaged"
        bad += why is not None
        size = sum(f.stat().st_size for f in path.iterdir()) / 2**20
        ranks = summary.world_size if summary else "?"
        age = (time.time() - path.stat().st_mtime) / 60
        state = f"not valid: {why}" if why else ("verified" if verify else "valid") + (", best" if step == best else "")
        sys.stdout.write(f"{step:>10}  {size:>6.1f} MiB  {ranks:>5}  {age:>4.0f} min  {state}\n")
    return int(bad > 0)


def _usable(folder: Path) -> list[Path]:
    """The valid checkpoints, newest first, checksums compared; the others are reported."""
    from distae.checkpoint.retention import checkpoints_in, manifest_of, why_invalid
    from distae.checkpoint.shards import why_damaged

    usable = []
    for path in checkpoints_in(folder):
        if why := why_invalid(path) or why_damaged(path, manifest_of(path).files):
            sys.stderr.write(f"{path.name} is not used: {why}\n")
        else:
            usable.append(path)
    return usable


def _best_step(valid: list[Path]) -> int | None:
    """The best step that the newest valid checkpoint records, or the former best if that could not be saved."""
    from distae.checkpoint.retention import best_of, summary_of

    newest = next(filter(None, map(summary_of, valid)), None)
    return best_of(valid, newest.state.best_step) if newest else None


def _export(run: Path, which: str, target: str) -> int:
    step = export_step(run, which, Path(target))
    sys.stdout.write(f"wrote step {step} to {target}/model: distae.load({target!r})\n")
    return 0


def export_step(run: Path, which: str | None, target: Path) -> int:
    """Write the averaged weights (with --ema) or else the model's weights of a step to target/model, as a finished run does.

    `which` is a step's number, `best`, or None for the newest; returns the step. Raises UserError if there is no such checkpoint.
    """
    from distae.checkpoint import read_tensors
    from distae.checkpoint.retention import step_of, summary_of
    from distae.data import Transform
    from distae.models.serialization import assemble, export
    from distae.runtime.run_dir import read_settings, settings_of

    folder = run / "checkpoints"
    valid = {step_of(p): p for p in _usable(folder)}
    if which is None:
        step = next(iter(valid), None)
    else:
        step = _best_step([*valid.values()]) if which == "best" else int(which) if which.isdecimal() else None
    if step is None or step not in valid:
        asked, known = which or "last", ", ".join(["best", *map(str, valid)]) if valid else "none"
        raise UserError(f"--export: no valid checkpoint {asked!r} in {folder}; valid: {known}")
    path = valid[step]
    tensors = read_tensors(path)
    prefix = "ema." if any(k.startswith("ema.") for k in tensors) else "model."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    summary = summary_of(path)
    cfg = settings_of(run, summary.settings) if summary else read_settings(run)
    model = assemble(cfg.model, cfg.net, cfg.data.shape(), weights)
    transform = Transform.from_json(summary.transform) if summary and summary.transform else None
    export(model, cfg, target / "model", step, transform, summary.data if summary else None)
    return step
