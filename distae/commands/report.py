"""distae report RUN ...: one self-contained HTML file of a run or several.

distae report runs/a
distae report runs/a --watch
distae report runs/sweep --out sweep.html
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distae.commands import recorded
from distae.commands.runs import RecordedRun, find
from distae.commands.sources import given
from distae.commands.trained import check_options, opened
from distae.config import TrainConfig, plugin
from distae.config.cli import value_of
from distae.errors import DistaeError, UserError
from distae.report.html import Html, note, section
from distae.report.page import is_report, page
from distae.runtime import files, outcome

if TYPE_CHECKING:
    from distae.data import Split
    from distae.evaluation.evaluation import Evaluation

FILE = "report.html"
OF_PICTURES, OF_MODEL = 1_200_000, 1_000_000
"""Bytes of the pictures of the run folder, and of those that are drawn of the model."""
SPLITS = ("test", "val", "train")
EPILOG = (
    "RUN: a run folder, or a folder of runs, such as a sweep's. Further options: --data PATH, or --data.OPTION as of distae train, "
    "where the data of one run are elsewhere now; --device, --threads, --plugin."
)


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae report") -> int:
    try:
        words, options, rest = given(argv, arguments(prog), sys.maxsize)
        check_options(rest, prog)
        if not words:
            raise UserError(f"{prog} needs RUN, a run folder; {arguments(prog).format_usage().strip()}")
        if file := value_of("plugin", rest):
            plugin.load(file)
        paths = [Path(word).expanduser() for word in words]
        runs = find(paths)
        target = _target(runs, paths, options)
        refresh = options.every if options.watch else None
        computed: dict[Path, list[Html]] = {}
        while not _write(target, runs, _of_model(runs, rest, computed) if options.model else [], refresh):
            time.sleep(refresh or 0)
            runs = find(paths)
        sys.stdout.write(f"wrote {target}\n")
        return 0
    except (UserError, OSError) as error:
        sys.stderr.write(f"distae: {files.with_path(error)}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("distae: interrupted\n")
        return 130


def arguments(prog: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of the command's own options."""
    about = "Write one HTML file about a run, or about several: curves, pictures, codes, figures, settings. It needs no network."
    usage = f"{prog} RUN [RUN ...] [OPTION ...]"
    parser = argparse.ArgumentParser(prog, usage, about, EPILOG, allow_abbrev=False)
    parser.add_argument("--out", type=Path, metavar="FILE.html", help=f"default: RUN/{FILE}, or in the one folder of runs")
    parser.add_argument("--force", action="store_true", help="overwrite --out even if it is not a report")
    parser.add_argument("--watch", action="store_true", help="write it again and again until the runs have ended")
    parser.add_argument(
        "--every", type=_seconds, default=30.0, metavar="SECONDS", help="pause between two writes of --watch (default: 30)"
    )
    parser.add_argument("--no-model", dest="model", action="store_false", help="read recorded files only; needs no torch")
    return parser


def _seconds(text: str) -> float:
    if not 1 <= (value := float(text)) <= 86400:
        raise ValueError
    return value


def _target(runs: Sequence[RecordedRun], paths: Sequence[Path], options: argparse.Namespace) -> Path:
    """Where to write. Raises UserError where something else than a report is there, or several runs have no one folder."""
    if options.out is None and len(paths) > 1:
        raise UserError(f"--out: give the file of a report of several runs, as in --out {FILE}")
    path = Path(options.out or paths[0] / FILE)
    if path.suffix not in (".html", ".htm"):
        raise UserError(f"--out: {path} ends in {path.suffix or 'no format'}; valid: .html")
    if path.exists() and not options.force and not is_report(files.read_bytes(path, 1 << 30)[:100]):
        files.check_absent(path, force=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write(target: Path, runs: Sequence[RecordedRun], model: Sequence[Html], refresh: float | None = None) -> bool:
    """Write the page; returns whether it is the last one: without `refresh`, or once all runs have ended."""
    is_last = refresh is None or all(outcome.read(run.path) for run in runs)
    files.write_atomically(target, content(runs, model, None if is_last else refresh), durable=False)
    return is_last


def content(runs: Sequence[RecordedRun], model: Sequence[Html], refresh: float | None = None) -> bytes:
    """The file of one run, with what was computed of its model, or of several."""
    if len(runs) == 1:
        [run] = runs
        sections = [*recorded.of_one(run, OF_PICTURES), *model, recorded.settings(run)]
        return page(f"Run {run.name}", f"{run.config.model.name} on {run.config.data.name}, {run.state}.", sections, refresh)
    about = "distae report of one of them shows its codes, pictures over time and all settings."
    return page(f"{len(runs)} runs", about, recorded.of_several(runs, OF_PICTURES), refresh)


def _of_model(runs: Sequence[RecordedRun], rest: Sequence[str], computed: dict[Path, list[Html]]) -> list[Html]:
    """Sections that the model and the data are needed for; says why where one of them cannot be read. None of several runs.

    `computed` keeps them by the model that they are of: with --watch they are computed once for each checkpoint.
    """
    if len(runs) > 1:
        return []
    path = runs[0].path
    saved = files.names_in(path / "checkpoints")
    exported = (path / "model" / "model.safetensors").is_file()
    of = path / "model" if exported else path / (saved[-1] if saved else "")
    if of not in computed:
        computed.clear()
        computed[of] = _computed_of(path, None if exported else "last", rest)
    return computed[of]


def _computed_of(path: Path, step: str | None, rest: Sequence[str]) -> list[Html]:
    try:
        from distae import distributed as dist
        from distae.report import codes

        trained = opened(path, step, rest)
        trained.options.split = next((name for name in SPLITS if len(trained.splits[name])), "test")
        with dist.use(dist.World(0, 1, trained.device)):
            return _sections(trained.evaluation(codes.settings(trained.saved.model.code_shape)))
    except (DistaeError, OSError, RuntimeError) as error:
        return [section("Codes", note(f"The codes are left out: {files.with_path(error)}"))]


def _sections(evaluation: "Evaluation") -> list[Html]:
    from distae.report import codes

    try:
        return codes.sections(evaluation, OF_MODEL)
    finally:
        evaluation.close()


def at_the_end(cfg: TrainConfig, splits: "Mapping[str, Split]") -> str:
    """Write the report of the finished run of this process, on rank 0 alone; returns why that failed, or nothing.

    It takes the exported model and the data at hand. No error of it may fail a run that is done.
    """
    try:
        from distae import distributed as dist
        from distae.evaluation.evaluation import Evaluation
        from distae.models.serialization import load_saved
        from distae.report import codes

        run_dir, device = Path(str(cfg.run_dir)), dist.world().device
        [run] = find([run_dir])
        name = next(name for name in SPLITS if len(splits[name]))
        with dist.use(dist.World(0, 1, device)):
            model = load_saved(run_dir).model.to(device)
            made = _sections(Evaluation(model, cfg, {name: splits[name]}, name, codes.settings(model.code_shape)))
        files.write_atomically(run_dir / FILE, content([run], made), durable=False)
    except Exception as error:
        return f"{FILE} could not be written: {files.in_words(error) or type(error).__name__}"
    return ""
