"""distae prepare SOURCE DEST: write any data as shards that `--data array --data.path DEST` memory-maps.

    distae prepare photos/ shards/ --data.size 64
    distae prepare s3://bucket/train/ shards/ --data.column image
    distae prepare mnist shards/ --data.root data
    torchrun --nproc_per_node=2 -m distae prepare photos/ activations/ --from-model mine.py:features

Rerun to resume: complete shards are kept. Unreadable samples are reported at the end, and in DEST/manifest.json.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from distae.commands.sources import given, settings_of
from distae.config.data.manifest import Manifest
from distae.config.data.paths import MANIFEST
from distae.errors import DistaeError, UserError
from distae.runtime.environment import environment
from distae.runtime.files import in_words

SHOWN = 10
"""Most unreadable files whose names are printed; the manifest lists all."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae prepare") -> int:
    try:
        words, options, rest = given(argv, arguments(prog), 2)
        if len(words) != 2:
            raise UserError(f"{prog} needs a source and a folder to write to: {prog} SOURCE DEST")
        return prepare(words[0], Path(words[1]).expanduser(), options, rest, prog)
    except DistaeError as error:
        sys.stderr.write(f"distae: {error}\n")
        return 2 if isinstance(error, UserError) else 1
    except OSError as error:
        sys.stderr.write(f"distae: {error.filename or 'the disk'}: {in_words(error)}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("distae: interrupted by Ctrl-C: rerun to resume\n")
        return 130


def arguments(prog: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of the command's own options."""
    about = "Write data as shards that --data array --data.path DEST memory-maps. Rerun to resume."
    own = "[--workers N] [--shard-mb N] [--from-model FILE.py:FUNCTION] [--force]"
    usage = f"{prog} SOURCE DEST [--data NAME] [--data.OPTION VALUE ...] {own}"
    parser = argparse.ArgumentParser(prog, usage, about, "SOURCE: a path, a URL, or the name of a data set.", allow_abbrev=False)
    parser.add_argument("--workers", type=_count, default=len(os.sched_getaffinity(0)), help="threads that read and decode")
    parser.add_argument("--shard-mb", type=_count, default=256, help="megabytes per shard")
    parser.add_argument("--force", action="store_true", help="delete the shards that are in DEST first")
    parser.add_argument("--from-model", help="FILE.py:FUNCTION of yours: samples [B, ...] to the activations that are written")
    return parser


def prepare(source: str, folder: Path, options: argparse.Namespace, rest: Sequence[str], prog: str) -> int:
    """Write the shards and the manifest; returns the exit code."""
    cfg = settings_of(source, rest, prog).data
    from tqdm import tqdm

    from distae.config import to_dict
    from distae.data import load
    from distae.data.activations import activations
    from distae.data.preparing import Preparation, Share

    env = environment()
    if options.force and env.world_size > 1:
        raise UserError("--force requires one process: delete the folder, and leave --force out")
    splits = load(cfg)
    for note in splits["train"].notes if env.rank == 0 else ():
        sys.stderr.write(f"{note}\n")
    if options.from_model:
        splits = activations(splits, options.from_model)
    if options.force and folder.exists():
        _remove(folder)
    preparation = Preparation(splits, folder, options.shard_mb << 20, options.workers, Share(env.rank, env.world_size))
    if manifest := preparation.done_before():
        sys.stdout.write(f"{folder} is complete: nothing to do\n" if env.rank == 0 else "")
        return _report(manifest, folder) if env.rank == 0 else 0
    train = splits["train"]
    about = Manifest(
        [*(train.source.shape if options.from_model else cfg.shape())],
        train.transform.to_json(),
        {},
        [*train.source.classes],
        train.source.label is not None,
        {} if options.from_model else cfg.for_model(),
        to_dict(cfg),
    )
    with tqdm(total=preparation.samples, unit=" samples", disable=None if env.rank == 0 else True) as bar:
        preparation.write(bar.update, about)
    return _report(preparation.finish(about), folder) if env.rank == 0 else 0


def _remove(folder: Path) -> None:
    """Remove the folder of an earlier preparation. Raises UserError, and removes nothing, if it holds anything else."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() or not (path.name == MANIFEST or path.suffix in (".safetensors", ".writing")):
            raise UserError(f"--force: {path} is not from distae prepare; nothing was removed")
    shutil.rmtree(folder)


def _report(manifest: Manifest, folder: Path) -> int:
    """What was written, and what could not be read."""
    shards = [shard for split in manifest.splits.values() for shard in split]
    counts = ", ".join(f"{sum(s.rows for s in split)} {name}" for name, split in manifest.splits.items())
    size = sum(s.bytes for s in shards) / 1e9
    sys.stdout.write(f"{folder}: {counts} samples in {len(shards)} shards, {size:.3g} GB\n")
    if manifest.unread:
        sys.stdout.write(f"{len(manifest.unread)} could not be read and are left out (all in {folder / MANIFEST}):\n")
        reasons = (u.reason if u.reason.startswith(u.file) else f"{u.file}: {u.reason}" for u in manifest.unread[:SHOWN])
        sys.stdout.writelines(f"  {reason}\n" for reason in reasons)
    sys.stdout.write(f"train on it: distae train --data array --data.path {folder}\n")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{text!r} is not valid; expected an integer >= 1")
    return int(text)
