"""Look at a run's checkpoints.

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


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae.checkpoint") -> int:
    args = arguments(prog).parse_args(argv)
    from distae.checkpoint.retention import steps_in

    try:
        folder = args.run / "checkpoints"
        if not steps_in(folder):
            raise UserError(f"no checkpoints in {folder}")
        if args.export:
            return _export(args.run, *args.export)
        return _list(folder, args.verify)
    except (UserError, TrainingError, OSError) as error:
        sys.stderr.write(f"distae: {error}\n")
        return 2


def arguments(prog: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """What the command line may hold."""
    parser = argparse.ArgumentParser(prog, description="Look at a run's checkpoints.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--verify", action="store_true", help="read every file and compare its checksum")
    parser.add_argument("--export", nargs=2, metavar=("STEP", "DIR"), help="write the model of a step, or of `best`, to DIR/model")
    return parser


def _list(folder: Path, verify: bool) -> int:
    """One line per checkpoint, the newest first; exit code 1 where one is not valid."""
    from distae.checkpoint.retention import STATE, manifest_of, name_of, steps_in, summary_of, why_invalid
    from distae.checkpoint.shards import damaged_file

    bad = 0
    best = _best_step(folder)
    sys.stdout.write(f"{'step':>10}  {'size':>10}  {'ranks':>5}  {'age':>8}  state\n")
    for step in steps_in(folder):
        path = folder / name_of(step)
        why = why_invalid(path)
        if why is None and verify and (name := damaged_file(path, list(manifest_of(path)))):
            why = f"{name} is damaged (its checksum is another)"
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


def _best_step(folder: Path) -> int | None:
    """The best step as the newest valid checkpoint knows it."""
    from distae.checkpoint.retention import name_of, steps_in, summary_of, why_invalid

    for step in steps_in(folder):
        if why_invalid(folder / name_of(step)) is None and (summary := summary_of(folder / name_of(step))):
            return summary.state.best_step
    return None


def _export(run: Path, which: str, target: str) -> int:
    """Write the averaged weights where there are some, else the model's own, as a finished run has them."""
    from distae.checkpoint import read_tensors
    from distae.checkpoint.retention import manifest_of, name_of, steps_in, why_invalid
    from distae.checkpoint.shards import damaged_file
    from distae.config import TrainConfig, build
    from distae.config.cli import read_toml
    from distae.models.serialization import assemble, export

    folder = run / "checkpoints"
    valid = [s for s in steps_in(folder) if why_invalid(folder / name_of(s)) is None]
    step = _best_step(folder) if which == "best" else int(which) if which.isdecimal() else None
    if step not in valid:
        raise UserError(f"--export: no valid checkpoint {which!r} in {folder}; valid: best, {', '.join(map(str, valid))}")
    path = folder / name_of(step)
    if name := damaged_file(path, list(manifest_of(path))):
        raise TrainingError(f"{path}: {name} is damaged (its checksum is another)")
    tensors = read_tensors(path)
    prefix = "ema." if any(k.startswith("ema.") for k in tensors) else "model."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    cfg = build(TrainConfig, read_toml(str(run / "config.toml"), "export"))
    export(assemble(cfg.model, cfg.net, cfg.data.shape(), weights).state_dict(), cfg, Path(target) / "model", step)
    sys.stdout.write(f"wrote step {step} to {target}/model: distae.load({target!r})\n")
    return 0
